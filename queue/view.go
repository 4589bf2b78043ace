package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/syndtr/goleveldb/leveldb"
)

// View is a queue opened for reading alone, while no daemon has it: nothing in
// the directory changes but LOCK, which keeps a daemon out meanwhile.
type View struct {
	q      *Queue
	alarms []string // what LevelDB complained about
}

// OpenView opens a queue that is there. ErrLocked, ErrNewerVersion,
// fs.ErrNotExist. Of the options only Dir and Route are needed.
func OpenView(o Options) (*View, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	v := &View{q: &Queue{o: o, disk: o.Disk, log: o.Log, m: o.Metrics}}
	if err := v.open(); err != nil {
		return nil, fmt.Errorf("queue %s: %w", o.Dir, err)
	}
	return v, nil
}

func (v *View) open() (err error) {
	q := v.q
	// A store that is not there would be an empty one to LevelDB.
	if _, err := q.disk.List(filepath.Join(q.o.Dir, "store")); err != nil {
		return err
	}
	if q.lock, err = q.disk.Lock(q.o.Dir); err != nil {
		return err
	}
	q.store = &store{dir: filepath.Join(q.o.Dir, "store"), disk: q.disk, m: q.m, readOnly: true,
		warn: func(_, line string) { v.alarms = append(v.alarms, cut(line)) }, writeBuffer: q.o.writeBuffer}
	if err = q.store.open(q.store.dir); err == nil {
		err = q.store.checkFormat()
	}
	if err != nil {
		v.Close()
	}
	return err
}

// Close lets go of the queue.
func (v *View) Close() error {
	err := v.q.store.close()
	if lerr := v.q.lock.Close(); err == nil {
		err = lerr
	}
	return err
}

// Walk is as for a Queue.
func (v *View) Walk(ctx context.Context, fn func(Info) error) error { return v.q.Walk(ctx, fn) }

// Body is as for a Queue.
func (v *View) Body(id string) (io.ReadCloser, error) { return v.q.Body(id) }

// WalkQuarantine is as for a Queue.
func (v *View) WalkQuarantine(ctx context.Context, fn func(Quarantine) error) error {
	return v.q.WalkQuarantine(ctx, fn)
}

// QuarantineRecord is as for a Queue.
func (v *View) QuarantineRecord(seq uint64) ([]byte, error) { return v.q.QuarantineRecord(seq) }

// QuarantineBody is as for a Queue.
func (v *View) QuarantineBody(seq uint64) (io.ReadCloser, error) { return v.q.QuarantineBody(seq) }

// Quarantine is a message that was put aside because its record or its body is
// damaged. Fields that can't be read any more are empty.
type Quarantine struct {
	Seq     uint64 `json:"seq"`
	ID      string `json:"id,omitempty"`
	Message *Info  `json:"message,omitempty"` // of a record that can be read
	Cause   string `json:"cause"`
}

// WalkQuarantine calls fn for every message that was put aside, as Walk does.
func (q *Queue) WalkQuarantine(ctx context.Context, fn func(Quarantine) error) error {
	return q.store.scan([]byte{spaceQuarantine}, func(key, value []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		item := Quarantine{Seq: keySeq(key)}
		r, err := decodeRecord(value)
		if err == nil {
			i := q.info(r)
			item.ID, item.Message = r.env.ID, &i
			err = q.whole(r)
		}
		if err == nil {
			err = fmt.Errorf("the message looks whole now; it was put aside as number %d", item.Seq)
		}
		item.Cause = cut(err.Error())
		return fn(item)
	})
}

// whole reads a message's body to its end.
func (q *Queue) whole(r *record) error {
	f, err := q.openBody(r)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}

// QuarantineRecord is a record as it was found. ErrNotFound.
func (q *Queue) QuarantineRecord(seq uint64) ([]byte, error) {
	raw, err := q.store.get(seqKey(spaceQuarantine, seq))
	if errors.Is(err, leveldb.ErrNotFound) {
		return nil, ErrNotFound
	}
	return raw, err
}

// QuarantineBody is what there is of the message's content, damaged or not.
// ErrNotFound when there is nothing.
func (q *Queue) QuarantineBody(seq uint64) (io.ReadCloser, error) {
	raw, err := q.QuarantineRecord(seq)
	if err != nil {
		return nil, err
	}
	b, err := q.store.get(seqKey(spaceBody, seq))
	if err == nil {
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	if !errors.Is(err, leveldb.ErrNotFound) {
		return nil, err
	}
	id := ""
	if r, err := decodeRecord(raw); err == nil {
		id = r.env.ID
	} else if id, err = q.idOf(seq); err != nil {
		return nil, err
	}
	f, _, err := q.disk.Open(q.bodyFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	return f, err
}

// idOf finds the ID of a message whose record can't be read.
func (q *Queue) idOf(seq uint64) (id string, err error) {
	err = q.store.scan([]byte{spaceID}, func(key, value []byte) error {
		if len(value) == 8 && binary.BigEndian.Uint64(value) == seq && validID(string(key[1:])) {
			id = string(key[1:])
		}
		return nil
	})
	if err == nil && id == "" {
		err = ErrNotFound
	}
	return id, err
}
