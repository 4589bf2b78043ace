package expansion

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Parse reads a string.
func Parse(s string) (*String, error) {
	p := &parser{s: s}
	out, err := p.str(false)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// parser reads a string from left to right.
type parser struct {
	s     string
	i     int
	depth int
}

// ErrBrace is of a string that Exim can't expand either.
var ErrBrace = errors.New("a brace isn't closed")

// str reads to the end, or to the "}" that ends an argument.
func (p *parser) str(inside bool) (*String, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, errors.New("nested too deeply")
	}
	defer func() { p.depth-- }()
	start := p.i
	out := &String{}
	var b strings.Builder
	flush := func() {
		if b.Len() > 0 {
			out.nodes, out.spelled = append(out.nodes, text(b.String())), append(out.spelled, "")
			b.Reset()
		}
	}
	for p.i < len(p.s) {
		c := p.s[p.i]
		switch {
		case c == '\\' && p.i+1 < len(p.s):
			p.escape(&b)
		case inside && c == '}':
			flush()
			out.src = p.s[start:p.i]
			p.i++
			return out, nil
		case c == '$':
			flush()
			begin := p.i
			n, err := p.dollar()
			if err != nil {
				return nil, err
			}
			out.nodes, out.spelled = append(out.nodes, n), append(out.spelled, p.s[begin:p.i])
		default:
			b.WriteByte(c)
			p.i++
		}
	}
	if inside {
		return nil, ErrBrace
	}
	flush()
	out.src = p.s[start:]
	return out, nil
}

// escape reads what a backslash introduces; \N protects all up to the next \N.
func (p *parser) escape(b *strings.Builder) {
	c := p.s[p.i+1]
	p.i += 2
	switch {
	case c == 'N':
		end := strings.Index(p.s[p.i:], `\N`)
		if end < 0 {
			b.WriteString(p.s[p.i:])
			p.i = len(p.s)
			return
		}
		b.WriteString(p.s[p.i : p.i+end])
		p.i += end + 2
	case c == 'n':
		b.WriteByte('\n')
	case c == 'r':
		b.WriteByte('\r')
	case c == 't':
		b.WriteByte('\t')
	case c == 'b':
		b.WriteByte('\b')
	case c == 'f':
		b.WriteByte('\f')
	case c == 'v':
		b.WriteByte('\v')
	case c == 'x':
		end := p.i
		for end < min(len(p.s), p.i+2) && strings.IndexByte("0123456789abcdefABCDEF", p.s[end]) >= 0 {
			end++
		}
		n, _ := strconv.ParseUint(p.s[p.i:end], 16, 8)
		p.i = end
		b.WriteByte(byte(n))
	case c >= '0' && c <= '7':
		n := int(c - '0')
		for k := 0; k < 2 && p.i < len(p.s) && p.s[p.i] >= '0' && p.s[p.i] <= '7'; k++ {
			n = n*8 + int(p.s[p.i]-'0')
			p.i++
		}
		b.WriteByte(byte(n))
	default:
		b.WriteByte(c)
	}
}

// name reads a word of letters, digits and underscores.
func (p *parser) name() string {
	start := p.i
	for p.i < len(p.s) && (p.s[p.i] == '_' || isAlnum(p.s[p.i])) {
		p.i++
	}
	return p.s[start:p.i]
}

func isAlnum(c byte) bool { return c >= '0' && c <= '9' || c|32 >= 'a' && c|32 <= 'z' }

func (p *parser) space() {
	for p.i < len(p.s) && strings.IndexByte(" \t\r\n", p.s[p.i]) >= 0 {
		p.i++
	}
}

