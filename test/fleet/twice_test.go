package main

import (
	"testing"
	"time"
)

// TestWindow: a message that came twice is explained by what was killed, or cut off, before the
// first relaying was noted, and by nothing else.
func TestWindow(t *testing.T) {
	first, second := &machine{n: 1}, &machine{n: 2}
	at := func(seconds int) time.Time { return time.Date(2026, 11, 29, 12, 0, seconds, 0, time.UTC) }
	twice := func(a, b *machine) []arrival {
		return []arrival{{at: at(10), by: a, queueID: "A", id: "x"}, {at: at(30), by: b, queueID: "B", id: "x"}}
	}
	noted := func(machines ...*machine) map[*machine]int {
		n := map[*machine]int{}
		for _, m := range machines {
			n[m]++
		}
		return n
	}
	other := twice(first, first)
	other[1].id = "y"
	same := twice(first, first)
	same[1].queueID = "A"
	for name, tt := range map[string]struct {
		copies []arrival
		said   said
		notes  []note
		want   string
	}{
		"no reason":                     {twice(first, second), said{noted: noted(second)}, nil, outsideOfAny},
		"killed at the first":           {twice(first, second), said{noted: noted(second)}, []note{{at(11), first, "killed"}}, secondaryKilled},
		"another one killed":            {twice(first, second), said{noted: noted(second)}, []note{{at(11), second, "killed"}}, outsideOfAny},
		"killed long before":            {twice(first, second), said{noted: noted(second)}, []note{{at(5), first, "killed"}}, outsideOfAny},
		"killed, but it had noted it":   {twice(first, second), said{noted: noted(first, second)}, []note{{at(11), first, "killed"}}, outsideOfAny},
		"killed, and the same again":    {twice(first, first), said{noted: noted(first)}, []note{{at(11), first, "killed"}}, secondaryKilled},
		"noted twice by the same":       {twice(first, first), said{noted: noted(first, first)}, []note{{at(11), first, "killed"}}, outsideOfAny},
		"the primary killed":            {twice(first, first), said{noted: noted(first)}, []note{{at(12), nil, "killed"}}, primaryKilled},
		"the primary killed afterwards": {twice(first, first), said{noted: noted(first)}, []note{{at(31), nil, "killed"}}, outsideOfAny},
		"a reply lost":                  {twice(first, first), said{noted: noted(first)}, []note{{at(8), first, "deaf"}}, replyLost},
		"a reply lost, as the log says": {twice(first, second), said{noted: noted(second), unanswered: noted(first)}, nil, replyLost},
		"another's reply lost":          {twice(first, second), said{noted: noted(second), unanswered: noted(second)}, nil, outsideOfAny},
		"a lease lost":                  {twice(first, second), said{noted: noted(first, second), moved: true}, nil, leaseLost},
		"sent on twice":                 {other, said{noted: noted(first, first)}, []note{{at(11), first, "killed"}}, outsideOfAny},
		"the primary's own":             {same, said{noted: noted(first)}, nil, primarysOwn},
	} {
		s := &stage{notes: tt.notes}
		if got := s.window(tt.copies, &tt.said); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}
