package postfix

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

const separators = ", \t\r\n"

// words splits a list at commas and white space, but not inside of braces.
func words(s string) []string {
	var list []string
	start, level := -1, 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '{':
			level++
		case c == '}' && level > 0:
			level--
		case level == 0 && strings.IndexByte(separators, c) >= 0:
			if start >= 0 {
				list = append(list, s[start:i])
			}
			start = -1
			continue
		}
		if start < 0 {
			start = i
		}
	}
	if start >= 0 {
		list = append(list, s[start:])
	}
	return list
}

// unbrace returns what stands between the braces around a word.
func unbrace(s string) (inside string, ok bool) {
	if len(s) < 2 || s[0] != '{' || s[len(s)-1] != '}' {
		return s, false
	}
	return strings.TrimSpace(s[1 : len(s)-1]), true
}

// element is a restriction of a list.
type element struct {
	name    string // as restrictions knows it; a class's name as written
	arg     string
	implied bool // the table stands without a restriction before it
	warn    bool // warn_if_reject stands before it
	class   bool
}

// text spells the element as Postfix would.
func (e element) text() string {
	s := e.name
	if e.arg != "" {
		s += " " + e.arg
	}
	if e.warn {
		s = "warn_if_reject " + s
	}
	return s
}

// note names the restriction in one word.
func (e element) note() string {
	arg, _ := unbrace(e.arg)
	if ws := words(arg); len(ws) > 0 {
		return e.name + ":" + ws[0]
	}
	return e.name
}

// parseList reads a list of restrictions. implied is what a table without a
// restriction before it stands for, "" where that isn't allowed. What follows
// a restriction that always decides is never reached and left out. An error
// is what makes Postfix answer every client with 451 4.3.5.
func parseList(list, implied string, isClass func(string) bool) ([]element, error) {
	var all []element
	ws := words(list)
	warn := false
	for i := 0; i < len(ws); i++ {
		e := element{warn: warn}
		name := strings.ToLower(ws[i])
		r, known := restrictions[name]
		switch {
		case name == "warn_if_reject":
			warn = true
			continue
		case strings.Contains(name, ":"):
			if implied == "" {
				return nil, fmt.Errorf("%q needs a restriction such as check_client_access before it", ws[i])
			}
			e.name, e.arg, e.implied = implied, ws[i], true
		case !known && isClass(ws[i]):
			e.name, e.class = ws[i], true
		case !known:
			return nil, fmt.Errorf("unknown restriction %q", ws[i])
		default:
			e.name = cmp.Or(r.canonical, name)
			if r.arg != argNone {
				if i++; i == len(ws) {
					return nil, fmt.Errorf("%s lacks its argument", name)
				}
				e.arg = ws[i]
			}
			if err := r.arg.check(e.arg); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		warn = false
		all = append(all, e)
		if name == "permit" || !e.warn && (name == "reject" || name == "defer") {
			break
		}
	}
	return all, nil
}

// argument is what a restriction's argument is.
type argument uint8

const (
	argNone argument = iota
	argTable
	argZone
	argService
	argNumber
)

func (a argument) check(s string) error {
	switch {
	case a == argTable && !strings.Contains(s, ":"):
		return fmt.Errorf("want type:table, not %q", s)
	case a == argService && !strings.Contains(s, ":"):
		return fmt.Errorf("want type:server, not %q", s)
	case a == argNumber && (s == "" || strings.Trim(s, "0123456789") != ""):
		return fmt.Errorf("want a number, not %q", s)
	}
	return nil
}

var errSearchOrder = errors.New("its search_order isn't the default one")

// tableName takes a table out of "{ type:table, search_order = … }" and
// strips proxy:, which changes who opens the table, not what is in it.
func tableName(arg string) (string, error) {
	var err error
	if inside, ok := unbrace(arg); ok {
		parts := words(inside)
		if len(parts) == 0 {
			return "", fmt.Errorf("%q names no table", arg)
		}
		if len(parts) > 1 {
			err = errSearchOrder
		}
		arg = parts[0]
	}
	for strings.HasPrefix(arg, "proxy:") {
		arg = arg[len("proxy:"):]
	}
	return arg, err
}

// secretFree is what an argument is called in the Report: a policy service
// without its attributes, a DNS list without a key in its name.
func secretFree(arg string) string {
	labels := strings.Split(arg, ".")
	for i, l := range labels {
		if len(l) >= 20 && !strings.ContainsAny(l, ":/{[") {
			labels[i] = "…" // a customer's key (DQS and the like)
		}
	}
	return strings.Join(labels, ".")
}
