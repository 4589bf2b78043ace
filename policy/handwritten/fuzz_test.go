package handwritten

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/understudy-mx/understudy/policy"
)

// FuzzTOML: a policy file either compiles into something whose encoding comes
// back, or every line of the error names its place.
func FuzzTOML(f *testing.F) {
	files, _ := filepath.Glob("../testdata/decisions/*.txtar")
	more, _ := filepath.Glob("testdata/mistakes/*.txtar")
	for _, file := range append(files, more...) {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range ar.Files {
			if part.Name == "policy.toml" {
				f.Add(string(part.Data))
			}
		}
	}
	f.Add(smallPolicy)
	f.Add("a.'b c'.\"d\\\"e\" = [[1,{x=1,y=[{}]}],'''q''']\n[[t]]\n[[t.u]]\n[t.u.v]\nw=\"\"\"x\"\"\"\"\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse("p", []byte(text), func(string) ([]byte, error) { return nil, os.ErrNotExist })
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, "p:") {
					t.Errorf("no place in %q", line)
				}
			}
			return
		}
		back, err := policy.Decode("again", bytes.NewReader(s.Encode()), nil)
		if err != nil || !bytes.Equal(back.Encode(), s.Encode()) {
			t.Errorf("the encoding doesn't come back: %v\n%s", err, s.Encode())
		}
	})
}
