package queue

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

// state of a recipient. Recipients that are done leave the record.
type state uint8

const (
	queued   state = iota // in line
	deferred              // answered 4xx, waits for its next attempt
	held                  // waits for the operator
)

func (s state) String() string { return [...]string{"queued", "deferred", "held"}[s] }

// reason tells why a recipient is held.
type reason uint8

const (
	unheld     reason = iota
	refused           // the next hop answered 5xx after we accepted: a parity incident
	expired           // deferred until older than MaxAge
	byOperator        // Hold
	byPolicy          // Envelope.Hold
)

func (r reason) String() string {
	return [...]string{"", "refused", "expired", "operator", "policy"}[r]
}

// recipient is one forward-path and what became of it.
type recipient struct {
	envelope.Recipient
	state    state
	reason   reason
	attempts int
	since    int64 // Unix ns: put in line, by acceptance or release
	alive    int64 // the queue's own age at that time, ns; see totals.alive
	last     int64 // Unix ns of the last attempt that was answered, 0 without one
	next     int64 // Unix ns of the next attempt when deferred
	// reply is the next hop's last one. Without one it is zero, but that the Text
	// of a recipient that the policy holds is the rule.
	reply envelope.Reply
}

// record is all that is known of a message but its content.
type record struct {
	seq    uint64
	env    envelope.Envelope // To is empty, see rcpts
	size   int64
	sum    [32]byte // SHA-256 of the content
	inline bool     // the body is in the store, not in a file
	rcpts  []recipient
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errRecord says that a record's octets are not what was written.
var errRecord = errors.New("damaged record")

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
		return nil, fmt.Errorf("%w: %d octets", errRecord, len(b))
	case b[0] != recordVersion:
		return nil, fmt.Errorf("%w: version %d", errRecord, b[0])
	case binary.BigEndian.Uint32(b[1:]) != crc32.Checksum(b[5:], castagnoli):
		return nil, fmt.Errorf("%w: checksum", errRecord)
	}
	return b[5:], nil
}

func (r *record) encode() []byte {
	e := &encoder{b: make([]byte, 0, 256+128*len(r.rcpts))}
	e.uint(r.seq)
	e.str(r.env.ID)
	e.int(r.env.Received.UnixNano())
	e.int(r.size)
	e.b = append(e.b, r.sum[:]...)
	e.bool(r.inline)
	e.bool(r.env.EightBit)
	e.bool(r.env.UTF8)
	e.str(r.env.Ret)
	e.str(r.env.EnvID)
	e.str(r.env.From.Local)
	e.str(r.env.From.Domain)
	e.client(&r.env.Client)
	e.uint(uint64(len(r.rcpts)))
	for i := range r.rcpts {
		e.recipient(&r.rcpts[i])
	}
	return seal(e.b)
}

