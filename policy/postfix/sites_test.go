package postfix_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

// TestSites imports configurations of our own, each after a kind that people
// run, and compares what the operator reads first: all of the report but what
// is replicated. With UPDATE=1 it is written.
func TestSites(t *testing.T) {
	files, err := filepath.Glob("testdata/sites/*.txtar")
	if err != nil || len(files) < 9 {
		t.Fatalf("only %d sites: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			site, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			conf := map[string]string{}
			for _, f := range site.Files {
				conf[f.Name] = string(f.Data)
			}
			delete(conf, "want")
			src := install(t, conf)
			_, report := load(t, src)
			report.MailVersion = "3.x"
			var b bytes.Buffer
			if err := report.Print(&b, false); err != nil {
				t.Fatal(err)
			}
			got := strings.ReplaceAll(b.String(), src.ConfigDir, "@DIR@")
			want := &site.Files[len(site.Files)-1]
			if os.Getenv("UPDATE") != "" {
				want.Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(site), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(want.Data), got); diff != "" {
				t.Errorf("differs from %s (-want +got):\n%s", file, diff)
			}
		})
	}
}
