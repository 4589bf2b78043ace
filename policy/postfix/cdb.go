package postfix

import (
	"strings"

	"github.com/understudy-mx/understudy/policy/table"
)

// cdbTable lists a cdb file, which postmap doesn't.
func (i *importer) cdbTable(name string) (*Table, error) {
	text, err := i.readFile(name + ".cdb")
	if err != nil {
		return nil, err
	}
	t := &Table{Type: "cdb", Kind: Indexed, Entries: map[string]string{}}
	err = table.ReadCDB([]byte(text), func(k, v string) error {
		// Either may end in a NUL, as in the hash tables of Sendmail.
		k, v = strings.TrimSuffix(k, "\x00"), strings.TrimSuffix(v, "\x00")
		if k != strings.ToLower(k) {
			return nil // Postfix folds what it looks up
		}
		return t.add(k, v)
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}
