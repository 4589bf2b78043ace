package postfix

import (
	"fmt"
	"strings"
)

// Listing says in what way a table was listed.
type Listing struct {
	Exact   bool     // by its own query; else by candidates
	Put     int      // keys that it was asked about
	Asked   int      // those of them that were asked for this time
	Why     string   // not exactly
	Tables  []string // that the candidates are from
	Left    string   // what wasn't put
	Checked int      // keys that were put to it again, or at random
	Wrong   string   // what the check found

	Unlisted bool // other keys are taken for absent: the operator wants that, and the check has held
}

// notes say in the report how an exact listing was made.
func (l Listing) notes() (notes []string) {
	if l.Put > 0 {
		notes = append(notes, fmt.Sprintf("%d keys asked for", l.Put))
	}
	if l.Checked > 0 {
		notes = append(notes, fmt.Sprintf("checked with %d", l.Checked))
	}
	return notes
}

// missed says what a listing by candidates may lack.
func (l Listing) missed() string {
	s := fmt.Sprintf("listed by %d candidates", l.Put)
	if len(l.Tables) > 0 {
		s += " from " + strings.Join(l.Tables[:min(len(l.Tables), 8)], ", ")
	}
	s += " (" + l.Why + "); a key that isn't made of values there is missed"
	if l.Left != "" {
		s += ", and so are " + l.Left
	}
	return s
}
