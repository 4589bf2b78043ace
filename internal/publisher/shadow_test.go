package publisher

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/internal/meter"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix/maillog"
	"github.com/understudy-mx/understudy/policy/table"
)

// logFile is a log that is written and rotated.
type logFile struct {
	t    *testing.T
	path string
	f    *os.File
}

func (l *logFile) open() {
	l.t.Helper()
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	l.f = f
}

func (l *logFile) write(s string) {
	l.t.Helper()
	if _, err := l.f.WriteString(s); err != nil {
		l.t.Fatal(err)
	}
}

func (l *logFile) do(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// TestTail: every line that is written after the first look is read once, however
// the file is rotated.
func TestTail(t *testing.T) {
	copied := func(l *logFile) { l.do(os.Truncate(l.path, 0)) }
	for _, tt := range []struct {
		name string
		do   func(l *logFile, look func())
		want string
	}{
		{"grows", func(l *logFile, look func()) { l.write("a\n"); look(); l.write("b\nc"); look(); l.write("d\n") }, "a|b|cd"},
		{"renamed", func(l *logFile, look func()) {
			l.write("a\n")
			l.do(os.Rename(l.path, l.path+".1"))
			look()
			l.write("b\n") // the writer still has it
			old := l.f
			l.open()
			look()
			fmt.Fprint(old, "c\n")
			look()
			l.write("d\n")
			look()
			old.Close()
		}, "a|b|c|d"},
		{"renamed twice between two looks", func(l *logFile, look func()) {
			l.write("a\n")
			look()
			l.do(os.Rename(l.path, l.path+".2"))
			l.open()
			l.do(os.Rename(l.path, l.path+".1"))
			l.open()
			l.write("b\n")
		}, "a|b"},
		{"truncated", func(l *logFile, look func()) { l.write("a\nlonger\n"); look(); copied(l); look(); l.write("b\n") }, "a|longer|b"},
		{"truncated, and longer than before", func(l *logFile, look func()) {
			l.write("a\n")
			look()
			copied(l)
			l.write("b, and much longer\n")
		}, "a|b, and much longer"},
		{"truncated in a line", func(l *logFile, look func()) { l.write("a\nbeg"); look(); copied(l); look(); l.write("new\n") }, "a|new"},
		{"removed, and made anew", func(l *logFile, look func()) {
			l.write("a\n")
			l.do(os.Remove(l.path))
			look()
			l.open()
			l.write("b\n")
		}, "a|b"},
		{"a line without end", func(l *logFile, look func()) {
			for range 5 {
				l.write(strings.Repeat("x", maillog.MaxLine/2))
				look()
			}
			l.write("\nb\n")
		}, "b"},
		{"no text", func(l *logFile, look func()) { l.write("\x00\xff\r\n\n") }, "\x00\xff\r|"},
		{"much at once", func(l *logFile, look func()) { l.write(strings.Repeat(strings.Repeat("y", 99)+"\n", 9000)) }, strings.TrimSuffix(strings.Repeat(strings.Repeat("y", 99)+"|", 9000), "|")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &logFile{t: t, path: filepath.Join(t.TempDir(), "log")}
			l.open()
			defer l.f.Close()
			l.write("from before\n")
			var got []string
			tl := &tail{path: l.path}
			defer tl.close()
			look := func() {
				for more := true; more; {
					var err error
					if more, err = tl.look(func(b []byte) { got = append(got, string(b)) }); err != nil {
						t.Fatal(err)
					}
				}
			}
			look()
			tt.do(l, look)
			look()
			if diff := cmp.Diff(tt.want, strings.Join(got, "|")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(tl.line) > maillog.MaxLine {
				t.Errorf("%d octets of a line are kept", len(tl.line))
			}
		})
	}
	tl := &tail{path: filepath.Join(t.TempDir(), "later")}
	defer tl.close()
	var got []string
	emit := func(b []byte) { got = append(got, string(b)) }
	if _, err := tl.look(emit); err == nil {
		t.Error("a file that isn't there is read")
	}
	if err := os.WriteFile(tl.path, []byte("first\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tl.look(emit); err != nil || len(got) != 1 {
		t.Errorf("a file that came later: %q, %v", got, err)
	}
}

// noDNS has no answers.
type noDNS struct{}

var errNoDNS = &net.DNSError{Err: "no such host", IsNotFound: true}

func (noDNS) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) { return nil, errNoDNS }
func (noDNS) LookupMX(context.Context, string) ([]*net.MX, error)               { return nil, errNoDNS }
func (noDNS) LookupAddr(context.Context, string) ([]string, error)              { return nil, errNoDNS }
func (noDNS) LookupTXT(context.Context, string) ([]string, error)               { return nil, errNoDNS }
func (noDNS) LookupNS(context.Context, string) ([]*net.NS, error)               { return nil, errNoDNS }

func newShadow(t *testing.T, change func(*policy.Spec)) *Shadow {
	t.Helper()
	set, err := table.NewSet([]string{"alice@corp.example", "team@corp.example"})
	if err != nil {
		t.Fatal(err)
	}
	spec := policy.NewSpec()
	spec.Addresses.Relay = policy.AddressClass{Domains: []string{"corp.example"}, Recipients: []string{"r"}}
	spec.Tables = map[string]*table.Table{"r": set}
	spec.Restrictions.Recipient = []policy.Restriction{{Kind: "reject_unauth_destination"}}
	if change != nil {
		change(spec)
	}
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	mx := metrics.New(prometheus.NewRegistry())
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	p := &Publisher{cfg: &config.Config{}}
	p.last.Store(&Reading{Imported: Imported{Snapshot: snap, Report: &fidelity.Report{}}})
	m := meter.Open(meter.Options{File: filepath.Join(t.TempDir(), "parity.json"), Log: log, Agreement: mx.ShadowAgreement, Differences: mx.Differences.MustCurryWith(prometheus.Labels{"by": "shadow"})}, time.Now())
	return NewShadow(p, m, noDNS{}, log, mx)
}

// judged reads lines and judges what they have.
func (s *Shadow) judged(lines ...string) (meter.LogStatus, meter.Report) {
	for _, l := range lines {
		s.line(maillog.Line("Nov 29 14:59:46 primary postfix/" + l))
	}
	for len(s.jobs) > 0 {
		s.judgeOne(context.Background(), <-s.jobs)
	}
	return s.Status(), s.meter.Report(true)
}

// TestShadowMessages: an accepted message's lines are joined by its queue ID, each of
// its recipients counts once, as the client gave it; a refusal is one line.
func TestShadowMessages(t *testing.T) {
	const id = "3AC499B8035: "
	for _, tt := range []struct {
		name   string
		change func(*policy.Spec)
		lines  []string
		want   string // judged, undecided, unreadable, different
	}{
		{"an expanded alias", nil, []string{"smtpd[1]: " + id + "client=a.example[192.0.2.1]", "qmgr[1]: " + id + "from=<b@x.example>, size=1, nrcpt=2 (queue active)",
			"virtual[1]: " + id + "to=<one@corp.example>, orig_to=<team@corp.example>, relay=virtual, delay=1", "virtual[1]: " + id + "to=<two@corp.example>, orig_to=<team@corp.example>, relay=virtual, delay=1"}, "1 0 0 0"},
		{"a queue ID again", nil, []string{"smtpd[1]: " + id + "client=a.example[192.0.2.1]", "smtpd[1]: " + id + "client=b.example[192.0.2.2]", "qmgr[1]: " + id + "from=<>, size=1, nrcpt=1 (queue active)",
			"virtual[1]: " + id + "to=<alice@corp.example>, relay=virtual, delay=1", "qmgr[1]: " + id + "removed", "virtual[1]: " + id + "to=<team@corp.example>, relay=virtual, delay=1"}, "1 0 0 0"},
		{"who is unknown here", nil, []string{"smtpd[1]: " + id + "client=a.example[192.0.2.1]", "qmgr[1]: " + id + "from=<>, size=1, nrcpt=1 (queue active)", "virtual[1]: " + id + "to=<new@corp.example>, relay=virtual, delay=1"}, "1 0 0 1"},
		{"submitted", nil, []string{"smtpd[1]: " + id + "client=a.example[192.0.2.1], sasl_method=PLAIN", "qmgr[1]: " + id + "from=<>, size=1, nrcpt=1 (queue active)", "smtp[1]: " + id + "to=<x@y.example>, relay=y, delay=1"}, "0 0 0 0"},
		{"nobody's: a bounce, a probe", nil, []string{"qmgr[1]: " + id + "from=<>, size=1, nrcpt=1 (queue active)", "smtp[1]: " + id + "to=<x@y.example>, relay=y, delay=1"}, "0 0 0 0"},
		{"a HELO name that the log lacks", func(s *policy.Spec) {
			s.Restrictions.Helo = []policy.Restriction{{Kind: "reject_unknown_helo_hostname"}}
		}, []string{"smtpd[1]: " + id + "client=a.example[192.0.2.1]", "qmgr[1]: " + id + "from=<>, size=1, nrcpt=1 (queue active)", "virtual[1]: " + id + "to=<alice@corp.example>, relay=virtual, delay=1"}, "0 1 0 0"},
		{"a message refused", nil, []string{"smtpd[1]: " + id + "milter-reject: END-OF-MESSAGE from a[192.0.2.1]: 554 5.7.1 spam; from=<a@b.example> to=<alice@corp.example> proto=ESMTP helo=<a>"}, "0 1 0 0"},
		{"refused alike", nil, []string{"smtpd[1]: NOQUEUE: reject: RCPT from a[192.0.2.1]: 550 5.1.1 <x>: Recipient address rejected: User unknown; from=<a@b.example> to=<x@corp.example> proto=ESMTP helo=<a>"}, "1 0 0 0"},
		{"refused there only", nil, []string{"smtpd[1]: NOQUEUE: reject: RCPT from a[192.0.2.1]: 550 5.1.1 <x>: Recipient address rejected: User unknown; from=<a@b.example> to=<alice@corp.example> proto=ESMTP helo=<a>"}, "1 0 0 1"},
		{"what can't be read", nil, []string{"smtpd[1]: NOQUEUE: reject: RCPT from a[192.0.2.1]: 550 no; from=<a@b.example> to=<al"}, "0 0 1 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st, r := newShadow(t, tt.change).judged(tt.lines...)
			if got := fmt.Sprint(st.Judged, st.Undecided, st.Unreadable, r.Different); got != tt.want {
				t.Errorf("%s, want %s; %+v", got, tt.want, r)
			}
		})
	}
}

