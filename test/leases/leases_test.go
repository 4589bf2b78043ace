// Package leases has the members of a fleet lose their leases again and again while they
// relay, and looks whether every message comes, and every one that comes twice does so for a
// reason that is in a log.
package leases

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

// TestLeases: of three members with a real database one after the other is stopped (SIGSTOP), or
// doesn't reach the database, for longer than its lease lasts, and is adopted by another; LEASES says how
// often, by default a few times. Each message that was accepted is relayed. One that is
// relayed twice is logged as such by the member that lost it after its final dot.
func TestLeases(t *testing.T) {
	losses, _ := strconv.Atoi(os.Getenv("LEASES"))
	if losses == 0 {
		losses = 3
	}
	node := listertest.Primary(t)
	p := newPrimary(t)
	var all []*process
	for i := range 3 {
		m := start(t, fmt.Sprintf("mx%d", i+2), node, p)
		await(t, time.Minute, "it starts", func() bool { n, _ := m.left(t); return n >= 0 })
		all = append(all, m)
	}
	await(t, time.Minute, "mail comes", func() bool { return p.total() > 100 })
	var lost atomic.Int64
	var work sync.WaitGroup
	two := make(chan struct{}, 2) // one is left to adopt
	for i, m := range all {
		rnd := rand.New(rand.NewPCG(1, uint64(i)))
		work.Go(func() {
			for lost.Add(1) <= int64(losses) {
				two <- struct{}{}
				m.lose(t, rnd, all)
				<-two
				time.Sleep(time.Duration(rnd.IntN(500)) * time.Millisecond) // it comes back, or not quite
			}
		})
	}
	work.Wait()
	for _, m := range all {
		m.cmd.Process.Signal(syscall.SIGUSR1)
	}
	stopped := time.Now()
	await(t, 2*time.Minute, "all is relayed", func() bool {
		for _, m := range all {
			if n, at := m.left(t); n != 0 || at.Before(stopped.Add(time.Second)) {
				return false
			}
		}
		return true
	})
	for _, m := range all {
		m.end(t)
	}
	compare(t, p, all, losses)
}

// compare looks at what came, and at the logs.
func compare(t *testing.T, p *primary, all []*process, losses int) {
	said := map[string]int{} // by ID, how often a copy too many is explained
	moved, late, unanswered, fenced, adoptions, accepted := 0, 0, 0, 0, 0, map[string]bool{}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range all {
		for _, l := range m.lines(t) {
			switch {
			case l.Msg == "accepted":
				accepted[l.ID] = true
			case strings.HasPrefix(l.Msg, "relayed a message that another secondary has taken over"):
				moved++
				said[l.ID]++
				if m.late(p.came[l.ID], l.Time) {
					late++
				}
			case l.Unanswered != "":
				unanswered++
				said[l.Unanswered]++
			case l.Msg == "outcome not stored", strings.HasPrefix(l.Msg, "relayed a message that the primary may have had"):
				said[l.ID]++
			case strings.HasPrefix(l.Msg, "a member is silent"):
				adoptions++
			}
			if strings.Contains(l.Err, "another process has taken the spool") || strings.Contains(l.Err, "holds the spool for another") {
				fenced++
			}
		}
	}
	twice := 0
	for id := range accepted {
		copies := p.came[id]
		if len(copies) == 0 {
			t.Errorf("%s was accepted and never came", id)
		}
		if twice += max(0, len(copies)-1); len(copies)-1 > said[id] {
			t.Errorf("%s came %d times, and the logs explain %d: %v", id, len(copies), said[id], copies)
		}
	}
	t.Logf("%d faults, %d leases lost and adopted, %d messages accepted, %d copies too many: logged %d as taken over (of them %d sent after the fault), %d as unanswered; %d lines tell of a fence",
		losses, adoptions, len(accepted), twice, moved, late, unanswered, fenced)
	if late > 0 {
		t.Error("a member that came back sent what another had taken over")
	}
	if adoptions < losses/3 || fenced == 0 && losses > 20 { // of a few, each may have come back when its adopter was done
		t.Errorf("%d adoptions at %d faults, %d lines tell of a fence: nothing was tried", adoptions, losses, fenced)
	}
}

func await(t *testing.T, most time.Duration, what string, ok func() bool) {
	t.Helper()
	if !wait(most, ok) {
		t.Fatalf("not in time: %s", what)
	}
}

// wait looks until ok, for at most so long.
func wait(most time.Duration, ok func() bool) bool {
	deadline := time.NewTimer(most)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			return false
		case <-tick.C:
		}
	}
	return true
}

// process is a member's.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string
	way    *way
	faults [][2]time.Time
}

// late says that the member sent a message after the fault that cost it the message, as it
// noted at some time. What it had sent before may come a moment later.
func (m *process) late(copies []arrival, noted time.Time) bool {
	var over time.Time
	for _, f := range m.faults {
		if f[0].Before(noted) {
			over = f[1].Add(100 * time.Millisecond)
		}
	}
	return slices.ContainsFunc(copies, func(a arrival) bool { return a.from == m.name && a.at.After(over) && a.at.Before(noted) })
}

func start(t *testing.T, name string, node *listertest.Node, p *primary) *process {
	t.Helper()
	m := &process{name: name, log: filepath.Join(t.TempDir(), name), way: newWay(t, node.Address())}
	out, err := os.Create(m.log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	m.cmd = exec.Command(os.Args[0])
	m.cmd.Env = append(os.Environ(), memberVariable+"="+name, primaryVariable+"="+p.Addr().String(),
		dsnVariable+"=postgres://understudy@"+m.way.Addr().String()+"/understudy?sslmode=disable")
	m.cmd.Stdout, m.cmd.Stderr = out, out
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.cmd.Process.Kill()
		m.cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %+v", name, m.tail(t))
		}
	})
	return m
}

