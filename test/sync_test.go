package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// farAway is a network namespace behind a veth pair: the primary's machine.
type farAway struct {
	t          *testing.T
	name       string
	here       string // our end of the pair
	there      string
	addr, peer string // theirs and ours
}

// farAways counts them: tests run side by side.
var farAways atomic.Int32

// newFarAway needs root, as the tests with a Postfix do.
func newFarAway(t *testing.T) *farAway {
	t.Helper()
	id := (os.Getpid() + int(farAways.Add(1))) % 10000
	f := &farAway{t: t, name: fmt.Sprintf("understudy-test-%d", id), here: fmt.Sprintf("us%da", id), there: fmt.Sprintf("us%db", id),
		addr: fmt.Sprintf("198.18.%d.2", id%256), peer: fmt.Sprintf("198.18.%d.1", id%256)}
	t.Cleanup(func() {
		f.run("ip", "link", "del", f.here) // with its peer, and now; a namespace goes later
		if out, err := exec.Command("ip", "netns", "del", f.name).CombinedOutput(); err != nil {
			t.Errorf("ip netns del: %v\n%s", err, out)
		}
	})
	f.run("ip", "netns", "add", f.name)
	f.run("ip", "link", "add", f.here, "type", "veth", "peer", "name", f.there, "netns", f.name)
	f.run("ip", "addr", "add", f.peer+"/30", "dev", f.here)
	f.run("ip", "-n", f.name, "addr", "add", f.addr+"/30", "dev", f.there)
	f.run("ip", "-n", f.name, "link", "set", "lo", "up")
	f.run("ip", "-n", f.name, "link", "set", f.there, "up")
	f.link("up")
	return f
}

func (f *farAway) run(name string, args ...string) {
	f.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		f.t.Fatalf("%s %s: %v (the test needs root and iproute2, see test/install-peers)\n%s", name, strings.Join(args, " "), err, out)
	}
}

func (f *farAway) link(state string) {
	f.t.Helper()
	f.run("ip", "link", "set", f.here, state)
}

// slow makes the line from there a slow one, or as fast as before.
func (f *farAway) slow(yes bool) {
	f.t.Helper()
	if yes {
		f.run("ip", "netns", "exec", f.name, "tc", "qdisc", "add", "dev", f.there, "root", "tbf", "rate", "1mbit", "burst", "8k", "latency", "400ms")
	} else {
		f.run("ip", "netns", "exec", f.name, "tc", "qdisc", "del", "dev", f.there, "root")
	}
}

// publisher is `understudy publish` far away, over a real Postfix
// configuration and a file of more recipients.
type publisher struct {
	t       *testing.T
	far     *farAway
	postfix *postfix
	dir     string
	cmd     *exec.Cmd
	done    chan error
}

func newPublisher(t *testing.T, far *farAway) *publisher {
	t.Helper()
	p := &publisher{t: t, far: far, dir: tempDir(t)}
	p.postfix = newPostfix(t, "virtual_mailbox_maps = hash:$config_directory/vmailbox", "mynetworks = 192.0.2.0/28")
	p.mailboxes("alice@example.org")
	write(t, filepath.Join(p.dir, "bulk"), "")
	write(t, p.conf(), fmt.Sprintf(`state_dir = %q
[publish]
listen = "%[2]s:9626"
address = "%[2]s:9626"
[policy]
postfix = %[3]q
postfix_service = %[4]q
[[source]]
name = "bulk"
type = "file"
path = "bulk"
[metrics]
listen = ""
[log]
format = "json"
`, filepath.Join(p.dir, "state"), far.addr, filepath.Join(p.postfix.dir, "conf"), p.postfix.addr))
	t.Cleanup(func() {
		if p.cmd != nil {
			p.kill()
		}
		if log, _ := os.ReadFile(p.log()); t.Failed() || strings.Contains(string(log), "DATA RACE") {
			t.Errorf("the end of the publisher's log:\n%s", tail(log, 6000))
		}
	})
	return p
}

