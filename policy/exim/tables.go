package exim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/program"
	"github.com/understudy-mx/understudy/policy/expansion"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/table"
)

// maxFiles bounds the files that one pattern may stand for.
const maxFiles = 100000

// lookup lists what ${lookup{key}typ{file}} may ask.
func (i *importer) lookup(typ string, file, key *expansion.String) error {
	if expansion.BaseType(typ) == "table" { // of ours
		return nil
	}
	if file == nil && typ == "passwd" {
		return i.accounts()
	}
	if file == nil && expansion.BaseType(typ) == "dnsdb" {
		return i.dnsQuery(key)
	}
	if file == nil {
		return fmt.Errorf("a look-up of type %s asks for what can't be listed", typ)
	}
	if !expansion.Keyed(typ) {
		return fmt.Errorf("look-ups of type %s aren't listed", typ)
	}
	globs, ok := file.Shapes(i.values)
	if !ok {
		return fmt.Errorf("which file a look-up of type %s asks depends on too much", typ)
	}
	for _, glob := range globs {
		if glob = strings.TrimSpace(glob); !strings.HasPrefix(glob, "/") {
			continue // nothing was found that would name one
		}
		if err := i.tables(typ, glob); err != nil {
			return err
		}
	}
	return nil
}

// values are the answers that a look-up may give.
func (i *importer) values(typ string, file *expansion.String) ([]string, bool) {
	if file == nil && typ == "passwd" && i.accounts() == nil {
		return tableValues(i.spec.Tables[accountsTable]), true
	}
	if file == nil {
		return nil, false
	}
	name, constant := file.Constant()
	if !constant || i.table(expansion.BaseType(typ), strings.TrimSpace(name)) != nil {
		return nil, false
	}
	t := i.spec.Tables[expansion.BaseType(typ)+";"+strings.TrimSpace(name)]
	if t == nil {
		return nil, true
	}
	return tableValues(t), true
}

func tableValues(t *table.Table) (all []string) {
	for n := range t.Len() {
		_, v := t.Entry(n)
		all = append(all, v)
	}
	return all
}

// matching are the files that a pattern stands for: itself, without a "*".
func (i *importer) matching(glob string) ([]string, error) {
	if !strings.Contains(glob, "*") {
		return []string{glob}, nil
	}
	dir := glob[:strings.LastIndexByte(glob[:strings.IndexByte(glob, '*')], '/')+1]
	if dir == "" || dir == "/" {
		return nil, fmt.Errorf("%q may be any file", glob)
	}
	i.files[filepath.Clean(dir)] = true
	all, err := filepath.Glob(glob)
	if err != nil {
		return nil, err
	}
	if len(all) > maxFiles {
		return nil, fmt.Errorf("%q stands for more than %d files", glob, maxFiles)
	}
	return all, nil
}

// tables reads each file of a pattern into a table of the Spec. A file that isn't there
// has none, and look-ups in it fail for now, as they do in Exim.
func (i *importer) tables(typ, glob string) error {
	files, err := i.matching(glob)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := i.table(expansion.BaseType(typ), f); err != nil {
			return err
		}
	}
	return nil
}

func (i *importer) table(typ, file string) error {
	name := typ + ";" + file
	if i.spec.Tables[name] != nil {
		return nil
	}
	if err := i.failed[name]; err != nil {
		return err
	}
	i.files[file] = true
	t, err := readTable(typ, file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", file, err)
		i.failed[name] = err
		return err
	}
	i.spec.Tables[name] = t
	i.item(typ, file, fidelity.Exact, "", "")
	return nil
}

func readTable(typ, file string) (*table.Table, error) {
	switch typ {
	case "lsearch":
		entries, err := readLsearch(file)
		if err != nil {
			return nil, err
		}
		return table.NewHash(entries)
	case "dsearch":
		list, err := os.ReadDir(file)
		if err != nil {
			return nil, err
		}
		var keys []string
		for _, e := range list {
			if e.Name() != strings.ToLower(e.Name()) {
				continue // no key has capitals
			}
			keys = append(keys, e.Name())
		}
		return table.NewSet(keys)
	case "iplsearch":
		entries, err := readLsearch(file)
		if err != nil {
			return nil, err
		}
		var rules [][2]string
		for k, v := range entries {
			rules = append(rules, [2]string{k, v})
		}
		slices.SortFunc(rules, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
		return table.NewCIDR(rules)
	}
	return nil, fmt.Errorf("look-ups of type %s aren't listed", typ)
}

// readLsearch reads a file of keys, each with its data after a colon or white space.
// The first entry of a key counts.
func readLsearch(file string) (map[string]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries := map[string]string{}
	key, first := "", false
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := s.Text()
		switch {
		case strings.HasPrefix(line, "#"):
			continue
		case line == "" || strings.TrimSpace(line) == "":
			continue
		case line[0] == ' ' || line[0] == '\t':
			if first {
				rest := strings.TrimSpace(line)
				if entries[key] != "" && rest != "" {
					rest = " " + rest
				}
				entries[key] += rest
			}
			continue
		}
		k, data := cutKey(line)
		key = strings.ToLower(k)
		if _, again := entries[key]; again {
			first = false
			continue
		}
		first = true
		entries[key] = strings.TrimSpace(data)
	}
	return entries, s.Err()
}

