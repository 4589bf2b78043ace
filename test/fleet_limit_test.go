package test

import (
	"bytes"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// gate is in front of a primary and counts the sessions that bring mail.
type gate struct {
	net.Listener
	to string

	mu        sync.Mutex // guards what follows
	now, most int
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", testmx.FreeAddr())
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Listener: l, to: to}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go g.carry(c)
		}
	}()
	return g
}

func (g *gate) carry(c net.Conn) {
	defer c.Close()
	s, err := net.Dial("tcp", g.to)
	if err != nil {
		return
	}
	defer s.Close()
	go func() { io.Copy(c, s); c.Close() }()
	counted, buf := false, make([]byte, 64<<10)
	defer func() {
		if counted {
			g.count(-1)
		}
	}()
	for {
		n, err := c.Read(buf)
		if !counted && bytes.Contains(buf[:n], []byte("MAIL FROM:<sender")) {
			counted = true
			g.count(1)
		}
		if _, werr := s.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (g *gate) count(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now += n
	g.most = max(g.most, g.now)
}

func (g *gate) sessions() (now, most int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.now, g.most
}

// TestFleetLimit: all mail waits at one of three members, and leaves with the whole of the
// primary's limit. Then another one has mail, too, and members die and come back: together
// they never have more sessions to the primary than the limit.
func TestFleetLimit(t *testing.T) {
	const limit = 20
	node := listertest.Primary(t)
	primary := &demo.Primary{Delay: 50 * time.Millisecond}
	startAgain(t, primary)
	g := newGate(t, primary.Addr())
	primary.Stop()
	var all []*secondary
	for _, name := range []string{"mx2.example.org", "mx3.example.org", "mx4.example.org"} {
		s := newMember(t, name, g.Addr().String(), policyFor("a@example.org"), "durability = \"one-machine\"\n", node)
		write(t, s.path("understudy.toml"), strings.Replace(readFile(t, s.path("understudy.toml")), "max_connections = 5", "max_connections = "+strconv.Itoa(limit), 1))
		s.start()
		all = append(all, s)
	}
	bring := func(s *secondary, n int) {
		out, err := exec.CommandContext(t.Context(), "smtp-source", "-d", "-m", strconv.Itoa(n), "-s", "20", "-l", "500",
			"-f", "sender@sender.example", "-t", "a@example.org", "-M", "client.sender.example", s.addr).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Fatalf("smtp-source: %v\n%s", err, out)
		}
	}
	bring(all[0], 1500)
	startAgain(t, primary)
	defer primary.Stop()
	eventually(t, 30*time.Second, "one member has the whole limit", func() bool { now, _ := g.sessions(); return now == limit })
	bring(all[1], 500)
	all[2].kill()
	eventually(t, 30*time.Second, "another one has a part", func() bool { return all[1].metric("understudy_queue_messages") < 450 })
	all[2].start()
	all[0].kill()
	all[0].start()
	for _, s := range all {
		eventually(t, 60*time.Second, "the queue is empty", func() bool { return s.metric("understudy_queue_messages") == 0 })
	}
	for _, s := range all {
		s.stop()
	}
	if _, most := g.sessions(); most != limit {
		t.Errorf("%d sessions at a time, the limit is %d", most, limit)
	}
}
