package policysync

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// learns is a follower's greylist.
type learns struct{ all []Passed }

func (l *learns) Learnt(most int) []Passed { return l.all[:min(len(l.all), most)] }

func (l *learns) Told(told []Passed) {
	l.all = slices.DeleteFunc(l.all, func(e Passed) bool { return slices.Contains(told, e) })
}

// TestPassed: whom a follower's greylisting lets in reaches the publisher, as much at
// once as a request holds, and nothing is lost while it can't be told.
func TestPassed(t *testing.T) {
	now := time.Now().Unix()
	var want, got []Passed
	for i := range 150 {
		want = append(want, Passed{Service: "postgrey-1", Kind: "triplet", Key: fmt.Sprintf("192.0.2.0/%d@%s.example/a@example.org", i, strings.Repeat("<", 100)), First: now - 300, Last: now})
	}
	froms := map[string]bool{}
	p := newTestPublisher(t, func(o *PublisherOptions) {
		o.Passed = func(from string, list []Passed) { froms[from] = true; got = append(got, list...) }
	})
	spec := newSpec(t, []string{"example.org"}, "alice@example.org")
	p.publish(t, spec)
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	learnt := &learns{slices.Clone(want)}
	f.o.Learnt = learnt
	for i := 0; len(got) < len(want) && i < 100; i++ {
		spec.Limits.Hops++ // another version, so that the poll ends
		p.publish(t, spec)
		poll(t, f)
		if i == 0 && (len(got) == 0 || len(got) == len(want)) {
			t.Errorf("the requests after the first report hold %d", len(got))
		}
	}
	if !slices.Equal(got, want) || len(learnt.all) != 0 || len(froms) != 1 || !froms["mx2"] {
		t.Errorf("got %d of %d, %d left, from %v", len(got), len(want), len(learnt.all), froms)
	}
	learnt.all = slices.Clone(want[:1])
	if err := p.Revoke("mx2"); err != nil {
		t.Fatal(err)
	}
	f.tellPassed(t.Context())
	if len(learnt.all) != 1 {
		t.Error("what the primary refused to hear is forgotten")
	}
}

// TestPassedHostile: what isn't an entry is passed over, and the rest is taken.
func TestPassedHostile(t *testing.T) {
	var got []Passed
	p := newTestPublisher(t, func(o *PublisherOptions) { o.Passed = func(_ string, list []Passed) { got = append(got, list...) } })
	p.publish(t, newSpec(t, []string{"example.org"}, "alice@example.org"))
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	now := time.Now().Unix()
	good := Passed{Service: "postgrey-1", Kind: "client", Key: "192.0.2.1", Last: now, Count: 5}
	bad := func(change func(*Passed)) Passed { e := good; change(&e); return e }
	for name, e := range map[string]Passed{
		"kind": bad(func(e *Passed) { e.Kind = "else" }), "no service": bad(func(e *Passed) { e.Service = "" }), "no key": bad(func(e *Passed) { e.Key = "" }),
		"a control": bad(func(e *Passed) { e.Key = "a\x1b[2J" }), "a zero": bad(func(e *Passed) { e.Service = "a\x00" }), "long": bad(func(e *Passed) { e.Key = strings.Repeat("k", maxPassedKey+1) }),
		"the future": bad(func(e *Passed) { e.Last = now + 2*3600 }), "no time": bad(func(e *Passed) { e.Last = 0 }), "backwards": bad(func(e *Passed) { e.First = now + 1 }),
		"a negative count": bad(func(e *Passed) { e.Count = -1 }), "a huge count": bad(func(e *Passed) { e.Count = 1 << 40 }),
	} {
		got = nil
		if _, err := f.http.post(t.Context(), "/v1/passed", passedMessage{[]Passed{e, good}}, 1024); err != nil || !slices.Equal(got, []Passed{good}) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	got = nil
	many := passedMessage{slices.Repeat([]Passed{{Service: "s", Kind: "client", Key: "k", Last: now}}, maxPassed+1)}
	if _, err := f.http.post(t.Context(), "/v1/passed", many, 1024); err != nil || len(got) != maxPassed {
		t.Errorf("%d of %d taken, %v", len(got), len(many.Passed), err)
	}
	for name, body := range map[string]any{"no list": "x", "another field": map[string]int{"more": 1}, "too long": strings.Repeat("x", maxRequest)} {
		if _, err := f.http.post(t.Context(), "/v1/passed", body, 1024); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
