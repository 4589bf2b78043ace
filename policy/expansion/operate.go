package expansion

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// operators are those of ${name:string}.
var operators = []string{
	"address", "d", "domain", "escape", "eval", "eval10", "h", "hexquote", "l", "lc", "length", "listcount", "local_part", "local", "lp", "mask",
	"md5", "quote", "reverse_ip", "rxquote", "s", "sha1", "sha256", "sha2", "strlen", "substr", "uc", "utf8clean",
}

func knownOperator(op, arg string) error {
	switch {
	case op == "local" && arg == "part":
		return nil
	case op == "quote" && arg != "", op == "reverse" && arg == "ip":
		return nil
	case !slices.Contains(operators, op) || op == "h" || op == "hexquote":
		return &Unsupported{What: "${" + strings.TrimSuffix(op+"_"+arg, "_") + ":…}"}
	}
	return nil
}

func operate(op, arg, s string) (string, error) {
	switch op {
	case "lc":
		return Lower(s), nil
	case "uc":
		return strings.ToUpper(s), nil
	case "length", "l", "substr", "s":
		return slice(op, arg, s)
	case "strlen":
		return strconv.Itoa(len(s)), nil
	case "domain", "d":
		if i := strings.LastIndexByte(address(s), '@'); i >= 0 {
			return address(s)[i+1:], nil
		}
		return "", nil
	case "local", "lp":
		a := address(s)
		if i := strings.LastIndexByte(a, '@'); i >= 0 {
			return a[:i], nil
		}
		return a, nil
	case "address":
		return address(s), nil
	case "quote":
		return quote(arg, s)
	case "rxquote":
		var b strings.Builder
		for i := range len(s) {
			if !isAlnum(s[i]) && s[i] < 0x80 {
				b.WriteByte('\\')
			}
			b.WriteByte(s[i])
		}
		return b.String(), nil
	case "escape", "utf8clean":
		return s, nil
	case "md5":
		sum := md5.Sum([]byte(s))
		return hex.EncodeToString(sum[:]), nil
	case "sha1":
		sum := sha1.Sum([]byte(s))
		return strings.ToUpper(hex.EncodeToString(sum[:])), nil
	case "sha256", "sha2":
		sum := sha256.Sum256([]byte(s))
		return strings.ToUpper(hex.EncodeToString(sum[:])), nil
	case "mask":
		return mask(s)
	case "reverse", "reverse_ip":
		return reverseIP(s)
	case "listcount":
		return strconv.Itoa(len(List(s))), nil
	case "eval":
		return evaluate(s, 0)
	case "eval10":
		return evaluate(s, 10)
	}
	return "", fmt.Errorf("unknown operator %q", op)
}

// slice is length_N and substr_M_N.
func slice(op, arg, s string) (string, error) {
	a, b, two := strings.Cut(arg, "_")
	m, err := strconv.Atoi(a)
	if err != nil {
		return "", fmt.Errorf("%q is no number", a)
	}
	if op == "length" || op == "l" {
		return s[:max(0, min(m, len(s)))], nil
	}
	n := -1
	if two {
		if n, err = strconv.Atoi(b); err != nil || n < 0 {
			return "", fmt.Errorf("%q is no number", b)
		}
	}
	if m >= 0 {
		s = s[min(m, len(s)):]
		if n >= 0 {
			s = s[:min(n, len(s))]
		}
		return s, nil
	}
	start := len(s) + m
	if n < 0 {
		return s[:max(0, start)], nil
	}
	end := min(len(s), start+n)
	start = max(0, start)
	return s[start:max(start, end)], nil
}

// address takes the address out of "phrase <address>".
func address(s string) string {
	if i := strings.LastIndexByte(s, '<'); i >= 0 {
		if j := strings.IndexByte(s[i:], '>'); j > 0 {
			return s[i+1 : i+j]
		}
	}
	return strings.TrimSpace(s)
}

