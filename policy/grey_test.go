package policy

import (
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"
)

// lists compiles whitelists, and fails on a line that can't be followed.
func lists(t testing.TB, clients, rcpts []string) (greyClients, greyRecipients, *finder) {
	c := &compiler{s: &Snapshot{spec: NewSpec()}}
	w, r := c.greyLists("x", &Greylist{Clients: clients, Recipients: rcpts})
	for _, err := range c.errs {
		t.Error(err)
	}
	return w, r, &finder{snap: c.s}
}

// TestGreyClients: as postgrey 1.37 with NetAddr::IP 4.079 has them.
func TestGreyClients(t *testing.T) {
	for _, tt := range []struct{ line, in, out string }{
		{"example.org", "example.org a.example.org A.B.EXAMPLE.ORG", "notexample.org example.org.uk org"},
		{".example.org", "a..example.org", "a.example.org example.org"},
		{"/^mx\\d+\\.example$/", "mx1.example MX22.example", "mx.example amx1.example"},
		{"192.0.2.1", "192.0.2.1", "192.0.2.2"},
		{"192.0.2.77/24", "192.0.2.1 192.0.2.255", "192.0.3.1 2001:db8::1"},
		{"192.0.2", "192.0.2.9", "192.0.3.9"},
		{"192.0", "192.0.0.9", "192.0.2.9"},
		{"010.0.0.1", "8.0.0.1", "10.0.0.1"},
		{"0.0.0.0/0", "192.0.2.1", "2001:db8::1"},
		{"::/96", "192.0.2.1", "2001:db8::1"},
		{"::/0", "192.0.2.1 2001:db8::1", ""},
		{"2001:DB8::/32", "2001:db8::1", "2001:db9::1 192.0.2.1"},
		{"[2001:db8::1]", "2001:db8::1", "2001:db8::2"},
		{"unknown", "unknown", "known"},
	} {
		w, _, f := lists(t, []string{tt.line}, nil)
		for _, side := range []struct {
			list string
			want bool
		}{{tt.in, true}, {tt.out, false}} {
			for s := range strings.FieldsSeq(side.list) {
				addr, err := netip.ParseAddr(s)
				name := "unknown.test"
				if err != nil {
					addr, name = netip.MustParseAddr("203.0.113.1"), s
				}
				if got := w.has(f, addr, name); got != side.want {
					t.Errorf("%q and %s: %v", tt.line, s, got)
				}
			}
		}
	}
	for _, line := range []string{"two words", "300.1.1.1", "192.0.2.0/33", "1.300", "::1/129", "fe80::1%eth0", "a:b:c"} {
		if passedOver, err := CheckGreylistLine(line, false); !passedOver {
			t.Errorf("%q isn't passed over: %v", line, err)
		}
	}
	if passedOver, err := CheckGreylistLine("/(/", false); passedOver || err == nil {
		t.Error("a pattern that can't be followed isn't reported")
	}
}

func TestGreyRecipients(t *testing.T) {
	for _, tt := range []struct{ line, in, out string }{
		{"example.org", "a@example.org a@B.Example.org", "a@notexample.org example.org a@example.org.uk"},
		{"abuse@", "abuse@x.org ABUSE+1@y", "abuse abuse+@x.org xabuse@x.org abuse.x@x.org"},
		{"a@x.org", "a@x.org A+b+c@X.ORG", "a+@x.org a@y.x.org b@x.org"},
		{"a+b@x.org", "a+b@x.org a+b+c@x.org", "a@x.org a+c@x.org a+b+@x.org"},
		{"@x.org", "@x.org +a@x.org", "a@x.org"},
		{"/^list-/", "LIST-1@x.org", "a-list-1@x.org"},
	} {
		_, w, f := lists(t, nil, []string{tt.line})
		for s := range strings.FieldsSeq(tt.in) {
			if !w.has(f, s) {
				t.Errorf("%q doesn't mean %s", tt.line, s)
			}
		}
		for s := range strings.FieldsSeq(tt.out) {
			if w.has(f, s) {
				t.Errorf("%q means %s", tt.line, s)
			}
		}
	}
	if passedOver, _ := CheckGreylistLine("two words", true); !passedOver {
		t.Error("two words aren't passed over")
	}
}

// TestGreyKeys: postgrey's keys of clients, networks and senders.
func TestGreyKeys(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "a": "a", "a@x": "a@x", "a+b+c@x": "a@x", "l-12-x3-4@x": "l-#-x3-#@x", "12@34": "#@34", "a_1@x": "a_1@x", "a.1b.2@x": "a.1b.#@x",
		"prvs=0123456789=c@x": "c@x", "prvs=c=0123456789@x": "c@x", "prvs=c=d@x": "d@x", "prvs=abcdefghij=abcdefghijk@x": "abcdefghijk@x",
		"prvs=c@x": "prvs=c@x", "prvs=a=b=c@x": "prvs=a=b=c@x", "prvs=a=@x": "prvs=a=@x", "a@b@c": "a@b@c",
	} {
		if got := rewritten(in); got != want {
			t.Errorf("%q is rewritten as %q, want %q", in, got, want)
		}
	}
	g := greylist{Greylist: &Greylist{IPv4: 24, IPv6: 64}}
	h := greylist{Greylist: &Greylist{ByHost: true}}
	for _, tt := range []struct{ addr, net, host string }{
		{"192.0.2.7", "192.0.2.0", "192.0.2.7/32"},
		{"2001:db8:0:1:2::3", "2001:DB8:0:1:0:0:0:0", "2001:DB8:0:1:2:0:0:3/128"},
	} {
		a := netip.MustParseAddr(tt.addr)
		if got := g.network(a); got != tt.net {
			t.Errorf("%s: network %s", a, got)
		}
		if got := h.network(a); got != tt.host {
			t.Errorf("%s: host %s", a, got)
		}
	}
}

// FuzzGreyWhitelist: a line that is taken compiles, and can be asked.
func FuzzGreyWhitelist(f *testing.F) {
	for _, s := range []string{"example.org", "/^a+$/", "192.0.2", "::1/64", "a@b", "@", "abuse@", "a:b:c", "/(/"} {
		f.Add(s, "a.example.org")
	}
	f.Fuzz(func(t *testing.T, line, name string) {
		if strings.ContainsAny(line, "\n") || !utf8.ValidString(line) || len(line) > 1000 {
			return
		}
		if _, err := CheckGreylistLine(line, false); err == nil {
			w, _, f := lists(t, []string{line}, nil)
			w.has(f, netip.MustParseAddr("192.0.2.1"), name)
		}
		if _, err := CheckGreylistLine(line, true); err == nil {
			_, w, f := lists(t, nil, []string{line})
			w.has(f, name)
		}
	})
}
