package queue

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/queue/store"
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

// TestListingDamage lists while a record is damaged that nothing has met yet,
// and reads what is left of messages whose records say nothing any more.
func TestListingDamage(t *testing.T) {
	disk := newMemDisk()
	q := mustOpen(t, options(disk))
	first := mustAccept(t, q, bodyOf(100_000, 1), "a@example.com")
	second := mustAccept(t, q, bodyOf(100_000, 2), "a@example.com")
	whole := mustAccept(t, q, "whole", "a@example.com")
	var b store.Batch
	for seq := range uint64(2) {
		b.Put(store.SeqKey(store.SpaceRecord, seq+1), []byte("evil"))
	}
	b.Delete(store.IDKey(second))
	if err := q.store.Apply(b); err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := q.Walk(t.Context(), func(i Info) error { got = append(got, i.ID); return nil }); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{whole}, got); diff != "" {
		t.Error(diff)
	}
	mustClose(t, q)
	q = mustOpen(t, options(disk)) // which puts the two aside
	defer mustClose(t, q)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.Walk(over, func(Info) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a listing that nobody waits for: %v", err)
	}
	if err := q.WalkQuarantine(over, func(Quarantine) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a listing that nobody waits for: %v", err)
	}
	body, err := q.QuarantineBody(1)
	if err != nil {
		t.Fatalf("the body of %s: %v", first, err)
	}
	defer body.Close()
	if text, err := io.ReadAll(body); err != nil || string(text) != bodyOf(100_000, 1) {
		t.Errorf("the body of %s: %d octets, %v", first, len(text), err)
	}
	if _, err := q.QuarantineBody(2); !errors.Is(err, ErrNotFound) {
		t.Errorf("a body that nothing leads to: %v", err)
	}
}
