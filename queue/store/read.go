package store

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
)

// Created is what a new store holds.
func Created() (b Batch) {
	b.Put([]byte{SpaceFormat}, FormatValue(FormatVersion))
	b.Put([]byte{SpaceTotals}, (&Totals{Next: 1}).Encode())
	return b
}

// FormatValue is the value of a format's version.
func FormatValue(version uint64) []byte { return binary.AppendUvarint(nil, version) }

// CheckFormat refuses what this program can't read: ErrNewerVersion.
func CheckFormat(s Store) error {
	_, err := format(s)
	return err
}

// Convert has a store say that it is of this program's format. Older programs
// refuse it from then on.
func Convert(s Store) error {
	version, err := format(s)
	if err != nil || version == FormatVersion {
		return err
	}
	var b Batch
	b.Put([]byte{SpaceFormat}, FormatValue(FormatVersion))
	return s.Apply(b)
}

func format(s Store) (uint64, error) {
	v, err := s.Get([]byte{SpaceFormat})
	if err != nil {
		return 0, fmt.Errorf("read format version: %w", err)
	}
	switch version, n := binary.Uvarint(v); {
	case n <= 0:
		return 0, fmt.Errorf("read format version: %w: %x", ErrRecord, v)
	case version > FormatVersion:
		return 0, fmt.Errorf("%w: format %d, this program knows up to %d", ErrNewerVersion, version, FormatVersion)
	default:
		return version, nil
	}
}

// Has says whether a key is there.
func Has(s Store, key []byte) (bool, error) {
	_, err := s.Get(key)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Identity is a store's name among all stores, and is made when there is none.
func Identity(s Store) (string, error) {
	b, err := s.Get([]byte{SpaceIdentity})
	if errors.Is(err, ErrNotFound) {
		b = NewIdentity()
		err = s.Apply(Batch{{Key: []byte{SpaceIdentity}, Value: b}})
	}
	return string(b), err
}

// NewIdentity names a store.
func NewIdentity() []byte { return []byte(rand.Text()) }

// LoadTotals reads the counts as the last durable batch left them.
func LoadTotals(s Store) (Totals, error) {
	b, err := s.Get([]byte{SpaceTotals})
	if err != nil {
		return Totals{}, fmt.Errorf("read totals: %w", err)
	}
	return DecodeTotals(b)
}

// Load reads a record; nil when there is none, ErrRecord when it is damaged.
func Load(s Store, seq uint64) (*Record, error) {
	b, err := s.Get(SeqKey(SpaceRecord, seq))
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return DecodeRecordOf(seq, b)
}

// DecodeRecordOf reads the record that is stored under a number.
func DecodeRecordOf(seq uint64, b []byte) (*Record, error) {
	r, err := DecodeRecord(b)
	if err == nil && r.Seq != seq {
		err = fmt.Errorf("%w: number %d under %d", ErrRecord, r.Seq, seq)
	}
	return r, err
}

// SeqOf finds a message's number by its ID. ErrNoMessage.
func SeqOf(s Store, id string) (uint64, error) {
	if !ValidID(id) {
		return 0, ErrNoMessage
	}
	b, err := s.Get(IDKey(id))
	if errors.Is(err, ErrNotFound) || err == nil && len(b) != 8 {
		return 0, ErrNoMessage
	}
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b), nil
}

// A Scan takes as much at a time: so many keys, or so many octets.
const (
	scanKeys   = 4096
	scanOctets = 256 << 10
)

// Scan calls fn for all keys with a prefix, in order, until fn fails. It holds
// nobody up: fn may take its time, and use the store itself. Keys that come or
// go meanwhile may or may not be seen. Key and value are valid during the call
// only.
func Scan(s Store, prefix []byte, fn func(key, value []byte) error) error {
	type span struct{ key, end int }
	var last, held []byte
	var spans []span
	for more := true; more; {
		held, spans = held[:0], spans[:0]
		more = false
		err := s.Page(From(prefix, last), func(key, value []byte) bool {
			held = append(append(held, key...), value...)
			spans = append(spans, span{len(held) - len(value), len(held)})
			more = len(spans) == scanKeys || len(held) >= scanOctets
			return !more
		})
		start := 0
		for _, at := range spans {
			key, value := held[start:at.key:at.key], held[at.key:at.end:at.end]
			if err := fn(key, value); err != nil {
				return err
			}
			last, start = append(last[:0], key...), at.end
		}
		if err != nil {
			return err
		}
	}
	return nil
}
