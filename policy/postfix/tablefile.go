package postfix

import (
	"fmt"
	"os"
)

// maxTableFile bounds a file of settings; a real one has a few hundred octets.
const maxTableFile = 1 << 20

// ReadTableFile reads the settings of a database table, such as pgsql_table(5)
// describes. They hold its password.
func ReadTableFile(path string) (map[string]string, error) {
	if fi, err := os.Stat(path); err == nil && fi.Size() > maxTableFile {
		return nil, fmt.Errorf("%s: has %d octets; is it the right file?", path, fi.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	set, err := parseCF(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return set, nil
}
