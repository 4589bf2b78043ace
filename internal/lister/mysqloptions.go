package lister

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// mysqlOptions reads the option files of MySQL's client library, which Postfix
// obeys: option_group (by default "client") of option_file, or of the usual
// files. Names come back with "_" for "-".
func (s *Source) mysqlOptions() (map[string]string, error) {
	o := optionFiles{group: s.set("option_group", "client"), options: map[string]string{}}
	if name := s.Settings["option_file"]; name != "" {
		if err := o.read(name, 0); err != nil {
			return nil, s.fail("option_file", "name a readable file", err)
		}
		return o.options, nil
	}
	for _, name := range []string{"/etc/my.cnf", "/etc/mysql/my.cnf"} {
		if err := o.read(name, 0); err != nil && !os.IsNotExist(err) {
			return nil, s.fail("option_file", "make "+name+" readable, or name another file", err)
		}
	}
	return o.options, nil
}

type optionFiles struct {
	group   string
	options map[string]string
}

func (o *optionFiles) read(name string, depth int) error {
	const maxDepth, maxSize = 10, 1 << 20
	st, err := os.Stat(name)
	if err != nil {
		return err
	}
	if depth > maxDepth || st.Size() > maxSize {
		return fmt.Errorf("%s is too long or includes itself", name)
	}
	text, err := os.ReadFile(name)
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
			files, err := filepath.Glob(filepath.Join(strings.TrimSpace(line[len("!includedir "):]), "*.cnf"))
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
