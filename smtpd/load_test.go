package smtpd

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// The tests here hold many sessions open over the loopback. They are short and
// few by default; LOAD=full holds as many as docs/BENCHMARKS.md reports.

func full() bool { return os.Getenv("LOAD") == "full" }

// loadServer is a server for n sessions that wants nothing of their addresses.
func loadServer(t *testing.T, n int) (s *Server, addr string, stop func()) {
	t.Helper()
	s, _ = newServer(t)
	s.CommandTimeout = time.Minute
	if n < 100 {
		s.CommandTimeout, s.DataTimeout = 300*time.Millisecond, 300*time.Millisecond
	}
	s.MaxConnections, s.MaxConnectionsPerClient, s.MaxConnectionsPerNetwork = 2*n, 2*n, 2*n
	ln := listen(t)
	return s, ln.Addr().String(), serve(t, s, ln)
}

// hold opens n sessions, each of which says script and hears replies lines.
func hold(t *testing.T, addr string, n int, script string, replies int) (held []net.Conn) {
	t.Helper()
	held = make([]net.Conn, n)
	var group sync.WaitGroup
	for w := range 16 {
		group.Go(func() {
			buf := make([]byte, 4096)
			for i := w; i < n; i += 16 {
				c, err := dialFrom(i, addr)
				if err == nil {
					held[i] = c
					_, err = io.WriteString(c, script)
				}
				for lines := 0; err == nil && lines < replies; {
					var k int
					k, err = c.Read(buf)
					lines += strings.Count(string(buf[:k]), "\n")
				}
				if err != nil {
					t.Errorf("session %d: %v", i, err)
					return
				}
			}
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return held
}

// holdIdle lets another process hold n idle sessions: both ends would be more
// open files than one process may have.
func holdIdle(t *testing.T, addr string, n int) (release func()) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run", "^TestHolder$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("HOLD=%s %d", addr, n))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("held"))); err != nil {
		t.Fatalf("the other process: %v", err)
	}
	return func() {
		in.Close()
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the other process: %v", err)
		}
	}
}

// TestHolder is holdIdle's other process.
func TestHolder(t *testing.T) {
	var addr string
	var n int
	if _, err := fmt.Sscan(os.Getenv("HOLD"), &addr, &n); err != nil {
		t.Skip("is no test of its own")
	}
	held := hold(t, addr, n, "EHLO idle.example\r\n", 9)
	fmt.Print("held")
	_, _ = io.Copy(io.Discard, os.Stdin)
	hangUp(held)
}

// dialFrom connects from an address of the loopback network that leaves ports
// enough.
func dialFrom(i int, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 30 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(i%8), 1)}}
	c, err := d.Dial("tcp", addr)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(5 * time.Minute))
	}
	return c, err
}

func hangUp(held []net.Conn) {
	for _, c := range held {
		c.Close()
	}
}

