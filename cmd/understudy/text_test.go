package main

import (
	"bytes"
	"encoding/json"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/understudy-mx/understudy/internal/operator"
	policysync "github.com/understudy-mx/understudy/sync"
)

// fill puts s into every string below v.
func fill(v reflect.Value, s string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), s)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), s)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), s)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf(s), reflect.ValueOf(uint64(1)))
	case reflect.Uint64:
		v.SetUint(7)
	}
}

// TestHostileText: whatever the other end wrote into any field, a terminal gets
// lines of printable text, and as many as without it. State, staged and
// fingerprint are our own words.
func TestHostileText(t *testing.T) {
	show := func(s string) []byte {
		var (
			out       bytes.Buffer
			follower  operator.PolicyStatus
			publisher policysync.PublisherStatus
			pending   policysync.Pending
			change    policysync.Change
			peer      policysync.Peer
		)
		for _, v := range []any{&follower, &publisher, &pending, &change, &peer} {
			fill(reflect.ValueOf(v).Elem(), s)
		}
		follower.State, follower.Staged, follower.Fingerprint, pending.State, peer.Fingerprint = "fresh", "", "AAAA", "pending", "AAAA"
		for _, print := range []func(io.Writer) error{
			func(w io.Writer) error { return printFollower(w, &follower) },
			func(w io.Writer) error { return printPublisher(w, &publisher) },
			func(w io.Writer) error { return printPending(w, &pending) },
			func(w io.Writer) error { return printDiff(w, &change) },
			func(w io.Writer) error { return printPeers(w, []policysync.Peer{peer}) },
		} {
			if err := print(&out); err != nil {
				t.Fatal(err)
			}
		}
		return out.Bytes()
	}
	lines := bytes.Count(show("plain"), []byte("\n"))
	for _, s := range []string{"\x1b[2J\x1b]0;title\a", "a\nState  fresh", "a\rb\vc\fd\x7f", "\u009b31m", "\u202e\u2066evil", "\xff\xfe\xc0\x80", "a\x00b", "a\u2028b\u0085c", "a\tb"} {
		got := show(s)
		if n := bytes.Count(got, []byte("\n")); n != lines {
			t.Errorf("%q makes %d lines of %d", s, n, lines)
		}
		for _, r := range string(got) {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Fatalf("%q puts %q on the terminal:\n%q", s, r, got)
			}
		}
	}
	if s := string(show("needle")); strings.Count(s, "needle") < 25 {
		t.Errorf("only %d fields are filled:\n%s", strings.Count(s, "needle"), s)
	}
	var into map[string]any
	b, err := json.Marshal(policysync.Status{Notice: "\x1b[2J"})
	if err != nil || json.Unmarshal(b, &into) != nil || bytes.ContainsRune(b, 0x1b) {
		t.Errorf("as JSON: %q, %v", b, err)
	}
}
