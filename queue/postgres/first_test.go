package postgres

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/queue/store"
)

// TestFirstStarts: several members meet an empty database at the same time.
func TestFirstStarts(t *testing.T) {
	node := listertest.Primary(t)
	early, err := mustParse(t, listertest.DSN(node)).Members()
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	if _, err := early.List(context.Background()); err == nil || errors.Is(err, store.ErrDamaged) {
		t.Errorf("an empty database isn't damaged: %v", err)
	}
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
