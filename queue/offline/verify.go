package offline

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/store"
)

// Report is what Verify found.
type Report struct {
	Messages    int      `json:"messages"`
	Bytes       int64    `json:"bytes"` // of content, all of it read and compared
	Quarantined int      `json:"quarantined"`
	Problems    []string `json:"problems"` // at most maxProblems
	More        int      `json:"more"`     // problems beyond
}

func (r *Report) add(format string, args ...any) { add(&r.Problems, &r.More, format, args...) }

// Verify reads everything that the queue holds and compares it with its
// checksums, its counts and its index. What it finds is in the report; an
// error means that it could not go on. Body files that no record names are no
// problem: a crash may leave some, and the next start removes them.
func (v *View) Verify(ctx context.Context) (Report, error) {
	c := &checker{View: v, ctx: ctx, index: map[string]bool{}}
	for _, step := range []func() error{c.records, c.quarantine, c.ids, c.bodies, c.lines, c.counts} {
		if err := step(); err != nil {
			if ctx.Err() != nil {
				return c.Report, ctx.Err()
			}
			c.add("store: %v", err) // it can't read on in this part
		}
	}
	for _, line := range v.alarms {
		c.add("store: %s", line)
	}
	return c.Report, nil
}

// checker is a Verify under way. Its memory grows with the number of messages.
type checker struct {
	*View
	Report
	ctx   context.Context
	found store.Totals
	index map[string]bool // keys that the records call for
}

func (c *checker) records() error {
	return store.Scan(c.store, []byte{store.SpaceRecord}, func(key, value []byte) error {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if c.Checked != nil {
			defer c.Checked()
		}
		seq := store.KeySeq(key)
		r, err := store.DecodeRecordOf(seq, value)
		if err != nil {
			c.add("message number %d: %v", seq, err)
			return nil
		}
		if err := store.ReadWhole(c.store, r); err != nil {
			c.add("message %s: %v", r.Env.ID, err)
		}
		if at, err := store.SeqOf(c.store, r.Env.ID); err != nil || at != seq {
			c.add("message %s: not found by its ID", r.Env.ID)
		}
		for _, e := range r.Index(c.route) {
			c.index[string(e.Key)] = true
		}
		c.found.Add(r, 1)
		c.Messages++
		c.Bytes += r.Size
		return nil
	})
}

func (c *checker) quarantine() error {
	return c.WalkQuarantine(c.ctx, func(queue.Quarantine) error {
		c.Quarantined++
		return nil
	})
}

// known says that a sequence number is a message's, or a quarantined one's.
func (c *checker) known(seq uint64) (bool, error) {
	for _, space := range []byte{store.SpaceRecord, store.SpaceQuarantine} {
		if ok, err := store.Has(c.store, store.SeqKey(space, seq)); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

func (c *checker) ids() error {
	return store.Scan(c.store, []byte{store.SpaceID}, func(key, value []byte) error {
		id := string(key[1:])
		if len(value) != 8 || !store.ValidID(id) {
			c.add("ID %q: damaged entry", id)
			return nil
		}
		ok, err := c.known(binary.BigEndian.Uint64(value))
		if !ok && err == nil {
			c.add("ID %s: there is no such message", id)
		}
		return err
	})
}

func (c *checker) bodies() error {
	return store.Scan(c.store, []byte{store.SpaceBody}, func(key, _ []byte) error {
		ok, err := c.known(store.KeySeq(key))
		if !ok && err == nil {
			c.add("body of number %d: there is no such message", store.KeySeq(key))
		}
		return err
	})
}

// lines compares the index. A changed route makes the next start build it anew.
func (c *checker) lines() error {
	stray := 0
	for _, space := range []byte{store.SpaceLine, store.SpaceDeferred} {
		err := store.Scan(c.store, []byte{space}, func(key, _ []byte) error {
			if !c.index[string(key)] {
				stray++
			}
			delete(c.index, string(key))
			return nil
		})
		if err != nil {
			return err
		}
	}
	if stray > 0 || len(c.index) > 0 {
		c.add("lines: %d entries too many, %d missing; unless routes were changed this is damage; the next start builds them anew", stray, len(c.index))
	}
	return nil
}

func (c *checker) counts() error {
	said, err := store.LoadTotals(c.store)
	if errors.Is(err, store.ErrRecord) || errors.Is(err, store.ErrNotFound) {
		c.add("counts: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	want := said
	want.Messages, want.Held, want.Deferred, want.Bytes = c.found.Messages, c.found.Held, c.found.Deferred, c.found.Bytes
	want.Quarantined = int64(c.Quarantined)
	if !bytes.Equal(want.Encode(), said.Encode()) {
		c.add("counts: %d messages of %d octets, %d held, %d deferred, %d quarantined are here; the last batch says %d of %d, %d, %d, %d",
			want.Messages, want.Bytes, want.Held, want.Deferred, want.Quarantined,
			said.Messages, said.Bytes, said.Held, said.Deferred, said.Quarantined)
	}
	return nil
}
