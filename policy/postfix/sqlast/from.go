package sqlast

import (
	"errors"
	"fmt"
	"slices"
)

func (p *parser) fromList() (all []*From, err error) {
	for {
		f, err := p.join()
		if err != nil {
			return nil, err
		}
		if all = append(all, f); !p.op(",") {
			return all, nil
		}
	}
}

// joinKind reads the words of a join, and says which it is.
func (p *parser) joinKind() (kind string, err error) {
	natural := p.word("natural")
	switch {
	case p.word("left"), p.word("right"), p.word("full"):
		kind = p.ts[p.n-1].text
		p.word("outer")
	case p.word("inner"), p.word("cross"):
		kind = "inner"
	case p.word("straight_join"):
		return "inner", nil
	case p.is("join"):
		kind = "inner"
	case natural:
		return "", p.unexpected("JOIN")
	default:
		return "", nil
	}
	if natural {
		kind = "natural"
	}
	return kind, p.expect("join")
}

func (p *parser) join() (*From, error) {
	if err := p.deeper(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	start := p.n
	left, err := p.table()
	for err == nil {
		j := &From{Left: left}
		if j.Join, err = p.joinKind(); err != nil || j.Join == "" {
			return left, err
		}
		if j.Right, err = p.table(); err != nil {
			return nil, err
		}
		switch {
		case p.word("on"):
			j.On, err = p.expr()
		case p.word("using"):
			j.Using = true
			if err = p.expect("("); err == nil {
				if _, err = p.list(); err == nil {
					err = p.expect(")")
				}
			}
		case p.is("join", "inner", "left", "right", "full", "cross", "natural", "straight_join") && j.Join != "natural" && p.dialect == MySQL && p.ts[p.n-1].kind == punct:
			err = errors.New("joins whose ON come at the end")
		}
		j.Span = p.from(start)
		left = j
	}
	return nil, err
}

// table reads a table, a query or a function that yields one, or a join in
// parentheses.
func (p *parser) table() (f *From, err error) {
	f = &From{}
	start := p.n
	f.Lateral = p.word("lateral")
	if p.op("(") {
		if p.is("select", "with", "values") || p.peek().kind == punct && p.peek().text == "(" && p.selectFollows() {
			if f.Sub, err = p.query(); err != nil {
				return nil, err
			}
			if err = p.expect(")"); err != nil {
				return nil, err
			}
			return f, p.tableAlias(f, start)
		}
		list, err := p.fromList()
		if err != nil {
			return nil, err
		}
		if err := p.expect(")"); err != nil {
			return nil, err
		}
		if len(list) > 1 {
			return nil, errors.New("tables with commas in parentheses")
		}
		f = list[0]
		if f.Table == "" && f.Sub == nil {
			f.Span = p.from(start)
		}
		return f, nil
	}
	if _, err := p.name(); err != nil {
		return nil, err
	}
	last := fold(p.ts[p.n-1].text)
	for p.op(".") {
		if _, err := p.name(); err != nil {
			return nil, err
		}
		last = fold(p.ts[p.n-1].text)
	}
	name := p.from(start)
	if t := p.peek(); t.kind == punct && t.text == "(" {
		p.n = start
		if f.Call, err = p.primary(); err != nil {
			return nil, err
		}
	} else {
		f.Table = p.s[name.Start:name.End]
		f.Alias = last
	}
	return f, p.tableAlias(f, start)
}

// selectFollows looks past parentheses.
func (p *parser) selectFollows() bool {
	k := 0
	for p.peekAt(k).kind == punct && p.peekAt(k).text == "(" {
		k++
	}
	t := p.peekAt(k)
	return t.kind == word && slices.Contains([]string{"select", "with", "values"}, t.text)
}

func (p *parser) tableAlias(f *From, start int) error {
	a, err := p.alias(false)
	if err != nil {
		return err
	}
	if a != "" {
		f.Alias = a
	}
	if t := p.peek(); a != "" && t.kind == punct && t.text == "(" {
		return errors.New("names for a table's columns")
	}
	if p.is("use", "ignore", "force", "indexed", "tablesample", "partition") {
		return fmt.Errorf("%s beside a table", p.peek().text)
	}
	f.Span = p.from(start)
	return nil
}