// TestShadowHostile: a log that grows faster than it can be judged, and messages that
// never end, take no more than their share.
func TestShadowHostile(t *testing.T) {
	s := newShadow(t, nil)
	for n := range 2 * shadowMessages {
		s.line("postfix/smtpd", fmt.Sprintf("A%07X: client=a.example[192.0.2.1]", n), true)
	}
	if len(s.messages) != shadowMessages || len(s.order) != shadowMessages {
		t.Errorf("%d messages, %d in order", len(s.messages), len(s.order))
	}
	id := s.order[0]
	s.line("postfix/qmgr", id+": from=<>, size=1, nrcpt=1 (queue active)", true)
	for n := range 3 * shadowRcpts {
		s.line("postfix/virtual", fmt.Sprintf("%s: to=<u%d@corp.example>, relay=virtual, delay=1", id, n), true)
	}
	if n := len(s.messages[id].recipients); n != shadowRcpts {
		t.Errorf("%d recipients of one message", n)
	}
	for range 2 * shadowWaiting {
		s.line("postfix/smtpd", "NOQUEUE: reject: RCPT from a[192.0.2.1]: 550 no; from=<> to=<x@corp.example> proto=ESMTP helo=<a>", true)
	}
	if st := s.Status(); len(s.jobs) != shadowWaiting || st.Dropped != 2*shadowWaiting+shadowRcpts-shadowWaiting {
		t.Errorf("%d wait, %+v", len(s.jobs), st)
	}
}

