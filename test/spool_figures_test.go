package test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestSpoolFigures measures the daemon with its queue in a directory, in a database
// with a standby, and in that over 1 ms: `make bench-spool`. SPOOL is how many
// messages of 4 KiB each run gets; without it the database alone gets a few. In any
// case a daemon stays within 64 MiB, and drains what it took.
func TestSpoolFigures(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("SPOOL"))
	full := n > 0
	if !full {
		n = 300
	}
	db := listertest.Primary(t)
	db.Standby(t, "db2")
	db.Quorum(t, "db2")
	link, err := testmx.NewLink("127.0.0.1:0", db.Address(), time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	secret := filepath.Join(tempDir(t), "password")
	write(t, secret, listertest.Password)
	conf := func(dsn string) string {
		return fmt.Sprintf("[queue]\nstore = \"postgres\"\ndsn = %q\ndsn_password = %q\n", dsn, secret)
	}
	over := "postgres://understudy@" + link.Addr().String() + "/understudy?sslmode=disable"
	rounds, _ := strconv.Atoi(os.Getenv("ROUNDS"))
	if rounds == 0 {
		rounds = 1
	}
	for range rounds {
		for _, peer := range []struct{ name, conf string }{
			{"leveldb", ""}, {"postgres, loopback", conf(listertest.DSN(db))}, {"postgres, 1 ms", conf(over)},
		} {
			for _, sessions := range []int{20, 100} {
				if full || peer.name == "postgres, loopback" && sessions == 100 {
					t.Run(fmt.Sprintf("%s, %d", peer.name, sessions), func(t *testing.T) { spoolFigures(t, peer.conf, n, sessions) })
				}
			}
		}
		for members := 1; members <= 3 && full; members++ {
			t.Run(fmt.Sprintf("%d members", members), func(t *testing.T) { scaleFigures(t, db, members, members, n, 0) })
		}
		for _, far := range []time.Duration{0, 10 * time.Millisecond} {
			for _, with := range [][2]int{{1, 1}, {3, 1}, {3, 3}} {
				if full {
					t.Run(fmt.Sprintf("backlog of %d of %d, primary %v away", with[1], with[0], far), func(t *testing.T) { scaleFigures(t, db, with[0], with[1], n, far) })
				}
			}
		}
	}
}

// pour has clients send n messages, many in a session, of which there may be a thousand.
func pour(ctx context.Context, addr string, sessions, n int) error {
	for left := n; left > 0; {
		now := min(left, 500*sessions)
		left -= now
		out, err := exec.CommandContext(ctx, "smtp-source", "-d", "-m", strconv.Itoa(now), "-s", strconv.Itoa(sessions), "-l", "4096",
			"-f", "sender@sender.example", "-t", "a@example.org", "-M", "client.sender.example", addr).CombinedOutput()
		if err != nil || len(out) > 0 {
			return fmt.Errorf("smtp-source: %w: %s", err, out)
		}
	}
	return nil
}

// swallow takes all mail until the test ends.
func swallow(t *testing.T, addr string) {
	t.Helper()
	cmd := exec.Command("smtp-sink", "-u", "nobody", addr, "1024")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

// scaleFigures has members share 15 sessions to the primary, over a round trip of far, and the first
// of them the mail of 60 sessions.
func scaleFigures(t *testing.T, db *listertest.Node, members, loaded, n int, far time.Duration) {
	t.Helper()
	addr := testmx.FreeAddr()
	hop := addr
	if far > 0 {
		link, err := testmx.NewLink("127.0.0.1:0", addr, far)
		if err != nil {
			t.Fatal(err)
		}
		defer link.Close()
		hop = link.Addr().String()
	}
	var all []*secondary
	for i := range members {
		s := newMember(t, fmt.Sprintf("scale%d.of%d.example.org", i, members), hop, policyFor("a@example.org"), "", db)
		write(t, s.path("understudy.toml"), strings.Replace(readFile(t, s.path("understudy.toml")), "max_connections = 5", "max_connections = 15", 1))
		s.start()
		defer s.stop()
		all = append(all, s)
	}
	waiting := func() (sum float64) {
		for _, s := range all {
			sum += s.metric("understudy_queue_messages")
		}
		return sum
	}
	n -= n % loaded
	cpu, began := db.CPU(t), time.Now()
	var work errgroup.Group
	for _, s := range all[:loaded] {
		work.Go(func() error { return pour(t.Context(), s.addr, 60/loaded, n/loaded) })
	}
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	accepted, took := time.Since(began), db.CPU(t)-cpu
	if got := waiting(); got != float64(n) {
		t.Fatalf("%v messages wait, want %d", got, n)
	}
	swallow(t, addr)
	eventually(t, time.Minute, "the drain begins", func() bool { return waiting() < float64(n) })
	began, cpu = time.Now(), db.CPU(t)
	rest := waiting()
	eventually(t, time.Hour, "the queues are empty", func() bool { return waiting() == 0 })
	t.Logf("%d accepted, %.0f/s, %.0f µs of the server's CPU each; drained %.0f/s, %.0f µs", n, float64(n)/accepted.Seconds(),
		float64(took.Microseconds())/float64(n), rest/time.Since(began).Seconds(), float64((db.CPU(t)-cpu).Microseconds())/rest)
}

func spoolFigures(t *testing.T, conf string, n, sessions int) {
	t.Helper()
	primary := &demo.Primary{}
	if err := primary.Start(); err != nil {
		t.Fatal(err)
	}
	addr := primary.Addr()
	primary.Stop()
	s := newSecondary(t, addr, policyFor("a@example.org"), conf)
	s.binary = plainBinary(t)
	s.start()
	defer s.stop()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if err := pour(ctx, s.addr, sessions, n); err != nil {
		t.Fatal(err)
	}
	accepted := time.Since(began)
	memory := pssOf(t, s.cmd.Process.Pid)
	if got := s.metric("understudy_queue_messages"); got != float64(n) {
		t.Fatalf("%v messages in the queue, want %d", got, n)
	}
	commits := s.metric("understudy_queue_commits_total")
	swallow(t, addr)
	eventually(t, time.Minute, "the drain begins", func() bool { return s.metric("understudy_queue_messages") < float64(n) })
	began, rest := time.Now(), s.metric("understudy_queue_messages")
	eventually(t, time.Hour, "the queue is empty", func() bool { return s.metric("understudy_queue_messages") == 0 })
	drained := rest / time.Since(began).Seconds()
	memory = max(memory, pssOf(t, s.cmd.Process.Pid))
	t.Logf("%d accepted, %.0f/s, %.3f commits a message; drained %.0f/s; %.1f MiB PSS", n, float64(n)/accepted.Seconds(),
		commits/float64(n), drained, memory)
	if memory > 64 {
		t.Errorf("%.1f MiB", memory)
	}
}

// pssOf is a process's share of memory, in MiB.
func pssOf(t *testing.T, pid int) float64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^Pss:\s+(\d+) kB`).FindStringSubmatch(readFile(t, fmt.Sprintf("/proc/%d/smaps_rollup", pid)))
	if m == nil {
		t.Fatal("no PSS")
	}
	kib, _ := strconv.Atoi(m[1])
	return float64(kib) / 1024
}
