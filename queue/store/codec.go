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
	c := &codec{b: make([]byte, 0, 256+128*len(r.Recipients))}
	c.record(r)
	return seal(c.b)
}

// DecodeRecord reads what Encode wrote. It trusts nothing: any octets give a
// record or an error that is ErrRecord.
func DecodeRecord(b []byte) (*Record, error) {
	payload, err := unseal(b)
	if err != nil {
		return nil, err
	}
	c, r := &codec{b: payload, reads: true}, new(Record)
	c.record(r)
	if c.bad || len(c.b) != 0 || r.Size < 0 || !ValidID(r.Env.ID) {
		return nil, fmt.Errorf("%w: content", ErrRecord)
	}
	return r, nil
}

// Encode is their value in the store.
func (t *Totals) Encode() []byte {
	c := new(codec)
	c.totals(t)
	return seal(c.b)
}

// DecodeTotals reads what Encode wrote, or fails with ErrRecord.
func DecodeTotals(b []byte) (t Totals, err error) {
	payload, err := unseal(b)
	if err != nil {
		return t, err
	}
	c := &codec{b: payload, reads: true}
	if c.totals(&t); c.bad || len(c.b) != 0 {
		return Totals{}, fmt.Errorf("%w: totals", ErrRecord)
	}
	return t, nil
}

// codec appends values to b, or reads them from it in the same order: what it is
// pointed at changes only then. bad says that it could not be read.
type codec struct {
	b          []byte
	reads, bad bool
}

func (c *codec) record(r *Record) {
	received := r.Env.Received.UnixNano()
	c.uint(&r.Seq)
	c.str(&r.Env.ID)
	c.int(&received)
	c.int(&r.Size)
	c.octets(r.Sum[:])
	c.bool(&r.Inline)
	c.bool(&r.Env.EightBit)
	c.bool(&r.Env.UTF8)
	c.str(&r.Env.Ret)
	c.str(&r.Env.EnvID)
	c.str(&r.Env.From.Local)
	c.str(&r.Env.From.Domain)
	c.client(&r.Env.Client)
	n := uint64(len(r.Recipients))
	c.uint(&n)
	if c.reads {
		if n > uint64(len(c.b)) {
			c.bad, n = true, 0 // each takes more than one octet
		}
		r.Env.Received, r.Recipients = time.Unix(0, received), make([]Recipient, n)
	}
	for i := range r.Recipients {
		c.recipient(&r.Recipients[i])
	}
	// What came later is there only where there is any of it, each part after its
	// number: records without it are older versions', too.
	c.part(1, &r.Env.MayHaveArrived, func() {})
	c.part(2, &r.Env.Auth.Checked, func() { c.auth(&r.Env.Auth) })
	c.part(3, &r.Env.Report, func() {})
	moving := r.Origin != ""
	c.part(4, &moving, func() { c.str(&r.Origin) })
}

// part is a part of a record that need not be there.
func (c *codec) part(number uint64, there *bool, content func()) {
	if c.reads {
		n, _ := binary.Uvarint(c.b) // 0, which no part has, where there is none
		*there = n == number
	}
	if *there {
		c.uint(&number)
		content()
	}
}

func (c *codec) auth(v *envelope.Auth) {
	c.str(&v.SPF)
	c.str(&v.Vouched)
	n := len(v.DKIM)
	if small(c, &n, envelope.MaxSignatures); c.reads && n > 0 {
		v.DKIM = make([]envelope.Signature, n)
	}
	for i := range v.DKIM {
		c.str(&v.DKIM[i].Domain)
		c.str(&v.DKIM[i].Result)
	}
}

func (c *codec) client(v *envelope.Client) {
	addr, _ := v.Addr.MarshalBinary() // never fails
	text := string(addr)
	if c.str(&text); c.reads && v.Addr.UnmarshalBinary([]byte(text)) != nil {
		v.Addr, c.bad = netip.Addr{}, true
	}
	small(c, &v.Port, 1<<16-1)
	c.str(&v.Name)
	c.str(&v.ReverseName)
	small(c, &v.NameStatus, 255)
	small(c, &v.ReverseStatus, 255)
	c.str(&v.Helo)
	c.str(&v.Protocol)
	c.str(&v.TLS)
}

func (c *codec) recipient(r *Recipient) {
	c.str(&r.Path.Local)
	c.str(&r.Path.Domain)
	c.str(&r.Notify)
	c.str(&r.ORcpt)
	c.str(&r.Rule)
	small(c, &r.State, uint64(Held))
	small(c, &r.Reason, uint64(ByPolicy))
	small(c, &r.Attempts, 1<<31)
	c.int(&r.Since)
	c.int(&r.Alive)
	c.int(&r.Last)
	c.int(&r.Next)
	small(c, &r.Reply.Code, 999)
	c.str(&r.Reply.Enhanced)
	c.str(&r.Reply.Text)
}

func (c *codec) totals(t *Totals) {
	c.uint(&t.Next)
	for _, v := range []*int64{&t.Messages, &t.Held, &t.Deferred, &t.Bytes, &t.Quarantined, &t.Alive} {
		c.int(v)
	}
	if t.Reports != 0 || c.reads && len(c.b) > 0 { // format 1 had none
		c.int(&t.Reports)
		c.bad = c.bad || t.Reports <= 0
	}
}

func (c *codec) uint(v *uint64) {
	if !c.reads {
		c.b = binary.AppendUvarint(c.b, *v)
		return
	}
	var n int
	*v, n = binary.Uvarint(c.b)
	c.read(n)
}

func (c *codec) int(v *int64) {
	if !c.reads {
		c.b = binary.AppendVarint(c.b, *v)
		return
	}
	var n int
	*v, n = binary.Varint(c.b)
	c.read(n)
}

// read goes on after n octets; none or too many are bad.
func (c *codec) read(n int) {
	if n <= 0 {
		c.bad, c.b = true, nil
		return
	}
	c.b = c.b[n:]
}

// octets are as many as v has.
func (c *codec) octets(v []byte) {
	switch {
	case !c.reads:
		c.b = append(c.b, v...)
	case len(v) > len(c.b):
		c.bad, c.b = true, nil
	default:
		c.b = c.b[copy(v, c.b):]
	}
}

// str goes with its length.
func (c *codec) str(v *string) {
	n := uint64(len(*v))
	c.uint(&n)
	switch {
	case !c.reads:
		c.b = append(c.b, *v...)
	case n > uint64(len(c.b)):
		c.bad, c.b = true, nil
	default:
		*v, c.b = string(c.b[:n]), c.b[n:]
	}
}

func (c *codec) bool(v *bool) {
	n := uint8(0)
	if *v {
		n = 1
	}
	if small(c, &n, 1); c.reads {
		*v = n == 1
	}
}

// small is a number that is at most limit.
func small[T ~int | ~uint8 | ~uint16](c *codec, v *T, limit uint64) {
	n := uint64(*v)
	if c.uint(&n); !c.reads {
		return
	}
	if n > limit {
		c.bad, n = true, 0
	}
	*v = T(n)
}