// TestJournal: entries of journalctl are read, and its end is told with its own words
// (a script stands for it).
func TestJournal(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\nprintf '%s\\n' '{\"SYSLOG_IDENTIFIER\":\"postfix/smtpd\",\"MESSAGE\":\"connect from a[192.0.2.1]\"}' '{\"SYSLOG_IDENTIFIER\":\"postfix/smtpd\",\"MESSAGE\":[99,111]}'\necho no journal here >&2\nexit 1\n"
	if err := os.WriteFile(filepath.Join(dir, "journalctl"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	var got bytes.Buffer
	err := journalPlace().follow(context.Background(), func(b []byte) {
		program, message, ok := maillog.Journal(b)
		fmt.Fprintln(&got, program, message, ok)
	})
	if want := "postfix/smtpd connect from a[192.0.2.1] true\npostfix/smtpd co true\n"; got.String() != want {
		t.Errorf("%q, want %q", got.String(), want)
	}
	if err == nil || !strings.Contains(err.Error(), "no journal here") {
		t.Errorf("%v", err)
	}
}

// TestWhere: the log is looked for where Postfix lives.
func TestWhere(t *testing.T) {
	bin := t.TempDir()
	for name, script := range map[string]string{ // the engine has one container, which is this machine; its name is "mail"
		"docker": "#!/bin/sh\n[ \"$1 $2 $3\" = \"exec -i mail\" ] || { echo \"No such container: $3\" >&2; exit 1; }\nshift 3; exec \"$@\"\n",
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	root, bare, here := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "log")
	for _, name := range []string{here, filepath.Join(root, "var/log/mail/mail.log"), filepath.Join(root, "var/log/own")} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	docker := []string{"docker", "exec", "-i", "mail"}
	for name, tt := range map[string]struct {
		log, said string // by the configuration, by Postfix
		policy    config.Policy
		want      string // the name, or a part of the error
	}{
		"named":                      {log: here, said: "/x", policy: config.Policy{PostfixPrefix: docker}, want: here},
		"the journal":                {log: "journal", policy: config.Policy{PostfixPrefix: docker}, want: "journal"},
		"by Postfix":                 {log: "auto", said: here, want: here},
		"its output":                 {log: "auto", said: "/dev/stdout", want: "name the one that has it by log under [publish]"},
		"below a directory":          {log: "auto", policy: config.Policy{PostfixRoot: root}, want: root + "/var/log/mail/mail.log"},
		"below one, by Postfix":      {log: "auto", said: "/var/log/own", policy: config.Policy{PostfixRoot: root}, want: root + "/var/log/own"},
		"below one, none":            {log: "auto", policy: config.Policy{PostfixRoot: bare}, want: "no log of Postfix's below it: /var/log/mail.log, /var/log/maillog, /var/log/mail/mail.log; name"},
		"below one, its output":      {log: "auto", said: "/dev/stdout", policy: config.Policy{PostfixRoot: root}, want: "name the one that has it by log"},
		"in a container":             {log: "auto", said: here, policy: config.Policy{PostfixPrefix: docker}, want: "docker exec -i mail tail " + here},
		"the container's output":     {log: "auto", said: "/dev/stdout", policy: config.Policy{PostfixPrefix: docker}, want: "docker logs --follow --tail 0 mail"},
		"a file that isn't there":    {log: "auto", said: here + ".none", policy: config.Policy{PostfixPrefix: docker}, want: "docker logs --follow --tail 0 mail"},
		"compose":                    {log: "auto", said: "/dev/stdout", policy: config.Policy{PostfixPrefix: []string{"/usr/bin/docker", "compose", "-f", "c.yaml", "exec", "-T", "smtp"}}, want: "/usr/bin/docker compose -f c.yaml logs --follow --tail 0 --no-log-prefix smtp"},
		"podman by sudo":             {log: "auto", said: "/dev/stdout", policy: config.Policy{PostfixPrefix: []string{"sudo", "podman", "exec", "-i", "smtp"}}, want: "sudo podman logs --follow --tail 0 smtp"},
		"another machine's output":   {log: "auto", said: "/dev/stdout", policy: config.Policy{PostfixPrefix: []string{"ssh", "mx1"}}, want: "how that machine keeps its output isn't known; name a file that has it here by log under [publish]"},
		"a container that has gone":  {log: "auto", policy: config.Policy{PostfixPrefix: []string{"docker", "exec", "-i", "gone"}}, want: "No such container: gone"},
		"a container without a name": {log: "auto", said: "/dev/stdout", policy: config.Policy{PostfixPrefix: []string{"docker", "exec", "-i"}}, want: "isn't known"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShadow(t, nil)
			s.p.cfg.Policy, s.p.cfg.Publish.Log = tt.policy, tt.log
			s.p.last.Load().Report.LogFile = tt.said
			at, err := s.where(t.Context())
			if err != nil && !strings.Contains(err.Error(), tt.want) || err == nil && at.name != tt.want {
				t.Errorf("%q, %v; want %q", at.name, err, tt.want)
			}
		})
	}
}

// TestFollowThere follows a log in a container through a rotation. When we end, nothing is
// left running there, though it isn't our child.
func TestFollowThere(t *testing.T) {
	l := &logFile{t: t, path: filepath.Join(t.TempDir(), "mail.log")}
	l.open()
	// A session of its own, whose output something else reads, stands for the engine's daemon.
	at := tailThere(&host.Host{Prefix: []string{"setsid", "--wait", "env", "-u", "UNDERSTUDY_RUN", "sh", "-c", `"$@" | cat`, "sh"}}, l.path)
	ctx, stop := context.WithCancel(t.Context())
	got, ended := make(chan string), make(chan error)
	go func() { ended <- at.follow(ctx, func(line []byte) { got <- string(line) }) }()
	for i := 0; ; i++ { // until tail is there
		l.write(fmt.Sprintf("begin %d\n", i))
		select {
		case <-got:
		case <-time.After(20 * time.Millisecond):
			continue
		}
		break
	}
	l.do(os.Rename(l.path, l.path+".1"))
	l.do(l.f.Close())
	l.open()
	l.write("rotated\n")
	for line := ""; line != "rotated"; {
		line = <-got
	}
	l.do(l.f.Close())
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		left, err := exec.Command("pgrep", "-f", "tail -n 0 -F "+l.path).Output()
		if err != nil && len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("left running: %s", left)
		}
		<-time.After(20 * time.Millisecond)
	}
}
