package test

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/handwritten"
)

// TestMemory follows a primary with many recipients, plain and hashed, and
// measures what the secondary takes: when it serves, while a change of one
// recipient is applied, and after a restart. MEMORY=full is the real size, see
// docs/BENCHMARKS.md; else it is a small one that notices when a version is
// copied again.
func TestMemory(t *testing.T) {
	sizes := map[int]float64{300_000: 120}
	if os.Getenv("MEMORY") == "full" {
		sizes = map[int]float64{1_000_000: 150, 10_000_000: 400}
	}
	for recipients, limit := range sizes {
		for _, hashed := range []bool{false, true} {
			t.Run(fmt.Sprintf("recipients=%d/hashed=%v", recipients, hashed), func(t *testing.T) {
				testMemory(t, recipients, limit, hashed)
			})
		}
	}
}

// testMemory wants at most limit MiB resident at any time.
func testMemory(t *testing.T, recipients int, limit float64, hashed bool) {
	p := &filePublisher{t: t, dir: tempDir(t), addr: testmx.FreeAddr()}
	p.list(recipients, "")
	p.start(hashed)
	s := newFollowing(t, "127.0.0.1:1")
	s.binary = plainBinary(t)
	conf := readFile(t, s.path("understudy.toml"))
	write(t, s.path("understudy.toml"), strings.Replace(conf, `domains = ["example.org"]`, `domains = [".example.org"]`, 1))
	line, _, _ := strings.Cut(p.cli("invite"), "\n")
	s.cli(strings.Fields(line)[1:]...)
	const first, added = "user0000007@d007.example.org", "new@d007.example.org"
	begin := time.Now()
	s.startWithin(5 * time.Minute)
	if got := s.ask(first); got != 250 {
		t.Fatalf("%s is answered %d", first, got)
	}
	t.Logf("first transfer: %.1f s", time.Since(begin).Seconds())
	check := func(when string) {
		t.Helper()
		now, peak := s.resident(t)
		t.Logf("%-34s %6.1f MiB resident, %6.1f MiB at most until then", when, now, peak)
		if now > limit || peak > limit {
			t.Errorf("%s: %.1f MiB resident, %.1f at most; the limit is %.0f", when, now, peak, limit)
		}
	}
	check("after the first transfer")
	s.busy(t, first, 3*time.Second)
	check("serving")
	s.resetPeak(t)
	wait := s.watch(t, first)
	p.list(recipients, added)
	eventually(t, 5*time.Minute, "the change is in force", func() bool { return s.ask(added) == 250 })
	var took time.Duration
	var at time.Time
	eventually(t, 10*time.Second, "the change is logged", func() bool { at, took = s.applied(t, 2); return took > 0 })
	during, before := wait(at.Add(-took-50*time.Millisecond), at.Add(50*time.Millisecond))
	t.Logf("a change of one applied in %d ms; meanwhile %s; before, %s", took.Milliseconds(), during, before)
	if took > 20*time.Second { // 5 s on a machine that isn't busy
		t.Errorf("the change took %v", took)
	}
	check("while a change was applied")
	s.kill()
	begin = time.Now()
	s.start()
	if got := s.ask(added); got != 250 {
		t.Errorf("after the restart it is answered %d", got)
	}
	t.Logf("restart: %.1f s", time.Since(begin).Seconds())
	check("after a restart")
	heap := s.metric("go_memstats_heap_alloc_bytes") / (1 << 20)
	t.Logf("heap: %.1f MiB", heap)
	if recipients <= 1_000_000 && heap > 64 {
		t.Errorf("the heap is %.1f MiB; the limit for a million recipients is 64", heap)
	}
}

// TestMemoryFile has the recipients in a file of its own, in no order, and in a
// snapshot such as `understudy import` writes, and measures what the secondary
// takes with it and while it is read again with one recipient more.
func TestMemoryFile(t *testing.T) {
	recipients, limit := 300_000, 56.0 // 45 to 52 were seen
	if os.Getenv("MEMORY") == "full" {
		recipients, limit = 1_000_000, 64
	}
	for _, kind := range []string{"list", "snapshot"} {
		t.Run(kind, func(t *testing.T) { testMemoryFile(t, kind, recipients, limit) })
	}
}

