package pattern

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// class reads a bracket expression after its "[".
func (t *translator) class() (charset, error) {
	var set charset
	negated := t.eat("^")
	for first := true; ; first = false {
		if t.pos >= len(t.src) {
			return set, errors.New("a bracket isn't closed")
		}
		if t.src[t.pos] == ']' && !first {
			t.pos++
			break
		}
		lo, single, part, err := t.classItem()
		if err != nil {
			return set, err
		}
		hi := lo
		if r := t.rest(); len(r) > 1 && r[0] == '-' && r[1] != ']' {
			if !single {
				return set, errors.New("a range starts in a class")
			}
			t.pos++
			var isChar bool
			if hi, isChar, _, err = t.classItem(); err != nil {
				return set, err
			}
			r = t.rest()
			if !isChar || hi < lo || t.d == ERE && len(r) > 1 && r[0] == '-' && r[1] != ']' {
				return set, errors.New("a range ends before it starts, or in a class, or in another range")
			}
		}
		if single {
			set.add(lo, hi)
		} else {
			set.union(part)
		}
	}
	if t.opts.fold {
		set.foldCase()
	}
	if negated {
		set = set.not()
		if t.d == ERE && t.opts.multi {
			set[0] &^= newline[0]
		}
	}
	return set, nil
}

// classItem reads one element of a bracket expression: a character, or a set.
func (t *translator) classItem() (c byte, single bool, set charset, err error) {
	r := t.rest()
	for _, kind := range []string{"[:", "[.", "[="} {
		body, _, closed := strings.Cut(strings.TrimPrefix(r, kind), kind[1:]+"]")
		if !strings.HasPrefix(r, kind) || !closed || t.d == PCRE && !isName(strings.TrimPrefix(body, "^")) {
			continue
		}
		if t.d == PCRE && kind != "[:" {
			return 0, false, set, errors.New("collating elements are unknown")
		}
		t.pos += len(body) + 4
		if kind != "[:" {
			if len(body) != 1 {
				return 0, false, set, fmt.Errorf("%q is unknown", kind+body+kind[1:]+"]")
			}
			return body[0], true, set, nil
		}
		name, negated := strings.CutPrefix(body, "^")
		set, known := namedSet(name)
		if !known || t.d == ERE && (negated || name == "word" || name == "ascii") {
			return 0, false, set, fmt.Errorf("class %q is unknown", body)
		}
		if t.opts.fold && (name == "upper" || name == "lower") {
			set.foldCase()
		}
		if negated {
			set = set.not()
		}
		return 0, false, set, nil
	}
	t.pos++
	if r[0] != '\\' || t.d == ERE {
		return r[0], true, set, nil
	}
	if t.pos >= len(t.src) {
		return 0, false, set, errors.New("a backslash ends the pattern")
	}
	return t.classEscape()
}

// classEscape reads what follows a backslash within PCRE's brackets.
func (t *translator) classEscape() (c byte, single bool, set charset, err error) {
	c = t.src[t.pos]
	if set, ok := escapedSet(c); ok {
		t.pos++
		return 0, false, set, nil
	}
	switch {
	case c == 'b':
		t.pos++
		return '\b', true, set, nil
	case c == 'Q' || c == 'E':
		return 0, false, set, fmt.Errorf(`\%c within brackets is not supported`, c)
	case c >= '0' && c <= '7':
		end := t.pos
		for end < len(t.src) && end < t.pos+3 && t.src[end] >= '0' && t.src[end] <= '7' {
			end++
		}
		n, _ := strconv.ParseUint(t.src[t.pos:end], 8, 32)
		t.pos = end
		if n > 255 {
			return 0, false, set, errors.New("an octal number beyond an octet")
		}
		return byte(n), true, set, nil
	}
	c, err = t.escapedChar()
	return c, true, set, err
}

// escapedSet is PCRE's class of a letter, as \d.
func escapedSet(c byte) (charset, bool) {
	switch c {
	case 'd':
		return digits, true
	case 'D':
		return digits.not(), true
	case 'w':
		return wordChars, true
	case 'W':
		return wordChars.not(), true
	case 's':
		return spaceChars, true
	case 'S':
		return spaceChars.not(), true
	case 'h':
		return hspaceChars, true
	case 'H':
		return hspaceChars.not(), true
	case 'v':
		return vspaceChars, true
	case 'V':
		return vspaceChars.not(), true
	}
	return charset{}, false
}

// escapedChar reads PCRE's escape of one character, after the backslash.
func (t *translator) escapedChar() (byte, error) {
	c := t.src[t.pos]
	t.pos++
	if i := strings.IndexByte("aefnrt", c); i >= 0 {
		return "\a\x1b\f\n\r\t"[i], nil
	}
	number := func(text string, base int) (byte, error) {
		n, err := strconv.ParseUint("0"+text, base, 32)
		if err != nil || n > 255 {
			return 0, fmt.Errorf("%q is no character of one octet", text)
		}
		return byte(n), nil
	}
	braced := func() (string, bool) {
		text, _, closed := strings.Cut(t.rest(), "}")
		if !closed || !strings.HasPrefix(text, "{") {
			return "", false
		}
		t.pos += len(text) + 1
		return text[1:], true
	}
	switch {
	case c == 'x':
		if text, ok := braced(); ok {
			return number(text, 16)
		}
		if strings.HasPrefix(t.rest(), "{") {
			break // PCRE2 takes it for a mistake
		}
		end := t.pos
		for end < len(t.src) && end < t.pos+2 && isHex(t.src[end]) {
			end++
		}
		text := t.src[t.pos:min(end, len(t.src))]
		t.pos = end
		return number(text, 16)
	case c == 'o':
		if text, ok := braced(); ok {
			return number(text, 8)
		}
	case c == 'c' && t.pos < len(t.src):
		x := t.src[t.pos]
		t.pos++
		if x >= 'a' && x <= 'z' {
			x -= 0x20
		}
		return x ^ 0x40, nil
	case !wordChars.has(c) || c == '_':
		return c, nil
	}
	return 0, fmt.Errorf(`\%c is not supported`, c)
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f'
}
