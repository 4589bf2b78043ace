package policysync

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/understudy-mx/understudy/policy/table"
)

// headMagic starts every head. What is signed starts with it too, so that no
// other signature of the same key can pass for one.
const headMagic = "understudy-head\n"

// The formats of a head that this program knows. The second is for contents
// whose keys are hashed for one follower.
const (
	headFormat       = 1
	headFormatHashed = 2
)

// Bounds of a head.
const (
	maxIndexChunks = 4096
	maxKeys        = 2
	maxNotice      = 1024
	maxHead        = 256 << 10
)

// Head is the signed description of a snapshot. The fields up to Index are
// its identity; those after it are renewed with each signature.
type Head struct {
	Stream   [16]byte // names the publisher's policy, for good
	Audience [32]byte // the one follower that may use it (pin of its key); zero for all
	Epoch    uint64   // Unix time at which the publisher began to count
	Version  uint64   // from 1, within the epoch
	Prev     hash     // identity of the version before, zero for version 1; its Source where keys are hashed
	Source   hash     // where keys are hashed: stands for the identity of the version that they were hashed of
	SecretID [8]byte  // what keys are hashed under, zero: they are plain

	Records    uint64 // of all sections
	Recipients uint64 // entries of the tables that say which recipients exist
	Octets     uint64 // of all data chunks, uncompressed
	Chunks     uint32 // data chunks
	Domains    uint32 // domains that have recipients
	PerDomain  hash   // of the recipients counted by domain
	index      []ref  // index chunks in order; their sizes, no records

	Created, Expires time.Time // whole seconds
	ServerPins       []Pin     // keys that the publisher's TLS may show, one or two
	PolicyKeys       []Pin     // keys that may sign heads, one or two, as raw Ed25519 keys
	Notice           string    // from the publisher, for the secondary's operator

	identity hash

	// secret is what Source and the content's keys are hashed under, nil when
	// nothing is.
	secret *table.Secret
}

// Identity names the version: SHA-256 of the head's bytes up to Created.
func (h *Head) Identity() hash { return h.identity }

// Root names the content, whatever version it is: SHA-256 of the index.
func (h *Head) Root() hash { return sha256.Sum256(h.appendIndex(nil)) }

func (h *Head) appendIndex(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.index)))
	for _, r := range h.index {
		b = append(b, r.hash[:]...)
		b = binary.BigEndian.AppendUint32(b, r.size)
	}
	return b
}

func (h *Head) appendIdentity(b []byte) []byte {
	be := binary.BigEndian
	format := uint16(headFormat)
	if h.hashed() {
		format = headFormatHashed
	}
	b = append(b, headMagic...)
	b = be.AppendUint16(b, format)
	b = append(b, h.Stream[:]...)
	b = append(b, h.Audience[:]...)
	b = be.AppendUint64(b, h.Epoch)
	b = be.AppendUint64(b, h.Version)
	b = append(b, h.Prev[:]...)
	if h.hashed() {
		b = append(append(b, h.Source[:]...), h.SecretID[:]...)
	}
	b = be.AppendUint64(b, h.Records)
	b = be.AppendUint64(b, h.Recipients)
	b = be.AppendUint64(b, h.Octets)
	b = be.AppendUint32(b, h.Chunks)
	b = be.AppendUint32(b, h.Domains)
	b = append(b, h.PerDomain[:]...)
	return h.appendIndex(b)
}

// sign encodes the head, signs it, and sets its identity.
func (h *Head) sign(key ed25519.PrivateKey) []byte {
	b := h.encode()
	return append(b, ed25519.Sign(key, b)...)
}

// encode returns the signed part of a head, and sets the head's identity.
func (h *Head) encode() []byte {
	b := h.appendIdentity(nil)
	h.identity = sha256.Sum256(b)
	b = binary.BigEndian.AppendUint64(b, uint64(h.Created.Unix()))
	b = binary.BigEndian.AppendUint64(b, uint64(h.Expires.Unix()))
	b = appendPins(appendPins(b, h.ServerPins), h.PolicyKeys)
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.Notice)))
	return append(b, h.Notice...)
}

func appendPins(b []byte, pins []Pin) []byte {
	b = append(b, byte(len(pins)))
	for _, p := range pins {
		b = append(b, p[:]...)
	}
	return b
}

// The errors of a head that tell an attack from a mistake.
var (
	errSignature = errors.New("head: its signature is not by a key of this primary")
	errCutHead   = errors.New("head: it is cut short")
)

