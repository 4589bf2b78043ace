// Package locate finds the position of a mistake in a TOML file, and the name that
// was probably intended.
//
// The TOML library has positions of decoded keys, but none for keys that weren't
// decoded or for the elements of an array, and only the last one of an array of
// tables.
package locate

import (
	"strconv"
	"strings"
)

// Keys maps the path of each key, table header and array element of a TOML text
// to its offset. Paths read "client.block[2]". The text has been parsed before,
// so the scanner may be simple: where it is lost it stops, and the places that
// follow are missing.
func Keys(src string) map[string]int {
	s := &scanner{src: src, pos: map[string]int{}, tables: map[string]int{}}
	prefix := ""
	for s.blank(true); s.i < len(s.src); s.blank(true) {
		start := s.i
		if s.peek() == '[' {
			prefix = s.header()
			continue
		}
		key, ok := s.key()
		if !ok || s.peek() != '=' {
			break
		}
		s.i++
		path := Join(prefix, key)
		s.set(path, start)
		s.value(path, 0)
		if s.i <= start {
			break
		}
	}
	return s.pos
}

type scanner struct {
	src    string
	i      int
	pos    map[string]int
	tables map[string]int // [[arrays of tables]]: how many so far
}

const maxDepth = 100

// Join is the path of a key below prefix.
func Join(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

// Index is the path of an element of an array.
func Index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

func (s *scanner) set(path string, off int) {
	if _, found := s.pos[path]; !found {
		s.pos[path] = off
	}
}

func (s *scanner) peek() byte {
	if s.i < len(s.src) {
		return s.src[s.i]
	}
	return 0
}

// blank skips white space, and line ends and comments too where they may be.
func (s *scanner) blank(lines bool) {
	for s.i < len(s.src) {
		switch c := s.src[s.i]; {
		case c == ' ' || c == '\t':
		case lines && (c == '\n' || c == '\r'):
		case lines && c == '#':
			n := strings.IndexByte(s.src[s.i:], '\n')
			if n < 0 {
				s.i = len(s.src)
				return
			}
			s.i += n
		default:
			return
		}
		s.i++
	}
}

// header reads "[table]" or "[[table]]" and returns the path of what follows.
func (s *scanner) header() string {
	start := s.i
	s.i++
	array := s.peek() == '['
	if array {
		s.i++
	}
	var path string
	for {
		s.blank(false)
		k, ok := s.part()
		if !ok {
			s.i = len(s.src)
			return path
		}
		path = Join(path, k)
		s.blank(false)
		if s.peek() != '.' {
			break
		}
		s.i++
		if n := s.tables[path]; n > 0 {
			path = Index(path, n-1)
		}
	}
	if array {
		n := s.tables[path]
		s.tables[path]++
		s.set(path, start)
		path = Index(path, n)
		s.i++
	}
	s.i++
	s.set(path, start)
	return path
}

// key reads a dotted key and the space after it.
func (s *scanner) key() (string, bool) {
	path := ""
	for {
		s.blank(false)
		k, ok := s.part()
		if !ok {
			return path, false
		}
		path = Join(path, k)
		s.blank(false)
		if s.peek() != '.' {
			return path, true
		}
		s.i++
	}
}

// part reads a bare or quoted key.
func (s *scanner) part() (string, bool) {
	start := s.i
	if c := s.peek(); c == '"' || c == '\'' {
		s.str()
		return s.src[start+1 : max(start+1, s.i-1)], true
	}
	for s.i < len(s.src) && isBare(s.src[s.i]) {
		s.i++
	}
	return s.src[start:s.i], s.i > start
}

func isBare(c byte) bool {
	return c == '_' || c == '-' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// str skips a string of any of the four kinds.
func (s *scanner) str() {
	q := s.src[s.i]
	if long := strings.Repeat(string(q), 3); strings.HasPrefix(s.src[s.i:], long) {
		for s.i += 3; s.i < len(s.src); s.i++ {
			if q == '"' && s.src[s.i] == '\\' {
				s.i++
			} else if strings.HasPrefix(s.src[s.i:], long) {
				for s.i += 3; s.peek() == q; s.i++ { // up to two quotes may precede the end
				}
				return
			}
		}
		s.i = len(s.src)
		return
	}
	for s.i++; s.i < len(s.src) && s.src[s.i] != q && s.src[s.i] != '\n'; s.i++ {
		if q == '"' && s.src[s.i] == '\\' {
			s.i++
		}
	}
	s.i = min(s.i+1, len(s.src))
}

func (s *scanner) value(path string, depth int) {
	s.blank(false)
	if depth > maxDepth {
		s.i = len(s.src)
		return
	}
	switch s.peek() {
	case '"', '\'':
		s.str()
	case '[':
		s.i++
		for n := 0; ; n++ {
			s.blank(true)
			if c := s.peek(); c == ']' || c == 0 {
				break
			}
			elem := Index(path, n)
			s.set(elem, s.i)
			s.value(elem, depth+1)
			s.blank(true)
			if s.peek() == ',' {
				s.i++
			} else if s.peek() != ']' {
				s.i = len(s.src)
			}
		}
		s.i++
	case '{':
		s.i++
		for {
			s.blank(true)
			start := s.i
			if c := s.peek(); c == '}' || c == 0 {
				break
			}
			key, ok := s.key()
			if !ok || s.peek() != '=' {
				s.i = len(s.src)
				break
			}
			s.i++
			s.set(Join(path, key), start)
			s.value(Join(path, key), depth+1)
			s.blank(true)
			if s.peek() == ',' {
				s.i++
			}
		}
		s.i++
	default:
		for s.i < len(s.src) && !strings.ContainsRune(",]}#\r\n", rune(s.src[s.i])) {
			s.i++
		}
	}
}

// At is the place of path, or else of the closest thing around it; 0 without any.
func At(keys map[string]int, path string) int {
	for path != "" {
		if off, found := keys[path]; found {
			return off
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 0
}

// Line turns an offset into a line and a column, both from 1, the column in
// octets.
func Line[T string | []byte](text T, off int) (line, col int) {
	before := string(text[:min(max(off, 0), len(text))])
	return 1 + strings.Count(before, "\n"), len(before) - strings.LastIndexByte(before, '\n')
}

// Nearest is the name that was probably meant by word, or "": the one at most a
// third of its letters away.
func Nearest(word string, names []string) string {
	best, bestAt := "", len(word)
	for _, n := range names {
		if d := distance(strings.ToLower(word), n); d < bestAt && d <= max(1, len(n)/3) {
			best, bestAt = n, d
		}
	}
	return best
}

// distance is Levenshtein's, over the first 64 octets.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
