package sqlast

import (
	"errors"
	"fmt"
	"slices"
)

// maxDepth bounds how deep a statement may be nested.
const maxDepth = 50

type parser struct {
	s       string
	dialect Dialect
	ts      []token
	n       int // of the next token
	depth   int
}

// Parse reads one SELECT statement, which Template has prepared.
func Parse(text string, d Dialect) (*Query, error) {
	if len(text) > 4*maxText {
		return nil, fmt.Errorf("longer than %d octets", maxText)
	}
	ts, err := lex(text, d)
	if err != nil {
		return nil, err
	}
	p := &parser{s: text, dialect: d, ts: ts}
	q, err := p.query()
	for err == nil && p.op(";") {
	}
	if err == nil && p.peek().kind != end {
		err = p.unexpected("the end")
	}
	if err != nil {
		return nil, err
	}
	return q, nil
}

func (p *parser) peek() token { return p.ts[p.n] }

func (p *parser) peekAt(k int) token { return p.ts[min(p.n+k, len(p.ts)-1)] }

func (p *parser) next() token {
	t := p.ts[p.n]
	if t.kind != end {
		p.n++
	}
	return t
}

// is says that a word comes next.
func (p *parser) is(words ...string) bool {
	t := p.peek()
	return t.kind == word && slices.Contains(words, t.text)
}

// word takes one, if it comes next.
func (p *parser) word(words ...string) bool {
	if p.is(words...) {
		p.n++
		return true
	}
	return false
}

// words takes several in a row.
func (p *parser) words(list ...string) bool {
	for k, w := range list {
		if t := p.peekAt(k); t.kind != word || t.text != w {
			return false
		}
	}
	p.n += len(list)
	return true
}

func (p *parser) op(text string) bool {
	if t := p.peek(); t.kind == punct && t.text == text {
		p.n++
		return true
	}
	return false
}

func (p *parser) expect(text string) error {
	if p.op(text) || p.word(text) {
		return nil
	}
	return p.unexpected(text)
}

func (p *parser) unexpected(want string) error {
	t := p.peek()
	if t.kind == end {
		return fmt.Errorf("it ends where %s should be", want)
	}
	return fmt.Errorf("%.40q where %s should be", p.s[t.Start:t.End], want)
}

// from is the span from a token's number to the last token that was taken.
func (p *parser) from(n int) Span {
	if p.n == n {
		return Span{p.ts[n].Start, p.ts[n].Start}
	}
	return Span{p.ts[n].Start, p.ts[p.n-1].End}
}

func (p *parser) deeper() error {
	if p.depth++; p.depth > maxDepth {
		return errors.New("nested too deep")
	}
	return nil
}

