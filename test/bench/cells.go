package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// cell is one measurement that all its peers go through.
type cell struct {
	name     string
	peers    []string
	sessions int
	size     int  // octets of a message
	many     bool // messages per connection, else one
	count    int  // messages for Postfix
	factor   int  // how many times as many the others get, to run about as long
	rtt      time.Duration
	ceiling  []string // smtp-sink's arguments, beside its address
	clients  int      // whose identity XCLIENT hands on; 0: without XCLIENT
	held     bool     // the policy puts all mail on hold
	live     bool     // the primary is up, rtt away
	real     bool     // … and a Postfix
	rounds   int      // at most; 0: as many as are asked for
	syncs    string   // what Postfix and Understudy sync before their 250
	target   string
	measure  func(context.Context, *bench, *peer, cell) (figures, error)
}

func (b *bench) cells() []cell {
	var all []cell
	both, three, four := []string{postfix, understudy}, []string{postfix, understudy, sink}, []string{postfix, understudy, door, sink}
	for _, sessions := range []int{1, 20, 100} {
		for _, many := range []bool{false, true} {
			all = append(all, acceptCell(4<<10, sessions, many, four))
		}
	}
	held := acceptCell(4<<10, 20, true, both)
	held.name, held.held, held.target = held.name+", all of it HELD", true, ""
	all = append(all, held)
	for _, size := range []int{64 << 10, 1 << 20} {
		all = append(all, acceptCell(size, 20, false, three), acceptCell(size, 20, true, three))
	}
	all = append(all,
		cell{name: "drain 5,000 of 4 KiB", rounds: 2, peers: both, size: 4 << 10, count: 5000, factor: 1, measure: drain, target: "≥ 5×"},
		cell{name: "drain over 50 ms, 10 connections", peers: both[1:], size: 4 << 10, count: 2000, factor: 1, measure: drain,
			rtt: 50 * time.Millisecond, rounds: 1, target: "≥ 160/s"},
		cell{name: "drain to Postfix", peers: both[1:], size: 4 << 10, count: 2000, factor: 1, measure: drainPostfix},
		cell{name: "drain to Postfix, XCLIENT, one client", peers: both[1:], size: 4 << 10, count: 2000, factor: 1, clients: 1, measure: drainPostfix},
		cell{name: "drain to Postfix, XCLIENT, 1,000 clients", peers: both[1:], size: 4 << 10, count: 2000, factor: 1, clients: 1000, measure: drainPostfix},
		cell{name: "drain to Postfix over 50 ms, XCLIENT, 100 clients", peers: both[1:], size: 4 << 10, count: 500, factor: 1, clients: 100,
			rtt: 50 * time.Millisecond, rounds: 1, measure: drainPostfix},
		cell{name: "drain to Postfix over 50 ms, XCLIENT, 1,000 clients", peers: both[1:], size: 4 << 10, count: 500, factor: 1, clients: 1000,
			rtt: 50 * time.Millisecond, rounds: 1, measure: drainPostfix},
		cell{name: "refuse unknown recipients, 20", peers: three, ceiling: []string{"-f", "RCPT"}, sessions: 20, size: 4 << 10, count: 3000, factor: 3,
			measure: refuse, target: "≥ 85 % of smtp-sink"},
		cell{name: "written, random 4 KiB", syncs: syncsInline, rounds: 2, peers: both, sessions: 20, size: 4 << 10, count: 3000, factor: 10, measure: written, target: "≤ 2.2 written"},
		cell{name: "written, random 32 KiB", syncs: syncsInline, rounds: 2, peers: both, sessions: 20, size: 32 << 10, count: 1000, factor: 4, measure: written, target: "≤ 2.2 written"},
		cell{name: "written, random 64 KiB", syncs: syncsInline, rounds: 2, peers: both, sessions: 20, size: 64 << 10, count: 1000, factor: 2, measure: written, target: "≤ 2.2 written"},
		cell{name: "written, random 1 MiB", syncs: syncsFile, rounds: 2, peers: both, sessions: 20, size: 1 << 20, count: 100, factor: 1, measure: written, target: "≤ 1.1 written"},
		cell{name: backlogName, peers: both[1:], sessions: 20, size: 4 << 10, count: 1_000_000, factor: 1, rounds: 1, measure: backlog, target: "≤ 64 MiB"},
		cell{name: "resident, 100 sessions, 5,000 queued", rounds: 2, peers: both, sessions: 100, size: 4 << 10, count: 5000, factor: 1, measure: memory, target: "≤ 64 MiB"},
	)
	if b.full {
		all = append(all, cell{name: "drain over 50 ms, Postfix's best", peers: both[:1], size: 4 << 10, count: 1000, factor: 1,
			measure: drain, rtt: 50 * time.Millisecond})
		for i := range all {
			all[i].count *= map[bool]int{true: 3, false: 1}[strings.HasPrefix(all[i].name, "accept")]
		}
	}
	return all
}