func (p *publisher) conf() string { return filepath.Join(p.dir, "publish.toml") }
func (p *publisher) log() string  { return filepath.Join(p.dir, "log") }

// mailboxes writes Postfix's table, as its operator does.
func (p *publisher) mailboxes(addresses ...string) {
	p.t.Helper()
	table := filepath.Join(p.postfix.dir, "conf/vmailbox")
	write(p.t, table, strings.Join(addresses, " all/\n")+" all/\n")
	if out, err := exec.Command("postmap", "-c", filepath.Join(p.postfix.dir, "conf"), "hash:"+table).CombinedOutput(); err != nil {
		p.t.Fatalf("postmap: %v\n%s", err, out)
	}
}

// stays is so much of a list that what goes beside it asks nobody.
var stays = numbered("stays%d@example.org", 20)

// bulk makes a source list stays and addresses.
func (p *publisher) bulk(addresses []string) {
	p.t.Helper()
	write(p.t, filepath.Join(p.dir, "bulk.new"), strings.Join(append(slices.Clone(stays), addresses...), "\n")+"\n")
	if err := os.Rename(filepath.Join(p.dir, "bulk.new"), filepath.Join(p.dir, "bulk")); err != nil {
		p.t.Fatal(err)
	}
}

func (p *publisher) start() {
	p.t.Helper()
	log, err := os.OpenFile(p.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	begin, err := log.Seek(0, 2)
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command("ip", "netns", "exec", p.far.name, binary, "publish", "-c", p.conf())
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(p.cmd, p.done)
	eventually(p.t, 20*time.Second, "the publisher is ready", func() bool {
		return strings.Contains(readFile(p.t, p.log())[begin:], `"msg":"ready"`)
	})
}

func (p *publisher) kill() {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("kill the publisher: %v", err)
	}
	<-p.done
	p.cmd = nil
}

func (p *publisher) cli(args ...string) string {
	p.t.Helper()
	out, err := exec.Command(binary, append(args, "-c", p.conf())...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("understudy %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// pair invites and joins, and wants both sides to show one fingerprint.
func pair(t *testing.T, p *publisher, s *secondary) {
	t.Helper()
	line, _, _ := strings.Cut(p.cli("invite", "mx2"), "\n")
	out := s.cli(strings.Fields(line)[1:]...)
	print := strings.TrimSpace(out[strings.LastIndex(out, ":")+1:])
	if peers := p.cli("peers"); len(print) < 10 || !strings.Contains(peers, print) {
		t.Errorf("the fingerprint %q of\n%s is not in\n%s", print, out, peers)
	}
}

// syncStatus is what `policy status --json` says.
type syncStatus struct {
	State, Staged, Alarm, Notice, Digest string
	Version, Recipients                  uint64
}

func (s *secondary) sync() (st syncStatus) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.cli("policy", "status", "--json")), &st); err != nil {
		s.t.Fatal(err)
	}
	return st
}

// ask is what a client hears about a recipient: the reply's code.
func (s *secondary) ask(to string) int {
	s.t.Helper()
	raw, err := net.DialTimeout("tcp", s.addr, 5*time.Second)
	if err != nil {
		s.t.Fatal(err)
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	c, code := textproto.NewConn(raw), 0
	for _, line := range []string{"", "EHLO client.sender.example", "MAIL FROM:<bob@sender.example>", "RCPT TO:<" + to + ">"} {
		if line != "" {
			if err := c.PrintfLine("%s", line); err != nil {
				s.t.Fatal(err)
			}
		}
		var err error
		var protocol *textproto.Error
		if code, _, err = c.ReadResponse(0); err != nil && !errors.As(err, &protocol) {
			s.t.Fatalf("%s: %v", line, err)
		}
		if code >= 400 {
			break
		}
	}
	return code
}

// wantReply waits until a recipient is answered with a code.
func (s *secondary) wantReply(to string, code int) {
	s.t.Helper()
	got := 0
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if got = s.ask(to); got == code {
			return
		}
	}
	s.t.Fatalf("%s is answered %d, want %d", to, got, code)
}

