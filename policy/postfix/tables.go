package postfix

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/table"
)

// Kind is what a Table is made of.
type Kind string

const (
	Indexed  Kind = "indexed"  // Entries, in any order
	Networks Kind = "networks" // Rules, each a prefix
	Patterns Kind = "patterns" // Rules, in order, the type being regexp or pcre
	Constant Kind = "constant" // one value for every key
	Combined Kind = "combined" // Members, the type being unionmap or pipemap
)

// Table is a look-up table in neutral form.
type Table struct {
	Type    string // as in main.cf
	Kind    Kind
	Entries map[string]string // keys are folded to lower case
	Rules   []Rule
	Value   string // of Constant
	Members []Member
	// DomainWide tables answer to every address of a domain, by its key
	// "@domain", before any other key is looked at.
	DomainWide bool
	Unless     string             // characters: "@domain" doesn't answer to local-parts with one of them
	Stands     bool               // "@domain" stands for addresses alone: it is no key itself
	Except     map[string]bool    // keys that "@domain" doesn't stand for
	Unknown    map[string]bool    // keys that aren't listed since their look-ups fail
	Strips     string             // characters, also in Unsure: a key is found by what stands before them, too
	Partial    string             // why there may be keys that aren't listed, "" when there are none
	Skipped    []fidelity.Mistake // lines that Postfix skips with a warning
	Note       string             // for the Report
	Parts      bool               // it is searched for parts of addresses, of whatever type it is
	Unsure     string             // characters: a key with one of them may be there though it isn't listed, see policy.Learned
	How        Listing
}

// reading is a table read, or why it can't be.
type reading struct {
	table  *Table
	reason error
}

// maxEntries bounds a table; the largest sites have some million recipients.
const maxEntries = 50_000_000

var errDatabase = errors.New("database not enumerated")

// notListed says why the tables of a type can't be replicated.
var notListed = map[string]string{
	"nis":       "NIS isn't enumerated",
	"nisplus":   "NIS+ isn't enumerated",
	"netinfo":   "NetInfo isn't enumerated",
	"tcp":       "a tcp server answers live",
	"socketmap": "a socketmap server answers live",
	"memcache":  "memcache can't be listed",
	"randmap":   "its answers are random",
	"fail":      "every look-up fails; the primary answers 451",
	"environ":   "the environment isn't enumerated",
}

// table reads a table. A nil table without a reason means that the source is
// missing or broken: then the import has failed.
func (i *importer) table(parameter, name string) (*Table, error) {
	r, done := i.read[name]
	if !done {
		r.table, r.reason = i.readTable(parameter, name)
		if r.table != nil {
			i.report.Mistakes = append(i.report.Mistakes, r.table.Skipped...)
		}
		i.read[name] = r
	}
	return r.table, r.reason
}

func (i *importer) readTable(parameter, name string) (*Table, error) {
	typ, arg, _ := strings.Cut(name, ":")
	fail := func(err error) (*Table, error) {
		i.errorf("%s: table %s: %w", parameter, name, err)
		return nil, nil
	}
	if command := i.src.Commands[name]; len(command) > 0 {
		t, err := i.commandTable(typ, command)
		if err != nil {
			return fail(err)
		}
		return t, nil
	}
	if _, queried := i.src.Queries[name]; queried && !isSQL(typ) {
		return fail(errors.New("a query lists tables of mysql, pgsql and sqlite; give a command that prints the entries"))
	}
	if typ == "nis" && nisOff(i.look("/proc/sys/kernel/domainname")) {
		return &Table{Type: typ, Kind: Indexed, Note: whyNISOff}, nil
	}
	if one := words(strings.Trim(arg, "{}")); typ == "randmap" && len(one) == 1 {
		return &Table{Type: typ, Kind: Constant, Value: one[0]}, nil
	}
	if why := notListed[typ]; typ == "fail" {
		return nil, failing(why)
	} else if why != "" {
		return nil, errors.New(why)
	}
	if arg == "" {
		return nil, failing("a table without a name; the primary's smtpd dies of it")
	}
	var t *Table
	var err error
	switch typ {
	case "hash", "btree", "dbm", "sdbm", "lmdb", "texthash", "inline":
		if t, err = i.postmap(typ, name); fails(err) {
			return nil, err
		}
	case "cidr", "regexp", "pcre":
		t, err = i.ruleTable(typ, arg)
	case "cdb":
		t, err = i.cdbTable(arg)
	case "static":
		value, _ := unbrace(arg)
		t = &Table{Type: typ, Kind: Constant, Value: value}
	case "internal": // a process's own, and smtpd puts nothing into it
		t = &Table{Type: typ, Kind: Indexed}
	case "unix":
		return i.unixTable(arg)
	case "unionmap", "pipemap":
		return i.combined(parameter, typ, arg)
	case "mysql", "pgsql", "sqlite", "ldap":
		return i.database(parameter, typ, name, arg)
	default:
		return nil, fmt.Errorf("tables of type %q are unknown here", typ)
	}
	if err != nil {
		return fail(err)
	}
	return t, nil
}

