package policysync

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestLists: each side learns how the other sees the DNS lists, within bounds, and
// the policy is followed whatever becomes of that.
func TestLists(t *testing.T) {
	view := func(zone, state string) ListView {
		return ListView{Zone: zone, State: state, Since: time.Unix(1, 0).UTC()}
	}
	p := newTestPublisher(t, func(o *PublisherOptions) {
		o.Lists = func() []ListView { return []ListView{view("zen.example", "ok")} }
	})
	p.publish(t, newSpec(t, []string{"example.org"}, "alice@example.org"))
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	if err := f.poll(t.Context()); err != nil || f.Lists() != nil || p.Peers()[0].Lists != nil {
		t.Errorf("without lists: %v, %v, %v", err, f.Lists(), p.Peers()[0].Lists)
	}
	f.o.Lists = func() []ListView { return []ListView{view("zen.example\x1b[2J", "lists_all")} }
	p.publish(t, newSpec(t, []string{"example.org"}, "alice@example.org", "bob@example.org"))
	if err := f.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.Lists(); len(got) != 1 || got[0] != view("zen.example", "ok") {
		t.Errorf("the follower has %+v", got)
	}
	if got := p.Peers()[0].Lists; len(got) != 1 || got[0] != view("zen.example [2J", "lists_all") {
		t.Errorf("the publisher has %+v", got)
	}
	var many []ListView
	for i := range 500 {
		many = append(many, view(fmt.Sprintf("%d.%s.example", i, strings.Repeat("a", 200)), "ok"))
	}
	f.o.Lists = func() []ListView { return many }
	p.publish(t, newSpec(t, []string{"example.org"}, "alice@example.org"))
	if err := f.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(p.Peers()[0].Lists); got < 10 || got > maxLists {
		t.Errorf("of 500 lists the publisher has %d", got)
	}
}

// TestListsHostile: what a publisher says of its lists is bounded, and nothing that
// it says there, or that it doesn't know of them, is in the policy's way.
func TestListsHostile(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string // "": 404
		want   int
	}{
		"an earlier program":         {"", 0},
		"no JSON":                    {"<html>", 0},
		"too many":                   {`{"lists":[` + strings.Repeat("{},", 999) + `{}]}`, maxLists},
		"a field of a later program": {`{"lists":[{"zone":"a","more":1}],"more":2}`, 1},
	} {
		t.Run(name, func(t *testing.T) {
			p := newTestPublisher(t)
			p.publish(t, newSpec(t, []string{"example.org"}, "alice@example.org"))
			f := p.follow(t, p.join(t, "mx2"), "example.org")
			f.o.Lists = func() []ListView { return nil }
			f.mu.Lock()
			f.http = listsFrom{f.http, tt.answer}
			f.mu.Unlock()
			if err := f.poll(t.Context()); err != nil || f.Status().Version != 1 {
				t.Errorf("the policy isn't followed: %v", err)
			}
			if got := len(f.Lists()); got != tt.want {
				t.Errorf("got %d lists, want %d", got, tt.want)
			}
		})
	}
}

// listsFrom is a primary that answers to lists as it is told.
type listsFrom struct {
	remote
	answer string
}

func (l listsFrom) post(ctx context.Context, target string, v any, limit int) ([]byte, error) {
	switch {
	case target != "/v1/lists":
		return l.remote.post(ctx, target, v, limit)
	case l.answer == "":
		return nil, errGone
	}
	return []byte(l.answer), nil
}
