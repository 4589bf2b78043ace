package pattern

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// translator rewrites a pattern of Postfix's into the common language of our
// two engines: classes of octets are written out, so that the engines' own
// ideas of case, white space and words don't matter.
type translator struct {
	d         Dialect
	src       string
	pos       int
	out       []byte
	backtrack bool // the target is the backtracking engine
	irregular bool // it has to be
	opts      options
	depth     int
	groups    int // opened so far
	total     int // in the whole pattern
	closed    int // ERE: bits of the groups that a reference may name
	quoted    bool
	names     map[string]int
}

// options may change within a pcre pattern.
type options struct{ fold, multi, dotall, extended, ungreedy, dollarEnd bool }

var errGroup = errors.New("a parenthesis isn't closed")

func translate(d Dialect, src, flags string, backtrack bool) (text string, groups int, irregular bool, err error) {
	has := func(f string) bool { return strings.Contains(flags, f) }
	t := &translator{d: d, src: src, backtrack: backtrack, names: map[string]int{}}
	t.opts = options{fold: has("i"), multi: has("m")}
	if d == PCRE {
		t.opts.dotall, t.opts.extended, t.opts.ungreedy, t.opts.dollarEnd = has("s"), has("x"), has("U"), has("E")
		t.countGroups()
	} else {
		t.opts.dotall = !t.opts.multi
	}
	if d == PCRE && has("A") {
		t.out = append(t.out, `\A(?:`...)
	}
	if err := t.alternation(); err != nil {
		return "", 0, false, err
	}
	if t.pos < len(src) {
		return "", 0, false, errors.New("a parenthesis too many")
	}
	if d == PCRE && has("A") {
		t.out = append(t.out, ')')
	}
	return string(t.out), t.groups, t.irregular, nil
}

// countGroups finds how many groups there are and their names, for references
// that come before them.
func (t *translator) countGroups() {
	inClass := false
	for i := 0; i < len(t.src); i++ {
		switch c := t.src[i]; {
		case c == '\\':
			i++
		case inClass:
			inClass = c != ']'
		case c == '[':
			inClass = true
			if strings.HasPrefix(t.src[i+1:], "^]") {
				i += 2
			} else if strings.HasPrefix(t.src[i+1:], "]") {
				i++
			}
		case c == '(':
			if name, ok := groupName(t.src[i+1:]); ok || !strings.HasPrefix(t.src[i+1:], "?") && !strings.HasPrefix(t.src[i+1:], "*") {
				t.total++
				if name != "" {
					t.names[name] = t.total
				}
			}
		}
	}
}

// groupName reads "?<name>", "?P<name>" and "?'name'".
func groupName(s string) (name string, ok bool) {
	for _, form := range []struct{ open, end string }{{"?<", ">"}, {"?P<", ">"}, {"?'", "'"}} {
		if rest, found := strings.CutPrefix(s, form.open); found {
			name, _, closed := strings.Cut(rest, form.end)
			return name, closed && isName(name)
		}
	}
	return "", false
}

func isName(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '_' && !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || isDigit(c)) {
			return false
		}
	}
	return s != "" && len(s) <= 32 && !isDigit(s[0])
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func (t *translator) rest() string { return t.src[t.pos:] }

func (t *translator) eat(s string) bool {
	if strings.HasPrefix(t.rest(), s) {
		t.pos += len(s)
		return true
	}
	return false
}

// alternation reads up to the parenthesis that closes it, or the end.
func (t *translator) alternation() error {
	if t.depth++; t.depth > maxNesting {
		return errors.New("parentheses nest too deeply")
	}
	saved, before, closed := t.opts, t.closed, 0
loop:
	for t.pos < len(t.src) {
		switch c := t.src[t.pos]; {
		case c == '|' && !t.quoted:
			t.pos++
			t.out = append(t.out, '|')
			closed |= t.closed
			t.closed = before
		case c == ')' && !t.quoted && (t.depth > 1 || t.d == PCRE):
			break loop
		default:
			if err := t.piece(); err != nil {
				return err
			}
		}
	}
	t.depth--
	t.opts = saved
	t.closed |= closed
	return nil
}

