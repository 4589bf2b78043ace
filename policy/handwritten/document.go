package handwritten

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/understudy-mx/understudy/internal/locate"
)

// maxMistakes bounds the mistakes reported at once.
const maxMistakes = 100

// document is a TOML file with what is wrong with it.
type document struct {
	name     string
	src      []byte
	pos      map[string]int
	mistakes []mistake
}

type mistake struct {
	file      string
	line, col int
	text      string
}

func readDocument(name string, b []byte) (*document, map[string]any, error) {
	d := &document{name: name, src: b}
	var root map[string]any
	if _, err := toml.Decode(string(b), &root); err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			line, col := locate.Line(b, pe.Position.Start)     // its own column is off after a line end
			text := strings.ReplaceAll(pe.Message, "\n", `\n`) // it may quote one
			return nil, nil, fmt.Errorf("%s:%d:%d: %s; see https://toml.io for the syntax", name, line, col, text)
		}
		return nil, nil, fmt.Errorf("%s:1:1: %w", name, err)
	}
	d.pos = locate.Keys(string(b))
	return d, root, nil
}

// wrong notes a mistake at a key or element.
func (d *document) wrong(path, format string, args ...any) {
	line, col := 1, 1
	if off, found := d.pos[path]; found {
		line, col = locate.Line(d.src, off)
	}
	d.mistakes = append(d.mistakes, mistake{d.name, line, col, fmt.Sprintf(format, args...)})
}

// err joins the mistakes, those of one file in the order of its lines.
func (d *document) err() error {
	slices.SortStableFunc(d.mistakes, func(a, b mistake) int {
		if a.file != b.file {
			return cmp.Compare(b2i(a.file != d.name), b2i(b.file != d.name))
		}
		return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.col, b.col))
	})
	var errs []error
	for i, m := range d.mistakes {
		if i == maxMistakes {
			errs = append(errs, fmt.Errorf("%s:1:1: %d more mistakes; correct these first", d.name, len(d.mistakes)-i))
			break
		}
		errs = append(errs, fmt.Errorf("%s:%d:%d: %s", m.file, m.line, m.col, m.text))
	}
	return errors.Join(errs...)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// node is a TOML table under examination.
type node struct {
	*document
	path string
	m    map[string]any
}

func (n node) at(key string) string { return locate.Join(n.path, key) }

// known complains about keys that aren't in keys. elsewhere tells in which
// table a key does exist.
func (n node) known(keys []string, elsewhere map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(n.m)) {
		if slices.Contains(keys, k) {
			continue
		}
		hint := "known keys: " + strings.Join(keys, ", ")
		if place, found := elsewhere[k]; found {
			hint = "it belongs " + place
		} else if near := locate.Nearest(k, keys); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		n.wrong(n.at(k), "unknown key %q; %s", k, hint)
	}
}

func (n node) str(key string) string {
	v, found := n.m[key]
	if !found {
		return ""
	}
	s, ok := v.(string)
	if !ok {
		n.wrong(n.at(key), "%s must be a string; put it into quotes", key)
	}
	return s
}

func (n node) boolean(key string, to *bool) {
	if v, found := n.m[key]; found {
		b, ok := v.(bool)
		if !ok {
			n.wrong(n.at(key), "%s must be true or false, without quotes", key)
			return
		}
		*to = b
	}
}

// integer reads a number from lo to hi; it returns def when there is none.
func (n node) integer(key string, lo, hi, def int64) int64 {
	v, found := n.m[key]
	if !found {
		return def
	}
	i, ok := v.(int64)
	if !ok || i < lo || i > hi {
		n.wrong(n.at(key), "%s must be a whole number from %d to %d", key, lo, hi)
		return def
	}
	return i
}

// strings returns the elements of an array of strings with their paths.
func (n node) strings(key string) (vals, paths []string) {
	for i, v := range n.array(key) {
		p := locate.Index(n.at(key), i)
		s, ok := v.(string)
		if !ok {
			n.wrong(p, "%s holds strings; put this into quotes", key)
			continue
		}
		vals, paths = append(vals, s), append(paths, p)
	}
	return vals, paths
}

func (n node) array(key string) []any {
	v, found := n.m[key]
	if !found {
		return nil
	}
	switch a := v.(type) {
	case []any:
		return a
	case []map[string]any: // the library's type for arrays of tables, inline ones too
		out := make([]any, len(a))
		for i := range a {
			out[i] = a[i]
		}
		return out
	}
	n.wrong(n.at(key), "%s must be an array; write %s = [ … ]", key, key)
	return nil
}

func (n node) table(key string) node {
	m := map[string]any{}
	if v, found := n.m[key]; found {
		var ok bool
		if m, ok = v.(map[string]any); !ok {
			n.wrong(n.at(key), "%s must be a table; write [%s] and its keys below", key, n.at(key))
		}
	}
	return node{n.document, n.at(key), m}
}

// tables returns the elements of an array of tables.
func (n node) tables(key string) []node {
	v, found := n.m[key]
	if !found {
		return nil
	}
	var out []node
	elems, ok := v.([]map[string]any)
	if !ok {
		n.wrong(n.at(key), "%s must be an array of tables; write [[%s]] before the keys of each", key, n.at(key))
	}
	for i, m := range elems {
		out = append(out, node{n.document, locate.Index(n.at(key), i), m})
	}
	return out
}
