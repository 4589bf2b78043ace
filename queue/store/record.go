package store

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// maxText bounds a peer's text that a record keeps, in octets.
const maxText = 512

// State of a recipient. Recipients that are done leave the record.
type State uint8

const (
	Queued   State = iota // in line
	Deferred              // answered 4xx, waits for its next attempt
	Held                  // waits for the operator
)

func (s State) String() string { return [...]string{"queued", "deferred", "held"}[s] }

// Reason tells why a recipient is held.
type Reason uint8

const (
	NotHeld    Reason = iota
	Refused           // the next hop answered 5xx after we accepted: a parity incident
	Expired           // deferred until older than MaxAge
	ByOperator        // Hold
	ByPolicy          // Envelope.Hold
)

func (r Reason) String() string {
	return [...]string{"", "refused", "expired", "operator", "policy"}[r]
}

// Recipient is one forward-path and what became of it.
type Recipient struct {
	envelope.Recipient
	State    State
	Reason   Reason
	Attempts int
	Since    int64 // Unix ns: put in line, by acceptance or release
	Alive    int64 // the queue's own age at that time, ns; see Totals.Alive
	Last     int64 // Unix ns of the last attempt that was answered, 0 without one
	Next     int64 // Unix ns of the next attempt when deferred
	// reply is the next hop's last one. Without one it is zero, but that the Text
	// of a recipient that the policy holds is the rule.
	Reply envelope.Reply
}

// Record is all that is known of a message but its content.
type Record struct {
	Seq        uint64
	Env        envelope.Envelope // To is empty, see Recipients
	Size       int64
	Sum        [32]byte // SHA-256 of the content
	Inline     bool     // the body is in the store, not in a file
	Recipients []Recipient
	// Origin is the identity of the store from which the message comes, while that
	// one may still have it: until then it has no place in line. "" otherwise.
	Origin string
}

// Clone is a copy whose recipients may be changed.
func (r *Record) Clone() *Record {
	c := *r
	c.Recipients = append([]Recipient(nil), r.Recipients...)
	return &c
}

// Any says that a recipient is in state s.
func (r *Record) Any(s State) bool {
	for i := range r.Recipients {
		if r.Recipients[i].State == s {
			return true
		}
	}
	return false
}

// IndexEntry is one key of the index with its value.
type IndexEntry struct{ Key, Value []byte }

// Returns is the domain by which a route is asked where DSNs of our own go. No
// mailbox has it.
const Returns = "."

// Dest is the next hop of a recipient.
func (r *Record) Dest(c *Recipient, route func(string) string) string {
	if r.Env.Report {
		return route(Returns)
	}
	return route(c.Path.Domain)
}

// Index lists the keys under which the drain finds the message: for each
// destination at most one, in line if a recipient is, else deferred until the
// earliest next attempt. Held recipients have none, nor has a message with an Origin.
func (r *Record) Index(route func(string) string) []IndexEntry {
	if r.Origin != "" {
		return nil
	}
	var entries []IndexEntry
	dests := make([]string, 0, 4)
next:
	for i := range r.Recipients {
		dest := r.Dest(&r.Recipients[i], route)
		for _, seen := range dests {
			if seen == dest {
				continue next
			}
		}
		dests = append(dests, dest)
		if e, ok := r.indexFor(dest, r.Recipients[i:], route); ok {
			entries = append(entries, e)
		}
	}
	return entries
}

func (r *Record) indexFor(dest string, rcpts []Recipient, route func(string) string) (IndexEntry, bool) {
	var first *Recipient
	for i := range rcpts {
		c := &rcpts[i]
		if c.State == Held || r.Dest(c, route) != dest {
			continue
		}
		if c.State == Queued {
			return IndexEntry{Key: LineKey(dest, r.Seq), Value: ClientSum(&r.Env.Client)}, true
		}
		if first == nil || c.Next < first.Next {
			first = c
		}
	}
	if first == nil {
		return IndexEntry{}, false
	}
	value := binary.BigEndian.AppendUint64(nil, uint64(first.Last))
	return IndexEntry{Key: DeferredKey(dest, first.Next, r.Seq), Value: value}, true
}

// ClientSum is 4 octets that tell clients apart as next hops do: by address
// and HELO argument. Two that share them cost a session, nothing else.
func ClientSum(c *envelope.Client) []byte {
	addr := c.Addr.As16()
	h := crc32.ChecksumIEEE(append(addr[:], c.Helo...))
	return binary.BigEndian.AppendUint32(nil, h)
}

// Totals are the queue's counts. They are in every batch, so that the audit
// notices a batch that is missing in the middle.
type Totals struct {
	Next                     uint64 // the next sequence number
	Messages, Held, Deferred int64
	Bytes                    int64
	Quarantined              int64
	// Reports counts the numbers that went to DSNs of our own, and to messages of
	// other stores, since the queue was made: Next less these is how many messages
	// were accepted.
	Reports int64
	// Alive is how long this queue has been open in all its runs, ns. Mail
	// expires only when it is old by this clock too: a wall clock that jumps
	// ahead expires nothing.
	Alive int64
}

// Add counts r in (sign 1) or out (sign -1).
func (t *Totals) Add(r *Record, sign int64) {
	if r == nil {
		return
	}
	t.Messages += sign
	t.Bytes += sign * r.Size
	if r.Any(Held) {
		t.Held += sign
	}
	if r.Any(Deferred) {
		t.Deferred += sign
	}
}

// Cut bounds a text that goes into the log or a record.
func Cut(s string) string {
	if len(s) > maxText {
		return s[:maxText]
	}
	return s
}
