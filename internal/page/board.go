package page

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/service"
)

// maxHistory bounds the file of the day's chart, in octets; a full one has a
// tenth of it.
const maxHistory = 1 << 20

// point is one moment of the chart: Unix time, what waits, arrival and drain rate
// a second, and 1 while every next hop is up.
type point [5]float64

// series is a chart's points, so far apart, the oldest first.
type series struct {
	Step   float64 `json:"step"` // seconds
	Points []point `json:"points"`

	max  int
	part []point // of the step that isn't over
}

// keep drops points that can't be drawn any more, and what isn't in order.
func (s *series) keep(points []point, now time.Time) {
	for _, p := range points {
		if n := len(s.Points); (n == 0 || p[0] > s.Points[n-1][0]) && p[0] > float64(now.Unix())-s.Step*float64(s.max) && p[0] <= float64(now.Unix()) {
			s.Points = append(s.Points, p)
		}
	}
	s.Points = s.Points[max(0, len(s.Points)-s.max):]
}

// add takes a moment. A step of several is their last depth, their mean rates, and
// up if all were; it counts when the next one begins.
func (s *series) add(p point) {
	if len(s.part) > 0 && math.Floor(p[0]/s.Step) != math.Floor(s.part[0][0]/s.Step) {
		if len(s.Points) == s.max {
			s.Points = slices.Delete(s.Points, 0, 1)
		}
		s.Points = append(s.Points, mean(s.part))
		s.part = s.part[:0]
	}
	s.part = append(s.part, p)
}

func mean(part []point) point {
	sum := part[len(part)-1]
	for _, q := range part[:len(part)-1] {
		sum[2], sum[3], sum[4] = sum[2]+q[2], sum[3]+q[3], min(sum[4], q[4])
	}
	sum[2], sum[3] = round(sum[2]/float64(len(part))), round(sum[3]/float64(len(part)))
	return sum
}

// history is what a page that opens knows at once.
type history struct {
	Minutes series `json:"minutes"`
	Day     series `json:"day"`
}

// board holds the last picture of the daemon. One goroutine replaces it, each
// event stream reads it.
type board struct {
	mu      sync.Mutex // guards what follows
	past    history
	picture []byte
	next    chan struct{} // closed when there is another
}

func newBoard() board {
	return board{next: make(chan struct{}), past: history{
		Minutes: series{Step: 1, max: 600, Points: []point{}},
		Day:     series{Step: 120, max: 720, Points: []point{}},
	}}
}

// post replaces the picture; p is nil when the daemon did not answer.
func (b *board) post(picture []byte, p *point) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p != nil {
		b.past.Minutes.add(*p)
		b.past.Day.add(*p)
	}
	b.picture = picture
	close(b.next)
	b.next = make(chan struct{})
}

// recall takes over the day that file has from an earlier process. Without it
// the day begins now.
func (b *board) recall(file string, now time.Time) error {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var day []point
	if err := json.NewDecoder(io.LimitReader(f, maxHistory)).Decode(&day); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.past.Day.keep(day, now)
	return nil
}

// close ends the step that isn't over.
func (b *board) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if day := &b.past.Day; len(day.part) > 0 {
		day.keep([]point{mean(day.part)}, time.Now())
	}
}

// day is the day as recall reads it, and its last moment.
func (b *board) day() (text []byte, last float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.past.Day.Points); n > 0 {
		last = b.past.Day.Points[n-1][0]
	}
	text, err := json.Marshal(b.past.Day.Points)
	if err != nil {
		panic(fmt.Sprintf("page: %v", err)) // numbers can be spelt
	}
	return text, last
}

func (b *board) look() ([]byte, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.picture, b.next
}

func (b *board) memory() ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return json.Marshal(b.past)
}

// watch updates the board until ctx ends, and keeps its day for the next process.
func (p *Page) watch(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	if err := p.board.recall(p.o.History, time.Now()); err != nil {
		p.o.Log.Warn("the page's chart begins anew", "err", err)
	}
	_, kept := p.board.day()
	keep := func() {
		day, last := p.board.day()
		if last == kept {
			return
		}
		kept = last
		if err := service.ReplaceFile(p.o.History, day); err != nil {
			p.o.Log.Warn("the page's chart isn't kept", "err", err)
		}
	}
	defer keep()
	defer p.board.close()
	s := newSampler()
	for {
		p.update(ctx, s)
		keep()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// sampler remembers what a picture needs of earlier ones.
type sampler struct {
	watch   operator.Watch
	counts  counts
	outages []outageNow
	parity  *parityNow
	fleet   *fleetNow
	asked   time.Time // for the outages, the parity and the fleet
}

func newSampler() *sampler {
	return &sampler{outages: []outageNow{}, counts: counts{list: []verdict{}}} // lists in JSON, never null
}

func (p *Page) update(ctx context.Context, s *sampler) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	now := now{Hostname: p.o.Hostname, Version: p.o.Version, At: time.Now()}
	var moment *point
	if status, err := p.o.Desk.Status(ctx); err != nil {
		now.Error = show(err.Error())
	} else {
		s.watch.Add(status)
		now.fill(s.watch.View())
		up := 1.0
		for _, r := range status.Routes {
			if !r.Up {
				up = 0
			}
		}
		moment = &point{float64(status.At.Unix()), float64(status.Messages - status.Held), round(now.In), round(now.Out), up}
	}
	if now.At.Sub(s.asked) >= countEvery {
		s.asked = now.At
		if all, err := p.o.Desk.Outages(ctx); err == nil {
			s.outages = lastOutages(all)
		}
		if r, err := p.o.Desk.Parity(ctx, false); err == nil {
			s.parity = parityOf(r)
		}
		if p.o.Fleet {
			if v, err := p.o.Desk.Fleet(ctx); err == nil {
				s.fleet = fleetOf(v)
			}
		}
	}
	now.Outages, now.Parity, now.Fleet = s.outages, s.parity, s.fleet
	now.Policy, now.Verdicts = s.counts.read(p.o.Metrics, now.At)
	picture, err := json.Marshal(now)
	if err != nil {
		panic(fmt.Sprintf("page: %v", err)) // a type of ours that JSON can't spell
	}
	p.board.post(picture, moment)
}

// events sends the history, and then each picture; a slow reader skips some.
func (p *Page) events(w http.ResponseWriter, r *http.Request, _ caller) {
	select {
	case p.watchers <- struct{}{}:
		defer func() { <-p.watchers }()
	default:
		w.Header().Set("Retry-After", "10")
		control.Fail(w, http.StatusServiceUnavailable, fmt.Errorf("%d pages are open already; close one", maxWatchers))
		return
	}
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Time{}) // nothing more is read; a failed write ends it
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	send := func(event string, data []byte) bool {
		if c.SetWriteDeadline(time.Now().Add(eventTimeout)) != nil {
			return false
		}
		if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, data); err != nil {
			return false
		}
		return c.Flush() == nil
	}
	past, err := p.board.memory()
	if err != nil || !send("history", past) {
		return
	}
	for {
		picture, next := p.board.look()
		if picture != nil && !send("now", picture) {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-next:
		}
	}
}
