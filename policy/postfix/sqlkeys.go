package postfix

import (
	"fmt"
	"slices"
	"strings"
)

// maxCandidates bounds how many keys one table's query is asked about.
const maxCandidates = 2_000_000

// keySet collects keys. One that begins with "@" may stand for every address of
// its domain.
type keySet struct {
	all  map[string]bool
	most int
}

func newKeySet() *keySet { return &keySet{all: map[string]bool{}, most: maxCandidates} }

var errTooMany = fmt.Errorf("more than %d keys would have to be asked for", maxCandidates)

func (k *keySet) add(key string) error {
	if key = strings.ToLower(key); key == "" || k.all[key] || len(key) > maxKey {
		return nil
	}
	if len(k.all) >= k.most {
		return errTooMany
	}
	k.all[key] = true
	return nil
}

// maxKey is longer than any address that Postfix looks up.
const maxKey = 512

// rowsOf reads sources, each once.
type rowsOf struct {
	session Session
	have    map[*rowSource][][]string
	index   map[*rowSource]map[int]map[string][]int // by column and what follows an "@" in it
}

func (r *rowsOf) read(src *rowSource) ([][]string, error) {
	if got, done := r.have[src]; done {
		return got, nil
	}
	columns, err := r.session.Columns(src.query() + limitNone(src))
	if err != nil {
		return nil, err
	}
	for n, c := range columns {
		if !c.Text {
			return nil, fmt.Errorf("%s %w: the database compares it with the key in its own way", src.columns[n], errNoText)
		}
	}
	var all [][]string
	err = r.session.Rows(src.query(), func(columns []string) error {
		row := make([]string, len(columns))
		for n, c := range columns {
			row[n] = strings.ToLower(c)
		}
		all = append(all, row)
		return nil
	})
	r.have[src] = all
	return all, err
}

func limitNone(src *rowSource) string {
	if len(src.where) > 0 {
		return " AND 1 = 0"
	}
	return " WHERE 1 = 0"
}

// at finds the rows in whose column text follows an "@".
func (r *rowsOf) at(src *rowSource, column int, text string) []int {
	if r.index[src] == nil {
		r.index[src] = map[int]map[string][]int{}
	}
	index := r.index[src][column]
	if index == nil {
		index = map[string][]int{}
		for n, row := range r.have[src] {
			v := strings.TrimRight(row[column], " ")
			for i := range len(v) {
				if v[i] == '@' {
					index[v[i+1:]] = append(index[v[i+1:]], n)
				}
			}
		}
		r.index[src][column] = index
	}
	return index[strings.TrimRight(text, " ")]
}

// sources are the rows that an equation is made of.
func (e equal) sources() (all []*rowSource) {
	for _, t := range append([]term{e.left}, e.template...) {
		if t.rows != nil && !slices.Contains(all, t.rows) {
			all = append(all, t.rows)
		}
	}
	return all
}

func (s system) sources() (all []*rowSource) {
	for _, e := range s {
		for _, src := range e.sources() {
			if !slices.Contains(all, src) {
				all = append(all, src)
			}
		}
	}
	return all
}

// minimal leaves out what isn't needed to tell the key.
func (s system) minimal() system {
	kind := s.kind()
	best := s
	consider := func(c system) {
		if c.kind() == kind && (len(c.sources()) < len(best.sources()) || len(c.sources()) == len(best.sources()) && len(c) > len(best)) {
			best = c
		}
	}
	for _, e := range s {
		own := e.sources()
		c := system{}
		for _, o := range s {
			if !slices.ContainsFunc(o.sources(), func(r *rowSource) bool { return !slices.Contains(own, r) }) {
				c = append(c, o)
			}
		}
		consider(c)
	}
	return best
}

// solver finds the keys of a way.
type solver struct {
	rows    *rowsOf
	keys    *keySet
	domains []string // that the table is restricted to
	system  system
	order   []*rowSource
	row     map[*rowSource][]string
}

