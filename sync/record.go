package policysync

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Bounds of the format. docs/PROTOCOL.md gives each of them.
const (
	maxKey        = 4096
	maxValue      = 32767
	maxChunk      = 48 << 10 // octets of a data chunk
	maxIndexChunk = 16 << 10 // octets of an index chunk
)

// Where chunks are cut, on average: often enough that a change and its index
// chunk stay far below 64 KiB, seldom enough that the index stays small.
const (
	meanChunk      = 16 << 10
	meanIndexChunk = 6 << 10
)

// appendRecord appends a record: the lengths of key and value, two octets
// each, then both.
func appendRecord(b, key, value []byte) ([]byte, error) {
	if len(key) > maxKey || len(value) > maxValue {
		return b, fmt.Errorf("entry %.64q has a key of %d and a value of %d octets; at most %d and %d can be carried", key, len(key), len(value), maxKey, maxValue)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(key)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	return append(append(b, key...), value...), nil
}

var errCutRecord = errors.New("a record is cut short")

// nextRecord splits the first record off.
func nextRecord(b []byte) (key, value, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, nil, errCutRecord
	}
	k, v := int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
	if k > maxKey || v > maxValue {
		return nil, nil, nil, fmt.Errorf("a record claims a key of %d and a value of %d octets", k, v)
	}
	if b = b[4:]; len(b) < k+v {
		return nil, nil, nil, errCutRecord
	}
	return b[:k:k], b[k : k+v : k+v], b[k+v:], nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// cutter gathers records into chunks. Where it cuts depends on the records alone,
// so that a change moves only the cuts beside it: a record ends a chunk with a
// probability of its own length divided by mean. A chunk that grows beyond max is
// cut after the last record that four times that probability would have chosen.
type cutter struct {
	mean, max int
	emit      func(chunk []byte, records int)

	buf          []byte
	records      int
	weak, weakNo int // octets and records up to the last place good enough for a forced cut
}

func (c *cutter) add(rec []byte) {
	for len(c.buf) > 0 && len(c.buf)+len(rec) > c.max {
		if c.weak == 0 {
			c.weak, c.weakNo = len(c.buf), c.records
		}
		c.cut(c.weak, c.weakNo)
	}
	c.buf = append(c.buf, rec...)
	c.records++
	h := uint64(crc32.Checksum(rec, castagnoli)*0x9e3779b1) * uint64(c.mean)
	switch chance := uint64(len(rec)) << 32; {
	case h < chance:
		c.flush()
	case h < 4*chance:
		c.weak, c.weakNo = len(c.buf), c.records
	}
}

func (c *cutter) flush() {
	if c.records > 0 {
		c.cut(len(c.buf), c.records)
	}
}

func (c *cutter) cut(octets, records int) {
	c.emit(c.buf[:octets], records)
	c.buf = c.buf[:copy(c.buf, c.buf[octets:])]
	c.records -= records
	c.weak, c.weakNo = 0, 0
}
