package operator

import "time"

// rateOver is how far back a rate looks.
const rateOver = 10 * time.Second

// Watch keeps what was seen lately of a daemon.
type Watch struct{ seen []Status }

// Add takes what was seen now.
func (w *Watch) Add(now Status) {
	w.seen = append(w.seen, now)
	for len(w.seen) > 2 && now.At.Sub(w.seen[1].At) >= rateOver {
		w.seen = w.seen[1:]
	}
}

// View is one picture of a daemon.
type View struct {
	Status
	In         float64  `json:"in_per_second"`
	Out        float64  `json:"out_per_second"`
	EmptyAfter *float64 `json:"empty_after_seconds"` // null when it doesn't shrink
}

// View is the picture after the last Add, of which there must be one.
func (w *Watch) View() View {
	first, now := w.seen[0], w.seen[len(w.seen)-1]
	v := View{Status: now}
	took := now.At.Sub(first.At).Seconds()
	if took <= 0 || now.Accepted < first.Accepted { // nothing to compare with, or another queue
		w.seen = []Status{now}
		return v
	}
	came := float64(now.Accepted - first.Accepted)
	v.In = came / took
	v.Out = (came - float64(now.Messages-first.Messages)) / took
	if waiting := now.Messages - now.Held; waiting > 0 && v.Out > v.In {
		after := float64(waiting) / (v.Out - v.In)
		v.EmptyAfter = &after
	}
	return v
}
