package store

import "encoding/binary"

// FormatVersion is the layout that this code writes and reads. A higher one
// on disk is refused, a lower one is made this one at Open.
//
//	1  the first
//	2  records may have what SPF and DKIM said, and be DSNs; totals count DSNs.
//	   What format 1 wrote is read as it is.
//	3  records may name the store from which they come
const FormatVersion = 3

// MaxBatch bounds the octets of one synced batch, but for a single larger
// message.
const MaxBatch = 1 << 20

// Key spaces, see package queue.
const (
	SpaceFormat     = 'f'
	SpaceTotals     = 't'
	SpaceRecord     = 'm'
	SpaceBody       = 'b'
	SpaceID         = 'i'
	SpaceLine       = 'q'
	SpaceDeferred   = 'd'
	SpaceQuarantine = 'x'
	SpaceIdentity   = 'u'
	SpaceMoved      = 'o'
)

// SeqKey is the key of a message's record, body or quarantined record.
func SeqKey(space byte, seq uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{space}, seq)
}

// IDKey is the key that finds a message's number.
func IDKey(id string) []byte { return append([]byte{SpaceID}, id...) }

// MovedKey says, by the identity under it, to which store a message has gone.
func MovedKey(id string) []byte { return append([]byte{SpaceMoved}, id...) }

// KeySeq is the sequence number at the end of a key, 0 when there is none.
func KeySeq(key []byte) uint64 {
	if len(key) < 9 {
		return 0
	}
	return binary.BigEndian.Uint64(key[len(key)-8:])
}

// DestPrefix begins the keys of a destination's line, or of its deferred.
func DestPrefix(space byte, dest string) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{space}, uint16(len(dest))), dest...)
}

// LineKey is a message's place in line.
func LineKey(dest string, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(DestPrefix(SpaceLine, dest), seq)
}

// DeferredKey is a message's place among the deferred, by its next attempt.
func DeferredKey(dest string, next int64, seq uint64) []byte {
	k := binary.BigEndian.AppendUint64(DestPrefix(SpaceDeferred, dest), uint64(max(0, next)))
	return binary.BigEndian.AppendUint64(k, seq)
}

// KeyDest is the destination in a key of the line or of the deferred.
func KeyDest(key []byte) (dest string, ok bool) {
	tail := 8
	if len(key) > 0 && key[0] == SpaceDeferred {
		tail = 16
	}
	if len(key) < 3+tail || int(binary.BigEndian.Uint16(key[1:])) != len(key)-3-tail {
		return "", false
	}
	return string(key[3 : len(key)-tail]), true
}

// KeyDue is the time, in Unix nanoseconds, in a key of the deferred.
func KeyDue(key []byte) int64 { return int64(binary.BigEndian.Uint64(key[len(key)-16:])) }

// Range is the keys from Start on and below Limit. A nil Limit is above them all.
type Range struct{ Start, Limit []byte }

// From is the range of prefix, beginning after the key last; all of it when
// last is nil.
func From(prefix, last []byte) Range {
	r := Range{Start: prefix}
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			r.Limit = append(append([]byte(nil), prefix[:i]...), prefix[i]+1)
			break
		}
	}
	if last != nil {
		r.Start = append(append([]byte(nil), last...), 0)
	}
	return r
}

// IDAlphabet is Crockford's base 32 in lower case: sorts like the number it
// writes, and has no i, l, o, u to misread.
const IDAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// IDLen is 9 digits of milliseconds since 1970 and 7 of chance.
const IDLen = 16

// ValidID says that s may be an ID: it is safe as a file name and as a key.
func ValidID(s string) bool {
	if len(s) != IDLen {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
