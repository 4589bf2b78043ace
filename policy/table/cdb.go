package table

import (
	"encoding/binary"
	"errors"
)

// ErrCDB is ReadCDB's of a file that is none.
var ErrCDB = errors.New("is no cdb file, or cut off")

// ReadCDB lists the records of a cdb file: 256 pairs of position and length, one for
// each hash table; the records, each the lengths of key and value and these
// themselves; and the hash tables. Numbers are of 32 bits, the lowest first.
// https://cr.yp.to/cdb/cdb.txt
func ReadCDB(b []byte, record func(key, value string) error) error {
	const header = 256 * 8
	number := func(at int) int { return int(binary.LittleEndian.Uint32(b[at : at+4])) }
	if len(b) < header {
		return ErrCDB
	}
	end := len(b) // of the records: where the first hash table is
	for at := 0; at < header; at += 8 {
		table := number(at)
		if end = min(end, table); table < header || table+8*number(at+4) > len(b) {
			return ErrCDB
		}
	}
	at := header
	for at+8 <= end {
		key, value := number(at), number(at+4)
		if at += 8; key > end-at || value > end-at-key {
			return ErrCDB
		}
		k, v := string(b[at:at+key]), string(b[at+key:at+key+value])
		at += key + value
		if err := record(k, v); err != nil {
			return err
		}
	}
	if at != end {
		return ErrCDB
	}
	return nil
}