// quote makes s safe inside of a query of a database.
func quote(typ, s string) (string, error) {
	var special string
	switch typ {
	case "":
		if s != "" && strings.IndexFunc(s, func(r rune) bool { return r > 0x7f || !isAlnum(byte(r)) && !strings.ContainsRune("_-.", r) }) < 0 {
			return s, nil
		}
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", `\r`).Replace(s) + `"`, nil
	case "sqlite":
		return strings.ReplaceAll(s, "'", "''"), nil
	case "mysql":
		special = `'"\` + "\n\t\r\b"
	case "pgsql":
		return strings.NewReplacer(`\`, `\\`, "'", "''").Replace(s), nil
	case "ldap", "ldapdn":
		return strings.NewReplacer("*", `\2A`, "(", `\28`, ")", `\29`, `\`, `\5C`).Replace(s), nil
	default:
		return "", fmt.Errorf("unknown quote_%s", typ)
	}
	var b strings.Builder
	for i := range len(s) {
		if strings.IndexByte(special, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String(), nil
}

func mask(s string) (string, error) {
	p, err := netip.ParsePrefix(strings.TrimSpace(s))
	if err != nil {
		return "", fmt.Errorf("%q is no network", s)
	}
	if p = p.Masked(); p.Addr().Is4() {
		return p.String(), nil
	}
	return fmt.Sprintf("%s/%d", strings.ReplaceAll(p.Addr().StringExpanded(), ":", "."), p.Bits()), nil
}

func reverseIP(s string) (string, error) {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil {
		return "", fmt.Errorf("%q is no address", s)
	}
	var parts []string
	if a.Is4() {
		for _, b := range a.As4() {
			parts = append(parts, strconv.Itoa(int(b)))
		}
	} else {
		for _, b := range a.As16() {
			parts = append(parts, strconv.FormatUint(uint64(b>>4), 16), strconv.FormatUint(uint64(b&15), 16))
		}
	}
	slices.Reverse(parts)
	return strings.Join(parts, "."), nil
}

// field is ${extract{n}{separators}{s}}.
func field(n, seps, s string) (string, bool) {
	parts := strings.FieldsFunc(s, func(rune) bool { return false })
	parts = parts[:0]
	for rest := s; ; {
		i := strings.IndexAny(rest, seps)
		if i < 0 {
			parts = append(parts, rest)
			break
		}
		parts, rest = append(parts, rest[:i]), rest[i+1:]
	}
	i := atoi(strings.TrimPrefix(n, "-"))
	switch {
	case n == "0":
		return s, true
	case strings.HasPrefix(n, "-"):
		i = len(parts) + 1 - i
	}
	if i < 1 || i > len(parts) {
		return "", false
	}
	return parts[i-1], true
}

// named is ${extract{name}{name=value name="quoted value"}}.
func named(key, s string) (string, bool) {
	for s = strings.TrimLeft(s, " \t\n"); s != ""; s = strings.TrimLeft(s, " \t\n") {
		i := strings.IndexAny(s, "= \t\n")
		if i < 0 {
			return "", false
		}
		name := s[:i]
		s = strings.TrimLeft(s[i:], " \t\n")
		s = strings.TrimLeft(strings.TrimPrefix(s, "="), " \t\n")
		var value string
		if strings.HasPrefix(s, `"`) {
			value, s = dequote(s[1:])
		} else if i = strings.IndexAny(s, " \t\n"); i < 0 {
			value, s = s, ""
		} else {
			value, s = s[:i], s[i:]
		}
		if strings.EqualFold(name, key) {
			return value, true
		}
	}
	return "", false
}

func dequote(s string) (value, rest string) {
	var b strings.Builder
	for s != "" && s[0] != '"' {
		if s[0] == '\\' && len(s) > 1 {
			s = s[1:]
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
	return b.String(), strings.TrimPrefix(s, `"`)
}

// translate is ${tr{s}{from}{to}}.
func translate(s, from, to string) string {
	if to == "" {
		return s
	}
	b := []byte(s)
	for i, c := range b {
		if j := strings.LastIndexByte(from, c); j >= 0 {
			b[i] = to[min(j, len(to)-1)]
		}
	}
	return string(b)
}

// Lower makes ASCII letters small, and no others.
func Lower(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r | 32
		}
		return r
	}, s)
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 1 << 30
	}
	return n
}

