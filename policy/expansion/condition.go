package expansion

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// condition is what ${if asks.
type condition interface {
	test(*state) (bool, error)
}

type not struct{ c condition }

func (n not) test(st *state) (bool, error) {
	ok, err := n.c.test(st)
	return !ok, err
}

type all struct {
	cs []condition
	or bool
}

func (a all) test(st *state) (bool, error) {
	for _, c := range a.cs {
		ok, err := c.test(st)
		if err != nil {
			return false, err
		}
		if ok == a.or {
			return a.or, nil
		}
	}
	return !a.or, nil
}

type defined string

func (d defined) test(st *state) (bool, error) {
	v, err := st.variable(string(d))
	return v != "", err
}

// compare is a condition with strings for arguments.
type compare struct {
	name string
	args []*String
}

func (c *compare) test(st *state) (bool, error) {
	var v []string
	for _, a := range c.args {
		s, err := a.expand(st)
		if err != nil {
			return false, err
		}
		v = append(v, s)
	}
	switch c.name {
	case "eq":
		return v[0] == v[1], nil
	case "eqi":
		return strings.EqualFold(v[0], v[1]), nil
	case "lt", "lti", "le", "lei", "gt", "gti", "ge", "gei":
		return ordered(c.name, v[0], v[1]), nil
	case "=", "==", "<", "<=", ">", ">=":
		return numeric(c.name, v[0], v[1])
	case "match":
		return c.match(st, v[0], v[1])
	case "inlist", "inlisti":
		return slices.ContainsFunc(List(v[1]), func(s string) bool {
			return s == v[0] || c.name == "inlisti" && strings.EqualFold(s, v[0])
		}), nil
	case "isip", "isip4", "isip6":
		a, err := netip.ParseAddr(v[0])
		return err == nil && a.Zone() == "" && (c.name == "isip" || a.Is4() == (c.name == "isip4")), nil
	case "bool", "bool_lax":
		return Bool(v[0], c.name == "bool_lax")
	case "exists":
		return st.env.Test("exists", v[0], "")
	case "inbound_srs":
		return inboundSRS(v[0], v[1])
	}
	return st.env.Test(c.name, v[0], v[1]) // match_domain and its like
}

// inboundSRS says whether a local-part is a sender's that was rewritten by SRS. Whether
// it is of one's own making only who has the secret can tell; the policy has none.
func inboundSRS(local, secret string) (bool, error) {
	p, err := Regexp(`(?i)^SRS0=([^=]+)=([A-Z2-7]+)=([^=]*)=(.*)$`)
	if err != nil {
		return false, err
	}
	g, err := Find(p, local)
	if err != nil || g == nil {
		return false, err
	}
	if secret != "" {
		return false, ErrDefer
	}
	return true, nil
}

func (c *compare) match(st *state, subject, re string) (bool, error) {
	p, err := Regexp(re)
	if err != nil {
		return false, err
	}
	g, err := Find(p, subject)
	if err != nil || g == nil {
		return false, err
	}
	st.groups = g
	return true, nil
}

func ordered(op, a, b string) bool {
	folded := strings.HasSuffix(op, "i")
	if folded {
		a, b, op = Lower(a), Lower(b), op[:2]
	}
	n := strings.Compare(a, b)
	if folded && a != b && strings.HasPrefix(b, a) {
		n = 1 // as in Exim
	}
	return op == "lt" && n < 0 || op == "le" && n <= 0 || op == "gt" && n > 0 || op == "ge" && n >= 0
}

func numeric(op, a, b string) (bool, error) {
	var n [2]int64
	for i, s := range []string{a, b} {
		s = strings.TrimSpace(s)
		if s == "" {
			continue // counts as zero
		}
		var err error
		if n[i], err = number(s, 10); err != nil {
			return false, err
		}
	}
	x, y := n[0], n[1]
	switch op {
	case "<":
		return x < y, nil
	case "<=":
		return x <= y, nil
	case ">":
		return x > y, nil
	case ">=":
		return x >= y, nil
	}
	return x == y, nil
}

// Bool reads a truth value. Lax takes everything else for true; otherwise it is an
// error.
func Bool(s string, lax bool) (bool, error) {
	s = strings.TrimSpace(s)
	if d := strings.TrimPrefix(s, "-"); strings.Trim(d, "0123456789") == "" {
		return strings.Trim(d, "0") != "", nil
	}
	switch Lower(s) {
	case "no", "false":
		return false, nil
	case "yes", "true":
		return true, nil
	}
	if lax {
		return true, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", s)
}

// conditions and their numbers of arguments.
var conditions = map[string]int{
	"eq": 2, "eqi": 2, "lt": 2, "lti": 2, "le": 2, "lei": 2, "gt": 2, "gti": 2, "ge": 2, "gei": 2, "match": 2, "inlist": 2, "inlisti": 2,
	"=": 2, "==": 2, "<": 2, "<=": 2, ">": 2, ">=": 2, "isip": 1, "isip4": 1, "isip6": 1, "bool": 1, "bool_lax": 1, "exists": 1, "inbound_srs": 2,
	"match_domain": 2, "match_address": 2, "match_local_part": 2, "match_ip": 2,
}

func (p *parser) condition() (condition, error) {
	p.space()
	if p.depth++; p.depth > maxDepth {
		return nil, fmt.Errorf("nested too deeply")
	}
	defer func() { p.depth-- }()
	if p.i < len(p.s) && p.s[p.i] == '!' {
		p.i++
		c, err := p.condition()
		return not{c}, err
	}
	start := p.i
	for p.i < len(p.s) && strings.IndexByte(" \t\r\n{:", p.s[p.i]) < 0 {
		p.i++
	}
	name := p.s[start:p.i]
	switch name {
	case "and", "or":
		return p.every(name)
	case "def":
		if p.i >= len(p.s) || p.s[p.i] != ':' {
			return nil, fmt.Errorf(`":" is missing after "def"`)
		}
		p.i++
		n, err := p.bare()
		if err != nil {
			return nil, err
		}
		return defined(n.(variable)), nil
	case "first_delivery", "queue_running":
		return all{or: true}, nil // false: nothing is delivered while it is received
	}
	n, known := conditions[name]
	if !known {
		return nil, &Unsupported{What: "${if " + name + "…}", Runs: name == "acl" || name == "pam" || name == "radius" || name == "ldapauth" || name == "pwcheck" || name == "saslauthd"}
	}
	args, err := p.args(n-lists(name), n-lists(name))
	if err != nil {
		return nil, err
	}
	if lists(name) > 0 {
		list, err := p.literal()
		if err != nil {
			return nil, err
		}
		args = append(args, list)
	}
	return &compare{name, args}, nil
}

// lists is 1 for a condition whose second argument is a list: "$" in that is a dollar.
func lists(name string) int {
	if strings.HasPrefix(name, "match_") {
		return 1
	}
	return 0
}

// every reads {{cond}{cond}}.
func (p *parser) every(name string) (condition, error) {
	p.space()
	if p.i >= len(p.s) || p.s[p.i] != '{' {
		return nil, ErrBrace
	}
	p.i++
	a := all{or: name == "or"}
	for {
		p.space()
		switch {
		case p.i < len(p.s) && p.s[p.i] == '}':
			p.i++
			return a, nil
		case p.i >= len(p.s) || p.s[p.i] != '{':
			return nil, ErrBrace
		}
		p.i++
		c, err := p.condition()
		if err == nil {
			err = p.end()
		}
		if err != nil {
			return nil, err
		}
		a.cs = append(a.cs, c)
	}
}