// piece reads an atom and how often it occurs.
func (t *translator) piece() error {
	if t.opts.extended && !t.quoted {
		if c := t.src[t.pos]; spaceChars.has(c) {
			t.pos++
			return nil
		} else if c == '#' {
			_, after, _ := strings.Cut(t.rest(), "\n")
			t.pos = len(t.src) - len(after)
			return nil
		}
	}
	start := len(t.out)
	repeatable, err := true, error(nil)
	switch {
	case t.quoted && t.eat(`\E`):
		t.quoted, repeatable = false, false
	case t.quoted:
		t.literal(t.src[t.pos])
		t.pos++
		repeatable = t.eat(`\E`)
		t.quoted = !repeatable
	default:
		repeatable, err = t.atom()
	}
	if err != nil {
		return err
	}
	for n := 0; repeatable && t.pos < len(t.src); n++ {
		q, err := t.quantifier()
		if err != nil {
			return err
		}
		if q == "" {
			break
		}
		if n > 0 && t.d == PCRE {
			return errors.New("a quantifier repeats a quantifier")
		}
		t.repeat(start, q, n > 0)
	}
	return nil
}

// quantifier reads one in its canonical spelling, "" when there is none.
func (t *translator) quantifier() (string, error) {
	c := t.src[t.pos]
	switch c {
	case '*', '+', '?':
		t.pos++
		return string(c), nil
	case '{':
	default:
		return "", nil
	}
	body, _, closed := strings.Cut(t.rest()[1:], "}")
	lo, hi, ranged := strings.Cut(body, ",")
	if t.d == ERE && lo == "" && ranged {
		lo = "0"
	}
	if !closed || !isNumber(lo) || ranged && hi != "" && !isNumber(hi) {
		if t.d == ERE {
			return "", fmt.Errorf("%q is no number of repetitions", "{"+body)
		}
		return "", nil // a brace like any other character
	}
	l, errL := strconv.Atoi(lo)
	h, errH := l, error(nil)
	if hi != "" {
		h, errH = strconv.Atoi(hi)
	}
	if errL != nil || errH != nil || l > 65535 || h > 65535 || h < l {
		return "", fmt.Errorf("%q is no number of repetitions", "{"+body+"}")
	}
	t.pos += len(body) + 2
	return "{" + lo + map[bool]string{true: "," + hi}[ranged] + "}", nil
}

// repeat writes a quantifier after what was written since start.
func (t *translator) repeat(start int, q string, again bool) {
	lazy, possessive := false, false
	if t.d == PCRE {
		if possessive = t.eat("+"); !possessive {
			lazy = t.eat("?") != t.opts.ungreedy
		}
	}
	atom := string(t.out[start:])
	t.out = t.out[:start]
	if again {
		atom = "(?:" + atom + ")"
	}
	switch {
	case possessive:
		t.irregular = true
		t.out = append(t.out, "(?>"+atom+q+")"...)
	case lazy:
		t.out = append(t.out, atom+q+"?"...)
	default:
		t.out = append(t.out, atom+q...)
	}
}

// atom reads one. repeatable is false for what can't have a quantifier.
func (t *translator) atom() (repeatable bool, err error) {
	c := t.src[t.pos]
	t.pos++
	switch c {
	case '(':
		return t.group()
	case '[':
		set, err := t.class()
		t.set(set)
		return true, err
	case '.':
		if t.opts.dotall {
			t.set(anyChar)
		} else {
			t.set(notNewline)
		}
		return true, nil
	case '^':
		t.anchor(`\A`, `(?m:^)`)
		return false, t.noRepeat()
	case '$':
		end := `\z`
		if t.d == PCRE && !t.opts.dollarEnd && t.backtrack {
			end = `(?=\n?\z)` // what is looked up never ends in a newline
		}
		t.anchor(end, `(?m:$)`)
		return false, t.noRepeat()
	case '*', '+', '?':
		return false, errors.New("nothing to repeat before " + string(c))
	case '{':
		if t.d == ERE {
			return false, errors.New("nothing to repeat before {")
		}
	case '\\':
		return t.escape()
	}
	t.literal(c)
	return true, nil
}

func (t *translator) anchor(whole, line string) {
	if t.opts.multi {
		whole = line
	}
	t.out = append(t.out, whole...)
}

// noRepeat refuses a quantifier after an anchor.
func (t *translator) noRepeat() error {
	if t.pos < len(t.src) && strings.IndexByte("*+?", t.src[t.pos]) >= 0 {
		return errors.New("nothing to repeat after an anchor")
	}
	return nil
}

// set writes a class.
func (t *translator) set(c charset) {
	if t.opts.fold {
		c.foldCase()
	}
	t.out = c.write(t.out)
}

// literal writes one octet.
func (t *translator) literal(c byte) {
	switch letter := c|0x20 >= 'a' && c|0x20 <= 'z'; {
	case letter && t.opts.fold:
		t.out = append(t.out, '[', c|0x20, c&^0x20, ']')
	case letter || c >= '0' && c <= '9':
		t.out = append(t.out, c)
	default:
		t.out = fmt.Appendf(t.out, `\x%02x`, c)
	}
}