// newFollowing is a secondary that takes its policy from a primary.
func newFollowing(t *testing.T, primary string) *secondary {
	t.Helper()
	s := newSecondary(t, primary, "", "[dns]\nservers = [\"127.0.0.1:1\"]\ntimeout = \"100ms\"\n")
	conf := readFile(t, s.path("understudy.toml"))
	write(t, s.path("understudy.toml"), strings.Replace(conf, "[policy]\nfile = \"policy.toml\"\n", "[sync]\ndomains = [\"example.org\"]\n", 1))
	return s
}

// TestSync follows a Postfix primary across a network: changes, a mass
// deletion, a cut line, both ends killed, a revoked key, no primary at all.
func TestSync(t *testing.T) {
	far := newFarAway(t)
	p := newPublisher(t, far)
	p.start()
	s := newFollowing(t, p.postfix.addr)
	pair(t, p, s) // before serve ever ran
	s.start()
	s.wantReply("alice@example.org", 250)
	s.wantReply("nobody@example.org", 550)

	t.Run("change", func(t *testing.T) { testChanges(t, p, s) })
	t.Run("what the operators see", func(t *testing.T) { testShown(t, p, s) })
	t.Run("mass deletion", func(t *testing.T) { testMassDeletion(t, p, s) })
	t.Run("line cut during a transfer", func(t *testing.T) {
		interrupt(t, p, s, "cut", func() { far.link("down") }, func() { far.link("up") })
	})
	t.Run("publisher killed during a transfer", func(t *testing.T) {
		interrupt(t, p, s, "kill", p.kill, p.start)
	})
	t.Run("broken source", func(t *testing.T) { testBrokenSource(t, p, s) })
	t.Run("new keys", func(t *testing.T) { testNewKeys(t, p, s) })
	t.Run("revoked", func(t *testing.T) { testRevoked(t, p, s) })
	t.Run("secondary killed, no primary", func(t *testing.T) {
		before := s.sync()
		p.kill()
		s.kill()
		s.start()
		s.wantReply("alice@example.org", 250)
		s.wantReply("nobody@example.org", 550)
		if now := s.sync(); now.Version != before.Version || now.State != "fresh" {
			t.Errorf("after the restart: %+v, before: %+v", now, before)
		}
		if v := s.metric(`understudy_sync_state{state="fresh"}`); v != 1 {
			t.Errorf("understudy_sync_state says %v", v)
		}
	})
	s.stop()
}

