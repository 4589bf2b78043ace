package postfix

import (
	"encoding/binary"
	"errors"
	"strings"
)

var errCDB = errors.New("is no cdb file, or cut off")

// cdbTable lists a cdb file, which postmap doesn't: 256 pairs of position and
// length, one for each hash table; the records, each the lengths of key and
// value and these themselves; and the hash tables. Numbers are of 32 bits, the
// lowest first. https://cr.yp.to/cdb/cdb.txt
func (i *importer) cdbTable(name string) (*Table, error) {
	text, err := i.readFile(name + ".cdb")
	if err != nil {
		return nil, err
	}
	const header = 256 * 8
	number := func(at int) int { return int(binary.LittleEndian.Uint32([]byte(text[at : at+4]))) }
	if len(text) < header {
		return nil, errCDB
	}
	end := len(text) // of the records: where the first hash table is
	for at := 0; at < header; at += 8 {
		table := number(at)
		if end = min(end, table); table < header || table+8*number(at+4) > len(text) {
			return nil, errCDB
		}
	}
	t := &Table{Type: "cdb", Kind: Indexed, Entries: map[string]string{}}
	at := header
	for at+8 <= end {
		key, value := number(at), number(at+4)
		if at += 8; key > end-at || value > end-at-key {
			return nil, errCDB
		}
		// Either may end in a NUL, as in the hash tables of Sendmail.
		k, v := strings.TrimSuffix(text[at:at+key], "\x00"), strings.TrimSuffix(text[at+key:at+key+value], "\x00")
		if at += key + value; k != strings.ToLower(k) {
			continue // Postfix folds what it looks up
		}
		if err := t.add(k, v); err != nil {
			return nil, err
		}
	}
	if at != end {
		return nil, errCDB
	}
	return t, nil
}