// solve adds every key that a way can find.
func (s *solver) solve(way system) error {
	s.system = way.minimal()
	s.order, s.row = s.system.sources(), map[*rowSource][]string{}
	for _, src := range s.order {
		if _, err := s.rows.read(src); err != nil {
			return err
		}
	}
	// What others are tied to comes first.
	slices.SortStableFunc(s.order, func(a, b *rowSource) int { return s.tied(a) - s.tied(b) })
	return s.step(0)
}

// tied counts the equations of a source that need others.
func (s *solver) tied(src *rowSource) (n int) {
	for _, e := range s.system {
		if e.left.rows == src && len(e.sources()) > 1 {
			n++
		}
	}
	return n
}

func (s *solver) step(n int) error {
	if n == len(s.order) {
		return s.finish()
	}
	src := s.order[n]
	all := s.rows.have[src]
	for _, e := range s.system {
		// "%u@" and a column that is known by now.
		if t := e.template; e.left.rows == src && !e.suffix && len(t) == 3 && t[0].hole == 'u' && t[1].text == "@" && t[1].rows == nil && t[2].rows != nil && s.row[t[2].rows] != nil {
			for _, m := range s.rows.at(src, e.left.col, s.row[t[2].rows][t[2].col]) {
				s.row[src] = all[m]
				if err := s.step(n + 1); err != nil {
					return err
				}
			}
			delete(s.row, src)
			return nil
		}
	}
	for _, row := range all {
		s.row[src] = row
		if err := s.step(n + 1); err != nil {
			return err
		}
	}
	delete(s.row, src)
	return nil
}

// finish solves the equations for the rows at hand.
func (s *solver) finish() error {
	got := map[byte]string{}
	var suffix *equal
	for n, e := range s.system {
		switch {
		case e.except != "":
		case e.suffix:
			suffix = &s.system[n]
		case !s.equation(e, got):
			return nil
		}
	}
	if suffix == nil {
		return s.found(got)
	}
	v := s.text(suffix.left)
	for i := range len(v) {
		if v[i] == '@' {
			got[suffix.template[0].hole] = v[i+1:]
			if err := s.found(got); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *solver) text(t term) string {
	if t.rows != nil {
		return s.row[t.rows][t.col]
	}
	return strings.ToLower(t.text)
}

// equation solves one. MySQL takes no notice of spaces at the end.
func (s *solver) equation(e equal, got map[byte]string) bool {
	n := slices.IndexFunc(e.template, func(t term) bool { return t.hole != 0 })
	join := func(ts []term) (text string) {
		for _, t := range ts {
			text += s.text(t)
		}
		return text
	}
	v, pre, post := strings.TrimRight(s.text(e.left), " "), join(e.template[:n]), strings.TrimRight(join(e.template[n+1:]), " ")
	if ascii(v) && (len(v) <= len(pre)+len(post) || !strings.HasPrefix(v, pre) || !strings.HasSuffix(v, post)) {
		return false
	}
	if !strings.HasPrefix(v, pre) || !strings.HasSuffix(v, post) || len(v) < len(pre)+len(post) {
		pre, post = "", ""
	}
	v = v[len(pre) : len(v)-len(post)]
	h := e.template[n].hole
	if old, dup := got[h]; dup && old != v && ascii(old) && ascii(v) {
		return false
	}
	got[h] = v
	return true
}

// found adds the keys that the parts make.
func (s *solver) found(got map[byte]string) error {
	key := got['s']
	if key == "" {
		key = got['a']
	}
	switch u, d := got['u'], got['d']; {
	case key != "":
	case u != "" && d != "":
		key = u + "@" + d
	case d != "":
		key = "@" + d
	default:
		for _, d := range s.domains {
			if err := s.variants(u + "@" + d); err != nil {
				return err
			}
		}
		return nil
	}
	return s.variants(key)
}

// variants adds a key, and what it is without accents: databases may take
// these for equal.
func (s *solver) variants(key string) error {
	for _, k := range keyVariants(key) {
		if err := s.keys.add(k); err != nil {
			return err
		}
	}
	return nil
}
