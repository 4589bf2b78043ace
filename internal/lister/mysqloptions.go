package lister

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"github.com/understudy-mx/understudy/internal/host"
)

// OptionFiles remembers what the option files of MySQL's client library say, for the tables of
// one host: there, each file may cost a program. A nil one remembers nothing.
type OptionFiles struct {
	mu   sync.Mutex
	said map[[2]string]map[string]string // by file and group
}

// mysqlOptions are those of the option files of MySQL's client library, which Postfix
// obeys: option_group (by default "client") of option_file, or of the usual
// files. Names come back with "_" for "-".
func (s *Source) mysqlOptions(ctx context.Context) (map[string]string, error) {
	if s.Options == nil {
		return s.readMySQLOptions(ctx)
	}
	s.Options.mu.Lock()
	defer s.Options.mu.Unlock()
	key := [2]string{s.Settings["option_file"], s.set("option_group", "client")}
	if known, ok := s.Options.said[key]; ok {
		return known, nil
	}
	options, err := s.readMySQLOptions(ctx)
	if err != nil {
		return nil, err
	}
	if s.Options.said == nil {
		s.Options.said = map[[2]string]map[string]string{}
	}
	s.Options.said[key] = options
	return options, nil
}

func (s *Source) readMySQLOptions(ctx context.Context) (map[string]string, error) {
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
