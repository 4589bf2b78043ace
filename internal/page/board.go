package page

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/operator"
)

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

// watch updates the board until ctx ends.
func (p *Page) watch(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	s := newSampler()
	for {
		p.update(ctx, s)
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
	asked   time.Time // for the outages
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
	}
	now.Outages = s.outages
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
