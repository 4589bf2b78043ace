package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/table"
)

// learnedSnapshot lists alice; a table that can't be listed was asked for bob,
// who is there, and carol, who isn't.
func learnedSnapshot(t *testing.T) *Snapshot {
	t.Helper()
	set := func(keys ...string) *table.Table {
		s, err := table.NewSet(keys)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	spec := NewSpec()
	spec.Addresses.RecipientDelimiter = "+"
	spec.Addresses.VirtualMailbox = AddressClass{Domains: []string{"example.org"}, Recipients: []string{"listed", "tcp:x"}}
	spec.Restrictions.Relay = []Restriction{{Kind: "reject_unauth_destination"}}
	spec.Tables = map[string]*table.Table{
		"listed": set("alice@example.org"), "tcp:x": set("bob@example.org"), "tcp:x#absent": set("carol@example.org", "@example.org"),
	}
	spec.Learned = map[string]Learned{"tcp:x": {Absent: "tcp:x#absent"}}
	s, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLearned(t *testing.T) {
	snap := learnedSnapshot(t)
	for _, tc := range []struct {
		to     string
		code   int
		unsure string
	}{
		{"alice@example.org", 0, ""},
		{"bob+list@Example.ORG", 0, ""},
		{"carol@example.org", 550, ""},
		{"Carol+x@example.org", 450, "carol+x@example.org"},
		{"dave@example.org", 450, "dave@example.org"},
		{"dave@example.net", 554, ""},
	} {
		s := snap.Session(nil, envelope.Client{NameStatus: envelope.NameNotFound})
		m, err := envelope.ParseMailbox(tc.to)
		if err != nil {
			t.Fatal(err)
		}
		v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: m})
		if v.Reply.Code != tc.code || v.Unsure != tc.unsure {
			t.Errorf("%s: got %d, unsure %q; want %d, %q", tc.to, v.Reply.Code, v.Unsure, tc.code, tc.unsure)
		}
		s.Close()
	}
}

// TestUnsure: a key with a character that its table's database takes for
// another may be there.
func TestUnsure(t *testing.T) {
	spec := NewSpec()
	set, err := table.NewSet([]string{"j_smith@example.org", "andre@example.org"})
	if err != nil {
		t.Fatal(err)
	}
	spec.Addresses.VirtualMailbox = AddressClass{Domains: []string{"example.org"}, Recipients: []string{"sql"}}
	spec.Restrictions.Relay = []Restriction{{Kind: "reject_unauth_destination"}}
	spec.Tables = map[string]*table.Table{"sql": set}
	for unsure, want := range map[string]map[string]int{
		"":    {"j_smith@example.org": 0, "x_y@example.org": 550, "andré@example.org": 550, "xy@example.org": 550},
		"_%":  {"j_smith@example.org": 0, "x_y@example.org": 450, "andré@example.org": 550, "xy@example.org": 550},
		"é":   {"andre@example.org": 0, "x_y@example.org": 550, "andré@example.org": 450, "ürsula@example.org": 450},
		"é_%": {"x_y@example.org": 450, "andré@example.org": 450, "xy@example.org": 550},
	} {
		spec.Learned = map[string]Learned{"sql": {Unsure: unsure}}
		snap, err := Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		for to, code := range want {
			s := snap.Session(nil, envelope.Client{NameStatus: envelope.NameNotFound})
			local, domain, _ := strings.Cut(to, "@")
			v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: local, Domain: domain}})
			if v.Reply.Code != code {
				t.Errorf("unsure %q: %s: got %d, want %d", unsure, to, v.Reply.Code, code)
			}
			s.Close()
		}
	}
}

// TestMovedInDoubt: a transport that refuses counts only for who is no alias.
func TestMovedInDoubt(t *testing.T) {
	for name, incomplete := range map[string]bool{"learned": false, "incomplete": true} {
		spec := learnedSnapshot(t).Spec()
		moved, err := table.NewHash(map[string]string{"carol@example.org": "error:5.1.6 moved", "dave@example.org": "error:5.1.6 moved"})
		if err != nil {
			t.Fatal(err)
		}
		spec.Tables["transport"] = moved
		spec.Addresses.TransportMaps, spec.Addresses.VirtualAlias, spec.Addresses.AliasesIncomplete = []string{"transport"}, []string{"tcp:x"}, incomplete
		snap, err := Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		for to, want := range map[string]string{"carol@example.org": "550 5.1.6", "dave@example.org": "450 4.1.6"} {
			if incomplete {
				want = "450 4.1.6"
			}
			m, _ := envelope.ParseMailbox(to)
			s := snap.Session(nil, envelope.Client{NameStatus: envelope.NameNotFound})
			v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: m})
			if got := fmt.Sprint(v.Reply.Code, " ", v.Reply.Enhanced); got != want || (v.Unsure != "") != (to == "dave@example.org") {
				t.Errorf("%s: %s is answered %s, unsure %q; want %s", name, to, got, v.Unsure, want)
			}
			s.Close()
		}
	}
}

