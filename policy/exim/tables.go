package exim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/internal/program"
	"github.com/understudy-mx/understudy/policy"
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
	if i.ofClients(file) && file.Source() != i.ofPerl {
		i.refused = append(i.refused, file.Source())
		i.item(expansion.BaseType(typ), file.Source(), fidelity.Exact, i.here+": "+whyTainted, "")
		return nil
	}
	globs, ok := file.Shapes(i.values)
	if !ok {
		return fmt.Errorf("which file a look-up of type %s asks depends on too much", typ)
	}
	for _, glob := range globs {
		if glob = strings.TrimSpace(glob); !strings.HasPrefix(glob, "/") {
			continue // nothing was found that would name one
		}
		if strings.HasSuffix(glob, "/") && expansion.BaseType(typ) != "dsearch" {
			continue // nor here: a directory can't be read
		}
		if err := i.tables(typ, glob); err != nil {
			return err
		}
	}
	return nil
}

const whyTainted = "a file whose name a client has a part in isn't opened by Exim 4.94 and later: the look-up fails; use $domain_data or $local_part_data in it"

// ofClients says that Exim won't open a file of such a name.
func (i *importer) ofClients(s *expansion.String) bool {
	return i.taints && s.Tainted(func(v string) bool { return i.clients[v] })
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
	if !constant || i.table(expansion.TableType(typ), strings.TrimSpace(name)) != nil {
		return nil, false
	}
	t := i.spec.Tables[expansion.TableType(typ)+";"+strings.TrimSpace(name)]
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
		if st, err := os.Stat(f); f != glob && err == nil && st.IsDir() && expansion.BaseType(typ) != "dsearch" {
			continue // it stands beside the files
		}
		if err := i.table(expansion.TableType(typ), f); err != nil {
			return err
		}
	}
	return nil
}

func (i *importer) table(typ, file string) error {
	name := typ + ";" + file
	if i.spec.Tables[name] != nil || i.acl.Files[name] != nil {
		return nil
	}
	if err := i.failed[name]; err != nil {
		return err
	}
	i.files[file] = true
	err := i.readTable(name, typ, file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", file, err)
		i.failed[name] = err
		return err
	}
	i.item(typ, file, fidelity.Exact, "", "")
	return nil
}

func (i *importer) readTable(name, typ, file string) error {
	var t *table.Table
	base, filter, _ := strings.Cut(typ, ",filter=")
	switch base {
	case "lsearch":
		entries, err := readLsearch(file)
		if err != nil {
			return err
		}
		if t, err = i.hash(byKey(entries)); err != nil {
			return err
		}
	case "cdb":
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var entries [][2]string
		err = table.ReadCDB(b, func(k, v string) error {
			entries = append(entries, [2]string{k, v})
			return nil
		})
		if err != nil {
			return err
		}
		entries = slices.DeleteFunc(entries, func(e [2]string) bool { return e[0] != strings.ToLower(e[0]) })
		if t, err = i.hash(byKey(entries)); err != nil {
			return err
		}
	case "dbm", "dbmnz":
		entries, err := i.dump(typ, file)
		if err != nil {
			return err
		}
		if t, err = i.hash(entries); err != nil {
			return err
		}
	case "dsearch":
		list, err := os.ReadDir(file)
		if err != nil {
			return err
		}
		var keys []string
		for _, e := range list {
			if ok, err := passes(e, filter); err != nil {
				return err
			} else if ok && e.Name() == strings.ToLower(e.Name()) { // no key has capitals
				keys = append(keys, e.Name())
			}
		}
		if t, err = table.NewSet(keys); err != nil {
			return err
		}
	case "iplsearch":
		entries, err := readLsearch(file)
		if err != nil {
			return err
		}
		if t, err = table.NewCIDR(networks(entries)); err != nil {
			return err
		}
	case "wildlsearch", "nwildlsearch":
		return i.patterns(name, typ, file)
	default:
		return fmt.Errorf("look-ups of type %s aren't listed; those of type cdb, dbm and lsearch are", typ)
	}
	i.spec.Tables[name] = t
	return nil
}

// passes says that an entry of a directory is of the kind that a look-up wants.
func passes(e fs.DirEntry, filter string) (bool, error) {
	switch filter {
	case "":
		return true, nil
	case "file":
		return e.Type().IsRegular(), nil
	case "dir", "subdir":
		return e.IsDir(), nil
	}
	return false, fmt.Errorf("filter=%s isn't known", filter)
}

