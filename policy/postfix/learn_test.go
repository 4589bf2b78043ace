package postfix

import (
	"slices"
	"testing"
	"time"
)

// TestLearnedAges follows answers through the ages of verify(8).
func TestLearnedAges(t *testing.T) {
	const day = 24 * time.Hour
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a := ages{positiveRefresh: 7 * day, positiveExpire: 31 * day, negativeRefresh: 3 * time.Hour, negativeExpire: 3 * day}
	tables := []learnedTable{{name: "tcp:x"}}
	l := &Learned{}
	note := func(at time.Duration, there bool, keys ...string) {
		found := map[string]bool{}
		for _, k := range keys {
			found[k] = there
		}
		l.note("tcp:x", keys, found, start.Add(at))
	}
	expect := func(at time.Duration, due, kept []string) {
		t.Helper()
		l.forget(a, start.Add(at), tables)
		got := l.due("tcp:x", a, start.Add(at))
		if slices.Sort(got); !slices.Equal(got, due) {
			t.Errorf("after %s: due %q, want %q", at, got, due)
		}
		if got := sortedKeys(l.Tables["tcp:x"]); !slices.Equal(got, kept) {
			t.Errorf("after %s: kept %q, want %q", at, got, kept)
		}
	}
	note(0, true, "yes", "lost")
	note(0, false, "no", "comes")
	expect(2*time.Hour, nil, []string{"comes", "lost", "no", "yes"})
	expect(3*time.Hour, []string{"comes", "no"}, []string{"comes", "lost", "no", "yes"})
	note(3*time.Hour, false, "no")
	note(3*time.Hour, true, "comes")
	expect(4*time.Hour, nil, []string{"comes", "lost", "no", "yes"})
	note(71*time.Hour, false, "no") // asked again and again, it is as old as its first no
	expect(3*day, nil, []string{"comes", "lost", "yes"})
	expect(7*day, []string{"lost", "yes"}, []string{"comes", "lost", "yes"})
	note(7*day, true, "yes")
	note(7*day, false, "lost") // a table's no is definite
	expect(7*day+4*time.Hour, []string{"comes", "lost"}, []string{"comes", "lost", "yes"})
	expect(31*day+3*time.Hour, []string{"yes"}, []string{"yes"})
	l.forget(a, start, nil)
	if len(l.Tables) > 0 {
		t.Error("a table that isn't learned any more is kept")
	}
}

// TestLearnedIsBounded: strangers can't fill the memory.
func TestLearnedIsBounded(t *testing.T) {
	l := &Learned{}
	keys := make([]string, maxAbsent+100)
	for i := range keys {
		keys[i] = time.Duration(i).String()
	}
	l.note("tcp:x", keys, nil, time.Now())
	l.note("tcp:x", []string{"yes"}, map[string]bool{"yes": true}, time.Now())
	if there, absent := l.count("tcp:x"); there != 1 || absent != maxAbsent {
		t.Errorf("%d there, %d absent", there, absent)
	}
}

func TestAges(t *testing.T) {
	for s, want := range map[string]time.Duration{"31d": 744 * time.Hour, "3h": 3 * time.Hour, "2w": 336 * time.Hour, "5": 120 * time.Hour, "90s": 90 * time.Second, "0": 0} {
		if got, err := parseAge(s, "d"); err != nil || got != want {
			t.Errorf("%q: %s, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "d", "3x", "-1d", "1h30m", "h", "99999999d"} {
		if _, err := parseAge(s, "h"); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}
