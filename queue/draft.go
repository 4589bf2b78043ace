package queue

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/queue/store"
)

// maxInline is the largest body that is written into the store, in octets: 64
// KiB and what trace fields add. A larger one goes to a file.
const maxInline = 68 << 10

// maxSpare is how much of the body of a draft that spares memory is kept there.
const maxSpare = 8 << 10

// spaceStep is how many octets a draft writes between two looks at the free space.
const spaceStep = 1 << 20

// Draft is a message on its way in. It belongs to one goroutine and MUST end
// with Commit or Abort; Abort after Commit does nothing.
type Draft struct {
	q    *Queue
	env  *envelope.Envelope
	buf  []byte     // body that is not in the file yet, at most room
	file store.Body // nil until the body outgrows room
	room int        // maxInline or maxSpare
	// pooled is where buf goes at the end.
	pooled *[]byte
	size   int64
	next   int64 // size at which to look at the free space again
	sum    hash.Hash
	err    error // what a Write failed with
	over   bool
	// stored says that there is a file, and that nobody else will remove it if
	// the commit fails.
	stored bool
}

// Begin opens a draft and sets env.ID, and env.Received when it is zero. env
// stays the caller's until Commit, which reads it. Errors are as for Ready.
func (q *Queue) Begin(env *envelope.Envelope) (*Draft, error) {
	if err := q.Ready(0); err != nil {
		return nil, err
	}
	now := q.now()
	env.ID = q.ids.next(now)
	if env.Received.IsZero() {
		env.Received = now
	}
	return &Draft{q: q, env: env, sum: sha256.New(), next: spaceStep, room: maxInline}, nil
}

// Spare has little of the body stay in memory, since the draft will probably be
// aborted: it costs more to commit. It must come before the first Write.
func (d *Draft) Spare() { d.room = maxSpare }

// ID is the message's name, as in the envelope.
func (d *Draft) ID() string { return d.env.ID }

// Write appends to the body: lines end in CRLF, no dot-stuffing. An error is
// an *envelope.ReplyError, and Commit will return it again.
func (d *Draft) Write(p []byte) (int, error) {
	if d.over {
		return 0, errors.New("write to a draft that ended")
	}
	if d.err != nil {
		return 0, d.err
	}
	d.sum.Write(p)
	d.size += int64(len(p))
	if d.size > d.next {
		d.next = d.size + spaceStep
		if d.err = d.q.Ready(0); d.err != nil {
			return 0, d.err
		}
	}
	if len(d.buf)+len(p) <= d.room {
		d.keep(p)
		return len(p), nil
	}
	if d.err = d.spill(d.buf); d.err == nil {
		d.err = d.spill(p)
	}
	d.letGo()
	d.room = maxSpare // from now on it only collects small writes
	if d.err != nil {
		return 0, d.err
	}
	return len(p), nil
}