func TestUnasked(t *testing.T) {
	got := learnedSnapshot(t).Unasked([]string{"alice@example.org", "carol@example.org", "carol+x@example.org", "dave@example.org",
		"dave@example.org", "eve@example.net", "no address", "\"a b\"@example.org"})
	want := map[string][]string{"tcp:x": {`"a b"@example.org`, "a b@example.org", "carol+x@example.org", "dave@example.org"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys to ask for (-want +got):\n%s", diff)
	}
}

// TestUnaskedOfWhom: nobody is asked about whom the policy knows already, as an
// alias, about other domains, or about what is no address.
func TestUnaskedOfWhom(t *testing.T) {
	spec := learnedSnapshot(t).Spec()
	aliases, err := table.NewHash(map[string]string{"boss@example.org": "alice@example.org"})
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables["aliases"] = aliases
	spec.Addresses.VirtualAlias, spec.Addresses.MyOrigin = []string{"aliases", "tcp:x"}, "example.org"
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for recipient, want := range map[string][]string{
		"dave@example.org": {"dave", "dave@example.org"}, "boss@example.org": nil, "eve@example.net": nil, "-x@example.org": nil, "no address": nil,
	} {
		if diff := cmp.Diff(want, snap.Unasked([]string{recipient})["tcp:x"]); diff != "" {
			t.Errorf("%s: -want +got\n%s", recipient, diff)
		}
	}
}

// TestLearnedIsChecked refuses a snapshot whose learned tables aren't there.
func TestLearnedIsChecked(t *testing.T) {
	for name, learned := range map[string]map[string]Learned{
		"no table":     {"tcp:y": {Absent: "tcp:x#absent"}},
		"no absent":    {"tcp:x": {Absent: "nowhere"}},
		"with itself":  {"tcp:x": {Absent: "tcp:x"}},
		"no indexed":   {"static": {Absent: "tcp:x#absent"}},
		"no plain set": {"tcp:x": {Absent: "static"}},
	} {
		spec := *learnedSnapshot(t).Spec()
		spec.Tables["static"] = table.NewStatic("x")
		spec.Learned = learned
		if _, err := Compile(&spec); err == nil {
			t.Errorf("%s: compiled", name)
		}
	}
}

// TestLearnedKeys: "@all.example" stands for everybody there but carol; the
// look-up of dave fails on the primary.
func TestLearnedKeys(t *testing.T) {
	set := func(keys ...string) *table.Table {
		s, err := table.NewSet(keys)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	spec := NewSpec()
	spec.Addresses.RecipientDelimiter = "+"
	spec.Addresses.VirtualAliases = AddressClass{Domains: []string{"all.example", "plain.example"}}
	spec.Addresses.VirtualAlias = []string{"sql"}
	spec.Restrictions.Relay = []Restriction{{Kind: "reject_unauth_destination"}}
	spec.Tables = map[string]*table.Table{
		"sql": set("bob@all.example", "@all.example", "alice@plain.example"), "sql#except": set("carol@all.example"), "sql#unknown": set("dave@plain.example"),
	}
	spec.Learned = map[string]Learned{"sql": {Except: "sql#except", Unknown: "sql#unknown"}}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]int{
		"bob@all.example": 0, "nobody@all.example": 0, "nobody+x@all.example": 0, "carol@all.example": 550, "Carol@All.example": 550,
		"alice@plain.example": 0, "nobody@plain.example": 550, "dave@plain.example": 450, "Dave+x@plain.example": 450,
	} {
		s := snap.Session(nil, envelope.Client{NameStatus: envelope.NameNotFound})
		m, err := envelope.ParseMailbox(to)
		if err != nil {
			t.Fatal(err)
		}
		if v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: m}); v.Reply.Code != want {
			t.Errorf("%s: %d %s, want %d", to, v.Reply.Code, v.Reply.Text, want)
		}
		s.Close()
	}
	for _, l := range []Learned{{Except: "nowhere"}, {Unknown: "nowhere"}, {Except: "sql"}} {
		spec.Learned["sql"] = l
		if _, err := Compile(spec); err == nil {
			t.Errorf("%+v compiles", l)
		}
	}
}
