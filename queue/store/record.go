package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// recordVersion is the first byte of a record and of the totals.
const recordVersion = 1

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
	Alive    int64 // the queue's own age at that time, ns; see totals.alive
	Last     int64 // Unix ns of the last attempt that was answered, 0 without one
	Next     int64 // Unix ns of the next attempt when deferred
	// reply is the next hop's last one. Without one it is zero, but that the Text
	// of a recipient that the policy holds is the rule.
	Reply envelope.Reply
}

// Record is all that is known of a message but its content.
type Record struct {
	Seq        uint64
	Env        envelope.Envelope // To is empty, see rcpts
	Size       int64
	Sum        [32]byte // SHA-256 of the content
	Inline     bool     // the body is in the store, not in a file
	Recipients []Recipient
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrRecord says that a record's octets are not what was written.
var ErrRecord = errors.New("damaged record")

// seal puts version and checksum before a payload.
func seal(payload []byte) []byte {
	b := make([]byte, 0, 5+len(payload))
	b = append(b, recordVersion)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(payload, castagnoli))
	return append(b, payload...)
}

func unseal(b []byte) ([]byte, error) {
	switch {
	case len(b) < 5:
		return nil, fmt.Errorf("%w: %d octets", ErrRecord, len(b))
	case b[0] != recordVersion:
		return nil, fmt.Errorf("%w: version %d", ErrRecord, b[0])
	case binary.BigEndian.Uint32(b[1:]) != crc32.Checksum(b[5:], castagnoli):
		return nil, fmt.Errorf("%w: checksum", ErrRecord)
	}
	return b[5:], nil
}

// Encode is the value under which the record is stored.
func (r *Record) Encode() []byte {
	e := &encoder{b: make([]byte, 0, 256+128*len(r.Recipients))}
	e.uint(r.Seq)
	e.str(r.Env.ID)
	e.int(r.Env.Received.UnixNano())
	e.int(r.Size)
	e.b = append(e.b, r.Sum[:]...)
	e.bool(r.Inline)
	e.bool(r.Env.EightBit)
	e.bool(r.Env.UTF8)
	e.str(r.Env.Ret)
	e.str(r.Env.EnvID)
	e.str(r.Env.From.Local)
	e.str(r.Env.From.Domain)
	e.client(&r.Env.Client)
	e.uint(uint64(len(r.Recipients)))
	for i := range r.Recipients {
		e.recipient(&r.Recipients[i])
	}
	return seal(e.b)
}

// DecodeRecord reads what Encode wrote. It trusts nothing: any octets give a
// record or an error that is ErrRecord.
func DecodeRecord(b []byte) (*Record, error) {
	payload, err := unseal(b)
	if err != nil {
		return nil, err
	}
	d := &decoder{b: payload}
	r := &Record{Seq: d.uint()}
	r.Env.ID = d.str()
	r.Env.Received = time.Unix(0, d.int())
	r.Size = d.int()
	copy(r.Sum[:], d.take(len(r.Sum)))
	r.Inline = d.bool()
	r.Env.EightBit = d.bool()
	r.Env.UTF8 = d.bool()
	r.Env.Ret = d.str()
	r.Env.EnvID = d.str()
	r.Env.From.Local = d.str()
	r.Env.From.Domain = d.str()
	d.client(&r.Env.Client)
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.bad = true // each takes more than one octet
		n = 0
	}
	r.Recipients = make([]Recipient, n)
	for i := range r.Recipients {
		d.recipient(&r.Recipients[i])
	}
	if d.bad || len(d.b) != 0 || r.Size < 0 || !ValidID(r.Env.ID) {
		return nil, fmt.Errorf("%w: content", ErrRecord)
	}
	return r, nil
}

// encoder appends values; strings go with their length.
type encoder struct{ b []byte }

