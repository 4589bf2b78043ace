package policy

import (
	"strconv"
	"strings"
)

// tomlPositions finds where each key and each array element of a TOML document
// stands, since the TOML library doesn't tell. Paths read "client.block[2]".
// The document has been parsed before, so the scanner may be simple: where it
// is lost it stops, and the positions that follow are missing.
func tomlPositions(src string) map[string]int {
	s := &tomlScanner{src: src, pos: map[string]int{}, tables: map[string]int{}}
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
		path := join(prefix, key)
		s.set(path, start)
		s.value(path, 0)
		if s.i <= start {
			break
		}
	}
	return s.pos
}

type tomlScanner struct {
	src    string
	i      int
	pos    map[string]int
	tables map[string]int // [[arrays of tables]]: how many so far
}

const maxTOMLDepth = 100

func join(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

func (s *tomlScanner) set(path string, off int) {
	if _, found := s.pos[path]; !found {
		s.pos[path] = off
	}
}

func (s *tomlScanner) peek() byte {
	if s.i < len(s.src) {
		return s.src[s.i]
	}
	return 0
}

// blank skips white space, and line ends and comments too where they may be.
func (s *tomlScanner) blank(lines bool) {
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
func (s *tomlScanner) header() string {
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
		path = join(path, k)
		s.blank(false)
		if s.peek() != '.' {
			break
		}
		s.i++
		if n := s.tables[path]; n > 0 {
			path = index(path, n-1)
		}
	}
	if array {
		n := s.tables[path]
		s.tables[path]++
		s.set(path, start)
		path = index(path, n)
		s.i++
	}
	s.i++
	s.set(path, start)
	return path
}

// key reads a dotted key and the space behind it.
func (s *tomlScanner) key() (string, bool) {
	path := ""
	for {
		s.blank(false)
		k, ok := s.part()
		if !ok {
			return path, false
		}
		path = join(path, k)
		s.blank(false)
		if s.peek() != '.' {
			return path, true
		}
		s.i++
	}
}

// part reads a bare or quoted key.
func (s *tomlScanner) part() (string, bool) {
	start := s.i
	if c := s.peek(); c == '"' || c == '\'' {
		s.str()
		return s.src[start+1 : max(start+1, s.i-1)], true
	}
	for s.i < len(s.src) && (isNameByte(s.src[s.i]) || s.src[s.i] == '-') {
		s.i++
	}
	return s.src[start:s.i], s.i > start
}

// str skips a string of any of the four kinds.
func (s *tomlScanner) str() {
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

func (s *tomlScanner) value(path string, depth int) {
	s.blank(false)
	if depth > maxTOMLDepth {
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
			elem := index(path, n)
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
			s.set(join(path, key), start)
			s.value(join(path, key), depth+1)
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