// Open reads from the start what was written so far. The reader is good until the
// next call of the draft's.
func (d *Draft) Open() (io.ReadCloser, error) {
	if d.over || d.err != nil {
		return nil, errors.New("read a draft that ended")
	}
	if d.file == nil {
		return io.NopCloser(bytes.NewReader(d.buf)), nil
	}
	f, err := d.file.Open()
	if err != nil {
		return nil, d.q.bodyError("open", err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(f, bytes.NewReader(d.buf)), f}, nil
}

// bodyBuffers holds buffers of up to maxInline octets, spareBuffers those of maxSpare.
var (
	bodyBuffers  = sync.Pool{New: func() any { return new([]byte) }}
	spareBuffers = sync.Pool{New: func() any { return new([]byte) }}
)

func (d *Draft) pool() *sync.Pool {
	if d.room == maxSpare {
		return &spareBuffers
	}
	return &bodyBuffers
}

// keep appends to the buffer, which p fits.
func (d *Draft) keep(p []byte) {
	if d.pooled == nil {
		d.pooled = d.pool().Get().(*[]byte)
		d.buf = (*d.pooled)[:0]
	}
	if need := len(d.buf) + len(p); need > cap(d.buf) {
		bigger := make([]byte, len(d.buf), min(max(need, 2*cap(d.buf), maxSpare), d.room))
		copy(bigger, d.buf)
		d.buf = bigger
	}
	d.buf = append(d.buf, p...)
}

// letGo gives the buffer back.
func (d *Draft) letGo() {
	if d.pooled != nil {
		*d.pooled = d.buf
		d.pool().Put(d.pooled)
		d.pooled, d.buf = nil, nil
	}
}

// spill writes to the store outside of a batch. A body is nothing until a record
// names it, and what none names is removed at start-up.
func (d *Draft) spill(p []byte) error {
	if d.file == nil {
		f, err := d.q.store.Create(d.ID())
		if err != nil {
			return d.q.bodyError("create", err)
		}
		d.file, d.stored = f, true
	}
	if len(p) == 0 {
		return nil
	}
	if n, err := d.file.Write(p); err != nil || n < len(p) {
		return d.q.bodyError("write", errors.Join(err, shortIf(n < len(p))))
	}
	return nil
}

func shortIf(short bool) error {
	if short {
		return io.ErrShortWrite
	}
	return nil
}

// bodyError counts a failure of the body's file and makes it a reply.
func (q *Queue) bodyError(operation string, err error) error {
	q.m.StoreErrors.WithLabelValues("body_" + operation).Inc()
	q.often.Error(q.log, operation, "message body not stored", "operation", operation, "err", err)
	return poisoned(err)
}

// Commit makes the message durable and returns nil once it is: from then on it
// is the queue's. Any error is an *envelope.ReplyError and means that the
// message is not accepted. ctx ends the wait only while nothing was written.
func (d *Draft) Commit(ctx context.Context) error {
	if d.over {
		return errors.New("commit of a draft that ended")
	}
	err := d.commit(ctx)
	if err == nil {
		d.stored = false // the queue's from now on
	}
	d.Abort()
	return err
}

func (d *Draft) commit(ctx context.Context) error {
	if d.err != nil {
		return d.err
	}
	if len(d.env.To) == 0 {
		return poisoned(errors.New("no recipients"))
	}
	if err := d.q.Ready(0); err != nil {
		return err
	}
	r := d.record()
	if d.file != nil {
		if err := d.closeFile(); err != nil {
			return err
		}
	}
	o := &op{size: len(d.buf) + 512 + 256*len(r.Recipients)}
	o.fill = func(t *tx) error { return t.insert(r, d.buf) }
	o.undo = func() *op {
		d.stored = false
		return d.q.forget(r)
	}
	result := make(chan error, 1)
	o.done = func(err error) { result <- err }
	d.q.submit(o)
	select {
	case err := <-result:
		return asReply(err)
	case <-ctx.Done():
	}
	if o.taken.CompareAndSwap(false, true) {
		return poisoned(ctx.Err()) // nobody will write it
	}
	return asReply(<-result)
}

// record is the message as it will be stored; fill gives it a number.
func (d *Draft) record() *store.Record {
	r := &store.Record{Env: *d.env, Size: d.size, Inline: d.file == nil}
	r.Env.To = nil
	d.sum.Sum(r.Sum[:0])
	now, alive := d.q.now().UnixNano(), d.q.aliveNow()
	r.Recipients = make([]store.Recipient, len(d.env.To))
	for i, to := range d.env.To {
		r.Recipients[i] = store.Recipient{Recipient: to, Since: now, Alive: alive}
		if d.env.Hold {
			r.Recipients[i].State, r.Recipients[i].Reason = store.Held, store.ByPolicy
			r.Recipients[i].Reply.Text = store.Cut(d.env.HoldRule)
		}
	}
	return r
}

// closeFile makes the body outside of the batch durable.
func (d *Draft) closeFile() error {
	if err := d.spill(d.buf); err != nil {
		return err
	}
	if err := d.file.Commit(); err != nil {
		return d.q.bodyError("sync", err)
	}
	d.file = nil
	return nil
}

// Abort forgets the draft. It does nothing after Commit.
func (d *Draft) Abort() {
	if d.over {
		return
	}
	d.over = true
	d.letGo()
	if d.file != nil {
		d.file.Close()
		d.file = nil
	}
	if d.stored {
		d.q.removeBody(d.ID())
	}
}

// forget takes back a message whose batch failed, in case it reached the disk
// nevertheless. Its sender was told to come again.
func (q *Queue) forget(r *store.Record) *op {
	o := &op{keep: true, size: 512}
	o.fill = func(t *tx) error {
		seq, err := store.SeqOf(q.store, r.Env.ID)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for %s: %w", r.Env.ID, err)
		}
		was := r.Clone()
		was.Seq = seq
		return t.replace(was, nil)
	}
	o.done = func(err error) {
		if err == nil && !r.Inline {
			q.litter <- r.Env.ID
		}
	}
	return o
}

// removeBody forgets a body outside of the keys. What stays is found by the next
// start-up.
func (q *Queue) removeBody(id string) {
	if err := q.store.Remove(id); err != nil {
		q.m.StoreErrors.WithLabelValues("body_remove").Inc()
		q.often.Warn(q.log, "", "remove body file", "err", err)
	}
}