// testChanges adds mailboxes one by one. The clock starts when postmap has
// ended and stops at the first 250.
func testChanges(t *testing.T, p *publisher, s *secondary) {
	const changes = 100
	all := []string{"alice@example.org"}
	var took []time.Duration
	for i := range changes {
		to := fmt.Sprintf("new%d@example.org", i)
		all = append(all, to)
		p.mailboxes(all...)
		start := time.Now()
		s.wantReply(to, 250)
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("%d changes, from postmap's end to the verdict: median %v, p99 %v, most %v", changes,
		took[changes/2].Round(time.Millisecond), took[changes*99/100].Round(time.Millisecond), took[changes-1].Round(time.Millisecond))
	if p99 := took[changes*99/100]; p99 > 10*time.Second { // 1 s on a machine that isn't busy
		t.Errorf("p99 is %v", p99)
	}
}

// testShown: a map and a parameter change, and both ends show it.
func testShown(t *testing.T, p *publisher, s *secondary) {
	p.bulk([]string{"bulk1@example.org", "bulk2@example.org"})
	s.wantReply("bulk2@example.org", 250)
	main := filepath.Join(p.postfix.dir, "conf/main.cf")
	good := readFile(t, main)
	write(t, main, testmx.Override(good, "smtpd_helo_required = yes\n"))
	p.bulk([]string{"bulk1@example.org", "bulk3@example.org", "bulk4@example.org"})
	s.wantReply("bulk4@example.org", 250)
	helo := func() bool { return strings.Contains(s.cli("policy", "diff"), "helo_required") }
	eventually(t, 30*time.Second, "the parameter is changed", helo)
	contains := func(who, got string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !regexp.MustCompile(w).MatchString(got) {
				t.Errorf("%s doesn't show %q:\n%s", who, w, got)
			}
		}
	}
	diff := s.cli("policy", "diff")
	contains("policy diff", diff, `^Version \d+ to \d+: `, `- +"helo_required": false`, `\+ +"helo_required": true`)
	both := `(?m)^Last change +\S+ \(\d+s ago\): version \d+ to \d+, \+\d -\d recipients.*, 2 lines of settings$`
	eventually(t, 2*time.Minute, "the secondary knows when the sources were read", func() bool {
		return strings.Contains(s.cli("policy", "status"), "source bulk") // with the next report
	})
	contains("policy status", s.cli("policy", "status"), `(?m)^Version +\d+ \(epoch \d+\), sha256:[0-9a-f]{16}$`, both, `(?m)^Recipients +\d+ in 1 domain$`,
		`(?m)^  example.org +\d+$`, `(?m)^  postfix +\S+ \(\S+ ago\)$`, `(?m)^  source bulk +\S+ \(\S+ ago\)$`)
	contains("policy status on the primary", p.cli("policy", "status"), `(?m)^Version +\d+ \(epoch \d+\), sha256:[0-9a-f]{16}$`, both,
		`(?m)^  example.org +\d+$`, `(?m)^  source bulk +\S+ \(\S+ ago\)$`, `(?m)^Secondaries +1; see`)
	st := s.sync()
	eventually(t, 2*time.Minute, "the primary knows what the secondary has", func() bool {
		return strings.Contains(p.cli("peers", "--json"), fmt.Sprintf(`"version": %d`, st.Version)) &&
			strings.Contains(p.cli("peers", "--json"), st.Digest) && strings.Contains(p.cli("peers", "--json"), `"queue_messages": 0`)
	})
	write(t, main, good)
	p.bulk(nil)
	s.wantReply("bulk4@example.org", 550)
}

// testMassDeletion: the deleted are put off until the operator approves.
func testMassDeletion(t *testing.T, p *publisher, s *secondary) {
	p.bulk(numbered("gone%d@example.org", 300))
	s.wantReply("gone7@example.org", 250)
	p.bulk(nil)
	s.wantReply("gone7@example.org", 450)
	s.wantReply("alice@example.org", 250)
	s.wantReply("nobody@example.org", 550)
	st := s.sync()
	if out := s.cli("policy", "pending"); st.Staged != "pending" || !strings.Contains(out, "deletes 300 of") {
		t.Errorf("%+v\n%s", st, out)
	}
	s.cli("policy", "approve", fmt.Sprint(st.Version))
	s.wantReply("gone7@example.org", 550)
	if out := s.cli("policy", "pending"); !strings.Contains(out, "No deletion") {
		t.Error(out)
	}
}

// interrupt starts a transfer that takes seconds, ends it in the middle, and
// wants the old policy whole until the new one is.
func interrupt(t *testing.T, p *publisher, s *secondary, name string, end, again func()) {
	before := s.sync()
	var many []string
	for i := range 30_000 {
		many = append(many, fmt.Sprintf("%s%x@example.org", name, uint32(i)*2654435761))
	}
	last := many[len(many)-1]
	slices.Sort(many)
	p.far.slow(true)
	p.bulk(many)
	fetched := func() float64 { return s.metric("understudy_sync_fetched_chunks_total") }
	first := fetched()
	eventually(t, 30*time.Second, "the transfer has begun", func() bool { return fetched() > first })
	end()
	if now := s.sync(); now.Version != before.Version {
		t.Errorf("version %d is in force in the middle of its transfer", now.Version)
	}
	if got := s.ask(last); got != 550 {
		t.Errorf("a recipient of a version in transfer is answered %d", got)
	}
	if got := s.ask("alice@example.org"); got != 250 {
		t.Errorf("alice is answered %d", got)
	}
	again()
	p.far.slow(false)
	s.wantReply(last, 250)
	if now := s.sync(); now.Recipients < 30_000 {
		t.Errorf("after the transfer: %+v", now)
	}
}

