package greylist

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var byKey = cmpopts.SortSlices(func(a, b Entry) bool { return a.Kind+a.Key < b.Kind+b.Key })

// TestLearnt: who has passed here is told once; who waits or was let in by the primary
// isn't, and what changes while it is told is told again.
func TestLearnt(t *testing.T) {
	c := open(t, Options{})
	c.try("192.0.2.1", "a")
	c.try("192.0.2.2", "waits")
	c.Passed(attempt("192.0.2.3", "let in"))
	if got := c.Learnt(10); len(got) != 0 {
		t.Fatalf("learnt too early: %+v", got)
	}
	first := c.now
	c.now = c.now.Add(400 * time.Second)
	c.try("192.0.2.1", "a")
	c.Passed(attempt("192.0.2.4", "let in by the primary"))
	want := []Entry{
		{Service: "postgrey-1", Kind: Client, Key: "192.0.2.1", Count: 1, Last: c.now, Passed: true},
		{Service: "postgrey-1", Kind: Triplet, Key: "a", First: first, Last: c.now, Passed: true},
	}
	got := c.Learnt(10)
	if diff := cmp.Diff(want, got, byKey); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	if n := len(c.Learnt(1)); n != 1 {
		t.Errorf("%d entries, want 1", n)
	}
	c.try("192.0.2.1", "b")
	c.now = c.now.Add(2 * time.Hour)
	c.try("192.0.2.1", "b") // the client counts again before the first is told
	c.Told(got)
	if diff := cmp.Diff([]Entry{
		{Service: "postgrey-1", Kind: Client, Key: "192.0.2.1", Count: 2, Last: c.now, Passed: true},
		{Service: "postgrey-1", Kind: Triplet, Key: "b", First: c.now.Add(-2 * time.Hour), Last: c.now, Passed: true},
	}, c.Learnt(10), byKey); diff != "" {
		t.Errorf("after it is told (-want +got):\n%s", diff)
	}
	c.Told(c.Learnt(10))
	if got := c.Learnt(10); len(got) != 0 {
		t.Errorf("told, and yet: %+v", got)
	}
	for i := range maxFresh + 10 {
		c.freshen(keyOf(kindClient, "s", fmt.Sprint(i)), record{1, 1})
	}
	if n := len(c.Learnt(1 << 30)); n != maxFresh {
		t.Errorf("%d wait to be told", n)
	}
}

// TestTold: what secondaries have told stays, across restarts and within its bound;
// the newer word of an entry counts.
func TestTold(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passed.json")
	open := func() *Learned {
		t.Helper()
		l, err := OpenLearned(file)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	add := func(l *Learned, list ...Entry) {
		t.Helper()
		if err := l.Add(list); err != nil {
			t.Fatal(err)
		}
	}
	walk := func(l *Learned) (all []Entry) {
		_ = l.Walk(func(e Entry) error { all = append(all, e); return nil })
		return all
	}
	at := func(n int) time.Time { return time.Unix(1_790_000_000+int64(n), 0).UTC() }
	one := Entry{Service: "s", Kind: Client, Key: "192.0.2.1", Count: 1, Last: at(1), Passed: true}
	two := Entry{Service: "s", Kind: Triplet, Key: "a/b/c", First: at(0), Last: at(2), Passed: true}
	newer := one
	newer.Count, newer.Last = 5, at(3)
	l := open()
	add(l, newer, two)
	add(l, one)
	if diff := cmp.Diff([]Entry{two, newer}, walk(open())); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	var many []Entry
	for i := range maxLearned {
		many = append(many, Entry{Service: "s", Kind: Client, Key: fmt.Sprint(i), Last: at(10 + i), Passed: true})
	}
	add(l, many...)
	if all := walk(l); len(all) != maxLearned || all[0].Key != "0" {
		t.Errorf("%d entries, the first %+v", len(all), all[0])
	}
	if err := os.WriteFile(file, []byte(`{"service":"s","kind":"client","key":"k","last":"2026-11-29T12:00:00Z","passed":true}`+"\nnonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := OpenLearned(file); err == nil || len(walk(l)) != 1 {
		t.Errorf("a damaged file: %v, %v", walk(l), err)
	}
	if left, _ := filepath.Glob(file + ".*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
