package postgres

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

// TestFirstStarts: several members meet an empty database at the same time.
func TestFirstStarts(t *testing.T) {
	node := listertest.Primary(t)
	var starts sync.WaitGroup
	for i := range 6 {
		o := mustParse(t, listertest.DSN(node))
		o.Spool, o.OneMachine, o.Dir = fmt.Sprintf("mx%d.example.org", i), true, filepath.Join(t.TempDir(), "spool")
		starts.Go(func() {
			s, err := o.Open(nil)
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	starts.Wait()
}
