package test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestPostfixAlone proves the harness: what smtp-source sends straight to the
// primary is in the maildir, also after the primary was killed in between.
func TestPostfixAlone(t *testing.T) {
	p := newPostfix(t)
	file := tempDir(t) + "/message"
	write(t, file, "Subject: x\n\nhello\n")
	for range 2 {
		p.start()
		if err := smtpSource(t, p.addr, file, "user@example.org", 2, 2); err != nil {
			t.Fatal(err)
		}
		p.settle()
		p.kill()
	}
	var got []string
	for _, d := range p.deliveries("primary.example.org") {
		got = append(got, d.to)
	}
	slices.Sort(got)
	want := []string{"1user@example.org", "1user@example.org", "2user@example.org", "2user@example.org"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("delivered (-want +got):\n%s", diff)
	}
}
