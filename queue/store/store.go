// Package store defines the keys, records and bodies of a queue, and the interface
// to their storage.
//
// A queue needs little from its storage: sorted keys that change together, and
// bodies too large for a value. Store provides these, and knows nothing of mail.
// The queue's keys and records are defined here as well, because the queue, its
// repair and its verification share them.
//
// Message number 7, for mx.example.com and with a small body, is four keys that
// appear in one batch (all keys: package queue):
//
//	m 00…07                          the record: envelope, state of each recipient
//	b 00…07                          the body; a larger one is no key, see Store.Create
//	i 1m84jpnqcczaqjsv               00…07, its number by its ID
//	q 00 0e mx.example.com 00…07     its place in line
//
// The hard part of a store is the failed write, by a full disk or a cut connection:
// it may have been done all the same. Apply and Reopen are the contract for that.
//
// queue/leveldb keeps all of it in a directory. Any other store, such as one in a
// database server, must pass storetest.Conform.
package store

import (
	"errors"
	"io"
)

// Errors on which a caller branches. One for want of space is syscall.ENOSPC or
// syscall.EDQUOT to errors.Is, whatever the store.
var (
	// ErrNotFound says that there is no such key, or body.
	ErrNotFound     = errors.New("not in the store")
	ErrNoMessage    = errors.New("no such message")
	ErrLocked       = errors.New("queue is in use by another process")
	ErrNewerVersion = errors.New("queue was written by a newer version")
	// ErrDamaged means that what was stored can't be read, or only a part.
	ErrDamaged = errors.New("queue store is damaged")
	// ErrReopening is what readers get between a failed Apply and the end of
	// Reopen.
	ErrReopening = errors.New("queue's store is being reopened")
)

// Opener opens a store, and names it for an error message.
type Opener interface {
	// Open makes the store when there is none: Created is in it then. alarm is
	// called, by any goroutine, when the store had to give up data.
	// ErrLocked, ErrNewerVersion, ErrDamaged, fs.ErrPermission.
	Open(alarm func(kind, detail string)) (Store, error)
	String() string
}

// Store keeps keys with their values, and bodies. Its methods may be called
// from any goroutine, but Apply and Reopen from one at a time only.
type Store interface {
	// Apply makes a batch durable, all of it or nothing: when it returns nil the
	// changes MUST survive a power cut. Any error means that it is not known
	// whether they were made; nothing is applied before Reopen has succeeded.
	// The store keeps no slice of the batch.
	Apply(Batch) error
	// Get reads a key's value, which is the caller's. ErrNotFound.
	Get(key []byte) ([]byte, error)
	// Page calls fn for the keys in r, in order, until fn returns false. Key and
	// value are valid during the call only. Reopen may wait for it, so fn is
	// quick and calls no method of the store; for more see Scan.
	Page(r Range, fn func(key, value []byte) bool) error

	// Create begins a message's body.
	Create(id string) (Body, error)
	// Open reads a body from its start, and tells its size. ErrNotFound.
	Open(id string) (io.ReadCloser, int64, error)
	// Remove forgets a body; that there is none is no error.
	Remove(id string) error
	// Bodies calls fn for every body that there is, whole or not, until it fails.
	Bodies(fn func(id string) error) error

	// Free is the space left to us, in octets and in files.
	Free() (octets, files uint64, err error)
	// Reclaim gives back the space of what was deleted in ranges, if that is worth
	// it. It may take long, and keeps nobody waiting.
	Reclaim(ranges ...Range) error
	// Reopen makes the store ready again after a failed Apply: what was durable
	// before is there, and the failed batch, or nothing of it.
	Reopen() error
	// Damaged says that part of the store can't be read, and that Reclaim does
	// nothing before it is repaired.
	Damaged() bool
	Close() error
}

// Body is one being written. Its octets are bounded by the caller; a store may
// keep them in pieces.
type Body interface {
	io.Writer
	// Open reads from the start what was written, before Commit.
	Open() (io.ReadCloser, error)
	// Commit makes body and name durable, and ends the writing. Until a batch
	// names the body in a record it may be forgotten.
	Commit() error
	// Close ends the writing without; Remove takes away what there is.
	Close() error
}

// Batch is changes that become durable together, in their order.
type Batch []Change

// Change is of one key. A nil Value with Delete set removes it.
type Change struct {
	Key, Value []byte
	Delete     bool
}

// Put sets a key. Neither slice is copied: they must stay as they are until the
// batch was applied.
func (b *Batch) Put(key, value []byte) { *b = append(*b, Change{Key: key, Value: value}) }

// Delete removes a key, if there is one. It isn't copied either.
func (b *Batch) Delete(key []byte) { *b = append(*b, Change{Key: key, Delete: true}) }

// Reset empties the batch for another use.
func (b *Batch) Reset() {
	clear(*b)
	*b = (*b)[:0]
}
