package queue

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/understudy-mx/understudy/queue/store"
)

var keepFormat = flag.Bool("keep-format", false, "write testdata/format-N for the format of this program")

// formatMails are what a store in testdata holds.
var formatMails = []struct{ body, to string }{
	{"Subject: small\r\n\r\nbody\r\n", "a@example.com"},
	{bodyOf(maxInline+10, 1), "b@example.com"},
	{"Subject: held\r\n\r\nbody\r\n", "c@example.com"},
}

// TestFormats opens a store of each format that there has been. Whoever raises
// formatVersion keeps one of the new format with -keep-format.
func TestFormats(t *testing.T) {
	if *keepFormat {
		o := inDir(options(nil), fmt.Sprint("testdata/format-", store.FormatVersion))
		q := mustOpen(t, o)
		for _, m := range formatMails {
			id, err := commit(q, returnable(m.to), m.body)
			if err != nil {
				t.Fatal(err)
			}
			if m.to == "c@example.com" {
				if err := q.Hold(id); err != nil {
					t.Fatal(err)
				}
			}
		}
		mustClose(t, q)
	}
	kept, err := filepath.Glob("testdata/format-*")
	if err != nil || len(kept) != store.FormatVersion {
		t.Fatalf("%d formats kept, this program writes %d: %v", len(kept), store.FormatVersion, err)
	}
	for _, dir := range kept {
		o := inDir(options(nil), filepath.Join(t.TempDir(), "q"))
		if err := os.CopyFS(o.Store.String(), os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		q := mustOpen(t, o)
		infos := walk(t, q)
		if len(infos) != len(formatMails) {
			t.Fatalf("%s: %d messages", dir, len(infos))
		}
		for n, i := range infos {
			if i.Auth.Checked != (dir != "testdata/format-1") {
				t.Errorf("%s: message %d: %+v", dir, n, i.Auth)
			}
			if body, err := readBody(q, i.ID); err != nil || body != formatMails[n].body || i.Recipients[0].Address != formatMails[n].to {
				t.Errorf("%s: message %d: %+v, %v", dir, n, i, err)
			}
		}
		if s := q.Stats(); s.Held != 1 {
			t.Errorf("%s: %+v", dir, s)
		}
		if v, err := q.store.Get([]byte{store.SpaceFormat}); err != nil || !bytes.Equal(v, store.FormatValue(store.FormatVersion)) {
			t.Errorf("%s: the store says format %x, %v: an older program would read it", dir, v, err)
		}
		mustClose(t, q)
	}
}
