package postfix

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/policy/fidelity"
)

// failed is what smtpd makes of a look-up that fails in an access table, as if it
// stood there.
const failed = "451 4.3.5 Server configuration error"

// failing is why every look-up in a table fails.
type failing string

func (f failing) Error() string { return string(f) }

// fails tells a table in which every look-up fails from one that can't be read
// here.
func fails(reason error) bool { return errors.As(reason, new(failing)) }

var duplicateLine = regexp.MustCompile(`, line (\d+): (duplicate entry: .*)`)

// duplicate looks for what keeps smtpd from opening a text file that postmap
// reads with a warning.
func (i *importer) duplicate(file, stderr string) error {
	m := duplicateLine.FindStringSubmatch(stderr)
	if m == nil {
		return nil
	}
	n, _ := strconv.Atoi(m[1])
	what := strings.ToValidUTF8(m[2], "?")
	i.report.Mistakes = append(i.report.Mistakes, fidelity.Mistake{File: file, Line: n, What: what + "; smtpd doesn't open the table, and answers 451 where it asks it"})
	return failing(fmt.Sprintf("line %d: %s; every look-up fails; the primary answers 451", n, what))
}

var errEmpty = errors.New("an empty value; Postfix's look-up fails there (451)")

// refusesEmpty says that an empty value can be in a table of this type, and makes
// a look-up fail.
func (t *Table) refusesEmpty() bool {
	return slices.Contains([]string{"inline", "static", "regexp", "pcre"}, t.Type)
}

// filled is the table without the values that are empty: who has one isn't known
// to be there.
func (t *Table) filled() (*Table, error) {
	empty := func(v string) bool { return v == "" }
	switch {
	case !t.refusesEmpty() || !t.any(empty):
		return t, nil
	case t.Kind != Indexed:
		return nil, errEmpty
	}
	c := *t
	c.Entries, c.Partial = maps.Clone(t.Entries), errEmpty.Error()
	maps.DeleteFunc(c.Entries, func(_, v string) bool { return empty(v) })
	return &c, nil
}