// query reads terms with their set operations, and what applies to all.
func (p *parser) query() (*Query, error) {
	if err := p.deeper(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	q, start := &Query{}, p.n
	var err error
	if p.word("with") {
		if q.With, err = p.with(); err != nil {
			return nil, err
		}
	}
	for {
		t, err := p.term()
		if err != nil {
			return nil, err
		}
		q.Terms = append(q.Terms, t)
		op := p.setOp()
		if op == "" {
			break
		}
		q.Ops = append(q.Ops, op)
	}
	if err := p.tail(q); err != nil {
		return nil, err
	}
	q.Span = p.from(start)
	return q, nil
}

func (p *parser) setOp() string {
	switch {
	case p.words("union", "all"):
		return "union all"
	case p.word("union"):
		p.word("distinct")
		return "union"
	case p.word("except"), p.word("minus"):
		if !p.word("all") {
			p.word("distinct")
		}
		return "except"
	case p.word("intersect"):
		if !p.word("all") {
			p.word("distinct")
		}
		return "intersect"
	}
	return ""
}

func (p *parser) with() (list []*Named, err error) {
	recursive := p.word("recursive")
	for {
		n := &Named{Recursive: recursive}
		if n.Name, err = p.name(); err != nil {
			return nil, err
		}
		if p.op("(") {
			return nil, errors.New("WITH names columns")
		}
		if err := p.expect("as"); err != nil {
			return nil, err
		}
		if p.word("not") || p.is("materialized") {
			p.word("materialized")
		}
		if n.Query, err = p.inParentheses(); err != nil {
			return nil, err
		}
		list = append(list, n)
		if !p.op(",") {
			return list, nil
		}
	}
}

func (p *parser) inParentheses() (*Query, error) {
	if err := p.expect("("); err != nil {
		return nil, err
	}
	q, err := p.query()
	if err != nil {
		return nil, err
	}
	return q, p.expect(")")
}

func (p *parser) term() (t *Term, err error) {
	t = &Term{}
	start := p.n
	if p.op("(") {
		p.n--
		t.Query, err = p.inParentheses()
	} else {
		t.Select, err = p.selects()
	}
	t.Span = p.from(start)
	return t, err
}

// selects reads one SELECT up to what a whole query ends with.
func (p *parser) selects() (s *Select, err error) {
	s = &Select{}
	start := p.n
	if err := p.expect("select"); err != nil {
		return nil, err
	}
	for p.is("all", "distinct", "distinctrow", "high_priority", "sql_no_cache", "sql_cache", "straight_join") {
		s.Distinct = s.Distinct || p.is("distinct", "distinctrow")
		p.n++
	}
	if p.is("on") {
		return nil, errors.New("DISTINCT ON")
	}
	items := p.n
	for {
		i, err := p.item()
		if err != nil {
			return nil, err
		}
		if s.Items = append(s.Items, i); !p.op(",") {
			break
		}
	}
	s.ItemSpan = p.from(items)
	if p.word("from") {
		from := p.n
		if s.From, err = p.fromList(); err != nil {
			return nil, err
		}
		s.FromSpan = p.from(from)
	}
	if err := p.conditions(s); err != nil {
		return nil, err
	}
	s.Span = p.from(start)
	return s, nil
}

func (p *parser) conditions(s *Select) (err error) {
	if p.word("where") {
		if s.Where, err = p.expr(); err != nil {
			return err
		}
	}
	if p.words("group", "by") {
		if s.Group, err = p.list(); err != nil {
			return err
		}
	}
	if p.word("having") {
		if s.Having, err = p.expr(); err != nil {
			return err
		}
	}
	if p.is("window", "into", "procedure", "qualify") {
		return fmt.Errorf("the clause %s", p.peek().text)
	}
	return nil
}

func (p *parser) item() (*Item, error) {
	i, start := &Item{}, p.n
	if p.op("*") {
		i.Span = p.from(start)
		return i, nil
	}
	if k := p.star(); k > 0 {
		p.n += k
		i.Span = p.from(start)
		return i, nil
	}
	var err error
	if i.Expr, err = p.expr(); err != nil {
		return nil, err
	}
	i.Alias, err = p.alias(true)
	i.Span = p.from(start)
	return i, err
}

// star is how many tokens "a.b.*" has, 0 when it isn't that.
func (p *parser) star() int {
	for k := 0; p.peekAt(k).kind == word || p.peekAt(k).kind == quoted; k += 2 {
		if dot := p.peekAt(k + 1); dot.kind != punct || dot.text != "." {
			return 0
		}
		if s := p.peekAt(k + 2); s.kind == punct && s.text == "*" {
			return k + 3
		}
	}
	return 0
}

// alias reads one, with or without AS. Strings may name columns.
func (p *parser) alias(strings bool) (string, error) {
	as := p.word("as")
	t := p.peek()
	switch {
	case t.kind == quoted, t.kind == word && (as || !reserved(t.text)), strings && t.kind == str && !Holes(t.text):
		p.n++
		return fold(t.text), nil
	case as:
		return "", p.unexpected("a name")
	}
	return "", nil
}

func (p *parser) name() (string, error) {
	if t := p.peek(); t.kind == quoted || t.kind == word && !reserved(t.text) {
		p.n++
		return fold(t.text), nil
	}
	return "", p.unexpected("a name")
}

func (p *parser) list() (all []*Expr, err error) {
	for {
		e, err := p.expr()
		if err != nil {
			return nil, err
		}
		if all = append(all, e); !p.op(",") {
			return all, nil
		}
	}
}

// tail reads ORDER BY, LIMIT and what may follow.
func (p *parser) tail(q *Query) (err error) {
	start := p.n
	if p.words("order", "by") {
		if q.Order, err = p.order(); err != nil {
			return err
		}
	}
	q.Tail = p.from(start)
	for {
		switch {
		case p.word("limit"):
			if p.word("all") {
				continue
			}
			if q.Limit, err = p.expr(); err != nil {
				return err
			}
			if p.op(",") { // LIMIT offset, count
				q.Skips = true
				if q.Limit, err = p.expr(); err != nil {
					return err
				}
			}
		case p.word("offset"):
			q.Skips = true
			if _, err = p.expr(); err != nil {
				return err
			}
			p.word("row", "rows")
		case p.word("fetch"):
			return errors.New("FETCH")
		case p.is("for", "lock"):
			q.Locks = true
			for p.is("for", "lock", "in", "share", "mode", "update", "nowait", "skip", "locked", "key", "no") {
				p.n++
			}
		default:
			return nil
		}
	}
}

func (p *parser) order() (all []*Expr, err error) {
	for {
		e, err := p.expr()
		if err != nil {
			return nil, err
		}
		all = append(all, e)
		p.word("asc", "desc")
		if p.word("nulls") && !p.word("first", "last") {
			return nil, p.unexpected("FIRST or LAST")
		}
		if !p.op(",") {
			return all, nil
		}
	}
}

func reserved(w string) bool { return slices.Contains(reservedWords, w) }

var reservedWords = []string{
	"all", "and", "as", "asc", "between", "binary", "by", "case", "collate", "cross", "desc", "distinct", "div", "else", "end", "escape", "except",
	"exists", "fetch", "for", "force", "from", "full", "glob", "group", "having", "ignore", "ilike", "in", "indexed", "inner", "intersect", "interval", "into", "is", "isnull", "join",
	"lateral", "left", "like", "limit", "lock", "match", "minus", "mod", "natural", "not", "notnull", "null", "offset", "on", "or", "order", "outer", "procedure",
	"regexp", "right", "rlike", "select", "separator", "similar", "straight_join", "then", "union", "use", "using", "values", "when", "where", "window", "with", "xor",
	"filter", "over", "within",
}
