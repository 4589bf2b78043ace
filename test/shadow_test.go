package test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/meter"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// shadowing is `understudy publish` beside a Postfix whose log it reads, each with a
// DNS of its own.
type shadowing struct {
	t          *testing.T
	postfix    *postfix
	conf       string
	there, our *demo.DNS
	journal    []string // what has a command see our own journal, if Postfix writes to one
	more       []string // lines of main.cf
	verdicts   int      // recipients that Postfix has answered
}

const shadowRules = "smtpd_recipient_restrictions = reject_unauth_destination, check_recipient_access inline:{ {later@example.org = DEFER come back} %s }"

func newShadowing(t *testing.T, journal []string, more ...string) *shadowing {
	t.Helper()
	s := &shadowing{t: t, postfix: newPostfix(t), journal: journal, more: more}
	records := []string{"ok.test. 60 IN MX 10 mail.ok.test.", "mail.ok.test. 60 IN A 192.0.2.7", "66.2.0.192.bl.test. 60 IN A 127.0.0.2"}
	s.there = dnsAt(t, fmt.Sprintf("127.53.%d.%d:53", 1+rand.IntN(250), 1+rand.IntN(250)), records...)
	s.our = dnsAt(t, "127.0.0.1:0", records...)
	p := s.postfix
	p.postmap("users", "alice@example.org all/", "later@example.org all/", `"a b"@example.org all/`)
	p.postmap("senders", "bad@ok.test REJECT not you")
	s.main("")
	s.start()
	dir := tempDir(t)
	s.conf = filepath.Join(dir, "publish.toml")
	write(t, s.conf, fmt.Sprintf(`state_dir = %q
[publish]
listen = %q
address = "192.0.2.1:9626"
log = %q
[policy]
postfix = %q
postfix_service = %q
[dns]
servers = [%q]
[metrics]
listen = ""
[log]
format = "json"
`, filepath.Join(dir, "state"), testmx.FreeAddr(), map[bool]string{true: "journal", false: "auto"}[journal != nil], filepath.Join(p.dir, "conf"), p.addr, s.our.Addr()))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	argv := append(slices.Clone(journal), binary, "publish", "-c", s.conf)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if text := readFile(t, log.Name()); t.Failed() || strings.Contains(text, "DATA RACE") {
			t.Errorf("the publisher's log:\n%s", tail([]byte(text), 6000))
		}
	})
	eventually(t, 20*time.Second, "the publisher reads the log", func() bool { return strings.Contains(readFile(t, log.Name()), "the primary's log is read") })
	return s
}

