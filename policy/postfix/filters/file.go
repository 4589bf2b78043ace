package filters

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/understudy-mx/understudy/internal/host"
)

// Bounds of what is read: far above what any site has.
const (
	maxFile    = 16 << 20
	maxInclude = 5 // as in opendkim
)

// reader reads the files of a host.
type reader struct {
	ctx   context.Context
	host  *host.Host
	files []string
}

func (r *reader) text(name string) (string, error) {
	r.files = append(r.files, name)
	return r.look(name)
}

// look reads a file whose change needn't be noticed.
func (r *reader) look(name string) (string, error) {
	b, err := r.host.ReadFile(r.ctx, name, maxFile)
	if err != nil {
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return string(bytes.ToValidUTF8(b, []byte("?"))), nil
}

// milterConf reads the format of opendkim.conf and opendmarc.conf: a name, white
// space and a value, and comments.
func (r *reader) milterConf(name string, depth int) ([]setting, error) {
	text, err := r.text(name)
	if err != nil {
		return nil, err
	}
	var all []setting
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(line, "#")
		word := strings.Fields(line)
		if len(word) == 0 {
			continue
		}
		s := setting{word[0], strings.TrimSpace(strings.TrimSpace(line)[len(word[0]):]), name, n}
		if !strings.EqualFold(s.name, "Include") {
			all = append(all, s)
			continue
		}
		if depth == maxInclude {
			return nil, fmt.Errorf("%s: files are included more than %d deep", s.at(), maxInclude)
		}
		more, err := r.milterConf(s.value, depth+1)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.at(), err)
		}
		all = append(all, more...)
	}
	return all, nil
}

// values of settings, the last of a name in force.
type values map[string]setting

// latest folds the names of settings.
func latest(settings []setting) values {
	v := values{}
	for _, s := range settings {
		v[strings.ToLower(s.name)] = s
	}
	return v
}

func (v values) get(name, other string) string {
	if s, ok := v[strings.ToLower(name)]; ok {
		return s.value
	}
	return other
}

// yes reads a truth value as these programs do: by its first letter.
func (v values) yes(name string) bool {
	s := v.get(name, "")
	return s != "" && strings.ContainsAny(s[:1], "TtYy1")
}

// dataset reads opendkim's data sets of kinds that are plain lists: the words
// of a value, or a file's lines.
func (r *reader) dataset(value string) ([]string, error) {
	kind, rest, ok := strings.Cut(value, ":")
	switch {
	case ok && (kind == "file" || kind == "refile"):
		value = rest
	case ok && kind == "csl":
		return csl(rest), nil
	case strings.HasPrefix(value, "/") || strings.HasPrefix(value, "./") || strings.HasPrefix(value, "../"):
	case ok && isDataset(kind):
		return nil, fmt.Errorf("a data set of type %s isn't read", quote(kind))
	default:
		return csl(value), nil
	}
	text, err := r.text(clean(value))
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		if w := strings.Fields(line); len(w) > 0 {
			list = append(list, w[0])
		}
	}
	return list, nil
}

func isDataset(kind string) bool {
	switch kind {
	case "db", "bdb", "dsn", "ldap", "ldaps", "ldapi", "lua", "memcache", "mdb", "erlang":
		return true
	}
	return false
}

// csl reads a list with commas.
func csl(s string) []string {
	if s == "" {
		return nil
	}
	return strings.FieldsFunc(s, func(c rune) bool { return c == ',' || c == ' ' || c == '\t' })
}

// hostList orders a list of hosts so that the first match is the one that
// opendkim and opendmarc take: names before addresses, the narrower before the
// wider.
func hostList(list []string) []string {
	rank := func(s string) int {
		s = strings.TrimPrefix(s, "!")
		switch {
		case isName(s) && !strings.HasPrefix(s, "."):
			return 0
		case isName(s):
			return 1 + 300 - min(len(s), 300)
		case !strings.Contains(s, "/"):
			return 400
		}
		var bits int
		fmt.Sscanf(s[strings.LastIndexByte(s, '/')+1:], "%d", &bits)
		return 600 - min(max(bits, 0), 128)
	}
	out := make([]string, 0, len(list))
	for _, s := range list {
		out = append(out, strings.NewReplacer("[", "", "]", "").Replace(strings.ToLower(s)))
	}
	sortStable(out, rank)
	return out
}
