package policy

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/table"
)

func TestParseTime(t *testing.T) {
	for text, want := range map[string]time.Duration{"7": 7 * time.Second, "7s": 7 * time.Second, "5m": 5 * time.Minute, "3h": 3 * time.Hour, "2d": 48 * time.Hour,
		"2w": 14 * 24 * time.Hour, "1048576": 1 << 20 * time.Second, "1048577": 0, "0": 0, "-1": 0, "": 0, "s": 0, "1y": 0, "1mm": 0} {
		if got, err := ParseTime(text); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestMilterProtocol(t *testing.T) {
	for text, want := range map[string]MilterUse{"": {Version: 6}, "2": {Version: 2}, "3": {Version: 3}, "4": {Version: 4}, "6": {Version: 6},
		"no_header_reply, 4": {Version: 4, NoHeaderReply: true}, "3 no_header_reply": {Version: 3, NoHeaderReply: true}, "5": {}, "6 2": {}, "x": {}} {
		var u MilterUse
		if err := u.protocol(text); (err == nil) != (want.Version > 0) || err == nil && (u.Version != want.Version || u.NoHeaderReply != want.NoHeaderReply) {
			t.Errorf("%q: %+v, %v", text, u, err)
		}
	}
}

func TestGreyText(t *testing.T) {
	for text, want := range map[string]string{
		"": "4.2.0 ", "Wait %s for %r": "4.2.0 Wait 300 for example.org", "4.7.1 %r %r %s %s": "4.7.1 example.org %r 300 %s", "G4": "4.2.0 G4", "9": "9",
		"0": "0", "/": "4.2.0 /", ":": "4.2.0 :",
	} {
		g := greylist{Greylist: &Greylist{Text: text}}
		if got := g.text(300, "bob@example.org"); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	g := greylist{Greylist: &Greylist{Text: "%r"}}
	if got := g.text(1, "bob"); got != "4.2.0 bob" {
		t.Errorf("without a domain: %q", got)
	}
}

// TestSPFText: whom policyd-spf says that mail is for.
func TestSPFText(t *testing.T) {
	for raw, want := range map[string]string{"Bob@Example.ORG": "example.org", "Bob": "bob", "": "none", "bob@": "none"} {
		for _, hide := range []bool{false, true} {
			if hide {
				want = "<UNKNOWN>"
			}
			s := &spfService{SPFService: &SPFService{HideRcpt: hide, Message: "{rejectdefer} {spf} {url}"}}
			e := &eval{Session: &Session{rcpt: address{raw: raw}, client: envelope.Client{Addr: netip.MustParseAddr("192.0.2.1")}}}
			if got := s.text(e, "rejected", "no", "mfrom", "x@y"); got != "rejected no http://www.openspf.net/Why?s=mfrom;id=x@y;ip=192.0.2.1;r="+want {
				t.Errorf("%q, %v: %s", raw, hide, got)
			}
		}
	}
}

// TestPiped: a pipe looks up what its first member found in its second.
func TestPiped(t *testing.T) {
	hash := func(pairs map[string]string) *table.Table {
		h, err := table.NewHash(pairs)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	spec := NewSpec()
	spec.Tables = map[string]*table.Table{"a": hash(map[string]string{"x.example": "y", "z.example": "nowhere"}), "b": hash(map[string]string{"y": "REJECT", "x.example": "OK"}),
		"pipe": table.NewPipe([]string{"a", "b"}), "union": table.NewUnion([]string{"a", "b"})}
	spec.Restrictions.Client = []Restriction{{"check_client_access", "pipe"}, {"check_client_access", "union"}}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range []map[string]string{{"x.example": "REJECT", "z.example": "", "y": ""}, {"x.example": "y,OK", "z.example": "nowhere", "y": "REJECT"}} {
		d := snap.client[n].table
		for key, value := range want {
			f := finder{snap: snap}
			got := ""
			if h := f.query(d, []byte(key), netip.Addr{}, true); h.ok() {
				got = f.value(h)
			}
			if got != value {
				t.Errorf("%s of %d: %q, want %q", key, n, got, value)
			}
		}
	}
}

// TestUnlessCharacters: "@domain" doesn't stand for local-parts that only the
// database knows about.
func TestUnlessCharacters(t *testing.T) {
	set, err := table.NewSet([]string{"@example.org", "o_k@example.org"})
	if err != nil {
		t.Fatal(err)
	}
	spec := NewSpec()
	spec.Addresses.VirtualMailbox = AddressClass{Domains: []string{"example.org"}, Recipients: []string{"sql:x"}}
	spec.Restrictions.Relay = []Restriction{{Kind: "reject_unauth_destination"}}
	spec.Tables = map[string]*table.Table{"sql:x": set}
	spec.Learned = map[string]Learned{"sql:x": {Unless: "_%", Unsure: "_%"}}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for to, code := range map[string]int{"bob@example.org": 0, "o_k@example.org": 0, "n_o@example.org": 450} {
		s := snap.Session(nil, envelope.Client{NameStatus: envelope.NameNotFound})
		m, err := envelope.ParseMailbox(to)
		if err != nil {
			t.Fatal(err)
		}
		if v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: m}); v.Reply.Code != code {
			t.Errorf("%s: %v, want %d", to, v.Reply, code)
		}
		s.Close()
	}
}

// TestDecodeHashOutOfOrder: entries that don't ascend are read as well, whoever
// wrote them.
func TestDecodeHashOutOfOrder(t *testing.T) {
	h, err := table.NewHash(map[string]string{"a.example": "OK", "b.example": "REJECT"})
	if err != nil {
		t.Fatal(err)
	}
	spec := NewSpec()
	spec.Tables = map[string]*table.Table{"h": h}
	spec.Restrictions.Client = []Restriction{{"check_client_access", "h"}}
	before, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	text := string(before.Encode())
	a, b := `"a.example": "OK"`, `"b.example": "REJECT"`
	turned := strings.NewReplacer(a, b, b, a).Replace(text)
	if strings.Index(turned, a) < strings.Index(turned, b) {
		t.Fatal(text)
	}
	snap, err := Decode("s.json", strings.NewReader(turned), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(snap.Encode()); got != text {
		t.Errorf("%s, want %s", got, text)
	}
}

// TestHopsThatWereDropped: where header checks drop Received fields, those that
// are left count.
func TestHopsThatWereDropped(t *testing.T) {
	drop, err := table.NewPCRE([][2]string{{`/^Received: from a/`, "IGNORE"}})
	if err != nil {
		t.Fatal(err)
	}
	spec := NewSpec()
	spec.Tables = map[string]*table.Table{"t": drop}
	spec.Addresses.Relay.Domains = []string{"example.org"}
	spec.Content.Header = []string{"t"}
	spec.Limits.Hops = 3
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]Action{
		"Received: from a\r\nReceived: from a\r\nReceived: from a\r\n\r\n": Permit,
		"Received: from b\r\nReceived: from b\r\nReceived: from b\r\n\r\n": Reject,
	} {
		s := snap.Session(&testmx.MapResolver{}, client)
		s.Mail(t.Context(), from, MailParams{})
		s.Rcpt(t.Context(), to)
		s.Content().Write([]byte(text))
		if v := s.Message(t.Context(), Message{Hops: 3}); v.Action != want {
			t.Errorf("%q: %v, want %v", text, v, want)
		}
		s.Close()
	}
}