// add keeps the first value of a key, as Postfix does.
func (t *Table) add(key, value string) error {
	if len(t.Entries) >= maxEntries {
		return fmt.Errorf("more than %d entries", maxEntries)
	}
	if _, dup := t.Entries[key]; !dup && key != "" {
		t.Entries[key] = value
	}
	return nil
}

// indexSuffix is what the indexed file's name adds to the table's.
var indexSuffix = map[string]string{"hash": ".db", "btree": ".db", "lmdb": ".lmdb", "dbm": ".pag", "sdbm": ".pag"}

// postmap lists an indexed table. A key with a capital letter is one that
// Postfix, which folds what it looks up, never finds.
func (i *importer) postmap(typ, name string) (*Table, error) {
	t := &Table{Type: typ, Kind: Indexed, Entries: map[string]string{}}
	if file := name[len(typ)+1:]; typ != "inline" {
		i.files[file+indexSuffix[typ]] = true
	}
	args := []string{"-s", name}
	if i.src.ConfigDir != "" {
		args = append([]string{"-c", i.src.ConfigDir}, args...)
	}
	stderr, err := i.src.run(i.ctx, cmp.Or(i.src.Postmap, "postmap"), args, func(line string) error {
		key, value, _ := strings.Cut(line, "\t")
		if key != strings.ToLower(key) {
			return nil
		}
		return t.add(key, value)
	})
	if err == nil && typ == "texthash" {
		err = i.duplicate(name[len(typ)+1:], stderr)
	}
	return t, err
}

func (i *importer) commandTable(typ string, command []string) (*Table, error) {
	t := &Table{Type: typ, Kind: Indexed, Entries: map[string]string{}}
	i.polled[strings.Join(command, " ")] = true
	_, err := run(i.ctx, nil, host.Program{Argv: command}, func(line string) error {
		key, value, _ := strings.Cut(line, "\t")
		if key == "" && strings.TrimSpace(value) != "" {
			t.Partial = strings.ToValidUTF8(strings.TrimSpace(value), "?")
			return nil
		}
		t.Parts = t.Parts || key == "@"
		return t.add(strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value))
	})
	return t, err
}

