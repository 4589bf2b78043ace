package policysync

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
)

// rcpt asks a snapshot about one recipient: the reply's code, 250 when it is
// permitted.
func rcpt(t testing.TB, s *policy.Snapshot, to string) int {
	t.Helper()
	ctx := context.Background()
	se := s.Session(&testmx.MapResolver{}, envelope.Client{Addr: netip.MustParseAddr("192.0.2.1")})
	defer se.Close()
	m, err := envelope.ParseMailbox("x@example.net")
	if err != nil {
		t.Fatal(err)
	}
	se.Helo(ctx, "client.example.net")
	se.Mail(ctx, envelope.ReversePath{Mailbox: m}, policy.MailParams{})
	if m, err = envelope.ParseMailbox(to); err != nil {
		t.Fatal(err)
	}
	v := se.Rcpt(ctx, envelope.ForwardPath{Mailbox: m})
	if v.Action == policy.Permit {
		return 250
	}
	return v.Reply.Code
}

func TestFollow(t *testing.T) {
	p := newTestPublisher(t)
	dir := p.join(t, "mx2")
	f := p.follow(t, dir, "example.org")
	if f.Current() != nil || f.Status().State != StateNone {
		t.Error("a follower without a snapshot has one")
	}
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	poll(t, f)
	if got := rcpt(t, f.Current(), "a@example.org"); got != 250 {
		t.Errorf("a is answered %d", got)
	}
	if got := rcpt(t, f.Current(), "b@example.org"); got != 550 {
		t.Errorf("b is answered %d", got)
	}
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org", "b@example.org"))
	poll(t, f)
	if got := rcpt(t, f.Current(), "b@example.org"); got != 250 {
		t.Errorf("after the change b is answered %d", got)
	}
	if a, b := f.Current().Digest(), snapshot(t, newSpec(t, []string{"example.org"}, "b@example.org", "a@example.org")).Digest(); a != b {
		t.Errorf("the follower's policy is %x, the primary's %x", a, b)
	}
	if r := p.Peers()[0].Report; r == nil || r.Version != 2 || r.State != StateFresh {
		t.Errorf("the primary knows of its follower: %+v", r)
	}
	f.http.close()
	again := p.follow(t, dir, "example.org") // needs no primary
	if got := rcpt(t, again.Current(), "b@example.org"); got != 250 || again.Status().Version != 2 {
		t.Errorf("after a restart b is answered %d by version %d", got, again.Status().Version)
	}
}

// TestChangeMeanwhile: the primary publishes another version while chunks of
// the first are on their way.
func TestChangeMeanwhile(t *testing.T) {
	p := newTestPublisher(t)
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	p.publish(t, newSpec(t, []string{"example.org"}, names(5000, "example.org")...))
	h, err := openHead(p.raw, f.pair.keys())
	if err != nil {
		t.Fatal(err)
	}
	p.publish(t, newSpec(t, []string{"example.org"}, append(names(4000, "example.org"), "a@example.org")...))
	if _, err := f.fetch(t.Context(), h); !errors.Is(err, errGone) {
		t.Fatalf("chunks of a version that is gone: %v", err)
	}
	poll(t, f)
	if got := rcpt(t, f.Current(), "a@example.org"); got != 250 {
		t.Errorf("a is answered %d", got)
	}
}