func testMemoryFile(t *testing.T, kind string, recipients int, limit float64) {
	s := newSecondary(t, "127.0.0.1:1", "", "[dns]\nservers = [\"127.0.0.1:1\"]\ntimeout = \"100ms\"\n")
	s.binary = plainBinary(t)
	addresses := make([]string, recipients)
	for i := range addresses {
		n := i * 7919 % recipients // each once, and out of order
		addresses[i] = fmt.Sprintf("user%07d.%x@example.org", n, n*n%9973)
	}
	put := func() {
		t.Helper()
		if kind == "list" {
			replace(t, s.path("list"), strings.Join(addresses, "\n"))
			return
		}
		slices.Sort(addresses)
		snapshot, err := handwritten.Parse("p", []byte("domains = [\"example.org\"]\nrecipients_file = \"list\"\n"),
			func(string) ([]byte, error) { return []byte(strings.Join(addresses, "\n")), nil })
		if err != nil {
			t.Fatal(err)
		}
		replace(t, s.path("policy.toml"), string(snapshot.Encode()))
	}
	if kind == "list" {
		write(t, s.path("policy.toml"), "domains = [\"example.org\"]\nrecipients_file = \"list\"\n")
	}
	put()
	s.startWithin(time.Minute)
	check := func(when string) {
		t.Helper()
		now, peak := s.resident(t)
		t.Logf("%-20s %6.1f MiB resident, %6.1f MiB at most until then", when, now, peak)
		if peak > limit {
			t.Errorf("%s: %.1f MiB resident at most; the limit is %.0f", when, peak, limit)
		}
	}
	s.wantReply(addresses[recipients/2], 250)
	check("started")
	s.resetPeak(t)
	const added = "added.later@example.org"
	s.wantReply(added, 550)
	addresses = append(addresses, added)
	put()
	eventually(t, time.Minute, "the change is in force", func() bool { return s.ask(added) == 250 })
	s.wantReply(addresses[recipients/3], 250)
	s.busy(t, added, time.Second)
	check("read again")
}

// replace puts a file in another's place, as editors do.
func replace(t *testing.T, file, text string) {
	t.Helper()
	write(t, file+".new", text)
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// filePublisher is `understudy publish` over a policy file.
type filePublisher struct {
	t         *testing.T
	dir, addr string
}

// list writes the recipients, and more.
func (p *filePublisher) list(n int, more string) {
	p.t.Helper()
	f, err := os.Create(p.dir + "/list.new")
	if err != nil {
		p.t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	for i := range n {
		fmt.Fprintf(w, "user%07d@d%03d.example.org\n", i, i%1000)
	}
	fmt.Fprintln(w, more)
	if err := w.Flush(); err != nil {
		p.t.Fatal(err)
	}
	f.Close()
	if err := os.Rename(p.dir+"/list.new", p.dir+"/list"); err != nil {
		p.t.Fatal(err)
	}
}

func (p *filePublisher) conf() string { return p.dir + "/publish.toml" }

func (p *filePublisher) start(hashed bool) {
	p.t.Helper()
	var domains []string
	for i := range 1000 {
		domains = append(domains, fmt.Sprintf("%q", fmt.Sprintf("d%03d.example.org", i)))
	}
	write(p.t, p.dir+"/policy.toml", "domains = ["+strings.Join(domains, ",")+"]\nrecipients_file = \"list\"\n")
	write(p.t, p.conf(), fmt.Sprintf("state_dir = %q\n[publish]\nlisten = %[2]q\naddress = %[2]q\nhashed = %v\n[policy]\nfile = \"policy.toml\"\n[metrics]\nlisten = \"\"\n",
		p.dir+"/state", p.addr, hashed))
	log, err := os.Create(p.dir + "/log")
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command("nice", "-n", "19", plainBinary(p.t), "publish", "-c", p.conf()) // on a machine of its own, as far as can be
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		log.Close()
	})
	eventually(p.t, 3*time.Minute, "the publisher is ready", func() bool {
		return strings.Contains(readFile(p.t, p.dir+"/log"), `"msg":"ready"`)
	})
}