// dollar reads a variable, an operator or an item.
func (p *parser) dollar() (node, error) {
	p.i++
	if p.i < len(p.s) && p.s[p.i] != '{' {
		return p.bare()
	}
	if p.i >= len(p.s) {
		return nil, errors.New(`"$" isn't followed by anything`)
	}
	p.i++
	p.space()
	start := p.i
	if p.i < len(p.s) && p.s[p.i] >= '0' && p.s[p.i] <= '9' {
		for p.i < len(p.s) && p.s[p.i] >= '0' && p.s[p.i] <= '9' {
			p.i++
		}
		n := variable(p.s[start:p.i])
		return n, p.end()
	}
	name := p.name()
	if strings.HasSuffix(name, "_") && p.i < len(p.s) && p.s[p.i] == '-' { // of substr_-1
		p.i++
		name += "-" + p.name()
	}
	if strings.HasPrefix(name, "h_") || strings.HasPrefix(name, "header_") || strings.HasPrefix(name, "rh_") || strings.HasPrefix(name, "bh_") ||
		strings.HasPrefix(name, "rheader_") || strings.HasPrefix(name, "bheader_") {
		for p.i < len(p.s) && strings.IndexByte(":} \t", p.s[p.i]) < 0 {
			p.i++
		}
		v := header(p.s[start:p.i])
		if p.i < len(p.s) && p.s[p.i] == ':' {
			p.i++
		}
		return v, p.end()
	}
	if p.i < len(p.s) && p.s[p.i] == ':' {
		p.i++
		subject, err := p.str(true)
		if err != nil {
			return nil, err
		}
		op, arg, _ := strings.Cut(name, "_")
		if err := knownOperator(op, arg); err != nil {
			return nil, err
		}
		return &operator{op, arg, subject}, nil
	}
	p.space()
	if p.i < len(p.s) && p.s[p.i] == '}' {
		p.i++
		return p.checked(name)
	}
	return p.item(name)
}

func header(name string) variable {
	_, field, _ := strings.Cut(name, "_")
	kind := name[:strings.IndexByte(name, '_')]
	kind = strings.TrimSuffix(kind, "eader")
	return variable(kind + "_" + strings.ToLower(field))
}

func (p *parser) bare() (node, error) {
	start := p.i
	if p.s[p.i] >= '0' && p.s[p.i] <= '9' {
		p.i++
		return variable(p.s[start:p.i]), nil
	}
	name := p.name()
	for _, prefix := range []string{"h_", "rh_", "bh_", "header_", "rheader_", "bheader_"} {
		if strings.HasPrefix(name, prefix) {
			for p.i < len(p.s) && strings.IndexByte(": \t\n{}", p.s[p.i]) < 0 {
				p.i++
			}
			v := header(p.s[start:p.i])
			if p.i < len(p.s) && p.s[p.i] == ':' {
				p.i++
			}
			return v, nil
		}
	}
	if name == "" {
		return nil, fmt.Errorf("%q follows \"$\"", p.s[p.i:min(len(p.s), p.i+1)])
	}
	return p.checked(name)
}

func (p *parser) checked(name string) (node, error) {
	if !KnownVariable(name) {
		return nil, &Unsupported{What: "$" + name}
	}
	return variable(name), nil
}

func (p *parser) end() error {
	p.space()
	if p.i >= len(p.s) || p.s[p.i] != '}' {
		return ErrBrace
	}
	p.i++
	return nil
}

// arg reads {string}, if one is there.
func (p *parser) arg() (*String, error) {
	p.space()
	if p.i >= len(p.s) || p.s[p.i] != '{' {
		return nil, nil
	}
	p.i++
	return p.str(true)
}

// literal reads {string} to the first "}"; only backslashes mean anything in it.
func (p *parser) literal() (*String, error) {
	p.space()
	if p.i >= len(p.s) || p.s[p.i] != '{' {
		return nil, ErrBrace
	}
	p.i++
	start := p.i
	var b strings.Builder
	for p.i < len(p.s) && p.s[p.i] != '}' {
		if p.s[p.i] == '\\' && p.i+1 < len(p.s) {
			p.escape(&b)
			continue
		}
		b.WriteByte(p.s[p.i])
		p.i++
	}
	if p.i == len(p.s) {
		return nil, ErrBrace
	}
	p.i++
	return &String{src: p.s[start : p.i-1], nodes: []node{text(b.String())}}, nil
}

// args reads up to most arguments in braces, at least as many as least.
func (p *parser) args(least, most int) (all []*String, err error) {
	for len(all) < most {
		a, err := p.arg()
		if err != nil {
			return nil, err
		}
		if a == nil {
			break
		}
		all = append(all, a)
	}
	if len(all) < least {
		return nil, ErrBrace
	}
	return all, nil
}

// runners are items that ask other programs.
var runners = map[string]bool{"run": true, "readsocket": true, "perl": true, "dlfunc": true, "readfile": true, "acl": false}