// openHead verifies a head's signature and only then reads it.
func openHead(b []byte, keys []Pin) (*Head, error) {
	if len(b) > maxHead {
		return nil, fmt.Errorf("head: longer than %d octets", maxHead)
	}
	n := len(b) - ed25519.SignatureSize
	if n < len(headMagic) || string(b[:len(headMagic)]) != headMagic {
		return nil, errSignature
	}
	for _, k := range keys {
		if ed25519.Verify(k[:], b[:n], b[n:]) {
			return decodeHead(b[:n])
		}
	}
	return nil, errSignature
}

// decodeHead reads the signed part of a head.
func decodeHead(b []byte) (*Head, error) {
	if !bytes.HasPrefix(b, []byte(headMagic)) {
		return nil, errors.New("head: it doesn't begin as one")
	}
	d := decoder{b: b[len(headMagic):]}
	format := d.u16()
	if format != headFormat && format != headFormatHashed && d.err == nil {
		return nil, fmt.Errorf("head: format %d is unknown, this program knows %d and %d: upgrade the older side", format, headFormat, headFormatHashed)
	}
	h := new(Head)
	d.bytes(h.Stream[:])
	d.bytes(h.Audience[:])
	h.Epoch, h.Version = d.u64(), d.u64()
	d.bytes(h.Prev[:])
	if format == headFormatHashed {
		d.bytes(h.Source[:])
		if d.bytes(h.SecretID[:]); d.err == nil && !h.hashed() {
			d.fail(errors.New("head: its keys are hashed, but it doesn't say under what"))
		}
	}
	h.Records, h.Recipients, h.Octets = d.u64(), d.u64(), d.u64()
	h.Chunks, h.Domains = d.u32(), d.u32()
	d.bytes(h.PerDomain[:])
	n := int(d.u16())
	if n < 1 || n > maxIndexChunks {
		d.fail(fmt.Errorf("head: it claims %d index chunks", n))
	}
	for range n {
		var r ref
		d.bytes(r.hash[:])
		if r.size = d.u32(); d.err == nil && (r.size < 1 || r.size > maxIndexChunk) {
			d.fail(fmt.Errorf("head: an index chunk claims %d octets", r.size))
		}
		if d.err != nil {
			break
		}
		h.index = append(h.index, r)
	}
	h.identity = sha256.Sum256(b[:len(b)-len(d.b)])
	h.Created, h.Expires = d.time(), d.time()
	h.ServerPins, h.PolicyKeys = d.pins(), d.pins()
	notice := make([]byte, min(int(d.u16()), maxNotice+1))
	d.bytes(notice)
	h.Notice = string(notice)
	if len(notice) > maxNotice || !utf8.Valid(notice) {
		d.fail(errors.New("head: its notice is too long, or no text"))
	}
	if d.err == nil && len(d.b) > 0 {
		d.fail(fmt.Errorf("head: %d octets follow it", len(d.b)))
	}
	if d.err != nil {
		return nil, d.err
	}
	return h, nil
}

// decoder takes fields off b until something is wrong.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *decoder) bytes(dst []byte) {
	if len(d.b) < len(dst) {
		d.fail(errCutHead)
	}
	if d.err == nil {
		copy(dst, d.b)
		d.b = d.b[len(dst):]
	}
}

func (d *decoder) u16() uint16 {
	var b [2]byte
	d.bytes(b[:])
	return binary.BigEndian.Uint16(b[:])
}

func (d *decoder) u32() uint32 {
	var b [4]byte
	d.bytes(b[:])
	return binary.BigEndian.Uint32(b[:])
}

func (d *decoder) u64() uint64 {
	var b [8]byte
	d.bytes(b[:])
	return binary.BigEndian.Uint64(b[:])
}

// maxTime is the end of the year 9999.
const maxTime = 253402300799

func (d *decoder) time() time.Time {
	u := d.u64()
	if u > maxTime {
		d.fail(errors.New("head: a time beyond the year 9999"))
		u = 0
	}
	return time.Unix(int64(u), 0)
}

func (d *decoder) pins() []Pin {
	var b [1]byte
	d.bytes(b[:])
	if d.err == nil && (b[0] < 1 || b[0] > maxKeys) {
		d.fail(fmt.Errorf("head: it names %d keys", b[0]))
	}
	if d.err != nil {
		return nil
	}
	pins := make([]Pin, b[0])
	for i := range pins {
		d.bytes(pins[i][:])
	}
	return pins
}
