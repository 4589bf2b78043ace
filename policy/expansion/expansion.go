// Package expansion evaluates strings as Exim expands them: variables, operators,
// items and conditions.
//
//	${if eq{$sender_helo_name}{} {no HELO}{$sender_helo_name}}
//	${lookup{$local_part}lsearch{/etc/aliases}{$value}fail}
//
// Parse reads a string once; Expand evaluates it for an Env, which has the
// variables and the look-ups. What a string does beyond that (running commands,
// reading sockets, Perl) is an Unsupported error of Parse: nothing of it is ever
// done. The package does no I/O.
package expansion

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/understudy-mx/understudy/policy/pattern"
)

// Env is what strings are expanded for.
type Env interface {
	// Variable returns the value of a variable; ok is false for one that isn't
	// known here. Headers are variables: "h_subject".
	Variable(name string) (value string, ok bool)
	// Lookup asks a table. file is "" for a query.
	Lookup(typ, file, key string) (value string, found bool, err error)
	// Test evaluates a condition that asks lists or files: match_domain,
	// match_address, match_local_part, match_ip and exists.
	Test(cond, subject, list string) (bool, error)
}

var (
	// ErrForced is the outcome of "fail" in place of a string.
	ErrForced = errors.New("forced failure")
	// ErrDefer says that something couldn't be looked up for now.
	ErrDefer = errors.New("look-up deferred")
)

// Unsupported names what Parse doesn't know. Runs: it would run a command or ask
// another program.
type Unsupported struct {
	What string
	Runs bool
}

func (u *Unsupported) Error() string {
	switch u.What {
	case "${env…}":
		return "${env…} is of the environment that Exim was started in, which isn't known here: write its value into the configuration"
	case "$runrc":
		return "$runrc is of a program that ${run} has started, and is never executed"
	}
	if u.Runs {
		return u.What + " asks another program, and is never executed"
	}
	return u.What + " isn't evaluated"
}

// String is a parsed string. It may be used by many goroutines.
type String struct {
	src     string
	nodes   []node
	spelled []string // each node as it was written, but for text
}

func (s *String) String() string { return s.src }

// Constant returns the string's value where that depends on nothing.
func (s *String) Constant() (string, bool) {
	var b strings.Builder
	for _, n := range s.nodes {
		t, ok := n.(text)
		if !ok {
			return "", false
		}
		b.WriteString(string(t))
	}
	return b.String(), true
}

// Expand evaluates the string.
func (s *String) Expand(env Env) (string, error) { return s.expand(&state{env: env}) }

// ExpandWith evaluates it with $0, $1 and so on.
func (s *String) ExpandWith(env Env, groups []string) (string, error) {
	return s.expand(&state{env: env, groups: groups})
}

func (s *String) expand(st *state) (string, error) {
	if st.depth++; st.depth > maxDepth {
		return "", errors.New("nested too deeply")
	}
	defer func() { st.depth-- }()
	var b strings.Builder
	for _, n := range s.nodes {
		v, err := n.eval(st)
		if err != nil {
			return "", err
		}
		if b.WriteString(v); b.Len() > maxLen {
			return "", errors.New("expanded string is too long")
		}
	}
	return b.String(), nil
}

// Bounds of a string, as written and expanded.
const (
	maxDepth = 100
	maxLen   = 256 << 10
)

// state is one evaluation.
type state struct {
	env    Env
	value  string   // $value
	groups []string // $0, $1 …
	depth  int
}

func (st *state) variable(name string) (string, error) {
	if name == "value" {
		return st.value, nil
	}
	if len(name) <= 2 && isDigits(name) {
		if n := atoi(name); n < len(st.groups) {
			return st.groups[n], nil
		}
		return "", nil
	}
	v, ok := st.env.Variable(name)
	if !ok {
		return "", fmt.Errorf("unknown variable name %q", name)
	}
	return v, nil
}

// within evaluates s with $value and $1 of its own.
func (st *state) within(s *String, value *string, groups []string) (string, error) {
	saved := *st
	if value != nil {
		st.value = *value
	}
	if groups != nil {
		st.groups = groups
	}
	v, err := s.expand(st)
	st.value, st.groups = saved.value, saved.groups
	return v, err
}