// decodeRecord reads what encode wrote. It trusts nothing: any octets give a
// record or an error that is errRecord.
func decodeRecord(b []byte) (*record, error) {
	payload, err := unseal(b)
	if err != nil {
		return nil, err
	}
	d := &decoder{b: payload}
	r := &record{seq: d.uint()}
	r.env.ID = d.str()
	r.env.Received = time.Unix(0, d.int())
	r.size = d.int()
	copy(r.sum[:], d.take(len(r.sum)))
	r.inline = d.bool()
	r.env.EightBit = d.bool()
	r.env.UTF8 = d.bool()
	r.env.Ret = d.str()
	r.env.EnvID = d.str()
	r.env.From.Local = d.str()
	r.env.From.Domain = d.str()
	d.client(&r.env.Client)
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.bad = true // each takes more than one octet
		n = 0
	}
	r.rcpts = make([]recipient, n)
	for i := range r.rcpts {
		d.recipient(&r.rcpts[i])
	}
	if d.bad || len(d.b) != 0 || r.size < 0 || !validID(r.env.ID) {
		return nil, fmt.Errorf("%w: content", errRecord)
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

func (e *encoder) recipient(r *recipient) {
	e.str(r.Path.Local)
	e.str(r.Path.Domain)
	e.str(r.Notify)
	e.str(r.ORcpt)
	e.str(r.Rule)
	e.uint(uint64(r.state))
	e.uint(uint64(r.reason))
	e.uint(uint64(r.attempts))
	e.int(r.since)
	e.int(r.alive)
	e.int(r.last)
	e.int(r.next)
	e.uint(uint64(r.reply.Code))
	e.str(r.reply.Enhanced)
	e.str(r.reply.Text)
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

func (d *decoder) recipient(r *recipient) {
	r.Path.Local = d.str()
	r.Path.Domain = d.str()
	r.Notify = d.str()
	r.ORcpt = d.str()
	r.Rule = d.str()
	r.state = state(d.small(uint64(held)))
	r.reason = reason(d.small(uint64(byPolicy)))
	r.attempts = int(d.small(1 << 31))
	r.since = d.int()
	r.alive = d.int()
	r.last = d.int()
	r.next = d.int()
	r.reply.Code = int(d.small(999))
	r.reply.Enhanced = d.str()
	r.reply.Text = d.str()
}

// clone is a copy whose recipients may be changed.
func (r *record) clone() *record {
	c := *r
	c.rcpts = append([]recipient(nil), r.rcpts...)
	return &c
}

// any says that a recipient is in state s.
func (r *record) any(s state) bool {
	for i := range r.rcpts {
		if r.rcpts[i].state == s {
			return true
		}
	}
	return false
}

// indexEntry is one key of the index with its value.
type indexEntry struct{ key, value []byte }

// index lists the keys under which the drain finds the message: for each
// destination at most one, in line if a recipient is, else deferred until the
// earliest next attempt. Held recipients have none.
func (r *record) index(route func(string) string) []indexEntry {
	var entries []indexEntry
	dests := make([]string, 0, 4)
next:
	for i := range r.rcpts {
		dest := route(r.rcpts[i].Path.Domain)
		for _, seen := range dests {
			if seen == dest {
				continue next
			}
		}
		dests = append(dests, dest)
		if e, ok := r.indexFor(dest, r.rcpts[i:], route); ok {
			entries = append(entries, e)
		}
	}
	return entries
}

func (r *record) indexFor(dest string, rcpts []recipient, route func(string) string) (indexEntry, bool) {
	var first *recipient
	for i := range rcpts {
		c := &rcpts[i]
		if c.state == held || route(c.Path.Domain) != dest {
			continue
		}
		if c.state == queued {
			return indexEntry{key: lineKey(dest, r.seq), value: clientSum(&r.env.Client)}, true
		}
		if first == nil || c.next < first.next {
			first = c
		}
	}
	if first == nil {
		return indexEntry{}, false
	}
	value := binary.BigEndian.AppendUint64(nil, uint64(first.last))
	return indexEntry{key: deferredKey(dest, first.next, r.seq), value: value}, true
}

// clientSum is 4 octets that tell clients apart as next hops do: by address
// and HELO argument. Two that share them cost a session, nothing else.
func clientSum(c *envelope.Client) []byte {
	addr := c.Addr.As16()
	h := crc32.ChecksumIEEE(append(addr[:], c.Helo...))
	return binary.BigEndian.AppendUint32(nil, h)
}

// totals are the queue's counts. They are in every batch, so that the audit
// notices a batch that is missing in the middle.
type totals struct {
	next                     uint64 // the next sequence number
	messages, held, deferred int64
	bytes                    int64
	quarantined              int64
	// alive is how long this queue has been open in all its runs, ns. Mail
	// expires only when it is old by this clock too: a wall clock that jumps
	// ahead expires nothing.
	alive int64
}

func (t *totals) encode() []byte {
	e := &encoder{}
	e.uint(t.next)
	for _, v := range []int64{t.messages, t.held, t.deferred, t.bytes, t.quarantined, t.alive} {
		e.int(v)
	}
	return seal(e.b)
}

func decodeTotals(b []byte) (t totals, err error) {
	payload, err := unseal(b)
	if err != nil {
		return t, err
	}
	d := &decoder{b: payload}
	t.next = d.uint()
	for _, v := range []*int64{&t.messages, &t.held, &t.deferred, &t.bytes, &t.quarantined, &t.alive} {
		*v = d.int()
	}
	if d.bad || len(d.b) != 0 {
		return totals{}, fmt.Errorf("%w: totals", errRecord)
	}
	return t, nil
}

// add counts r in (sign 1) or out (sign -1).
func (t *totals) add(r *record, sign int64) {
	if r == nil {
		return
	}
	t.messages += sign
	t.bytes += sign * r.size
	if r.any(held) {
		t.held += sign
	}
	if r.any(deferred) {
		t.deferred += sign
	}
}
