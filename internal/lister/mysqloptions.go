package lister

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/understudy-mx/understudy/internal/host"
)

// mysqlOptions reads the option files of MySQL's client library, which Postfix
// obeys: option_group (by default "client") of option_file, or of the usual
// files. Names come back with "_" for "-".
func (s *Source) mysqlOptions(ctx context.Context) (map[string]string, error) {
	o := optionFiles{ctx: ctx, host: s.Host, group: s.set("option_group", "client"), options: map[string]string{}}
	if name := s.Settings["option_file"]; name != "" {
		if err := o.read(name, 0); err != nil {
			return nil, s.fail("option_file", "name a readable file", err)
		}
		return o.options, nil
	}
	for _, name := range []string{"/etc/my.cnf", "/etc/mysql/my.cnf"} {
		if err := o.read(name, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, s.fail("option_file", "make "+name+" readable, or name another file", err)
		}
	}
	return o.options, nil
}

type optionFiles struct {
	ctx     context.Context
	host    *host.Host
	group   string
	options map[string]string
}

func (o *optionFiles) read(name string, depth int) error {
	const maxDepth, maxSize = 10, 1 << 20
	if depth > maxDepth {
		return fmt.Errorf("%s includes itself", name)
	}
	text, err := o.host.ReadFile(o.ctx, name, maxSize)
	if err != nil {
		return err
	}
	group := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			group = strings.Trim(line, "[] ")
		case strings.HasPrefix(line, "!includedir "):
			files, err := o.host.Glob(o.ctx, filepath.Join(strings.TrimSpace(line[len("!includedir "):]), "*.cnf"))
			if err != nil {
				return err
			}
			for _, f := range files {
				if err := o.read(f, depth+1); err != nil {
					return err
				}
			}
		case strings.HasPrefix(line, "!include "):
			if err := o.read(strings.TrimSpace(line[len("!include "):]), depth+1); err != nil {
				return err
			}
		case group == o.group:
			key, value, _ := strings.Cut(line, "=")
			o.options[strings.ReplaceAll(strings.TrimSpace(key), "-", "_")] = unquoteOption(value)
		}
	}
	return nil
}

// unquoteOption takes off quotes, or a comment after the value.
func unquoteOption(v string) string {
	v = strings.TrimSpace(v)
	if len(v) > 1 && (v[0] == '"' || v[0] == '\'') && v[len(v)-1] == v[0] {
		return v[1 : len(v)-1]
	}
	v, _, _ = strings.Cut(v, " #")
	return strings.TrimSpace(v)
}