func (p *filePublisher) cli(args ...string) string {
	p.t.Helper()
	out, err := exec.Command(plainBinary(p.t), append(args, "-c", p.conf())...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("understudy %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// resident is VmRSS and VmHWM of the process in MiB.
func (s *secondary) resident(t *testing.T) (now, peak float64) {
	t.Helper()
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))) {
		f := strings.Fields(line)
		if f[0] != "VmRSS:" && f[0] != "VmHWM:" {
			continue
		}
		kb, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		if f[0] == "VmRSS:" {
			now = kb / 1024
		} else {
			peak = kb / 1024
		}
	}
	return now, peak
}

// resetPeak lets VmHWM begin anew.
func (s *secondary) resetPeak(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.cmd.Process.Pid), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// busy keeps the secondary answering for a while.
func (s *secondary) busy(t *testing.T, to string, d time.Duration) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		s.ask(to)
	}
}

// reply is when a reply came, and how long it took.
type reply struct {
	at   time.Time
	took time.Duration
}

// pace describes replies.
func pace(replies []reply) string {
	if len(replies) == 0 {
		return "no reply"
	}
	slices.SortFunc(replies, func(a, b reply) int { return cmp.Compare(a.took, b.took) })
	return fmt.Sprintf("%d replies, p99 %.2f ms, the slowest %.2f ms", len(replies),
		replies[len(replies)*99/100].took.Seconds()*1000, replies[len(replies)-1].took.Seconds()*1000)
}

// watch asks again and again until the function that it returns is called:
// that tells of the replies between two times, and of those before.
func (s *secondary) watch(t *testing.T, to string) func(from, until time.Time) (during, before string) {
	var replies []reply
	session := func() error {
		raw, err := net.Dial("tcp", s.addr)
		if err != nil {
			return err
		}
		defer raw.Close()
		c := textproto.NewConn(raw)
		lines := []string{"", "EHLO client.sender.example"}
		for range 20 { // more RSETs would count as junk, and be slowed down
			lines = append(lines, "MAIL FROM:<bob@sender.example>", "RCPT TO:<"+to+">", "RSET")
		}
		for _, line := range lines {
			begin := time.Now()
			if line != "" {
				err = c.PrintfLine("%s", line)
			}
			if err == nil {
				_, _, err = c.ReadResponse(2)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", line, err)
			}
			if line != "" { // the greeting waits for early talkers
				replies = append(replies, reply{time.Now(), time.Since(begin)})
			}
		}
		return nil
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			if err := session(); err != nil {
				done <- err
				return
			}
			select {
			case <-stop:
				done <- nil
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return func(from, until time.Time) (during, before string) {
		close(stop)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		var in, out []reply
		for _, r := range replies {
			switch {
			case r.at.Before(from):
				out = append(out, r)
			case r.at.Before(until):
				in = append(in, r)
			}
		}
		return pace(in), pace(out)
	}
}

// applied says when a version was applied, and how long that took, from its
// head to the verdicts; zero: not yet.
func (s *secondary) applied(t *testing.T, version int) (at time.Time, took time.Duration) {
	t.Helper()
	for line := range bytes.Lines([]byte(readFile(t, s.path("log")))) {
		var entry struct {
			Time    time.Time
			Msg     string
			Version int
			Took    time.Duration
		}
		if bytes.Contains(line, []byte("policy applied")) && json.Unmarshal(line, &entry) == nil && entry.Version == version {
			at, took = entry.Time, entry.Took
		}
	}
	return at, took
}
