package publisher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/policy"
)

// server is a primary of another kind than those that we know.
type server struct {
	err   error
	asked []string
}

func (*server) Name() string                 { return "server" }
func (*server) Changed(context.Context) bool { return false }
func (s *server) Import(_ context.Context, ask []string) (r Imported, err error) {
	s.asked = slices.Clone(ask)
	if r.Files = []string{"/etc/server"}; s.err == nil {
		r.Snapshot, err = compile(policy.NewSpec())
	}
	return r, errors.Join(s.err, err)
}

// TestRead: any importer is asked about the addresses of sources that say so, and
// not at all when one can't be read; what to watch is known in any case.
func TestRead(t *testing.T) {
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte("alice@example.org\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, path string
		err        error
		asked      []string
		sources    string // failing, by name; those not tried don't fail
		ok         bool
	}{
		{"well", list, nil, []string{"mx3@example.org", "alice@example.org"}, "map[server:false source asked:false source more:false]", true},
		{"the server fails", list, errors.New("down"), []string{"mx3@example.org", "alice@example.org"}, "map[server:true source asked:false source more:false]", false},
		{"a source fails", list + "-", nil, nil, "map[server:false source asked:true source more:false]", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &server{err: tt.err}
			cfg := &config.Config{Sources: []config.Source{{Name: "asked", Type: "file", Path: tt.path, Ask: true}, {Name: "more", Type: "file", Path: list}}}
			r, err := read(t.Context(), cfg, s, []string{"mx3@example.org"})
			if (err == nil) != tt.ok || tt.ok != (r.Snapshot != nil) {
				t.Errorf("got %v, %v", r.Snapshot, err)
			}
			failing := map[string]bool{}
			for _, s := range r.sources {
				failing[s.Name] = s.Failing
			}
			if diff := cmp.Diff(tt.asked, s.asked); diff != "" || fmt.Sprint(failing) != tt.sources {
				t.Errorf("asked (-want +got):\n%s\nfailing %v, want %s", diff, failing, tt.sources)
			}
			if watched := slices.Contains(r.Files, "/etc/server"); watched != (s.asked != nil) || !slices.Contains(r.Files, tt.path) || !slices.Contains(r.Files, list) {
				t.Errorf("to watch: %q", r.Files)
			}
		})
	}
}

// TestRestAfter: a slow look at a database is no reason to leave a change alone
// for long, unless looking is all that the database would do.
func TestRestAfter(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		time.Millisecond:       time.Second,
		100 * time.Millisecond: 2 * time.Second,
		time.Second:            5 * time.Second,
		30 * time.Second:       2 * time.Minute,
	} {
		if got := restAfter(took); got != want {
			t.Errorf("after %v: got %v, want %v", took, got, want)
		}
	}
}