// cutKey splits a line of a file.
func cutKey(line string) (key, data string) {
	end := 0
	if line[0] == '"' {
		var b strings.Builder
		for end = 1; end < len(line) && line[end] != '"'; end++ {
			if line[end] == '\\' && end+1 < len(line) {
				end++
			}
			b.WriteByte(line[end])
		}
		key, data = b.String(), line[min(len(line), end+1):]
	} else {
		end = strings.IndexAny(line, ": \t")
		if end < 0 {
			return line, ""
		}
		key, data = line[:end], line[end:]
	}
	data = strings.TrimLeft(data, " \t")
	data = strings.TrimPrefix(data, ":")
	return key, data
}

// lines reads a file that a list names.
func (i *importer) lines(glob, kind string) error {
	files, err := i.matching(glob)
	if err != nil {
		return err
	}
	for _, f := range files {
		i.files[f] = true
		b, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		all := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		i.acl.Files[f] = all
		for _, l := range all {
			if l = strings.TrimSpace(l); l == "" || l[0] == '#' {
				continue
			}
			if err := i.element(strings.TrimSpace(strings.TrimPrefix(l, "!")), kind); err != nil {
				return fmt.Errorf("%s: %w", f, err)
			}
		}
	}
	return nil
}

// exists notes which of the files that a condition may ask about are there.
func (i *importer) exists(file *expansion.String) error {
	globs, ok := file.Shapes(i.values)
	if !ok {
		return fmt.Errorf("which file a condition asks about depends on too much")
	}
	for _, glob := range globs {
		if glob = strings.TrimSpace(glob); glob == "" {
			continue // no file is called so
		}
		if err := i.existing(glob); err != nil {
			return err
		}
	}
	return nil
}

func (i *importer) existing(glob string) error {
	if !strings.HasPrefix(glob, "/") {
		return fmt.Errorf("%q may be any file", glob)
	}
	files, err := i.matching(glob)
	if err != nil {
		return err
	}
	for _, f := range files {
		i.files[f] = true
		if _, err := os.Stat(f); err == nil {
			i.acl.Exist = append(i.acl.Exist, f)
		}
	}
	return nil
}

// users lists the login names for routers that want a local user.
func (i *importer) users() error {
	const name = "passwd"
	if i.acl.Users != "" {
		return nil
	}
	entries := map[string]string{}
	err := i.logins(func(f []string) { entries[f[0]] = f[2] + " " + f[3] + " " + f[5] })
	if err != nil {
		return err
	}
	t, err := table.NewHash(entries)
	if err != nil {
		return err
	}
	i.spec.Tables[name], i.acl.Users = t, name
	return nil
}

// accountsTable has what ${lookup passwd{NAME}} says of each login name.
const accountsTable = "passwd;"

func (i *importer) accounts() error {
	if i.spec.Tables[accountsTable] != nil {
		return nil
	}
	entries := map[string]string{}
	err := i.logins(func(f []string) { entries[f[0]] = "x:" + strings.Join(f[2:7], ":") }) // no password
	if err != nil {
		return err
	}
	t, err := table.NewHash(entries)
	if err != nil {
		return err
	}
	i.spec.Tables[accountsTable] = t
	i.item("passwd", "login names", fidelity.Exact, "", "")
	return nil
}

// logins calls one for each login name, with the fields of its line.
func (i *importer) logins(one func(fields []string)) error {
	getent := i.src.Getent
	if getent == "" {
		getent = "getent"
	}
	seen := map[string]bool{}
	cmd := exec.CommandContext(i.ctx, getent, "passwd")
	readErr, err := program.Read(i.ctx, cmd, func(r io.Reader) error {
		s := bufio.NewScanner(io.LimitReader(r, most))
		for s.Scan() {
			f := strings.Split(s.Text(), ":")
			if len(f) < 7 || f[0] != strings.ToLower(f[0]) || seen[f[0]] {
				continue
			}
			seen[f[0]] = true
			one(f)
		}
		return s.Err()
	})
	if err = errors.Join(readErr, err); err != nil {
		return fmt.Errorf("list the login names: %w", err)
	}
	i.polled["passwd"] = true
	i.files["/etc/passwd"] = true
	return nil
}
