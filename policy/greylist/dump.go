package greylist

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
)

// WriteDump writes the entries of one kind that have passed as db_load(1) of
// Berkeley DB reads them and postgrey stores them.
func WriteDump(w io.Writer, kind string, walk func(func(Entry) error) error) error {
	b := bufio.NewWriter(w)
	fmt.Fprint(b, "VERSION=3\nformat=bytevalue\ntype=btree\nHEADER=END\n")
	err := walk(func(e Entry) error {
		if e.Kind != kind || !e.Passed {
			return nil
		}
		first := e.Count
		if kind == Triplet {
			first = e.First.Unix()
		}
		value := fmt.Sprintf("%d,%d", first, e.Last.Unix())
		_, err := fmt.Fprintf(b, " %s\n %s\n", hex.EncodeToString([]byte(e.Key)), hex.EncodeToString([]byte(value)))
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprint(b, "DATA=END\n")
	return b.Flush()
}
