package policysync

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestUnsure carries recipients that a follower was unsure about to the
// primary: as many as one report holds, the others with the next one.
func TestUnsure(t *testing.T) {
	p := newTestPublisher(t)
	spec := newSpec(t, []string{"example.org"}, "alice@example.org")
	p.publish(t, spec)
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	var want []string
	for i := range 100 { // written as \u003c in JSON
		want = append(want, fmt.Sprintf("%s%02d@example.org", strings.Repeat("<", 20), i))
		f.Unsure(want[i])
	}
	for _, bad := range []string{"", "a\nb@example.org", "\xff@example.org", strings.Repeat("x", maxUnsureLength) + "@example.org"} {
		f.Unsure(bad)
	}
	var got []string
	for i := 0; len(got) < len(want) && i < 10; i++ {
		spec.Limits.Hops++ // another version, so that the poll ends
		p.publish(t, spec)
		poll(t, f)
		more := p.Unsure()
		if i == 0 && (len(more) == 0 || len(more) == len(want)) {
			t.Errorf("the first report holds %d", len(more))
		}
		got = append(got, more...)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("got %d: %q", len(got), got)
	}
	if rep := p.Peers()[0].Report; rep == nil || rep.Unsure != nil {
		t.Errorf("the report that is kept: %+v", rep)
	}
}

// TestUnsureIsKept when the primary can't be reached.
func TestUnsureIsKept(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "alice@example.org"))
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	f.Unsure("bob@example.org")
	if err := p.Revoke("mx2"); err != nil {
		t.Fatal(err)
	}
	if err := f.report(t.Context(), nil); err == nil {
		t.Fatal("reported")
	}
	if got := f.unsure.take(1000); !slices.Equal(got, []string{"bob@example.org"}) {
		t.Errorf("kept %q", got)
	}
}

// TestUnsureIsBounded: strangers choose the recipients.
func TestUnsureIsBounded(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "alice@example.org"))
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	for _, r := range names(maxUnsureAll+maxUnsure, "example.org") {
		f.Unsure(r)
		p.unsure.add(r, maxUnsureAll)
	}
	if n, all := len(f.unsure.set), len(p.Unsure()); n != maxUnsure || all != maxUnsureAll {
		t.Errorf("the follower keeps %d, the publisher %d", n, all)
	}
}
