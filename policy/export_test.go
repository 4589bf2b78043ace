package policy

import (
	"encoding/json"
	"strings"
)

// For the tests that read hand-written policies.

var StrictJSON = strictJSON

// Streamed reads an encoding token by token, as Decode does where it can.
func Streamed(text string) (*Snapshot, error) {
	r := specReader{d: json.NewDecoder(strings.NewReader(text))}
	spec, err := r.spec()
	if err != nil {
		return nil, err
	}
	return Compile(spec)
}
