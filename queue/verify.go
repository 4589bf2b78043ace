package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/syndtr/goleveldb/leveldb"
)

// maxProblems bounds a Report.
const maxProblems = 1000

// Report is what Verify found.
type Report struct {
	Messages    int      `json:"messages"`
	Bytes       int64    `json:"bytes"` // of content, all of it read and compared
	Quarantined int      `json:"quarantined"`
	Problems    []string `json:"problems"` // at most maxProblems
	More        int      `json:"more"`     // problems beyond
}

func (r *Report) add(format string, args ...any) {
	if len(r.Problems) >= maxProblems {
		r.More++
		return
	}
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

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
			c.add("LevelDB: %v", err) // it can't read on in this part
		}
	}
	for _, line := range v.alarms {
		c.add("LevelDB: %s", line)
	}
	return c.Report, nil
}

// checker is a Verify under way. Its memory grows with the number of messages.
type checker struct {
	*View
	Report
	ctx   context.Context
	found totals
	index map[string]bool // keys that the records call for
}

func (c *checker) records() error {
	return c.q.store.scan([]byte{spaceRecord}, func(key, value []byte) error {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		seq := keySeq(key)
		r, err := decodeRecord(value)
		if err == nil && r.seq != seq {
			err = fmt.Errorf("%w: number %d", errRecord, r.seq)
		}
		if err != nil {
			c.add("message number %d: %v", seq, err)
			return nil
		}
		if err := c.q.whole(r); err != nil {
			c.add("message %s: %v", r.env.ID, err)
		}
		if at, err := c.q.store.seqOf(r.env.ID); err != nil || at != seq {
			c.add("message %s: not found by its ID", r.env.ID)
		}
		for _, e := range r.index(c.q.o.Route) {
			c.index[string(e.key)] = true
		}
		c.found.add(r, 1)
		c.Messages++
		c.Bytes += r.size
		return nil
	})
}

func (c *checker) quarantine() error {
	return c.WalkQuarantine(c.ctx, func(i Quarantine) error {
		c.Quarantined++
		return nil
	})
}

// known says that a sequence number is a message's, or a quarantined one's.
func (c *checker) known(seq uint64) (bool, error) {
	for _, space := range []byte{spaceRecord, spaceQuarantine} {
		if ok, err := c.q.store.has(seqKey(space, seq)); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

func (c *checker) ids() error {
	return c.q.store.scan([]byte{spaceID}, func(key, value []byte) error {
		id := string(key[1:])
		if len(value) != 8 || !validID(id) {
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
	return c.q.store.scan([]byte{spaceBody}, func(key, _ []byte) error {
		ok, err := c.known(keySeq(key))
		if !ok && err == nil {
			c.add("body of number %d: there is no such message", keySeq(key))
		}
		return err
	})
}

// lines compares the index. A changed route makes the next start build it anew.
func (c *checker) lines() error {
	stray := 0
	for _, space := range []byte{spaceLine, spaceDeferred} {
		err := c.q.store.scan([]byte{space}, func(key, _ []byte) error {
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
	said, err := c.q.store.loadTotals()
	if errors.Is(err, errRecord) || errors.Is(err, leveldb.ErrNotFound) {
		c.add("counts: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	want := said
	want.messages, want.held, want.deferred, want.bytes = c.found.messages, c.found.held, c.found.deferred, c.found.bytes
	want.quarantined = int64(c.Quarantined)
	if !bytes.Equal(want.encode(), said.encode()) {
		c.add("counts: %d messages of %d octets, %d held, %d deferred, %d quarantined are here; the last batch says %d of %d, %d, %d, %d",
			want.messages, want.bytes, want.held, want.deferred, want.quarantined,
			said.messages, said.bytes, said.held, said.deferred, said.quarantined)
	}
	return nil
}