// lose takes the lease from a member, until another adopts its mail, and for a moment longer: it
// stands still, or its way to the database does.
func (m *process) lose(t *testing.T, rnd *rand.Rand, all []*process) {
	how, began := rnd.IntN(3), time.Now()
	defer func() { m.faults = append(m.faults, [2]time.Time{began, time.Now()}) }()
	switch how {
	case 0:
		m.cmd.Process.Signal(syscall.SIGSTOP)
	case 1:
		m.way.stall(true)
	default:
		m.way.cut(true)
	}
	wait(10*time.Second, func() bool { return m.adopted(t, all, began) }) // who has no mail isn't
	time.Sleep(time.Duration(rnd.IntN(600)) * time.Millisecond)
	switch how {
	case 0:
		m.cmd.Process.Signal(syscall.SIGCONT)
	case 1:
		m.way.stall(false)
	default:
		m.way.cut(false)
	}
}

// adopted says that another began to adopt a member's mail.
func (m *process) adopted(t *testing.T, all []*process, since time.Time) bool {
	return slices.ContainsFunc(all, func(other *process) bool {
		return slices.ContainsFunc(other.lines(t), func(l line) bool {
			return l.Member == m.name && l.Time.After(since) && strings.HasPrefix(l.Msg, "a member is silent")
		})
	})
}

func (m *process) end(t *testing.T) {
	m.cmd.Process.Signal(syscall.SIGTERM)
	if err := m.cmd.Wait(); err != nil {
		t.Errorf("%s: %v", m.name, err)
	}
}

// line is one of a member's log.
type line struct {
	Time       time.Time
	Msg, ID    string
	Unanswered string
	Member     string
	Err        string
	Messages   int
	Healthy    bool
}

func (m *process) lines(t *testing.T) (all []line) {
	t.Helper()
	b, err := os.ReadFile(m.log)
	if err != nil {
		t.Error(err)
	}
	for text := range strings.Lines(string(b)) {
		var l line
		if json.Unmarshal([]byte(text), &l) != nil && strings.HasSuffix(text, "\n") {
			l.Msg = text
		}
		all = append(all, l)
	}
	return all
}

func (m *process) tail(t *testing.T) []line {
	all := m.lines(t)
	return all[max(0, len(all)-5):]
}

// left is how much a member has, as it said last, and when.
func (m *process) left(t *testing.T) (n int, at time.Time) {
	t.Helper()
	n = -1
	for _, l := range m.lines(t) {
		if l.Msg == "left" && l.Healthy {
			n, at = l.Messages, l.Time
		}
	}
	return n, at
}

// primary takes all mail, each message after a moment, and notes which came.
type primary struct {
	net.Listener
	mu   sync.Mutex // guards came
	came map[string][]arrival
}

type arrival struct {
	at   time.Time
	from string
}

func newPrimary(t *testing.T) *primary {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &primary{Listener: l, came: map[string][]arrival{}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

func (p *primary) total() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.came)
}

func (p *primary) serve(c net.Conn) {
	defer c.Close()
	r, name := bufio.NewReader(c), ""
	say := func(text string) { io.WriteString(c, text+"\r\n") }
	say("220 primary")
	for {
		command, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch verb, rest, _ := strings.Cut(strings.TrimSpace(command), " "); strings.ToUpper(verb) {
		case "EHLO":
			name = rest
			say("250-primary\r\n250 PIPELINING")
		case "DATA":
			say("354 go on")
			id, err := content(r)
			if err != nil {
				return
			}
			p.mu.Lock()
			p.came[id] = append(p.came[id], arrival{time.Now(), name})
			p.mu.Unlock()
			time.Sleep(time.Duration(2+rand.IntN(25)) * time.Millisecond)
			say("250 taken")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("250 fine")
		}
	}
}

// content reads a message to its end, and finds its ID.
func content(r *bufio.Reader) (id string, err error) {
	for {
		text, err := r.ReadString('\n')
		if err != nil || text == ".\r\n" {
			return id, err
		}
		if rest, ok := strings.CutPrefix(text, "X-Message: "); ok && id == "" {
			id = strings.TrimSpace(rest)
		}
	}
}

// way carries connections to the database until it is cut, or stalls.
type way struct {
	net.Listener
	mu      sync.Mutex // guards the rest
	moves   *sync.Cond
	down    bool
	stalled bool
	conns   map[net.Conn]bool
}

func newWay(t *testing.T, to string) *way {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &way{Listener: l, conns: map[net.Conn]bool{}}
	w.moves = sync.NewCond(&w.mu)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", to)
			if err != nil || !w.keep(c, s) {
				c.Close()
				continue
			}
			go w.carry(c, s)
			go w.carry(s, c)
		}
	}()
	t.Cleanup(func() { l.Close(); w.stall(false); w.cut(true) })
	return w
}

func (w *way) keep(c, s net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		s.Close()
		return false
	}
	w.conns[c], w.conns[s] = true, true
	return true
}

func (w *way) carry(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		w.mu.Lock()
		for w.stalled {
			w.moves.Wait()
		}
		w.mu.Unlock()
		if err == nil {
			_, err = to.Write(buf[:n])
		}
		if err != nil {
			break
		}
	}
	from.Close()
	to.Close()
	w.mu.Lock()
	delete(w.conns, from)
	delete(w.conns, to)
	w.mu.Unlock()
}

func (w *way) stall(still bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stalled = still
	w.moves.Broadcast()
}

func (w *way) cut(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down = down; down {
		for c := range w.conns {
			c.Close()
		}
	}
}