// node is a part of a string.
type node interface {
	eval(*state) (string, error)
}

type text string

func (t text) eval(*state) (string, error) { return string(t), nil }

type variable string

func (v variable) eval(st *state) (string, error) { return st.variable(string(v)) }

// operator is ${name:subject}.
type operator struct {
	name, arg string // arg is what follows "_": length_3
	subject   *String
}

func (o *operator) eval(st *state) (string, error) {
	v, err := o.subject.expand(st)
	if err != nil {
		return "", err
	}
	return operate(o.name, o.arg, v)
}

// branch is the {yes}{no} of an item; nil no is empty. forced: "fail" is in its
// place.
type branch struct {
	yes, no             *String
	yesForced, noForced bool
}

func (b *branch) eval(st *state, found bool, value *string, groups []string) (string, error) {
	s, forced := b.no, b.noForced
	if found {
		s, forced = b.yes, b.yesForced
	} else {
		value, groups = nil, nil
	}
	switch {
	case forced:
		return "", ErrForced
	case s == nil && found && value != nil:
		return *value, nil
	case s == nil:
		return "", nil
	}
	return st.within(s, value, groups)
}

// ifItem is ${if cond {yes}{no}}.
type ifItem struct {
	cond condition
	branch
}

func (i *ifItem) eval(st *state) (string, error) {
	saved := st.groups
	ok, err := i.cond.test(st)
	groups := st.groups
	st.groups = saved
	if err != nil {
		return "", err
	}
	yes := "true"
	if i.yes == nil && i.no == nil && !i.yesForced && !i.noForced {
		return i.branch.eval(st, ok, &yes, nil)
	}
	return i.branch.eval(st, ok, nil, groups)
}

// lookup is ${lookup{key} type {file} …} or ${lookup type {query} …}.
type lookup struct {
	typ       string
	key, file *String // file nil: key is a query
	branch
}

func (l *lookup) eval(st *state) (string, error) {
	key, err := l.key.expand(st)
	if err != nil {
		return "", err
	}
	file := ""
	if l.file != nil {
		if file, err = l.file.expand(st); err != nil {
			return "", err
		}
	}
	v, found, err := st.env.Lookup(l.typ, file, key)
	if err != nil {
		return "", err
	}
	if !found {
		v = ""
	}
	return l.branch.eval(st, found, &v, nil)
}

// extract is ${extract{key}{string}…} or ${extract{n}{separators}{string}…}.
type extract struct {
	args []*String
	branch
}

func (x *extract) eval(st *state) (string, error) {
	var args []string
	for _, a := range x.args {
		v, err := a.expand(st)
		if err != nil {
			return "", err
		}
		args = append(args, v)
	}
	var v string
	var found bool
	if len(args) == 3 {
		v, found = field(strings.TrimSpace(args[0]), args[1], args[2])
	} else {
		v, found = named(strings.TrimSpace(args[0]), args[1])
	}
	return x.branch.eval(st, found, &v, nil)
}

// listextract is ${listextract{n}{list}…}.
type listextract struct {
	args []*String
	branch
}

func (x *listextract) eval(st *state) (string, error) {
	n, err := x.args[0].expand(st)
	if err != nil {
		return "", err
	}
	list, err := x.args[1].expand(st)
	if err != nil {
		return "", err
	}
	items := List(list)
	i := atoi(strings.TrimPrefix(strings.TrimSpace(n), "-"))
	if strings.HasPrefix(strings.TrimSpace(n), "-") {
		i = len(items) + 1 - i
	}
	v, found := "", i >= 1 && i <= len(items)
	if found {
		v = items[i-1]
	}
	return x.branch.eval(st, found, &v, nil)
}

// substitute is ${sg{subject}{regex}{replacement}} and ${tr{…}{from}{to}}.
type substitute struct {
	name string
	args []*String
}

func (s *substitute) eval(st *state) (string, error) {
	subject, err := s.args[0].expand(st)
	if err != nil {
		return "", err
	}
	if s.name == "sg" {
		return s.replace(st, subject)
	}
	a, err := s.args[1].expand(st)
	if err != nil {
		return "", err
	}
	b, err := s.args[2].expand(st)
	if err != nil {
		return "", err
	}
	return translate(subject, a, b), nil
}

