package config

import (
	"io"
	"strconv"
	"strings"
)

// position is a place in a file, both from 1, the column in bytes.
type position struct{ line, col int }

// find returns where path stands, or else the closest thing around it.
func find(at map[string]position, path string) position {
	for path != "" {
		if p, ok := at[path]; ok {
			return p
		}
		i := strings.LastIndexAny(path, ".[")
		path = path[:max(i, 0)]
	}
	return position{1, 1}
}

// locate maps each key and table header of a TOML text to its position. The
// library knows them too, but shows none for a key that nobody decoded, and
// only the last of an array of tables. The text MUST be valid TOML; keys inside
// inline tables count as part of their value.
func locate(text string) map[string]position {
	s := &scanner{text: text, at: map[string]position{}, arrays: map[string]int{}}
	for s.skipBlank(); s.pos < len(text); s.skipBlank() {
		if text[s.pos] == '[' {
			s.header()
		} else {
			start := s.pos
			key := s.key()
			s.note(join(s.prefix, key), start)
			s.pos++ // =
			s.value()
		}
	}
	return s.at
}

type scanner struct {
	text   string
	pos    int
	prefix string         // the table that keys go to
	arrays map[string]int // tables seen of each array
	at     map[string]position
	noted  int // what line counts up to; note's offsets only grow
	line   int // from 0
}

func (s *scanner) note(path string, at int) {
	s.line += strings.Count(s.text[s.noted:at], "\n")
	s.noted = at
	s.at[path] = position{s.line + 1, at - strings.LastIndexByte(s.text[:at], '\n')}
}

// skipBlank stops at the next header or key, or at the end.
func (s *scanner) skipBlank() {
	for s.pos < len(s.text) {
		switch s.text[s.pos] {
		case ' ', '\t', '\r', '\n':
			s.pos++
		case '#':
			s.skipTo("\n")
		default:
			return
		}
	}
}

func (s *scanner) skipTo(end string) {
	i := strings.Index(s.text[s.pos:], end)
	if i < 0 {
		s.pos = len(s.text)
		return
	}
	s.pos += i + len(end)
}

func (s *scanner) header() {
	array := strings.HasPrefix(s.text[s.pos:], "[[")
	start := s.pos
	s.pos++
	if array {
		s.pos++
	}
	name := s.key()
	if array {
		i := s.arrays[name]
		s.arrays[name]++
		s.prefix = name + "[" + strconv.Itoa(i) + "]"
		if i == 0 {
			s.note(name, start)
		}
	} else {
		s.prefix = name
	}
	s.note(s.prefix, start)
	s.skipTo("\n")
}

// key reads a dotted key, and stops at the "=" or "]" behind it.
func (s *scanner) key() string {
	var b strings.Builder
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; c {
		case '=', ']':
			return b.String()
		case ' ', '\t':
			s.pos++
		case '"', '\'':
			start := s.pos + 1
			s.str()
			b.WriteString(s.text[start:max(start, s.pos-1)])
		default:
			b.WriteByte(c)
			s.pos++
		}
	}
	return b.String()
}

// str skips a string of any of the four kinds.
func (s *scanner) str() {
	quote := s.text[s.pos : s.pos+1]
	if long := strings.Repeat(quote, 3); strings.HasPrefix(s.text[s.pos:], long) {
		quote = long
	}
	for s.pos += len(quote); s.pos < len(s.text); s.pos++ {
		if s.text[s.pos] == '\\' && quote[0] == '"' {
			s.pos++
			continue
		}
		if strings.HasPrefix(s.text[s.pos:], quote) {
			s.pos += len(quote)
			for len(quote) == 3 && strings.HasPrefix(s.text[s.pos:], quote[:1]) {
				s.pos++ // """a"""" ends in a quotation mark of its own
			}
			return
		}
	}
}

// value skips to the end of the value and its line.
func (s *scanner) value() {
	depth := 0
	for s.pos < len(s.text) {
		switch s.text[s.pos] {
		case '"', '\'':
			s.str()
			continue
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		case '#':
			s.skipTo("\n")
			if depth <= 0 {
				return
			}
			continue
		case '\n':
			if depth <= 0 {
				return
			}
		}
		s.pos++
	}
}

func join(section, key string) string {
	if section == "" {
		return key
	}
	return section + "." + key
}

// readFull fills b as far as r goes.
func readFull(r io.Reader, b []byte) (int, error) {
	n, err := io.ReadFull(r, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return n, err
}
