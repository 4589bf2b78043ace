package outage

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestReport signs a report in each format and alters it in each way: no octet may
// change, and nothing may be added, unless lines end in CRLF after the mail.
func TestReport(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	began := time.Date(2026, 7, 28, 3, 0, 0, 0, time.UTC)
	r := Report{Host: "mx2.example.org", Made: began.Add(100 * time.Hour), Outage: Outage{
		ID: 7, Route: "primary", Began: began, Ended: began.Add(80 * time.Hour), Noticed: "<script>alert(1)</script>\x1b[2J", Accepted: 12, Saved: 5, Refused: map[string]uint64{"reject_rbl_client": 3},
	}}
	for _, format := range []string{Text, HTML, JSON} {
		t.Run(format, func(t *testing.T) {
			doc, err := r.Sign(format, key)
			if err != nil {
				t.Fatal(err)
			}
			good := func(what string, doc []byte) {
				t.Helper()
				if got, err := Verify(doc); err != nil || !bytes.Equal(got, key.Public().(ed25519.PublicKey)) {
					t.Errorf("%s: %v", what, err)
				}
			}
			good("as it was made", doc)
			good("by way of mail", bytes.ReplaceAll(doc, []byte("\n"), []byte("\r\n")))
			for i := range doc { // but for the white space at the very end
				bad := bytes.Clone(doc)
				bad[i] ^= 1
				if _, err := Verify(bad); err == nil && !same(format, bad, doc) {
					t.Fatalf("octet %d of %d, %q: the change isn't noticed", i, len(doc), doc[i])
				}
			}
			for what, bad := range map[string][]byte{
				"cut":         doc[:len(doc)/2],
				"empty":       nil,
				"more before": append([]byte("x\n"), doc...),
				"more after":  append(bytes.Clone(doc), "<p>5,000 messages</p>\n"...),
				"twice":       append(bytes.Clone(doc), doc...),
			} {
				if _, err := Verify(bad); err == nil {
					t.Errorf("%s: not noticed", what)
				}
			}
			if text := string(doc); strings.ContainsAny(text, "\x1b") || format != JSON && (strings.Contains(text, "<script>") != (format == Text) || !strings.Contains(text, "5 messages: the outage went on for 72 hours")) {
				t.Errorf("got\n%s", text)
			}
		})
	}
	doc, err := r.Sign(JSON, key)
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Replace(doc, []byte("{"), []byte(`{"report":{"host":"mx2.example.org","outage":{"saved":5000}},`), 1)
	if _, err := Verify(forged); !errors.Is(err, ErrAltered) {
		t.Errorf("a second report in the object: %v", err)
	}
	if _, err := r.Sign("pdf", key); err == nil {
		t.Error("a format that there isn't")
	}
}

// same says that a changed report in JSON, or the end of another, is the same to its
// readers: white space between its values.
func same(format string, a, b []byte) bool {
	trim := func(b []byte) string {
		if format == JSON {
			return strings.Join(strings.Fields(string(b)), "")
		}
		return strings.TrimRight(string(b), "\n\v\r\f")
	}
	return trim(a) == trim(b)
}

// FuzzVerify: no document makes it panic, and none is good without the key.
func FuzzVerify(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	for _, format := range []string{Text, HTML, JSON} {
		doc, err := (&Report{}).Sign(format, key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(doc)
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		if key, err := Verify(doc); (err == nil) != (len(key) == ed25519.PublicKeySize) {
			t.Errorf("%v, %v", key, err)
		}
	})
}
