package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/queue/store"
)

// Reader shows what a store holds, of a queue that runs or of one that doesn't.
type Reader struct {
	store store.Store
	route func(domain string) (dest string)
}

// NewReader reads s under the given routes, see Options.
func NewReader(s store.Store, route func(domain string) (dest string)) Reader {
	return Reader{s, route}
}

// Info is a message as the operator sees it.
type Info struct {
	ID       string          `json:"id"`
	Seq      uint64          `json:"seq"` // place in the line
	Accepted time.Time       `json:"accepted"`
	Size     int64           `json:"size"` // octets of content
	From     string          `json:"from"` // "" for the null reverse-path
	Client   envelope.Client `json:"client"`
	// MayHaveArrived says that the next hop may have it already, from a live session.
	MayHaveArrived bool `json:"may_have_arrived,omitempty"`
	// Auth is what SPF and DKIM said when it came. With Vouched it may be returned.
	Auth envelope.Auth `json:"auth,omitzero"`
	// Report says that the message is a DSN of our own.
	Report bool `json:"report,omitempty"`
	// Coming says that it is being moved here from another store, which may still
	// have it: it isn't relayed before that is settled.
	Coming     bool            `json:"coming,omitempty"`
	Recipients []RecipientInfo `json:"recipients"` // not the ones that are done
}

// RecipientInfo is one of its recipients.
type RecipientInfo struct {
	Address     string    `json:"address"`
	Destination string    `json:"destination"`
	State       string    `json:"state"`             // queued, deferred, held
	Reason      string    `json:"reason,omitempty"`  // of a held one: refused, expired, operator, policy
	HeldBy      string    `json:"held_by,omitempty"` // the policy rule that holds it
	Attempts    int       `json:"attempts"`          // answered ones
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	Reply       string    `json:"reply,omitempty"` // the last one
	Rule        string    `json:"rule,omitempty"`  // the policy rule that let it in
}

func (x Reader) info(r *store.Record) Info {
	i := Info{ID: r.Env.ID, Seq: r.Seq, Accepted: r.Env.Received, Size: r.Size,
		From: r.Env.From.String(), Client: r.Env.Client, MayHaveArrived: r.Env.MayHaveArrived,
		Auth: r.Env.Auth, Report: r.Env.Report, Coming: r.Origin != ""}
	for k := range r.Recipients {
		c := &r.Recipients[k]
		ri := RecipientInfo{Address: c.Path.String(), Destination: r.Dest(c, x.route),
			State: c.State.String(), Reason: c.Reason.String(), Attempts: c.Attempts, Rule: c.Rule}
		if c.State == store.Deferred {
			ri.NextAttempt = time.Unix(0, c.Next)
		}
		if !c.Reply.Zero() {
			ri.Reply = c.Reply.String()
		} else if c.Reason == store.ByPolicy {
			ri.HeldBy = c.Reply.Text
		}
		i.Recipients = append(i.Recipients, ri)
	}
	return i
}

// Walk calls fn for every message, oldest first, until it fails or ctx ends.
// It holds up nobody, and fn may take its time; messages that come or go
// meanwhile may or may not be seen. A damaged record is left out.
func (r Reader) Walk(ctx context.Context, fn func(Info) error) error {
	return store.Scan(r.store, []byte{store.SpaceRecord}, func(_, value []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, err := store.DecodeRecord(value)
		if err != nil {
			return nil
		}
		return fn(r.info(rec))
	})
}

// find loads a message by its ID.
func (r Reader) find(id string) (*store.Record, error) {
	seq, err := store.SeqOf(r.store, id)
	if err != nil {
		return nil, err
	}
	rec, err := store.Load(r.store, seq)
	if err == nil && (rec == nil || rec.Env.ID != id) {
		err = ErrNotFound
	}
	return rec, err
}

// Get shows one message, or fails with ErrNotFound.
func (r Reader) Get(id string) (Info, error) {
	rec, err := r.find(id)
	if err != nil {
		return Info{}, err
	}
	return r.info(rec), nil
}

// Body reads a message's content. The last Read fails when the content is not
// what was accepted.
func (r Reader) Body(id string) (io.ReadCloser, error) {
	rec, err := r.find(id)
	if err != nil {
		return nil, err
	}
	return store.OpenBody(r.store, rec)
}

// Quarantine is a message that was put aside because its record or its body is
// damaged. Fields that can't be read any more are empty.
type Quarantine struct {
	Seq     uint64 `json:"seq"`
	ID      string `json:"id,omitempty"`
	Message *Info  `json:"message,omitempty"` // of a record that can be read
	Cause   string `json:"cause"`
}

// WalkQuarantine calls fn for every message that was put aside, as Walk does.
func (r Reader) WalkQuarantine(ctx context.Context, fn func(Quarantine) error) error {
	return store.Scan(r.store, []byte{store.SpaceQuarantine}, func(key, value []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		item := Quarantine{Seq: store.KeySeq(key)}
		rec, err := store.DecodeRecord(value)
		if err == nil {
			i := r.info(rec)
			item.ID, item.Message = rec.Env.ID, &i
			err = store.ReadWhole(r.store, rec)
		}
		if err == nil {
			err = fmt.Errorf("the message looks whole now; it was put aside as number %d", item.Seq)
		}
		item.Cause = store.Cut(err.Error())
		return fn(item)
	})
}

// QuarantineRecord is a record as it was found. ErrNotFound.
func (r Reader) QuarantineRecord(seq uint64) ([]byte, error) {
	raw, err := r.store.Get(store.SeqKey(store.SpaceQuarantine, seq))
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrNotFound
	}
	return raw, err
}

// QuarantineBody is what there is of the message's content, damaged or not.
// ErrNotFound when there is nothing.
func (r Reader) QuarantineBody(seq uint64) (io.ReadCloser, error) {
	raw, err := r.QuarantineRecord(seq)
	if err != nil {
		return nil, err
	}
	b, err := r.store.Get(store.SeqKey(store.SpaceBody, seq))
	if err == nil {
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	id := ""
	if rec, err := store.DecodeRecord(raw); err == nil {
		id = rec.Env.ID
	} else if id, err = r.idOf(seq); err != nil {
		return nil, err
	}
	f, _, err := r.store.Open(id)
	if errors.Is(err, store.ErrNotFound) {
		err = ErrNotFound
	}
	return f, err
}

// idOf finds the ID of a message whose record can't be read.
func (r Reader) idOf(seq uint64) (id string, err error) {
	err = store.Scan(r.store, []byte{store.SpaceID}, func(key, value []byte) error {
		if len(value) == 8 && binary.BigEndian.Uint64(value) == seq && store.ValidID(string(key[1:])) {
			id = string(key[1:])
		}
		return nil
	})
	if err == nil && id == "" {
		err = ErrNotFound
	}
	return id, err
}