func (s *substitute) replace(st *state, subject string) (string, error) {
	re, err := s.args[1].expand(st)
	if err != nil {
		return "", err
	}
	replacement, err := s.args[2].expand(st)
	if err != nil {
		return "", err
	}
	if backReference.MatchString(re) { // the groups around it would shift it
		return "", fmt.Errorf("%w: a back reference in ${sg…}", ErrDefer)
	}
	// Of rest, copied octets are in out already, the last of which is kept for what looks behind;
	// a match begins at from or later. It ends before its end is known: groups before and after it tell that.
	out, rest, copied, from := "", subject, 0, 0
	var patterns [3]*pattern.Pattern // by from
	for work := len(rest); work <= maxWork; work += len(rest) {
		if patterns[from] == nil {
			if patterns[from], err = Regexp(fmt.Sprintf("^((?s:.{%d}.*?))(%s)((?s:.*))$", from, re)); err != nil {
				return "", err
			}
		}
		g, err := Find(patterns[from], rest)
		if err != nil || g == nil {
			return out + rest[copied:], err
		}
		last := len(g) - 1
		if out += g[1][copied:] + numbered(replacement, g[2:last]); len(out) > maxLen {
			return "", errors.New("expanded string is too long")
		}
		if g[2] == "" && g[last] == "" {
			return out, nil
		}
		end := len(g[1]) + len(g[2])
		copied = min(1, end)
		if from = copied; g[2] == "" {
			from++
		}
		rest = rest[end-copied:]
	}
	return "", fmt.Errorf("%w: ${sg…} replaces too much", ErrDefer)
}

// maxWork bounds the octets that one ${sg…} looks at.
const maxWork = 4 << 20

var backReference = regexp.MustCompile(`\\[1-9gk]`)

// numbered puts the groups of a match in place of $1 and ${1}.
func numbered(s string, groups []string) string {
	return os.Expand(s, func(name string) string {
		if isDigits(name) && atoi(name) < len(groups) {
			return groups[atoi(name)]
		}
		return ""
	})
}

// sized is ${length{n}{s}} and ${substr{m}{n}{s}}.
type sized struct {
	name string
	args []*String
}

func (s *sized) eval(st *state) (string, error) {
	var args []string
	for _, a := range s.args {
		v, err := a.expand(st)
		if err != nil {
			return "", err
		}
		args = append(args, strings.TrimSpace(v))
	}
	last := len(args) - 1
	v, err := s.args[last].expand(st)
	if err != nil {
		return "", err
	}
	return operate(s.name, strings.Join(args[:last], "_"), v)
}

// Regexp compiles a regular expression as Exim does: without regard to UTF-8.
func Regexp(src string) (*pattern.Pattern, error) { return pattern.Compile(pattern.PCRE, src, "") }

// Find returns what matches and its groups, or nil.
func Find(p *pattern.Pattern, s string) ([]string, error) {
	var subject pattern.Subject
	subject.Set([]byte(s))
	ok, err := p.Match(&subject)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDefer, err)
	}
	if !ok {
		return nil, nil
	}
	g, err := p.Find(&subject)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDefer, err)
	}
	return g, nil
}

// List splits a list as Exim does: at colons, or at another character that "<x" at
// its start names; a doubled separator stands for itself.
func List(s string) []string {
	s = strings.TrimLeft(s, " \t\r\n")
	sep := byte(':')
	if len(s) > 1 && s[0] == '<' && (isPunct(s[1]) || s[1] == '\n') {
		sep = s[1]
		s = s[2:]
	}
	var items []string
	for {
		s = strings.TrimLeft(s, " \t\r\n")
		if s == "" {
			return items
		}
		var b strings.Builder
		for s != "" {
			if s[0] == sep {
				if len(s) > 1 && s[1] == sep {
					b.WriteByte(sep)
					s = s[2:]
					continue
				}
				break
			}
			b.WriteByte(s[0])
			s = s[1:]
		}
		items = append(items, strings.TrimRight(b.String(), " \t\r\n"))
		if s != "" {
			s = s[1:]
		}
	}
}

func isPunct(c byte) bool {
	return c > ' ' && c < 0x7f && !(c >= '0' && c <= '9') && !(c|32 >= 'a' && c|32 <= 'z')
}