func acceptCell(size, sessions int, many bool, peers []string) cell {
	c := cell{peers: peers, sessions: sessions, size: size, many: many, measure: accept}
	c.name = fmt.Sprintf("accept %d KiB, %d, %s", size>>10, sessions, map[bool]string{true: "many", false: "one"}[many])
	c.syncs = syncsInline
	switch {
	case size == 4<<10:
		c.count, c.factor = 1200, 9
		c.target = "≥ 70 % of the door, CPU ≥ 10"
		if many {
			c.target = "≥ 60 % of the door, CPU ≥ 10"
		}
	case size == 64<<10:
		c.count, c.factor, c.target, c.rounds = 800, 3, "≥ 3×", 2
	default:
		c.count, c.factor, c.target, c.rounds, c.syncs = 120, 2, "≥ 1.5×", 2, syncsFile
	}
	if sessions == 1 {
		c.count, c.target = c.count/2, ""
	}
	return c
}

// What is synced before the 250: Postfix / Understudy.
const (
	syncsInline = "queue file / shared journal"
	syncsFile   = "queue file / body file, its directory, shared journal"
)

// n is how many messages p gets.
func (c cell) n(p *peer) int {
	if p.kind == postfix {
		return c.count
	}
	return c.count * c.factor
}

// meter measures p while do runs and until p has settled; n messages of size octets.
func meter(p *peer, n, size int, do func() (time.Duration, error)) (figures, error) {
	commits := p.commits()
	before := measure(p.group())
	took, err := do()
	if err != nil {
		return figures{}, err
	}
	flushes := deviceFlushes()
	f := figures{Rate: float64(n) / took.Seconds(), Seconds: took.Seconds(), Messages: n}
	if p.kind == sink {
		return f, nil
	}
	settle(p.group())
	after := measure(p.group())
	f.CPU = float64(after.cpu-before.cpu) / float64(n) / float64(time.Millisecond)
	f.Flushes = float64(flushes-before.flushes) / float64(n)
	if size > 0 {
		f.Written = float64(after.written-before.written) / float64(n) / float64(size)
	}
	f.Commits = (p.commits() - commits) / float64(n)
	return f, nil
}

// commits reads how many batches Understudy has synced.
func (p *peer) commits() float64 {
	if p.kind != understudy {
		return 0
	}
	return p.metric("understudy_queue_commits_total")
}

// metric reads a metric without labels, 0 when it can't.
func (p *peer) metric(name string) float64 {
	resp, err := http.Get("http://" + p.web + "/metrics")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return v
		}
	}
	return 0
}

func accept(ctx context.Context, _ *bench, p *peer, c cell) (figures, error) {
	n := c.n(p)
	f, err := meter(p, n, c.size, func() (time.Duration, error) { return smtpSource(ctx, p.addr, c, n) })
	f.Written = 0 // of bodies that no real mail has; see written
	return f, err
}

func refuse(ctx context.Context, _ *bench, p *peer, c cell) (figures, error) {
	if err := mustRefuse(p.addr); err != nil {
		return figures{}, err
	}
	n := c.n(p)
	return meter(p, n, 0, func() (time.Duration, error) {
		return source(ctx, p.addr, c, n, "-A", "-t", unknown)
	})
}

func written(_ context.Context, _ *bench, p *peer, c cell) (figures, error) {
	n := c.n(p)
	f, err := meter(p, n, c.size, func() (time.Duration, error) {
		start := time.Now()
		err := randomMail(p.addr, c.sessions, c.size, n)
		return time.Since(start), err
	})
	f.Peak = float64(peak(p.group())) / (1 << 20)
	return f, err
}

// backlogName is the cell of one long backlog.
const backlogName = "backlog of a million, random 4 KiB, 20 sessions"