// evaluate is ${eval:…}: integers with + - * / % ~ & | ^ << >> and parentheses. With base 0
// those that begin with 0 are octal or, with 0x, hexadecimal.
func evaluate(s string, base int) (string, error) {
	a := &arithmetic{s: s, base: base}
	n, err := a.binary(0)
	if a.space(); err == nil && a.s != "" {
		err = fmt.Errorf("%q follows an expression", a.s)
	}
	return strconv.FormatInt(n, 10), err
}

type arithmetic struct {
	s     string
	base  int
	depth int
}

func (a *arithmetic) space() { a.s = strings.TrimLeft(a.s, " \t\r\n") }

// levels are operators, the weakest first.
var levels = [][]string{{"|"}, {"^"}, {"&"}, {"<<", ">>"}, {"+", "-"}, {"*", "/", "%"}}

func (a *arithmetic) binary(level int) (int64, error) {
	if level == len(levels) {
		return a.unary()
	}
	x, err := a.binary(level + 1)
	for err == nil {
		a.space()
		i := slices.IndexFunc(levels[level], func(op string) bool { return strings.HasPrefix(a.s, op) })
		if i < 0 {
			break
		}
		op := levels[level][i]
		a.s = a.s[len(op):]
		var y int64
		if y, err = a.binary(level + 1); err == nil {
			x, err = apply(op, x, y)
		}
	}
	return x, err
}

func apply(op string, x, y int64) (int64, error) {
	switch op {
	case "|":
		return x | y, nil
	case "^":
		return x ^ y, nil
	case "&":
		return x & y, nil
	case "<<":
		return x << uint(y&63), nil
	case ">>":
		return x >> uint(y&63), nil
	case "+":
		return x + y, nil
	case "-":
		return x - y, nil
	case "*":
		return x * y, nil
	}
	switch {
	case y == 0:
		return 0, errors.New("divide by zero")
	case op == "%":
		return x % y, nil
	}
	return x / y, nil
}

func (a *arithmetic) unary() (int64, error) {
	a.space()
	if a.depth++; a.depth > maxDepth {
		return 0, errors.New("nested too deeply")
	}
	defer func() { a.depth-- }()
	switch {
	case strings.HasPrefix(a.s, "-"), strings.HasPrefix(a.s, "~"), strings.HasPrefix(a.s, "+"):
		op := a.s[0]
		a.s = a.s[1:]
		n, err := a.unary()
		switch op {
		case '-':
			n = -n
		case '~':
			n = ^n
		}
		return n, err
	case strings.HasPrefix(a.s, "("):
		a.s = a.s[1:]
		n, err := a.binary(0)
		if a.space(); err == nil && !strings.HasPrefix(a.s, ")") {
			return n, errors.New("a parenthesis isn't closed")
		}
		a.s = strings.TrimPrefix(a.s, ")")
		return n, err
	}
	end := 0
	for end < len(a.s) && (isAlnum(a.s[end])) {
		end++
	}
	n, err := number(a.s[:end], a.base)
	a.s = a.s[end:]
	return n, err
}

// number reads an integer with K, M or G.
func number(s string, base int) (int64, error) {
	shift := 0
	if i := strings.IndexByte("KMG", (s + "\x00")[max(0, len(s)-1)]&^32); s != "" && i >= 0 {
		shift, s = 10*(i+1), s[:len(s)-1]
	}
	if base == 0 {
		base = 10
		if hex, is := strings.CutPrefix(Lower(s), "0x"); is {
			base, s = 16, hex
		} else if strings.HasPrefix(s, "0") {
			base = 8
		}
	}
	n, err := strconv.ParseInt(s, base, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no number", s)
	}
	return n << shift, nil
}
