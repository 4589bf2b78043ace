package policysync

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// hash is a chunk's name: SHA-256 of its octets, uncompressed.
type hash = [sha256.Size]byte

// ref names a chunk.
type ref struct {
	hash    hash
	size    uint32 // octets, uncompressed
	records uint32 // of a data chunk
}

// Kinds of sections: the settings, and those types of tables that the code
// names; kindNames has all.
const (
	kindSettings = 0
	kindSet      = 1
	kindHash     = 2
	kindCIDR     = 3
	kindStatic   = 4

	kindHashedHash = 10
)

var kindNames = [...]string{"settings", "set", "hash", "cidr", "static", "regexp", "pcre", "union", "pipe", "hashed_set", "hashed_hash"}

// Bounds of a layout.
const (
	maxName     = 255
	maxSections = 4096
	maxChunks   = 1 << 18
)

// section is one run of records: the settings, or a table.
type section struct {
	kind    byte
	name    string // of the table, "" for the settings
	records uint64
	chunks  []ref
}

// layout says what a snapshot is made of: the settings, then the tables by
// ascending name.
type layout []section

// Tags of the index's records.
const (
	tagSection = 1
	tagChunk   = 2
)

// encode cuts the layout into index chunks.
func (l layout) encode(emit func(chunk []byte)) {
	c := cutter{mean: meanIndexChunk, max: maxIndexChunk, emit: func(b []byte, _ int) { emit(b) }}
	var rec []byte
	for i := range l {
		s := &l[i]
		rec = append(rec[:0], tagSection, s.kind, byte(len(s.name)))
		rec = append(rec, s.name...)
		c.add(binary.BigEndian.AppendUint64(rec, s.records))
		for _, r := range s.chunks {
			rec = append(append(rec[:0], tagChunk), r.hash[:]...)
			rec = binary.BigEndian.AppendUint32(rec, r.size)
			c.add(binary.BigEndian.AppendUint32(rec, r.records))
		}
	}
	c.flush()
}

// decodeLayout reads the index chunks, joined.
func decodeLayout(b []byte) (layout, error) {
	var l layout
	chunks := 0
	for len(b) > 0 {
		tag := b[0]
		var err error
		switch tag {
		case tagSection:
			b, err = l.addSection(b[1:])
		case tagChunk:
			if chunks++; chunks > maxChunks {
				return nil, fmt.Errorf("index: more than %d chunks", maxChunks)
			}
			b, err = l.addChunk(b[1:])
		default:
			err = fmt.Errorf("tag %d is unknown", tag)
		}
		if err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
	}
	if len(l) == 0 {
		return nil, errors.New("index: no settings")
	}
	if err := l[len(l)-1].complete(); err != nil {
		return nil, err
	}
	return l, nil
}

var errCutIndex = errors.New("it is cut short")

func (l *layout) addSection(b []byte) ([]byte, error) {
	if len(b) < 2 {
		return nil, errCutIndex
	}
	kind, n := b[0], int(b[1])
	if b = b[2:]; len(b) < n+8 {
		return nil, errCutIndex
	}
	s := section{kind: kind, name: string(b[:n]), records: binary.BigEndian.Uint64(b[n:])}
	switch prev := len(*l) - 1; {
	case int(kind) >= len(kindNames):
		return nil, fmt.Errorf("table %q is of kind %d, which this program doesn't know: upgrade it", s.name, kind)
	case prev >= maxSections:
		return nil, fmt.Errorf("more than %d tables", maxSections)
	case (prev < 0) != (kind == kindSettings), (s.name == "") != (kind == kindSettings):
		return nil, fmt.Errorf("section %q of kind %s is out of place", s.name, kindNames[kind])
	case prev >= 0 && (*l)[prev].name >= s.name:
		return nil, fmt.Errorf("section %q does not ascend", s.name)
	case prev >= 0:
		if err := (*l)[prev].complete(); err != nil {
			return nil, err
		}
	}
	*l = append(*l, s)
	return b[n+8:], nil
}

func (l *layout) addChunk(b []byte) ([]byte, error) {
	const size = sha256.Size + 8
	if len(b) < size {
		return nil, errCutIndex
	}
	if len(*l) == 0 {
		return nil, errors.New("a chunk belongs to no section")
	}
	r := ref{size: binary.BigEndian.Uint32(b[32:]), records: binary.BigEndian.Uint32(b[36:])}
	copy(r.hash[:], b)
	if r.size < 1 || r.size > maxChunk || r.records < 1 || r.records > r.size/4 {
		return nil, fmt.Errorf("a chunk claims %d octets and %d records", r.size, r.records)
	}
	s := &(*l)[len(*l)-1]
	s.chunks = append(s.chunks, r)
	return b[size:], nil
}

// complete checks the section's count against its chunks'.
func (s *section) complete() error {
	n := uint64(0)
	for _, r := range s.chunks {
		n += uint64(r.records)
	}
	if n != s.records {
		return fmt.Errorf("section %q has %d records, not %d", s.name, n, s.records)
	}
	return nil
}

// totals counts what a head commits to.
func (l layout) totals() (records, octets uint64, chunks uint32) {
	for i := range l {
		records += l[i].records
		for _, r := range l[i].chunks {
			octets += uint64(r.size)
			chunks++
		}
	}
	return
}

// names says which chunks the layout needs.
func (l layout) names(into map[hash]ref) {
	for i := range l {
		for _, r := range l[i].chunks {
			into[r.hash] = r
		}
	}
}

func (l layout) section(name string) *section {
	for i := range l {
		if l[i].name == name {
			return &l[i]
		}
	}
	return nil
}

// verify checks that b is the chunk that r names.
func (r ref) verify(b []byte) error {
	if uint32(len(b)) != r.size {
		return fmt.Errorf("chunk %x has %d octets instead of %d", r.hash[:8], len(b), r.size)
	}
	if sum := sha256.Sum256(b); !bytes.Equal(sum[:], r.hash[:]) {
		return fmt.Errorf("chunk %x holds something else: its hash is %x", r.hash[:8], sum[:8])
	}
	return nil
}