func dnsAt(t *testing.T, addr string, records ...string) *demo.DNS {
	t.Helper()
	d, err := demo.StartDNSAt(addr, records...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// main writes the configuration of Postfix, with one more entry for recipients.
func (s *shadowing) main(entry string) {
	p := s.postfix
	more := s.more
	if s.journal != nil {
		more = append(more, "maillog_file =")
	}
	p.writeMain(append(slices.Clone(more), xclientHosts, "smtpd_error_sleep_time = 0", "smtpd_peername_lookup = no", "virtual_mailbox_maps = hash:"+filepath.Join(p.dir, "users"),
		"smtpd_client_restrictions = check_client_access inline:{ {192.0.2.99 = 554 5.7.1 never} } reject_rbl_client bl.test",
		"smtpd_helo_restrictions = reject_invalid_helo_hostname, reject_non_fqdn_helo_hostname",
		"smtpd_sender_restrictions = reject_unknown_sender_domain, check_sender_access hash:"+filepath.Join(p.dir, "senders")+", warn_if_reject reject",
		fmt.Sprintf(shadowRules, entry))...)
}

// start runs Postfix with its own DNS.
func (s *shadowing) start() {
	p := s.postfix
	host, _, _ := net.SplitHostPort(s.there.Addr())
	write(s.t, filepath.Join(p.dir, "resolv.conf"), "nameserver "+host+"\noptions timeout:30 attempts:2\n")
	run, err := testmx.StartDaemon(p.addr, nil, slices.Concat(s.journal, []string{"unshare", "--mount", "sh", "-ec", `mount --bind "$0/resolv.conf" /etc/resolv.conf; exec "$@"`, p.dir},
		testmx.PostfixCommand(filepath.Join(p.dir, "conf")))...)
	if err != nil {
		s.t.Fatal(err)
	}
	p.run = run
}

// send sends a message and returns the replies to its recipients.
func (s *shadowing) send(client, name, helo, from string, to ...string) []string {
	s.t.Helper()
	o := testmx.Send(s.t, s.postfix.addr, demo.Mail{XClient: "ADDR=" + client + " NAME=" + name, Helo: helo, From: from, To: to, Content: []byte(message("shadow", 100))})
	var replies []string
	for _, r := range o.Rcpt {
		replies = append(replies, r.String())
	}
	s.verdicts += len(replies)
	return replies
}

// report waits until all verdicts are judged.
func (s *shadowing) report() (r operator.Shadow) {
	s.t.Helper()
	read := func() uint64 {
		out, err := exec.Command(binary, "parity", "shadow", "--all", "--json", "-c", s.conf).Output()
		if err != nil {
			s.t.Fatal(err)
		}
		r = operator.Shadow{}
		if err := json.Unmarshal(out, &r); err != nil {
			s.t.Fatal(err)
		}
		return r.Judged + r.Undecided + r.Unreadable + r.Dropped
	}
	eventually(s.t, time.Minute, fmt.Sprintf("%d verdicts of the log are judged", s.verdicts), func() bool { return read() >= uint64(s.verdicts) })
	return r
}

// kind wants a kind of difference, within a minute.
func (s *shadowing) kind(class, cause, rule string) (k meter.Kind) {
	s.t.Helper()
	eventually(s.t, time.Minute, "the difference is seen: "+cause, func() bool {
		for _, k = range s.report().Kinds {
			if k.Class == class && k.Cause == cause && k.Rule == rule {
				return true
			}
		}
		return false
	})
	return k
}

// TestShadow: a Postfix's log is judged as Postfix judged, without a difference, also
// across a rotation of the log; and each drift made by hand is seen within a minute:
// another DNS answer, a changed rule without reload, a table edited without postmap.
func TestShadow(t *testing.T) {
	s := newShadowing(t, nil)
	r := rand.New(rand.NewPCG(1, 2))
	of := func(list ...string) string { return list[r.IntN(len(list))] }
	seen := map[string]int{}
	const sessions = 60
	for n := range sessions {
		if n == sessions/2 {
			if out, err := exec.Command("postfix", "-c", filepath.Join(s.postfix.dir, "conf"), "logrotate").CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		to := []string{of("alice@example.org", "nobody@example.org", "nobody@example.org", "later@example.org", `"a b"@example.org`, "x@elsewhere.test")}
		if n%3 == 0 {
			to = append(to, `"; from=<z@ok.test> to=<y@ok.test> proto=ESMTP helo=<"@example.org`)
		}
		for _, reply := range s.send(of("192.0.2.7", "192.0.2.7", "192.0.2.7", "192.0.2.9", "192.0.2.10", "192.0.2.66", "192.0.2.99", "IPv6:2001:db8::7"), of("mail.ok.test", "[UNAVAILABLE]"),
			of("mail.ok.test", "mail.ok.test", "mail.ok.test", "mail.ok.test", "mail.ok.test", "x", "a..b"), of("bob@ok.test", "bob@ok.test", "bob@ok.test", `"b o"@ok.test`, "", "bob@nowhere.test", "bad@ok.test"), to...) {
			seen[reply[:9]]++
		}
	}
	got := s.report()
	if got.Different > 0 || got.Unreadable > 0 || got.Dropped > 0 || got.Undecided > 0 || got.Sessions < sessions {
		t.Errorf("nothing has drifted: %+v", got)
	}
	for _, code := range []string{"250 2.1.5", "550 5.1.1", "554 5.7.1", "450 4.7.1"} {
		if seen[code] == 0 {
			t.Errorf("no session got %s: %v", code, seen)
		}
	}

	if err := s.our.Add("8.2.0.192.bl.test. 60 IN A 127.0.0.2"); err != nil {
		t.Fatal(err)
	}
	if got := s.send("192.0.2.8", "mail.ok.test", "mail.ok.test", "bob@ok.test", "alice@example.org"); !strings.HasPrefix(got[0], "250") {
		t.Errorf("another DNS answer: %s", got)
	}
	if k := s.kind("given_dns", "dns", "reject_rbl_client"); k.Count != 1 || !strings.Contains(k.Last.Ours, "blocked using bl.test") || k.Last.Primary != "250 2.1.5 Ok" || k.Last.Client != "mail.ok.test[192.0.2.8]" {
		t.Errorf("another DNS answer: %+v", k)
	}

	s.main("{alice@example.org = REJECT not now}")
	if got := s.send("192.0.2.7", "mail.ok.test", "mail.ok.test", "bob@ok.test", "alice@example.org"); !strings.HasPrefix(got[0], "250") {
		t.Errorf("a changed rule: %s", got)
	}
	began := time.Now()
	for s.report().Unexplained == 0 && time.Since(began) < time.Minute { // the publisher may read main.cf only now
		s.send("192.0.2.7", "mail.ok.test", "mail.ok.test", "bob@ok.test", "alice@example.org")
	}
	if k := s.kind("exact", "rule", "check_recipient_access"); !strings.Contains(k.Last.Ours, "not now") || k.Last.Recipient != "<alice@example.org>" {
		t.Errorf("a changed rule: %+v", k)
	}

	users := filepath.Join(s.postfix.dir, "users")
	hour, moment := time.Now().Add(-time.Hour), time.Now().Add(-15*time.Second)
	write(t, users, "alice@example.org all/\nnew@example.org all/\n")
	for name, at := range map[string]time.Time{users: moment, users + ".db": hour} {
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if k := s.kind("exact", "stale_table", "stale_table"); !strings.Contains(k.Last.Rule, "users.db is older than ") {
		t.Errorf("a table without its index: %+v", k)
	}
	out, err := exec.Command(binary, "parity", "shadow", "-c", s.conf).Output()
	if err != nil || !strings.Contains(string(out), "run postmap") || !strings.Contains(string(out), "exact: rule at rcpt") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// TestShadowCanonical: what Postfix rewrites in the envelope once it has judged is no
// difference.
func TestShadowCanonical(t *testing.T) {
	s := newShadowing(t, nil,
		"sender_canonical_maps = inline:{ {gone@ok.test = gone@nowhere.test}, {barred@ok.test = bad@ok.test} }",
		"recipient_canonical_maps = inline:{ {old@example.org = alice@example.org}, {alice@example.org = far@elsewhere.test} }",
		"canonical_maps = inline:{ {both@example.org = alice@example.org}, {both@ok.test = both@nowhere.test} }",
		"masquerade_domains = example.org", "masquerade_classes = envelope_sender, envelope_recipient",
		"virtual_alias_maps = inline:{ {list@example.org = alice@example.org both@example.org} }")
	for _, from := range []string{"bob@ok.test", "gone@ok.test", "barred@ok.test", "both@ok.test", "bad@ok.test", "bob@nowhere.test", "bob@host.example.org", ""} {
		s.send("192.0.2.7", "mail.ok.test", "mail.ok.test", from, "alice@example.org", "old@example.org", "both@example.org", "list@example.org", "nobody@example.org", "later@example.org")
	}
	if got := s.report(); got.Different > 0 || got.Unreadable > 0 || got.Dropped > 0 || got.Undecided > 20 {
		t.Errorf("nothing has drifted: %+v", got)
	}
}

// journalHere is where a systemd-journald of its own runs, beside nobody's journal and
// without the kernel's audit, and where /dev/log leads to it.
const journalHere = `mkdir -p /run/systemd/journal /run/log/journal /var/log/journal
for d in /run/systemd/journal /run/log/journal /var/log/journal /etc/systemd; do mount -t tmpfs tmpfs $d; done
printf '[Journal]\nStorage=volatile\nAudit=no\nReadKMsg=no\nRateLimitIntervalSec=0\n' >/etc/systemd/journald.conf
mkdir /run/systemd/journal/dev
mount --bind /dev /run/systemd/journal/dev
mount -t tmpfs tmpfs /dev
for f in null zero random urandom; do touch /dev/$f; mount --bind /run/systemd/journal/dev/$f /dev/$f; done
ln -s /run/systemd/journal/dev-log /dev/log
exec /usr/lib/systemd/systemd-journald`

// journald runs one, and returns what goes before a command that is to see it.
func journald(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", journalHere)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	see := []string{"nsenter", "--mount", "--target", strconv.Itoa(cmd.Process.Pid)}
	eventually(t, 20*time.Second, "journald listens (test/install-peers installs systemd)", func() bool {
		return exec.Command(see[0], append(see[1:], "test", "-S", "/run/systemd/journal/dev-log")...).Run() == nil
	})
	return see
}

// TestShadowJournal: the same where Postfix logs to a systemd-journald.
func TestShadowJournal(t *testing.T) {
	s := newShadowing(t, journald(t))
	eventually(t, time.Minute, "journalctl tells of a session", func() bool {
		c, err := net.Dial("tcp", s.postfix.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return s.report().Sessions > 0
	})
	for _, to := range []string{"alice@example.org", "nobody@example.org", `"a b"@example.org`, "x@elsewhere.test"} {
		s.send("192.0.2.7", "mail.ok.test", "mail.ok.test", "bob@ok.test", to, "later@example.org")
	}
	if got := s.report(); got.Log != "journal" || got.Error != "" || got.Judged != uint64(s.verdicts) || got.Different > 0 {
		t.Errorf("nothing has drifted: %+v", got)
	}
	if err := s.our.Add("8.2.0.192.bl.test. 60 IN A 127.0.0.2"); err != nil {
		t.Fatal(err)
	}
	s.send("192.0.2.8", "mail.ok.test", "mail.ok.test", "bob@ok.test", "alice@example.org")
	if k := s.kind("given_dns", "dns", "reject_rbl_client"); k.Count != 1 {
		t.Errorf("another DNS answer: %+v", k)
	}
}
