package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// places counts the places that can be taken now, and gives them back.
func places(t *testing.T, p *pool) (n int) {
	t.Helper()
	client := netip.MustParseAddr("192.0.2.1")
	for p.sitNow(client) == nil {
		client = client.Next() // each may have some only
		n++
	}
	for range n {
		<-p.seats
	}
	clear(p.clients)
	return n
}

// TestLimit: of the places for live sessions and for asking a next hop has this
// secondary's part, which changes with the number of secondaries.
func TestLimit(t *testing.T) {
	r := newClient(t, Route{}, func(net.Conn) {}).routes[dest]
	if asking, live := places(t, r.asking), places(t, r.live); asking != 10 || live != 50 {
		t.Errorf("by default %d places to ask, %d for live sessions", asking, live)
	}
	c := newClient(t, Route{MaxAsking: 7, MaxLive: 20, Live: true}, func(net.Conn) {})
	r = c.routes[dest]
	for _, members := range []int{1, 2, 30, 3, 1} {
		c.Limit(func(_ string, _ bool, all int) int { return all / members })
		if asking, live := places(t, r.asking), places(t, r.live); asking != 7/members || live != 20/members {
			t.Errorf("of %d: %d places to ask, %d for live sessions", members, asking, live)
		}
	}
}

// TestWithhold: places that are taken when they ought to be withheld are so once
// they are free. Who waits for one gets it when fewer are withheld.
func TestWithhold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(4, 0, nil)
		client := netip.MustParseAddr("192.0.2.1")
		var taken []*seat
		for range 3 {
			if err := p.sitNow(client); err != nil {
				t.Fatal(err)
			}
			taken = append(taken, &seat{pool: p, client: client})
		}
		p.withhold(3)
		if p.held != 1 || places(t, p) != 0 {
			t.Errorf("%d withheld of 4 places, 3 of which are taken", p.held)
		}
		p.clients[client] = 3 // places clears them
		p.use()               // and asked for one that it didn't get
		taken[0].leave()
		taken[1].leave()
		if used, want := p.use(); used != 1 || want != 1 {
			t.Errorf("%d places can be in use, %d would be", used, want)
		}
		if p.held != 3 || places(t, p) != 0 {
			t.Errorf("%d withheld after two are free", p.held)
		}
		sat := make(chan error, 1)
		go func() { sat <- p.sit(context.Background()) }()
		synctest.Wait()
		select {
		case <-sat:
			t.Fatal("got a withheld place")
		default:
		}
		p.withhold(2)
		synctest.Wait()
		select {
		case err := <-sat:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Fatal("waits on for a place that is withheld no more")
		}
		p.withhold(0)
		if n := places(t, p); n != 2 {
			t.Errorf("%d places, two are taken of 4", n)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		p.withhold(4)
		if err := p.sit(ctx); !errors.Is(err, errNoSeat) {
			t.Errorf("a place where none is ours: %v", err)
		}
	})
}

// TestWithheldRests: a session that rests keeps its place from being withheld until it
// gives that up.
func TestWithheldRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(1, 0, nil)
		if err := p.sit(t.Context()); err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		ended := make(chan error, 1)
		go func() {
			_, err := theirs.Read(make([]byte, 1))
			ended <- err
		}()
		a := &seat{pool: p, s: &session{raw: timedConn{Conn: ours}}}
		a.rest(liveRest, liveRest)
		p.withhold(1)
		if p.held != 0 || !a.wake() {
			t.Fatalf("%d withheld under a session that rests", p.held)
		}
		a.rest(liveRest, liveRest)
		time.Sleep(liveRest)
		synctest.Wait()
		if err := <-ended; err != io.EOF {
			t.Errorf("the session that rested: %v", err)
		}
		if p.withhold(1); p.held != 1 {
			t.Error("the place isn't withheld after the rest")
		}
	})
}

// TestAgrees: another secondary's view counts when it is known, and is what is known
// here.
func TestAgrees(t *testing.T) {
	for _, tt := range []struct {
		here      health
		up, known bool
		want      bool
	}{
		{unknown, true, true, false}, {unknown, false, true, false}, {unknown, false, false, false},
		{up, true, true, true}, {up, false, true, false}, {up, true, false, false}, {up, false, false, false},
		{down, false, true, true}, {down, true, true, false}, {down, false, false, false}, {down, true, false, false},
	} {
		c := newClient(t, Route{}, func(net.Conn) {})
		r := c.routes[dest]
		r.health = tt.here
		if c.agrees(r) {
			t.Error("agrees with nobody")
		}
		c.elsewhere = func(of string) (bool, bool) { return tt.up && of == dest, tt.known && of == dest }
		if got := c.agrees(r); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// TestElsewhere: a secondary leaves probing to another one for as long as that sees
// the same, and looks for itself at the next interval after it doesn't.
func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards view
		view := [2]bool{true, true}
		set := func(up, known bool) {
			mu.Lock()
			view = [2]bool{up, known}
			mu.Unlock()
		}
		o := &outage{elsewhere: func(string) (bool, bool) {
			mu.Lock()
			defer mu.Unlock()
			return view[0], view[1]
		}}
		c := o.watch(t, Route{ProbeInterval: 10 * time.Second}, func(string) {})
		step := func(what string, wait time.Duration, probes int, up bool) {
			t.Helper()
			time.Sleep(wait)
			synctest.Wait()
			if n := len(o.probes()); n != probes || c.Up(dest) != up {
				t.Errorf("%s: %d probes, want %d; up %v, want %v", what, n, probes, c.Up(dest), up)
			}
			o.mu.Lock()
			o.asked = nil
			o.mu.Unlock()
		}
		step("at the start", time.Second, 1, true)
		step("both see it up", time.Hour, 0, true)
		set(false, true)
		step("the other sees it down", 30*time.Second, 3, true)
		set(false, false)
		step("the other is gone", 30*time.Second, 3, true)
		o.set(true)
		set(false, true)
		step("down, as the other says", time.Minute, 1, false)
		step("both see it down", time.Hour, 0, false)
		o.set(false)
		set(true, true)
		step("up, as the other says", time.Minute, 1, true)
	})
}
