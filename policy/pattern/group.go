package pattern

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// group reads what follows "(", with its ")".
func (t *translator) group() (repeatable bool, err error) {
	if t.d == ERE || !strings.HasPrefix(t.rest(), "?") && !strings.HasPrefix(t.rest(), "*") {
		t.groups++
		n := t.groups
		err := t.inside("(")
		t.closed |= 1 << min(n, 30)
		return true, err
	}
	if t.eat("?#") {
		_, after, closed := strings.Cut(t.rest(), ")")
		if t.pos = len(t.src) - len(after); !closed {
			return false, errGroup
		}
		return false, nil
	}
	if _, named := groupName(t.rest()); named {
		t.groups++
		t.pos += strings.IndexAny(t.rest()[3:], ">'") + 4
		return true, t.inside("(")
	}
	for _, open := range []string{"?=", "?!", "?<=", "?<!", "?>"} {
		if t.eat(open) {
			t.irregular = true
			return true, t.inside("(" + open)
		}
	}
	if name, after, ok := strings.Cut(t.rest(), ")"); ok && strings.HasPrefix(name, "?P=") {
		t.pos = len(t.src) - len(after)
		return true, t.reference(name[3:])
	}
	if t.eat("?(") {
		return true, t.conditional()
	}
	return t.flagGroup()
}

// inside reads a group's content and its end.
func (t *translator) inside(open string) error {
	t.out = append(t.out, open...)
	if err := t.alternation(); err != nil {
		return err
	}
	if !t.eat(")") {
		return errGroup
	}
	t.out = append(t.out, ')')
	return nil
}

// flagGroup reads (?i), (?i-s:…) and (?:…).
func (t *translator) flagGroup() (repeatable bool, err error) {
	end := strings.IndexAny(t.rest(), ":)")
	if end < 0 || t.src[t.pos] != '?' {
		return false, fmt.Errorf("(%.10s is not supported", t.rest())
	}
	flags, stop := t.rest()[1:end], t.rest()[end]
	opts, on := t.opts, true
	for i := range len(flags) {
		to := map[byte]*bool{
			'i': &opts.fold, 'm': &opts.multi, 's': &opts.dotall, 'x': &opts.extended, 'U': &opts.ungreedy,
		}[flags[i]]
		switch {
		case flags[i] == '-' && on:
			on = false
		case to == nil:
			return false, fmt.Errorf("(?%s is not supported", flags)
		default:
			*to = on
		}
	}
	t.pos += end + 1
	if stop == ')' {
		t.opts = opts
		return false, nil
	}
	saved := t.opts
	t.opts = opts
	err = t.inside("(?:")
	t.opts = saved
	return true, err
}

// conditional reads (?(1)yes|no) after the second "(": its condition is a
// group by number or name.
func (t *translator) conditional() error {
	t.irregular = true
	cond, after, ok := strings.Cut(t.rest(), ")")
	if !ok {
		return errGroup
	}
	n, err := t.groupNumber(strings.Trim(cond, "<>'"))
	if err != nil {
		return errors.New("a condition that is no group is not supported")
	}
	t.pos = len(t.src) - len(after)
	return t.inside(fmt.Sprintf("(?(%d)", n))
}

func (t *translator) groupNumber(s string) (int, error) {
	if n, found := t.names[s]; found {
		return n, nil
	}
	n, err := strconv.Atoi(s)
	if strings.HasPrefix(s, "-") {
		n = t.groups + 1 + n
	}
	if err != nil || n < 1 || n > t.total {
		return 0, fmt.Errorf("there is no group %q", s)
	}
	return n, nil
}

// reference writes a back reference.
func (t *translator) reference(name string) error {
	n, err := t.groupNumber(name)
	if err != nil {
		return err
	}
	t.irregular = true
	if t.opts.fold {
		t.out = fmt.Appendf(t.out, `(?i:\k<%d>)`, n)
	} else {
		t.out = fmt.Appendf(t.out, `(?:\k<%d>)`, n)
	}
	return nil
}