// inUse is the memory of the heap and of the stacks that is in use.
func inUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// p99 repeats do and returns the 99th percentile of what it takes.
func p99(t *testing.T, times int, do func(i int) error) time.Duration {
	t.Helper()
	took := make([]time.Duration, times)
	for i := range took {
		start := time.Now()
		if err := do(i); err != nil {
			t.Fatal(err)
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took[times*99/100]
}

// banner connects and reads the greeting.
func banner(addr string) error {
	c, err := dialFrom(0, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 3)
	if _, err = io.ReadFull(c, b); err == nil && string(b) != "220" {
		err = fmt.Errorf("banner %s", b)
	}
	return err
}

// oneMail is a whole session with one mail.
func oneMail(addr string) error {
	c, err := dialFrom(0, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "EHLO x\r\nMAIL FROM:<bob@sender.example>\r\nRCPT TO:<alice@corp.example>\r\nDATA\r\nSubject: x\r\n\r\n"+strings.Repeat("hello\r\n", 600)+".\r\nQUIT\r\n"); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err == nil && !strings.Contains(string(b), "queued as") {
		err = fmt.Errorf("not accepted: %s", b)
	}
	return err
}

// TestIdleSessions holds idle sessions: each costs little, and who is new is
// greeted at once.
func TestIdleSessions(t *testing.T) {
	n, greeted := 500, 100
	if full() {
		n, greeted = 10_000, 1000
	}
	check := leaks(t)
	s, addr, stop := loadServer(t, n)
	before := inUse()
	release := holdIdle(t, addr, n)
	each := (inUse() - before) / uint64(n)
	if got := s.sessions(); got != n {
		t.Errorf("%d sessions held, want %d", got, n)
	}
	wait := p99(t, greeted, func(int) error { return banner(addr) })
	t.Logf("%d idle sessions: %d octets each; banner p99 %v", n, each, wait)
	if full() && (each > 32<<10 || wait > 50*time.Millisecond) {
		t.Error("more than 32 KiB or 50 ms")
	}
	release()
	stop()
	check()
}

// TestSlowSenders lets senders drip an octet a second into their messages: a
// good client's mail passes as if they weren't there.
func TestSlowSenders(t *testing.T) {
	n, mails := 200, 50
	if full() {
		n, mails = 5000, 500
	}
	check := leaks(t)
	_, addr, stop := loadServer(t, n)
	before := inUse()
	held := hold(t, addr, n, "EHLO slow.example\r\nMAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\nDATA\r\n", 12)
	quit := make(chan struct{})
	var dripping sync.WaitGroup
	dripping.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			for _, c := range held {
				_, _ = io.WriteString(c, "x") // cut off when it takes too long
			}
			select {
			case <-tick.C:
			case <-quit:
				return
			}
		}
	})
	wait := p99(t, mails, func(int) error { return oneMail(addr) })
	each := (inUse() - before) / uint64(n)
	t.Logf("%d slow senders: %d octets each, client's end included; a good client's transaction p99 %v", n, each, wait)
	if full() && wait > 250*time.Millisecond {
		t.Error("more than 250 ms")
	}
	close(quit)
	dripping.Wait()
	hangUp(held)
	stop()
	check()
}

func (s *Server) sessions() int {
	s.crowd.mu.Lock()
	defer s.crowd.mu.Unlock()
	return len(s.crowd.all)
}

// leaks returns a function that fails the test when there are more goroutines
// or descriptors than now.
func leaks(t *testing.T) func() {
	t.Helper()
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	return func() {
		t.Helper()
		waitFor(t, func() bool { return runtime.NumGoroutine() <= goroutines && openFiles(t) <= files+2 })
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestSoak plays sessions that end in all ways, one after the other and many
// at a time, and looks whether anything is left of them.
func TestSoak(t *testing.T) {
	rounds := 15
	if full() {
		rounds = 400
	}
	s, addr, stop := loadServer(t, 64)
	scripts := []string{
		"", "EHLO x\r\n", "EHLO x\r\nQUIT\r\n", "GET / HTTP/1.1\r\n", strings.Repeat("A", 70_000), "NOOP\n",
		"MAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\nDATA\r\nhalf", "MAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\nDATA\r\nx\ny\r\n.\r\n",
		"MAIL FROM:<>\r\nRCPT TO:<alice@corp.example>\r\nDATA\r\n" + strings.Repeat("x", 200_000) + "\r\n.\r\n", "STARTTLS\r\n\x16\x03", "\x00\r\n",
	}
	round := func() {
		var group sync.WaitGroup
		for i, script := range append(scripts, scripts...) {
			group.Go(func() {
				c, err := dialFrom(i, addr)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				_, _ = io.WriteString(c, script) // the server may have hung up
				if i >= len(scripts) {
					_, _ = io.Copy(io.Discard, c) // until it does
				}
			})
		}
		group.Wait()
		waitFor(t, func() bool { return s.sessions() == 0 })
	}
	round()
	check := leaks(t)
	before := inUse()
	for range rounds {
		round()
	}
	check()
	if grown := int64(inUse()) - int64(before); grown > 4<<20 {
		t.Errorf("%d octets more in use", grown)
	}
	stop()
}

// waitFor waits for what gives no sign of having happened.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline:
			t.Fatal("waited for too long")
		case <-tick.C:
		}
	}
}
