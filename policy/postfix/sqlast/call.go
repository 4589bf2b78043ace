package sqlast

import (
	"errors"
	"strings"
)

// cases reads CASE.
func (p *parser) cases() (*Expr, error) {
	e, start := &Expr{Op: OpCase}, p.n
	p.n++
	add := func() error {
		x, err := p.expr()
		e.Args = append(e.Args, x)
		return err
	}
	if !p.is("when") {
		e.Subject = true
		if err := add(); err != nil {
			return nil, err
		}
	}
	for p.word("when") {
		if err := add(); err != nil {
			return nil, err
		}
		if err := p.expect("then"); err != nil {
			return nil, err
		}
		if err := add(); err != nil {
			return nil, err
		}
	}
	if p.word("else") {
		e.Else = true
		if err := add(); err != nil {
			return nil, err
		}
	}
	err := p.expect("end")
	e.Span = p.from(start)
	return e, err
}

// interval reads INTERVAL '1 day' or INTERVAL 1 DAY.
func (p *parser) interval() (*Expr, error) {
	start := p.n
	p.n++
	x, err := p.arithmetic()
	if err != nil {
		return nil, err
	}
	if t := p.peek(); t.kind == word && !reserved(t.text) {
		p.n++
	}
	return &Expr{Span: p.from(start), Op: OpOpaque, Args: []*Expr{x}}, nil
}

// call reads a function with what may stand between its arguments.
func (p *parser) call() (*Expr, error) {
	e, start := &Expr{Op: OpCall}, p.n
	for {
		t := p.next()
		e.Name += fold(t.text)
		if !p.op(".") {
			break
		}
		e.Name += "."
	}
	if err := p.expect("("); err != nil {
		return nil, err
	}
	if e.Name == "cast" {
		return p.cast(e, start)
	}
	for !p.op(")") {
		if p.word("distinct", "all", "both", "leading", "trailing") {
			e.Odd = true
		}
		if err := p.argument(e); err != nil {
			return nil, err
		}
	}
	if err := p.window(e); err != nil {
		return nil, err
	}
	e.Span = p.from(start)
	return e, nil
}

// window passes over FILTER (…), WITHIN GROUP (…) and OVER (…): what such a
// function yields depends on many rows anyhow.
func (p *parser) window(e *Expr) error {
	for p.is("over", "filter", "within") {
		e.Odd = true
		switch p.next().text {
		case "over":
			if e.Window = true; p.peek().kind == word { // the name of a window
				return errors.New("a window with a name")
			}
		case "within":
			if !p.word("group") {
				return p.unexpected("GROUP")
			}
		}
		if err := p.expect("("); err != nil {
			return err
		}
		for depth := 1; depth > 0; {
			switch t := p.next(); {
			case t.kind == end || t.kind == word && t.text == "select":
				return errors.New("a query in a window")
			case t.kind == punct && t.text == "(":
				depth++
			case t.kind == punct && t.text == ")":
				depth--
			}
		}
	}
	return nil
}

func (p *parser) argument(e *Expr) error {
	if p.op("*") {
		e.Odd = true
		return nil
	}
	switch {
	case p.words("order", "by"):
		e.Odd = true
		list, err := p.order()
		e.Args = append(e.Args, list...)
		return err
	case p.word("from", "for", "using", "separator", "as"):
		e.Odd = true
	case len(e.Args) > 0 && !p.op(","):
		return p.unexpected(")")
	}
	x, err := p.expr()
	e.Args = append(e.Args, x)
	return err
}

func (p *parser) cast(e *Expr, start int) (*Expr, error) {
	x, err := p.expr()
	if err != nil {
		return nil, err
	}
	if err := p.expect("as"); err != nil {
		return nil, err
	}
	var name []string
	for depth := 0; depth > 0 || p.peek().kind != punct || p.peek().text != ")"; {
		t := p.next()
		switch {
		case t.kind == end || t.kind == str:
			return nil, p.unexpected(")")
		case t.text == "(":
			depth++
		case t.text == ")":
			depth--
		}
		name = append(name, t.text)
	}
	p.n++
	return &Expr{Span: p.from(start), Op: OpCast, Args: []*Expr{x}, Name: strings.Join(name, " ")}, nil
}