func (p *parser) item(name string) (node, error) {
	switch name {
	case "if":
		c, err := p.condition()
		if err != nil {
			return nil, err
		}
		i := &ifItem{cond: c}
		return i, p.branch(&i.branch)
	case "lookup":
		return p.lookup()
	case "extract":
		args, err := p.args(2, 5)
		if err != nil {
			return nil, err
		}
		n := 2
		if first, constant := args[0].Constant(); constant && isDigits(strings.TrimPrefix(strings.TrimSpace(first), "-")) || !constant && len(args) == 5 {
			n = 3
		}
		if len(args) < n {
			return nil, ErrBrace
		}
		x := &extract{args: args[:n]}
		return x, p.rest(&x.branch, args[n:])
	case "listextract":
		args, err := p.args(2, 4)
		if err != nil {
			return nil, err
		}
		x := &listextract{args: args[:2]}
		return x, p.rest(&x.branch, args[2:])
	case "sg", "tr":
		args, err := p.args(3, 3)
		if err != nil {
			return nil, err
		}
		if re, _ := args[1].Constant(); name == "sg" && backReference.MatchString(re) {
			return nil, &Unsupported{What: "a back reference in ${sg…}"}
		}
		return &substitute{name, args}, p.end()
	case "length", "substr":
		args, err := p.args(2, 3)
		if err != nil {
			return nil, err
		}
		return &sized{name, args}, p.end()
	}
	return nil, &Unsupported{What: "${" + name + "…}", Runs: runners[name]}
}

// branch reads {yes}{no}, or fail, and the closing brace.
func (p *parser) branch(b *branch) error {
	args, err := p.args(0, 1)
	if err != nil {
		return err
	}
	return p.rest(b, args)
}

// rest reads what is left of a branch after the arguments read so far.
func (p *parser) rest(b *branch, have []*String) error {
	if len(have) == 0 {
		forced, err := p.fail()
		if err != nil || !forced {
			if err == nil {
				err = p.end()
			}
			return err
		}
		b.yesForced = true
	} else {
		b.yes = have[0]
	}
	if len(have) > 1 {
		b.no = have[1]
		return p.end()
	}
	no, err := p.arg()
	if err != nil {
		return err
	}
	if b.no = no; no == nil {
		if b.noForced, err = p.fail(); err != nil {
			return err
		}
	}
	return p.end()
}

func (p *parser) fail() (bool, error) {
	p.space()
	if strings.HasPrefix(p.s[p.i:], "fail") {
		p.i += len("fail")
		return true, nil
	}
	return false, nil
}

// keyed are the look-ups by key in a file, the others take a query.
var keyed = []string{"lsearch", "wildlsearch", "nwildlsearch", "iplsearch", "dsearch", "cdb", "dbm", "dbmjz", "dbmnz", "nis", "passwd"}

// Keyed says that a look-up's type takes a key and a file.
func Keyed(typ string) bool {
	base := BaseType(typ)
	for _, k := range keyed {
		if base == k {
			return true
		}
	}
	return false
}

// BaseType takes "partial-", "*", "*@" and options off a look-up's type.
//
//	partial1(.)lsearch*,ret=key
func BaseType(typ string) string {
	typ, _, _ = strings.Cut(typ, ",")
	if rest, ok := strings.CutPrefix(typ, "partial"); ok {
		rest = strings.TrimLeft(rest, "0123456789")
		if after, dash := strings.CutPrefix(rest, "-"); dash {
			typ = after
		} else if _, after, closed := strings.Cut(rest, ")"); closed && rest[0] == '(' {
			typ = after
		}
	}
	if rest, ok := strings.CutPrefix(typ, "net"); ok {
		if _, after, found := strings.Cut(rest, "-"); found {
			typ = after
		}
	}
	return strings.TrimRight(typ, "*@")
}

// TableType is the type of the table that a look-up asks: a directory has one for each
// kind of entry.
//
//	dsearch,filter=dir
func TableType(typ string) string {
	base, options, _ := strings.Cut(typ, ",")
	if base = BaseType(base); base != "dsearch" {
		return base
	}
	for o := range strings.SplitSeq(options, ",") {
		if strings.HasPrefix(o, "filter=") {
			return base + "," + o
		}
	}
	return base
}

// TableName is what a policy calls the table that a look-up asks. "table" has no file, but a name.
func TableName(typ, file string) string {
	file = strings.TrimSpace(file)
	if BaseType(typ) == "table" {
		return file
	}
	return TableType(typ) + ";" + file
}

func (p *parser) lookup() (node, error) {
	l := &lookup{}
	key, err := p.arg()
	if err != nil {
		return nil, err
	}
	p.space()
	start := p.i
	for p.i < len(p.s) && strings.IndexByte(" \t\r\n{", p.s[p.i]) < 0 {
		p.i++
	}
	l.typ = p.s[start:p.i]
	arg, err := p.arg()
	if err != nil {
		return nil, err
	}
	if arg == nil {
		return nil, ErrBrace
	}
	if l.key, l.file = key, arg; key == nil {
		l.key, l.file = arg, nil
	}
	return l, p.branch(&l.branch)
}