func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)   { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) str(s string)  { e.uint(uint64(len(s))); e.b = append(e.b, s...) }
func (e *encoder) bool(v bool) {
	if v {
		e.b = append(e.b, 1)
	} else {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) client(c *envelope.Client) {
	addr, _ := c.Addr.MarshalBinary() // never fails
	e.str(string(addr))
	e.uint(uint64(c.Port))
	e.str(c.Name)
	e.str(c.ReverseName)
	e.uint(uint64(c.NameStatus))
	e.uint(uint64(c.ReverseStatus))
	e.str(c.Helo)
	e.str(c.Protocol)
	e.str(c.TLS)
}

func (e *encoder) recipient(r *Recipient) {
	e.str(r.Path.Local)
	e.str(r.Path.Domain)
	e.str(r.Notify)
	e.str(r.ORcpt)
	e.str(r.Rule)
	e.uint(uint64(r.State))
	e.uint(uint64(r.Reason))
	e.uint(uint64(r.Attempts))
	e.int(r.Since)
	e.int(r.Alive)
	e.int(r.Last)
	e.int(r.Next)
	e.uint(uint64(r.Reply.Code))
	e.str(r.Reply.Enhanced)
	e.str(r.Reply.Text)
}

// decoder reads what encoder wrote; bad says that it could not.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) take(n int) []byte {
	if n > len(d.b) {
		d.bad, d.b = true, nil
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) str() string {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return ""
	}
	return string(d.take(int(n)))
}

func (d *decoder) bool() bool { return d.small(1) == 1 }

// small reads a number that is at most limit.
func (d *decoder) small(limit uint64) uint64 {
	v := d.uint()
	if v > limit {
		d.bad = true
		return 0
	}
	return v
}

func (d *decoder) client(c *envelope.Client) {
	if c.Addr.UnmarshalBinary([]byte(d.str())) != nil {
		c.Addr, d.bad = netip.Addr{}, true
	}
	c.Port = uint16(d.small(1<<16 - 1))
	c.Name = d.str()
	c.ReverseName = d.str()
	c.NameStatus = envelope.NameStatus(d.small(255))
	c.ReverseStatus = envelope.NameStatus(d.small(255))
	c.Helo = d.str()
	c.Protocol = d.str()
	c.TLS = d.str()
}

func (d *decoder) recipient(r *Recipient) {
	r.Path.Local = d.str()
	r.Path.Domain = d.str()
	r.Notify = d.str()
	r.ORcpt = d.str()
	r.Rule = d.str()
	r.State = State(d.small(uint64(Held)))
	r.Reason = Reason(d.small(uint64(ByPolicy)))
	r.Attempts = int(d.small(1 << 31))
	r.Since = d.int()
	r.Alive = d.int()
	r.Last = d.int()
	r.Next = d.int()
	r.Reply.Code = int(d.small(999))
	r.Reply.Enhanced = d.str()
	r.Reply.Text = d.str()
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

// Index lists the keys under which the drain finds the message: for each
// destination at most one, in line if a recipient is, else deferred until the
// earliest next attempt. Held recipients have none.
func (r *Record) Index(route func(string) string) []IndexEntry {
	var entries []IndexEntry
	dests := make([]string, 0, 4)
next:
	for i := range r.Recipients {
		dest := route(r.Recipients[i].Path.Domain)
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
		if c.State == Held || route(c.Path.Domain) != dest {
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
	// alive is how long this queue has been open in all its runs, ns. Mail
	// expires only when it is old by this clock too: a wall clock that jumps
	// ahead expires nothing.
	Alive int64
}

// Encode is their value in the store.
func (t *Totals) Encode() []byte {
	e := &encoder{}
	e.uint(t.Next)
	for _, v := range []int64{t.Messages, t.Held, t.Deferred, t.Bytes, t.Quarantined, t.Alive} {
		e.int(v)
	}
	return seal(e.b)
}

// DecodeTotals reads what Encode wrote, or fails with ErrRecord.
func DecodeTotals(b []byte) (t Totals, err error) {
	payload, err := unseal(b)
	if err != nil {
		return t, err
	}
	d := &decoder{b: payload}
	t.Next = d.uint()
	for _, v := range []*int64{&t.Messages, &t.Held, &t.Deferred, &t.Bytes, &t.Quarantined, &t.Alive} {
		*v = d.int()
	}
	if d.bad || len(d.b) != 0 {
		return Totals{}, fmt.Errorf("%w: totals", ErrRecord)
	}
	return t, nil
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
