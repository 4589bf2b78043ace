package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/queue/store"
	"github.com/understudy-mx/understudy/queue/store/storetest"
)

func password() (string, error) { return listertest.Password, nil }

func mustParse(t testing.TB, dsn string) Opener {
	t.Helper()
	c, err := ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return Opener{Config: c, Password: password, Spool: "mx2.example.org", Dir: filepath.Join(t.TempDir(), "spool"), Lease: 2 * time.Second}
}

// TestConform holds spools to what every store is held to. A power cut is one of
// the whole server, and of the process that held the spool; a write fails as its
// connection is cut at the commit.
func TestConform(t *testing.T) {
	node := listertest.Primary(t)
	wires := map[string]*listertest.Wire{}
	n := 0
	storetest.Conform(t, storetest.Subject{
		New: func(t *testing.T) store.Opener {
			n++
			w := listertest.NewWire(t, node.Address())
			o := mustParse(t, w.DSN())
			o.Spool, o.OneMachine = fmt.Sprintf("mx%d.example.org", n), true
			wires[o.Spool] = w
			return o
		},
		Crash: func(sub *testing.T, o store.Opener) store.Opener {
			node.Kill()
			node.Start(t)
			left := o.(Opener)
			left.Dir = filepath.Join(sub.TempDir(), "left")
			if err := os.CopyFS(left.Dir, os.DirFS(o.(Opener).Dir)); err != nil {
				t.Fatal(err)
			}
			return left
		},
		Fail: func(o store.Opener, fails bool) { wires[o.(Opener).Spool].Cut(fails) },
	})
}
