package queue

import (
	"encoding/binary"

	"github.com/syndtr/goleveldb/leveldb/util"
)

// Key spaces, see the package documentation.
const (
	spaceFormat     = 'f'
	spaceTotals     = 't'
	spaceRecord     = 'm'
	spaceBody       = 'b'
	spaceID         = 'i'
	spaceLine       = 'q'
	spaceDeferred   = 'd'
	spaceQuarantine = 'x'
)

func seqKey(space byte, seq uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{space}, seq)
}

func idKey(id string) []byte { return append([]byte{spaceID}, id...) }

// keySeq is the sequence number at the end of a key, 0 when there is none.
func keySeq(key []byte) uint64 {
	if len(key) < 9 {
		return 0
	}
	return binary.BigEndian.Uint64(key[len(key)-8:])
}

func destPrefix(space byte, dest string) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{space}, uint16(len(dest))), dest...)
}

func lineKey(dest string, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(destPrefix(spaceLine, dest), seq)
}

func deferredKey(dest string, next int64, seq uint64) []byte {
	k := binary.BigEndian.AppendUint64(destPrefix(spaceDeferred, dest), uint64(max(0, next)))
	return binary.BigEndian.AppendUint64(k, seq)
}

// keyDest is the destination in a key of the line or of the deferred.
func keyDest(key []byte) (dest string, ok bool) {
	tail := 8
	if len(key) > 0 && key[0] == spaceDeferred {
		tail = 16
	}
	if len(key) < 3+tail || int(binary.BigEndian.Uint16(key[1:])) != len(key)-3-tail {
		return "", false
	}
	return string(key[3 : len(key)-tail]), true
}

// keyDue is the time, in Unix nanoseconds, in a key of the deferred.
func keyDue(key []byte) int64 { return int64(binary.BigEndian.Uint64(key[len(key)-16:])) }

// from is the range of prefix, beginning behind the key last; all of it when
// last is nil.
func from(prefix, last []byte) *util.Range {
	r := util.BytesPrefix(prefix)
	if last != nil {
		r.Start = append(append([]byte(nil), last...), 0)
	}
	return r
}
