package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy/table"
)

// TestDecodeLate reads a snapshot in which somebody added recipients by hand.
func TestDecodeLate(t *testing.T) {
	recipients, err := table.NewSet([]string{"b@a.example", "d@a.example"})
	if err != nil {
		t.Fatal(err)
	}
	spec := NewSpec()
	spec.Tables = map[string]*table.Table{"recipients": recipients}
	before, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for keys, want := range map[string][]string{
		`"b@a.example"`:                               {"b@a.example", "d@a.example"},
		`"b@a.example", "A@a.example"`:                {"a@a.example", "b@a.example", "d@a.example"},
		`"z@a.example", "c@a.example", "a@a.example"`: {"a@a.example", "c@a.example", "d@a.example", "z@a.example"},
		`"b@a.example", "B@a.example"`:                nil,
		`"b@a.example", "d@a.example"`:                nil,
		`"c@a.example", "b@a.example", "C@a.example"`: nil,
	} {
		text := strings.Replace(string(before.Encode()), `"b@a.example"`, keys, 1)
		s, err := Decode("s.json", strings.NewReader(text), nil)
		if want == nil {
			if err == nil || !strings.Contains(err.Error(), "twice") {
				t.Errorf("%s: got %v", keys, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", keys, err)
			continue
		}
		beside, err := Decode("s.json", strings.NewReader(text), before)
		if err != nil {
			t.Fatal(err)
		}
		for what, s := range map[string]*Snapshot{"alone": s, "beside another": beside} {
			table, got := s.spec.Tables["recipients"], []string(nil)
			for key := range table.Entries(0, table.Len()) {
				got = append(got, string(key))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, %s: %s", keys, what, diff)
			}
		}
	}
}

// TestCompilePanics: what makes Compile panic is an error of that policy alone.
func TestCompilePanics(t *testing.T) {
	if s, err := Compile(nil); s != nil || err == nil {
		t.Errorf("no policy is compiled: %v, %v", s, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := string(small(t).Encode())
	for _, test := range []struct{ name, old, new, want string }{
		{"version", `"version": 1`, `"version": 7`, "s.json:1:1: version 7 is unknown; this program reads version 1"},
		{"no version", `"version": 1,`, ``, "s.json:1:1: version is missing; this is no policy snapshot"},
		{"field", `"delay_reject"`, `"delayreject"`, `s.json: json: unknown field "delayreject"`},
		{"table field", `"type": "cidr"`, `"type": "cidr", "sort": 1`, `s.json: json: unknown field "sort"`},
		{"table type", `"type": "cidr"`, `"type": "btree"`, `s.json: unknown table type "btree"`},
		{"field's type", `"delay_reject": true`, `"delay_reject": 1`, "s.json:3:19: delay_reject: want bool, not number"},
		{"restriction", `"reject_unauth_destination"`, `"reject_unauth_destinations"`,
			`s.json: restrictions.relay: unknown restriction "reject_unauth_destinations"`},
		{"table", `"check_client_access client.block.names"`, `"check_client_access client.blok.names"`,
			`s.json: restrictions.client: check_client_access: no table is called "client.blok.names"`},
		{"filter", `"reject_rbl_client bl.example=127.0.0.2"`, `"reject_rbl_client bl.example=127.0.0"`,
			`s.json: restrictions.client: reject_rbl_client: filter "127.0.0": it needs four fields; write it as 127.0.0.2 or 127.0.0.[2..11;20]`},
		{"prefix", `"192.0.2.0/24"`, `"192.0.2.1/24"`, `s.json: "192.0.2.1/24" has host bits; write 192.0.2.0/24`},
		{"code", `"defer_code": 450`, `"defer_code": 250`, `s.json: codes.defer_code: 250 is no reply code from 400 to 599`},
		{"octet", `"version": 1,`, `"version": 1, "content": {"message_reject_characters": [0, 256]},`,
			"s.json: content: message_reject_characters: 256 is no octet from 0 to 255"},
		{"rest", "\n}\n", "\n}\n{}\n", "not valid JSON"},
		{"syntax", `"version": 1,`, `"version": 1`, "not valid JSON"},
	} {
		bad := strings.Replace(good, test.old, test.new, 1)
		if bad == good {
			t.Fatalf("%s: %q is not in the snapshot\n%s", test.name, test.old, good)
		}
		_, err := Decode("s.json", strings.NewReader(bad), nil)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s:\n got %v\nwant %s", test.name, err, test.want)
		}
	}
}

// small is a policy with a little of everything.
func small(t testing.TB) *Snapshot {
	spec := NewSpec()
	nets, err := table.NewCIDR([][2]string{{"192.0.2.0/24", "REJECT"}})
	names, err2 := table.NewHash(map[string]string{"bad.example": "REJECT"})
	recipients, err3 := table.NewSet([]string{"alice@example.org"})
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	spec.Tables = map[string]*table.Table{"client.block.networks": nets, "client.block.names": names, "recipients": recipients}
	spec.DNSBL.Replies = map[string]string{"bl.example=127.0.0.2": "$rbl_code Listed at $rbl_domain"}
	spec.Restrictions.Client = []Restriction{
		{"check_client_access", "client.block.networks"}, {"check_client_access", "client.block.names"}, {"reject_rbl_client", "bl.example=127.0.0.2"},
	}
	spec.Restrictions.Relay = []Restriction{{Kind: "reject_unauth_destination"}}
	spec.Addresses.VirtualMailbox = AddressClass{Domains: []string{"example.org"}, Recipients: []string{"recipients"}}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}
