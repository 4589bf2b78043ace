package sqlast

import (
	"errors"
	"fmt"
	"slices"
)

func (p *parser) expr() (*Expr, error) {
	if err := p.deeper(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	return p.or()
}

// level reads operands joined by one operator.
func (p *parser) level(op Op, operand func() (*Expr, error), joins func() bool) (*Expr, error) {
	start := p.n
	first, err := operand()
	if err != nil {
		return nil, err
	}
	e := &Expr{Op: op, Args: []*Expr{first}}
	for joins() {
		next, err := operand()
		if err != nil {
			return nil, err
		}
		e.Args = append(e.Args, next)
	}
	if len(e.Args) == 1 {
		return first, nil
	}
	e.Span = p.from(start)
	return e, nil
}

// or reads the weakest operator. MySQL's "||" is OR, or joins strings, as
// sql_mode has it: it makes an opaque node.
func (p *parser) or() (*Expr, error) {
	if p.dialect != MySQL {
		return p.level(OpOr, p.and, func() bool { return p.word("or") })
	}
	pipes := false
	e, err := p.level(OpOr, p.xor, func() bool {
		if p.op("||") {
			pipes = true
			return true
		}
		return p.word("or")
	})
	if err == nil && pipes {
		e.Op = OpOpaque
	}
	return e, err
}

func (p *parser) xor() (*Expr, error) {
	return p.level(OpXor, p.and, func() bool { return p.word("xor") })
}

func (p *parser) and() (*Expr, error) {
	return p.level(OpAnd, p.not, func() bool {
		return p.word("and") || p.dialect == MySQL && p.op("&&")
	})
}

func (p *parser) not() (*Expr, error) {
	start := p.n
	if !p.word("not") {
		return p.comparison()
	}
	if err := p.deeper(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	x, err := p.not()
	if err != nil {
		return nil, err
	}
	return &Expr{Span: p.from(start), Op: OpNot, Args: []*Expr{x}}, nil
}

var comparisons = []string{"=", "==", "<>", "!=", "<", ">", "<=", ">=", "<=>", "~", "~*", "!~", "!~*", "~~", "@>", "<@"}

// comparison reads at most one: what a chain means differs.
func (p *parser) comparison() (*Expr, error) {
	start := p.n
	left, err := p.arithmetic()
	if err != nil {
		return nil, err
	}
	e, err := p.compared(left)
	if err != nil || e == nil {
		return left, err
	}
	e.Span = p.from(start)
	if p.comparesNext() {
		return nil, errors.New("a comparison of a comparison")
	}
	return e, nil
}

func (p *parser) comparesNext() bool {
	t := p.peek()
	return t.kind == punct && slices.Contains(comparisons, t.text) ||
		p.is("is", "isnull", "notnull", "in", "like", "ilike", "between", "regexp", "rlike", "glob", "match", "similar", "sounds", "member", "not")
}

// compared reads what follows the left side, nil when that is nothing.
func (p *parser) compared(left *Expr) (e *Expr, err error) {
	t := p.peek()
	if t.kind == punct && slices.Contains(comparisons, t.text) {
		p.n++
		e = &Expr{Op: OpCompare, Name: t.text, Args: []*Expr{left}}
		switch t.text {
		case "==":
			e.Name = "="
		case "~", "~*", "!~", "!~*", "~~":
			e.Op = OpLike
			e.Negated = t.text[0] == '!'
		case "@>", "<@":
			e.Op = OpOpaque
		}
		if p.is("any", "all", "some") {
			return nil, errors.New("ANY or ALL")
		}
		return e, p.operand(e)
	}
	if p.word("is") {
		return p.is_(left)
	}
	if p.word("isnull", "notnull") {
		return &Expr{Op: OpIsNull, Args: []*Expr{left}, Negated: p.ts[p.n-1].text == "notnull"}, nil
	}
	negated := p.word("not")
	e = &Expr{Args: []*Expr{left}, Negated: negated}
	switch {
	case p.word("in"):
		e.Op = OpIn
		return e, p.in(e)
	case p.word("like", "ilike", "regexp", "rlike", "glob", "match"):
		e.Op, e.Name = OpLike, p.ts[p.n-1].text
		if err := p.operand(e); err != nil {
			return nil, err
		}
		if p.word("escape") {
			return e, p.operand(e)
		}
		return e, nil
	case p.word("between"):
		e.Op = OpBetween
		p.word("symmetric")
		if err := p.operand(e); err != nil {
			return nil, err
		}
		if err := p.expect("and"); err != nil {
			return nil, err
		}
		return e, p.operand(e)
	case negated:
		return nil, p.unexpected("LIKE, IN or BETWEEN")
	}
	return nil, nil
}

func (p *parser) operand(e *Expr) error {
	x, err := p.arithmetic()
	e.Args = append(e.Args, x)
	return err
}

func (p *parser) is_(left *Expr) (*Expr, error) {
	e := &Expr{Op: OpIsNull, Args: []*Expr{left}, Negated: p.word("not")}
	switch {
	case p.word("null"):
		return e, nil
	case p.word("true", "false", "unknown"):
		e.Op = OpOpaque
		return e, nil
	case p.words("distinct", "from"):
		e.Op = OpOpaque
		return e, p.operand(e)
	}
	if p.dialect != SQLite {
		return nil, p.unexpected("NULL")
	}
	e.Op = OpOpaque
	return e, p.operand(e)
}

func (p *parser) in(e *Expr) (err error) {
	if err := p.expect("("); err != nil {
		return err
	}
	if p.selectFollows() {
		if e.Sub, err = p.query(); err != nil {
			return err
		}
		return p.expect(")")
	}
	list, err := p.list()
	if err != nil {
		return err
	}
	e.Args = append(e.Args, list...)
	return p.expect(")")
}

var calculating = []string{"+", "-", "*", "/", "%", "^", "&", "|", "<<", ">>", "->", "->>", "#>", "#>>", "#", "?", "&&", "||"}

// arithmetic reads operands that anything but comparisons and logic joins. When
// all of it is "||", that joins strings.
func (p *parser) arithmetic() (*Expr, error) {
	concat := true
	e, err := p.level(OpConcat, p.unary, func() bool {
		t := p.peek()
		switch {
		case t.kind == word && p.dialect == MySQL && (t.text == "div" || t.text == "mod"):
		case t.kind != punct || !slices.Contains(calculating, t.text):
			return false
		case p.dialect == MySQL && (t.text == "||" || t.text == "&&"):
			return false
		case t.text == "||":
			p.n++
			return true
		}
		p.n++
		concat = false
		return true
	})
	if err == nil && !concat {
		e.Op = OpOpaque
	}
	return e, err
}

func (p *parser) unary() (*Expr, error) {
	start := p.n
	if p.op("-") || p.op("+") || p.op("~") || p.dialect == MySQL && p.op("!") || p.dialect == MySQL && p.word("binary") {
		binary := p.ts[p.n-1].text == "binary"
		if err := p.deeper(); err != nil {
			return nil, err
		}
		defer func() { p.depth-- }()
		x, err := p.unary()
		if err != nil {
			return nil, err
		}
		e := &Expr{Span: p.from(start), Args: []*Expr{x}}
		if binary {
			e.Op, e.Name = OpCast, "binary"
		}
		return e, nil
	}
	e, err := p.primary()
	for err == nil {
		x := &Expr{Args: []*Expr{e}}
		switch {
		case p.word("collate"):
			x.Op = OpCollate
			for more := true; more && err == nil; more = p.op(".") {
				_, err = p.name()
			}
		case p.op("::"):
			x.Op = OpCast
			x.Name, err = p.typeName()
		case p.words("at", "time", "zone"):
			_, err = p.primary()
		case p.dialect == PostgreSQL && p.op("["):
			var index *Expr
			if index, err = p.expr(); err == nil {
				x.Args = append(x.Args, index)
				err = p.expect("]")
			}
		default:
			return e, nil
		}
		x.Span = p.from(start)
		e = x
	}
	return nil, err
}

// typeName reads what "::" casts to.
func (p *parser) typeName() (string, error) {
	name, err := p.name()
	if err != nil {
		return "", err
	}
	for p.op(".") {
		if name, err = p.name(); err != nil {
			return "", err
		}
	}
	p.word("varying", "precision")
	if p.op("(") {
		name += "()"
		for p.peek().kind == number || p.peek().kind == punct && p.peek().text == "," {
			p.n++
		}
		if err := p.expect(")"); err != nil {
			return "", err
		}
	}
	for p.op("[") {
		name += "[]"
		if err := p.expect("]"); err != nil {
			return "", err
		}
	}
	return name, nil
}

func (p *parser) primary() (*Expr, error) {
	start, t := p.n, p.peek()
	leaf := func(op Op) (*Expr, error) {
		p.n++
		return &Expr{Span: t.Span, Op: op, Name: t.text}, nil
	}
	switch {
	case t.kind == number:
		return leaf(OpNumber)
	case t.kind == str:
		return p.strings()
	case t.kind == punct && t.text == "(":
		return p.parentheses()
	case t.kind == quoted:
		return p.column()
	case t.kind != word:
		return nil, p.unexpected("an expression")
	}
	switch t.text {
	case "null":
		return leaf(OpNull)
	case "true", "false", "default", "current_timestamp", "current_date", "current_time":
		if n := p.peekAt(1); n.kind != punct || n.text != "(" {
			return leaf(OpNumber)
		}
	case "exists":
		p.n++
		q, err := p.inParentheses()
		return &Expr{Span: p.from(start), Op: OpExists, Sub: q}, err
	case "case":
		return p.cases()
	case "interval":
		return p.interval()
	case "row", "array":
		return nil, fmt.Errorf("%s", t.text)
	}
	if n := p.peekAt(1); n.kind == punct && n.text == "(" && (!reserved(t.text) || slices.Contains([]string{"left", "right", "mod", "values", "binary", "match", "glob"}, t.text)) {
		return p.call()
	}
	if n := p.peekAt(1); n.kind == str && p.dialect == MySQL && slices.Contains([]string{"_utf8mb4", "_utf8mb3", "_utf8", "_latin1", "_ascii"}, t.text) {
		p.n++ // a string's character set
		e, err := p.strings()
		if err == nil {
			e.Span = p.from(start)
		}
		return e, err
	}
	if n := p.peekAt(1); n.kind == str && p.dialect == PostgreSQL && !reserved(t.text) { // type 'text'
		p.n += 2
		return &Expr{Span: p.from(start), Op: OpOpaque}, nil
	}
	return p.column()
}

// strings reads one. Adjoining ones are one in MySQL.
func (p *parser) strings() (*Expr, error) {
	t := p.next()
	if p.peek().kind == str {
		return nil, errors.New("strings side by side")
	}
	return &Expr{Span: t.Span, Op: OpString, Text: t.text}, nil
}

func (p *parser) parentheses() (*Expr, error) {
	start := p.n
	if p.selectFollows() {
		q, err := p.inParentheses()
		return &Expr{Span: p.from(start), Op: OpQuery, Sub: q}, err
	}
	p.n++
	list, err := p.list()
	if err != nil {
		return nil, err
	}
	if err := p.expect(")"); err != nil {
		return nil, err
	}
	if len(list) > 1 {
		return &Expr{Span: p.from(start), Op: OpRow, Args: list}, nil
	}
	e := *list[0]
	e.Span = p.from(start)
	return &e, nil
}

func (p *parser) column() (*Expr, error) {
	start := p.n
	name, err := p.name()
	for err == nil && p.op(".") {
		// After a dot any word is a name.
		if t := p.peek(); t.kind == word || t.kind == quoted {
			name += "." + fold(t.text)
			p.n++
		} else {
			err = p.unexpected("a name")
		}
	}
	if err != nil {
		return nil, err
	}
	if t := p.peek(); t.kind == punct && t.text == "(" {
		p.n = start
		return p.call()
	}
	return &Expr{Span: p.from(start), Op: OpColumn, Name: name}, nil
}