// escape reads what follows a backslash outside of brackets.
func (t *translator) escape() (repeatable bool, err error) {
	if t.pos >= len(t.src) {
		return false, errors.New("a backslash ends the pattern")
	}
	if t.d == ERE {
		return t.escapeERE()
	}
	c := t.src[t.pos]
	if set, ok := escapedSet(c); ok {
		t.pos++
		t.set(set)
		return true, nil
	}
	t.pos++
	switch c {
	case 'N':
		t.set(notNewline)
		return true, nil
	case 'C':
		t.set(anyChar)
		return true, nil
	case 'R':
		t.irregular = true
		t.out = append(t.out, `(?>\r\n|[\n-\r\x85])`...)
		return true, nil
	case 'Q':
		t.quoted = true
		return false, nil
	case 'E', 'K': // \K changes where a match starts, not whether there is one
		return false, nil
	}
	if t.assertion(c) {
		return false, t.noRepeat()
	}
	t.pos--
	if c >= '0' && c <= '9' || c == 'g' || c == 'k' {
		return true, t.numbered()
	}
	b, err := t.escapedChar()
	if err == nil {
		t.literal(b)
	}
	return true, err
}

// assertion writes one of width zero.
func (t *translator) assertion(c byte) bool {
	switch c {
	case 'A', 'G':
		t.out = append(t.out, `\A`...)
	case 'z':
		t.out = append(t.out, `\z`...)
	case 'Z':
		if t.backtrack {
			t.out = append(t.out, `(?=\n?\z)`...)
		} else {
			t.out = append(t.out, `\z`...)
		}
	case 'b':
		t.boundary(`\b`, "(?:(?<=W)(?!W)|(?<!W)(?=W))")
	case 'B':
		t.boundary(`\B`, "(?:(?<=W)(?=W)|(?<!W)(?!W))")
	default:
		return false
	}
	return true
}

// boundary writes what stands for an edge of a word: the linear engine's own,
// which knows ASCII only, or a look around.
func (t *translator) boundary(linear, around string) {
	if !t.backtrack && linear != "" {
		t.out = append(t.out, linear...)
		return
	}
	t.irregular = true
	t.out = append(t.out, strings.ReplaceAll(around, "W", string(wordChars.write(nil)))...)
}

// numbered reads \1, \g1, \g{-1}, \k<name> and octal numbers.
func (t *translator) numbered() error {
	c := t.src[t.pos]
	if c == 'g' || c == 'k' {
		t.pos++
		r := t.rest()
		for _, q := range []string{"{}", "<>", "''"} {
			if name, _, closed := strings.Cut(strings.TrimPrefix(r, q[:1]), q[1:]); strings.HasPrefix(r, q[:1]) && closed {
				if c == 'g' && q != "{}" {
					return errors.New("a call of a group is not supported")
				}
				t.pos += len(name) + 2
				return t.reference(strings.TrimSpace(name))
			}
		}
		n := 0
		for n < len(r) && (r[n] >= '0' && r[n] <= '9' || n == 0 && r[n] == '-') {
			n++
		}
		t.pos += n
		return t.reference(r[:n])
	}
	r := t.rest()
	n := 0
	for n < len(r) && r[n] >= '0' && r[n] <= '9' {
		n++
	}
	if v, err := strconv.Atoi(r[:n]); c != '0' && err == nil && (v < 10 || v <= t.total) {
		t.pos += n
		return t.reference(r[:n])
	}
	if c > '7' {
		return fmt.Errorf(`\%s is no group and no octal number`, r[:n])
	}
	b, _, _, err := t.classEscape()
	if err == nil {
		t.literal(b)
	}
	return err
}

// escapeERE reads glibc's escapes: those of GNU, back references, or the
// character itself.
func (t *translator) escapeERE() (repeatable bool, err error) {
	c := t.src[t.pos]
	t.pos++
	switch c {
	case 'w', 'W', 's', 'S':
		set, _ := escapedSet(c)
		t.set(set)
		return true, nil
	case '`', '\'', 'b', 'B', '<', '>':
		switch c {
		case '`':
			t.out = append(t.out, `\A`...)
		case '\'':
			t.out = append(t.out, `\z`...)
		case '<':
			t.boundary("", "(?:(?<!W)(?=W))")
		case '>':
			t.boundary("", "(?:(?<=W)(?!W))")
		default:
			t.assertion(c)
		}
		return false, t.noRepeat()
	}
	if c >= '1' && c <= '9' {
		if t.closed&(1<<(c-'0')) == 0 {
			return false, errors.New("a reference to a group that isn't there")
		}
		t.total = t.groups
		return true, t.reference(string(c))
	}
	if t.opts.fold && c >= 'a' && c <= 'z' {
		t.out = charset{}.write(t.out) // glibc compares it with upper case
		return true, nil
	}
	t.literal(c)
	return true, nil
}
