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

func reserved(w string) bool { return slices.Contains(reservedWords, w) }

var reservedWords = []string{
	"all", "and", "as", "asc", "between", "binary", "by", "case", "collate", "cross", "desc", "distinct", "div", "else", "end", "escape", "except",
	"exists", "fetch", "for", "force", "from", "full", "glob", "group", "having", "ignore", "ilike", "in", "indexed", "inner", "intersect", "interval", "into", "is", "isnull", "join",
	"lateral", "left", "like", "limit", "lock", "match", "minus", "mod", "natural", "not", "notnull", "null", "offset", "on", "or", "order", "outer", "procedure",
	"regexp", "right", "rlike", "select", "separator", "similar", "straight_join", "then", "union", "use", "using", "values", "when", "where", "window", "with", "xor",
	"filter", "over", "within",
}