// backlog fills the queue in tenths and tells each. Its figures are those of the
// slowest tenth and of the whole.
func backlog(_ context.Context, b *bench, p *peer, c cell) (figures, error) {
	body, err := randomText(c.size)
	if err != nil {
		return figures{}, err
	}
	whole := figures{Messages: c.count, Rate: math.Inf(1)}
	for range 10 {
		n := c.count / 10
		before, start := measure(p.group()), time.Now()
		if err := randomBodies(p.addr, c.sessions, n, body); err != nil {
			return figures{}, err
		}
		took, after := time.Since(start), measure(p.group())
		f := figures{Rate: float64(n) / took.Seconds(), Seconds: took.Seconds(), Messages: n,
			CPU:      float64(after.cpu-before.cpu) / float64(n) / float64(time.Millisecond),
			Written:  float64(after.written-before.written) / float64(n) / float64(c.size),
			Resident: float64(resident(p.group())) / (1 << 20), Peak: float64(peak(p.group())) / (1 << 20)}
		b.report.Backlog = append(b.report.Backlog, f)
		whole.Rate, whole.Seconds = min(whole.Rate, f.Rate), whole.Seconds+f.Seconds
		whole.CPU, whole.Written = whole.CPU+f.CPU/10, whole.Written+f.Written/10
		whole.Resident, whole.Peak = max(whole.Resident, f.Resident), f.Peak
	}
	return whole, nil
}

func memory(_ context.Context, _ *bench, p *peer, c cell) (figures, error) {
	if err := randomMail(p.addr, c.sessions, c.size, c.count); err != nil {
		return figures{}, err
	}
	leave, err := sit(p.addr, c.sessions)
	if err != nil {
		return figures{}, err
	}
	defer leave()
	return figures{Resident: float64(resident(p.group())) / (1 << 20), Peak: float64(peak(p.group())) / (1 << 20)}, nil
}

// drain fills the queue, lets the primary come back, and times from its first
// message to its last.
func drain(ctx context.Context, b *bench, p *peer, c cell) (figures, error) {
	fill := cell{sessions: 100, size: c.size, many: true}
	if _, err := smtpSource(ctx, p.addr, fill, c.count); err != nil {
		return figures{}, err
	}
	settle(p.group())
	addr := p.primary
	if c.rtt > 0 {
		addr = testmx.FreeAddr()
		link, err := testmx.NewLink(p.primary, addr, c.rtt)
		if err != nil {
			return figures{}, err
		}
		defer link.Close()
	}
	return meter(p, c.count, c.size, func() (time.Duration, error) {
		args := sinkArgs(addr, "-c", "-h", "primary.example.org", "-M", strconv.Itoa(c.count))
		primary := exec.CommandContext(ctx, args[0], args[1:]...)
		counts, err := primary.StdoutPipe()
		if err != nil {
			return 0, err
		}
		if err := primary.Start(); err != nil {
			return 0, err
		}
		if p.kind == postfix {
			if out, err := exec.CommandContext(ctx, "postqueue", "-c", filepath.Join(p.dir, "conf"), "-f").CombinedOutput(); err != nil {
				return 0, fmt.Errorf("postqueue: %w\n%s", err, out)
			}
		}
		took, err := watch(counts, c.count)
		return took, errors.Join(err, primary.Wait())
	})
}

// watch follows smtp-sink's running count of messages.
func watch(counts io.Reader, n int) (time.Duration, error) {
	var first, last time.Time
	lines := bufio.NewScanner(counts)
	lines.Split(func(data []byte, _ bool) (int, []byte, error) {
		if i := bytes.LastIndexByte(data, '\r'); i >= 0 { // all but the newest are old
			return i + 1, data[:i], nil
		}
		return 0, nil, nil
	})
	for lines.Scan() {
		i := bytes.LastIndex(lines.Bytes(), []byte("mesg="))
		if i < 0 {
			continue
		}
		seen, _ := strconv.Atoi(strings.TrimSpace(string(lines.Bytes()[i+len("mesg="):])))
		if seen > 0 && first.IsZero() {
			first = time.Now()
		}
		if seen >= n {
			last = time.Now()
			break
		}
	}
	if last.IsZero() {
		return 0, errors.New("the primary did not get all messages")
	}
	_, err := io.Copy(io.Discard, counts)
	return last.Sub(first), err
}