// unixTable lists passwd or group through the name service switch.
func (i *importer) unixTable(arg string) (*Table, error) {
	db, ok := strings.CutSuffix(arg, ".byname")
	if !ok || db != "passwd" && db != "group" {
		return nil, fmt.Errorf("unix:%s is unknown here", arg)
	}
	t := &Table{Type: "unix", Kind: Indexed, Entries: map[string]string{}}
	i.polled["unix:"+arg] = true
	_, err := i.src.run(i.ctx, cmp.Or(i.src.Getent, "getent"), []string{db}, func(line string) error {
		if name, _, ok := strings.Cut(line, ":"); ok && name == strings.ToLower(name) {
			return t.add(name, "x")
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s can't be enumerated: %w", arg, err)
	}
	if i.src.Getent == "" {
		text, _ := i.look("/etc/nsswitch.conf")
		t.Partial = partialNSS(text, db)
	}
	return t, nil
}

// partialNSS says which sources of a database need not list what they have.
func partialNSS(nsswitch, db string) string {
	for line := range strings.Lines(nsswitch) {
		line, _, _ = strings.Cut(line, "#")
		name, sources, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) != db {
			continue
		}
		for _, s := range strings.Fields(sources) {
			if s[0] != '[' && !slices.Contains([]string{"files", "compat", "db", "altfiles", "systemd"}, s) {
				return s + " in nsswitch.conf need not list everybody"
			}
		}
	}
	return ""
}

const whyNISOff = "NIS has no domain name here, so Postfix finds nothing in it"

// nisOff says that the machine's NIS domain isn't set; then Postfix's look-ups
// in NIS find nothing and don't fail.
func nisOff(domain string, err error) bool {
	domain = strings.TrimSpace(domain)
	return err == nil && (domain == "" || strings.EqualFold(domain, "(none)"))
}

// specName is what the Spec calls a table: as in main.cf, unless that is its
// whole content.
func specName(name string) string {
	if !strings.ContainsAny(name, "{} \t") {
		return name
	}
	typ, _, _ := strings.Cut(name, ":")
	sum := sha256.Sum256([]byte(name))
	return typ + ":#" + hex.EncodeToString(sum[:4])
}

// spec makes a table of the engine. withValues is false for tables that are
// only asked whether a key is there.
func (t *Table) spec(withValues bool) (*table.Table, error) {
	switch {
	case t.Kind == Constant:
		return table.NewStatic(t.Value), nil
	case t.Kind == Patterns && t.Type == "pcre":
		return table.NewPCRE(canonical(t.Rules))
	case t.Kind == Patterns:
		return table.NewRegexp(canonical(t.Rules))
	case t.Kind == Networks:
		rules, err := flatten(t.Rules)
		if err != nil {
			return nil, err
		}
		return table.NewCIDR(rules)
	case withValues:
		return table.NewHash(t.Entries)
	}
	keys := make([]string, 0, len(t.Entries))
	for k := range t.Entries {
		keys = append(keys, k)
	}
	return table.NewSet(keys)
}

// unlisted says why a table answers for keys that it doesn't list.
func (t *Table) unlisted() error {
	switch {
	case t.Partial != "":
		return errors.New(t.Partial)
	case len(t.Unknown) > 0:
		return fmt.Errorf("look-ups fail for %d of its keys", len(t.Unknown))
	case t.DomainWide:
		return errors.New("its query doesn't look at the local-part")
	}
	return nil
}

// use puts a table into the Spec. A set that an access restriction wants too
// becomes a table with values.
func (i *importer) use(name string, t *Table, withValues bool) (reason error) {
	key := specName(name)
	if old := i.spec.Tables[key]; old != nil && !withValues {
		return nil
	}
	var pt *table.Table
	if t.Kind == Combined {
		pt, reason = i.useMembers(t)
	} else {
		pt, reason = t.spec(withValues)
	}
	if reason != nil {
		return reason
	}
	i.spec.Tables[key] = pt
	l := policy.Learned{Whole: wholeKeys(name) && !t.Parts, Unsure: strings.Map(func(r rune) rune {
		if strings.ContainsRune(t.Strips, r) && strings.ContainsRune(i.set["recipient_delimiter"], r) {
			return -1 // Postfix asks for what stands before it next
		}
		return r
	}, t.Unsure)}
	if t.Stands {
		l.Unless = t.Unless
		if l.Except, reason = i.useKeys(key+"#except", t.Except); reason != nil {
			return reason
		}
	}
	if l.Unknown, reason = i.useKeys(key+"#unknown", t.Unknown); reason != nil {
		return reason
	}
	if l != (policy.Learned{}) {
		i.spec.Learned[key] = l
	}
	return nil
}

// useKeys puts a set of keys into the Spec, unless there are none. It returns
// its name.
func (i *importer) useKeys(name string, keys map[string]bool) (string, error) {
	if len(keys) == 0 {
		return "", nil
	}
	set, err := table.NewSet(slices.Sorted(maps.Keys(keys)))
	i.spec.Tables[name] = set
	return name, err
}

// noLocalPart is a character that no local-part has: policy.Learned.Unless of keys
// "@domain" that stand for every address there.
const noLocalPart = "\x00"

// useAccess puts an access table into the Spec. Values that are lists of
// restrictions are translated like lists.
func (i *importer) useAccess(name string, t *Table, implied string) (reason error) {
	i.noteFilters(t)
	c := *t
	if t.DomainWide && t.Kind == Indexed && t.Type != "unionmap" && t.Type != "pipemap" { // every address is looked up, and no "@domain"
		c.DomainWide, c.Stands, c.Unless = false, true, cmp.Or(t.Unless, noLocalPart)
	}
	if err := c.unlisted(); err != nil {
		return err
	}
	if t.Kind == Combined {
		if t.any(func(v string) bool { return !isAction(v) }) {
			return errors.New("values that aren't actions, in tables that are combined")
		}
		return i.use(name, t, true)
	}
	seen := map[string]string{}
	bare := false
	rewrite := func(v string) string {
		if v == "" && t.refusesEmpty() {
			return failed
		}
		if r, done := seen[v]; done {
			return r
		}
		r := v
		if es, err := parseList(v, "", i.isClass); !isAction(v) && err == nil {
			bare = bare || i.hasBare(es, implied, 0)
			r = i.valueText(name, es, implied)
		}
		seen[v] = r
		return r
	}
	c.Value = rewrite(t.Value)
	if t.Kind == Indexed {
		c.Entries = make(map[string]string, len(t.Entries))
		for k, v := range t.Entries {
			c.Entries[k] = rewrite(v)
		}
	}
	c.Rules = slices.Clone(t.Rules)
	for n := range c.Rules {
		if c.Rules[n].Op == Match {
			c.Rules[n].Value = rewrite(c.Rules[n].Value)
		}
	}
	if first, used := i.implied[name]; bare && used && first != implied {
		return errors.New("its classes hold tables that mean different things in two lists")
	}
	i.implied[name] = implied
	return i.use(name, &c, true)
}

// valueText translates a list of restrictions in a table's value.
func (i *importer) valueText(table string, es []element, implied string) string {
	var parts []string
	for _, e := range es {
		for _, r := range i.element(table, e, implied) {
			if e.warn {
				parts = append(parts, "warn_if_reject")
			}
			b, _ := r.MarshalText()
			parts = append(parts, string(b))
		}
	}
	list := strings.Join(parts, ", ")
	if list != "" && isAction(list) {
		list += "," // "reject" alone is an action
	}
	return cmp.Or(list, "DUNNO")
}

// isAction says that a value is an action of access(5), not a list of
// restrictions.
func isAction(value string) bool {
	word := strings.TrimLeft(value, " \t")
	word = word[:strings.IndexAny(word+" ", " \t")]
	switch strings.ToUpper(word) {
	case "OK", "RELAY", "DUNNO", "REJECT", "DEFER", "DEFER_IF_PERMIT", "DEFER_IF_REJECT", "DISCARD", "HOLD",
		"WARN", "INFO", "FILTER", "REDIRECT", "BCC", "PREPEND", "":
		return true
	}
	return strings.Trim(word, "0123456789") == "" || strings.Contains(value, ":")
}

// readFile reads a source and notes that the policy depends on it.
func (i *importer) readFile(name string) (string, error) {
	i.files[name] = true
	return i.look(name)
}

// look reads a file whose change needn't be noticed.
func (i *importer) look(name string) (string, error) {
	const maxSource = 256 << 20
	b, err := i.src.Host.ReadFile(i.ctx, name, maxSource)
	return string(b), err
}
