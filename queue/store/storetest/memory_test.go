package storetest

import (
	"errors"
	"maps"
	"testing"

	"github.com/understudy-mx/understudy/queue/store"
)

// TestMemory holds the store in memory to what it stands for.
func TestMemory(t *testing.T) {
	for name, applied := range map[string]bool{"failed batches are lost": false, "failed batches are applied": true} {
		t.Run(name, func(t *testing.T) {
			Conform(t, Subject{
				New: func(*testing.T) store.Opener { return New() },
				Crash: func(_ *testing.T, o store.Opener) store.Opener {
					m := o.(*Memory)
					m.mu.Lock()
					defer m.mu.Unlock()
					return &Memory{keys: maps.Clone(m.keys), bodies: maps.Clone(m.bodies)}
				},
				Fail: func(o store.Opener, fails bool) {
					o.(*Memory).Fault = nil
					if fails {
						o.(*Memory).Fault = func(store.Batch) (bool, error) { return applied, errors.New("connection lost") }
					}
				},
			})
		})
	}
}
