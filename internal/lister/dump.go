package lister

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Bounds of a dump.
const (
	maxDumpLine    = 64 << 10
	maxDumpEntries = 8_000_000
)

// ReadDump reads what db_dump(1) of Berkeley DB prints, with or without -p, of one
// database after another, and calls fn with each entry and the number of its
// database. fn may keep nothing of its arguments.
//
//	VERSION=3
//	format=print
//	type=btree
//	HEADER=END
//	 192.0.2.1
//	 5,1790000000
//	DATA=END
func ReadDump(r io.Reader, fn func(database int, key, value []byte) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxDumpLine)
	database, entries := -1, 0
	var key []byte
	inData, hasKey, plain := false, false, false
	for lines.Scan() {
		line := lines.Text()
		switch {
		case !inData && line == "HEADER=END":
			inData, hasKey = true, false
			database++
		case !inData && strings.HasPrefix(line, "format="):
			if plain = line == "format=print"; !plain && line != "format=bytevalue" {
				return fmt.Errorf("%.40q is unknown", line)
			}
		case !inData && strings.Contains(line, "="): // another setting
		case inData && line == "DATA=END" && !hasKey:
			inData, plain = false, false
		case inData && strings.HasPrefix(line, " "):
			b, err := dumpOctets(line[1:], plain)
			if err != nil {
				return err
			}
			if hasKey = !hasKey; hasKey {
				key = b
				continue
			}
			if entries++; entries > maxDumpEntries {
				return fmt.Errorf("more than %d entries", maxDumpEntries)
			}
			if err := fn(database, key, b); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%.40q isn't db_dump's", line)
		}
	}
	switch {
	case lines.Err() != nil:
		return lines.Err()
	case inData || database < 0:
		return errors.New("the dump is cut short")
	}
	return nil
}

// dumpOctets reads hexadecimal, or print format: \\ and \hh stand for octets.
func dumpOctets(s string, plain bool) ([]byte, error) {
	if !plain {
		return hex.DecodeString(s)
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != '\\':
			b = append(b, s[i])
		case strings.HasPrefix(s[i:], `\\`):
			b = append(b, '\\')
			i++
		case i+3 <= len(s):
			octet, err := hex.DecodeString(s[i+1 : i+3])
			if err != nil {
				return nil, err
			}
			b = append(b, octet...)
			i += 2
		default:
			return nil, fmt.Errorf("%.40q ends in an escape", s)
		}
	}
	return b, nil
}
