package queue

import (
	"errors"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestListingHoldsUpNobody has an operator stop reading in the middle of a list.
// The store is reopened meanwhile, which closes it first.
func TestListingHoldsUpNobody(t *testing.T) {
	for name, list := range map[string]func(*Queue, func() error) error{
		"messages": func(q *Queue, stalled func() error) error {
			return q.Walk(t.Context(), func(Info) error { return stalled() })
		},
		"quarantine": func(q *Queue, stalled func() error) error {
			return q.WalkQuarantine(t.Context(), func(Quarantine) error { return stalled() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk := newMemDisk()
			q := mustOpen(t, options(disk))
			gone := mustAccept(t, q, bodyOf(100_000, 1), "a@example.com")
			mustAccept(t, q, "whole", "a@example.com")
			disk.Remove(bodyFile(gone))
			mustClose(t, q)
			q = mustOpen(t, options(disk))
			listed := 0
			err := list(q, func() error {
				listed++
				disk.Fault(func(op testmx.Op) error {
					if op.Kind == testmx.OpSync {
						return errDisk
					}
					return nil
				})
				_, err := accept(q, "while the disk fails", "a@example.com")
				wantReply(t, err, 451, "4.3.0")
				disk.Fault(nil)
				reopened := make(chan error, 1)
				go func() { reopened <- q.do(&op{keep: true, fill: func(*tx) error { return nil }}) }()
				select {
				case err := <-reopened:
					return err
				case <-time.After(time.Minute):
					return errors.New("the store is not reopened while somebody lists")
				}
			})
			if err != nil || listed != 1 {
				t.Fatalf("%d listed, %v", listed, err)
			}
			mustClose(t, q)
		})
	}
}