// dump lists a file of Berkeley DB's, by its own tool. What exim_dbmbuild writes has a
// NUL after each key, and after each value.
func (i *importer) dump(typ, file string) (map[string]string, error) {
	if _, err := os.Stat(file); err != nil {
		return nil, err
	}
	tool := i.src.DBDump
	if tool == "" {
		tool = "db_dump"
	}
	entries := map[string]string{}
	cmd := exec.CommandContext(i.ctx, tool, "-p", file)
	readErr, err := program.Read(i.ctx, cmd, func(r io.Reader) error {
		return lister.ReadDump(r, func(_ int, key, value []byte) error {
			k, nul := strings.CutSuffix(string(key), "\x00")
			if nul == (typ == "dbm") && k == strings.ToLower(k) { // no key has capitals
				entries[k], _, _ = strings.Cut(string(value), "\x00")
			}
			return nil
		})
	})
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%s isn't installed: it comes with Debian's db-util; or use cdb", tool)
	case err != nil:
		return nil, fmt.Errorf("%s: %w: only Berkeley DB's files are read; use cdb instead", tool, err)
	}
	return entries, readErr
}

// patterns reads a file whose keys are patterns.
func (i *importer) patterns(name, typ, file string) error {
	entries, err := readLsearch(file)
	if err != nil {
		return err
	}
	lines := []string{}
	for _, e := range entries {
		if typ == "wildlsearch" {
			got, err := i.str(e[0])
			if err != nil {
				return err
			}
			if got != e[0] {
				return fmt.Errorf("a key with a query in it isn't followed")
			}
		}
		if err := i.element(strings.TrimLeft(strings.TrimPrefix(e[0], "!"), " "), ""); err != nil {
			return err
		}
		lines = append(lines, e[0], e[1])
	}
	i.acl.Files[name] = lines
	return nil
}

// networks are the entries whose keys are addresses or networks.
func networks(entries [][2]string) (all [][2]string) {
	for _, e := range entries {
		if a, err := netip.ParseAddr(e[0]); err == nil {
			all = append(all, [2]string{a.String(), e[1]})
		} else if p, err := netip.ParsePrefix(e[0]); err == nil {
			all = append(all, [2]string{p.Masked().String(), e[1]})
		}
	}
	return all
}

// byKey has the first entry of each key, in small letters.
func byKey(entries [][2]string) map[string]string {
	m := make(map[string]string, len(entries))
	for _, e := range entries {
		k := strings.ToLower(e[0])
		if _, again := m[k]; !again {
			m[k] = e[1]
		}
	}
	return m
}

// readLsearch reads a file of keys, each with its data after a colon or white space.
// What is indented continues the data, up to a comment or an empty line.
func readLsearch(file string) (entries [][2]string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	over := false // the last entry
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := strings.TrimRight(s.Text(), cSpace)
		switch n := len(entries); {
		case line == "", line[0] == '#':
			over = true
		case strings.IndexByte(cSpace, line[0]) < 0:
			key, data := cutKey(line)
			entries, over = append(entries, [2]string{key, data}), false
		case n > 0 && !over:
			entries[n-1][1] += " " + strings.TrimLeft(line, cSpace)
		}
	}
	return entries, s.Err()
}

const cSpace = " \t\n\v\f\r"

// cutKey splits a line of a file.
func cutKey(line string) (key, data string) {
	if line[0] == '"' {
		end := 1
		for ; end < len(line) && line[end] != '"'; end++ {
			if line[end] == '\\' {
				end++
			}
		}
		end = min(end, len(line))
		key, data = policy.Unquote(line[:end]), line[min(len(line), end+1):]
	} else {
		end := strings.IndexAny(line+" ", ":"+cSpace)
		key, data = line[:end], line[end:]
	}
	data = strings.TrimLeft(data, cSpace)
	if rest, ok := strings.CutPrefix(data, ":"); ok {
		data = strings.TrimLeft(rest, cSpace)
	}
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
	if dir, all := strings.CutSuffix(glob, "*"); all && strings.HasSuffix(dir, "/") {
		files = append(files, dir) // for an empty name
	}
	for _, f := range files {
		i.files[f] = true
		if _, err := os.Stat(f); err == nil {
			i.acl.Exist = append(i.acl.Exist, f)
		}
	}
	return nil
}