// testBrokenSource: the last good policy stays, and both ends say why.
func testBrokenSource(t *testing.T, p *publisher, s *secondary) {
	main := filepath.Join(p.postfix.dir, "conf/main.cf")
	good := readFile(t, main)
	write(t, main, testmx.Override(good, "virtual_mailbox_maps = hash:/nonexistent/vmailbox\n"))
	eventually(t, 30*time.Second, "the secondary knows of the broken source", func() bool {
		return strings.Contains(s.sync().Notice, "/nonexistent/vmailbox")
	})
	s.wantReply("alice@example.org", 250)
	for who, status := range map[string]string{"secondary": s.cli("policy", "status"), "primary": p.cli("policy", "status")} {
		if !regexp.MustCompile(`(?m)^  postfix +\S+ \(.* ago\), failing$`).MatchString(status) {
			t.Errorf("the %s doesn't show the failing source:\n%s", who, status)
		}
	}
	before := s.sync().Version
	p.kill()
	p.start() // it offers what it published last, or a secondary that joins now would have nothing
	late := newFollowing(t, p.postfix.addr)
	line, _, _ := strings.Cut(p.cli("invite", "late"), "\n")
	late.cli(strings.Fields(line)[1:]...)
	late.start()
	late.wantReply("alice@example.org", 250)
	late.wantReply("nobody@example.org", 550)
	if st := late.sync(); st.Version != before || !strings.Contains(st.Notice, "/nonexistent/vmailbox") {
		t.Errorf("the late secondary has %+v; before the restart it was version %d", st, before)
	}
	late.stop()
	p.cli("revoke", "late")
	write(t, main, good)
	eventually(t, 30*time.Second, "the secondary knows that it is well again", func() bool { return s.sync().Notice == "" })
}

// testNewKeys replaces the keys of both ends, without pairing anew, and restarts
// both on them.
func testNewKeys(t *testing.T, p *publisher, s *secondary) {
	keys := func() string {
		return readFile(t, filepath.Join(p.dir, "state/publish/server.key")) + readFile(t, filepath.Join(p.dir, "state/publish/policy.key"))
	}
	before := keys()
	p.cli("rotate")
	eventually(t, 2*time.Minute, "the secondary has the new keys", func() bool {
		return exec.Command(binary, "rotate", "--finish", "-c", p.conf()).Run() == nil
	})
	if keys() == before {
		t.Error("the keys are the old ones")
	}
	stay := append(numbered("new%d@example.org", 100), "alice@example.org") // of testChanges
	p.mailboxes(append(stay, "newkeys@example.org")...)
	s.wantReply("newkeys@example.org", 250)
	own := filepath.Join(s.dir, "state/sync/client.key")
	before = readFile(t, own)
	s.cli("rotate")
	if readFile(t, own) == before {
		t.Error("the secondary's key is the old one")
	}
	p.kill()
	p.start()
	s.kill()
	s.start()
	p.mailboxes(stay...)
	s.wantReply("newkeys@example.org", 550)
	if st := s.sync(); st.Alarm != "" {
		t.Errorf("afterwards: %+v", st)
	}
}

// testRevoked: without access the policy stays; joining again works while
// serve runs.
func testRevoked(t *testing.T, p *publisher, s *secondary) {
	p.cli("revoke", "mx2")
	eventually(t, 30*time.Second, "the secondary knows that it is revoked", func() bool { return s.sync().Alarm == "refused" })
	s.wantReply("alice@example.org", 250)
	pair(t, p, s)
	p.mailboxes("alice@example.org", "again@example.org")
	s.wantReply("again@example.org", 250)
	eventually(t, 30*time.Second, "both sides see the other well", func() bool {
		return s.sync().Alarm == "" && strings.Contains(p.cli("peers"), "fresh")
	})
}
