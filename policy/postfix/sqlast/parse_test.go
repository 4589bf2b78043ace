package sqlast

import (
	"fmt"
	"strings"
	"testing"
)

// dump writes an expression's structure.
func dump(s string, e *Expr) string {
	names := map[Op]string{OpOpaque: "?", OpConcat: "||", OpAnd: "and", OpOr: "or", OpXor: "xor", OpNot: "not", OpLike: "like", OpIn: "in",
		OpBetween: "between", OpIsNull: "null?", OpExists: "exists", OpCase: "case", OpCast: "cast", OpCollate: "collate", OpQuery: "query", OpRow: "row"}
	switch e.Op {
	case OpColumn, OpString, OpNumber, OpNull:
		return s[e.Start:e.End]
	}
	name := names[e.Op]
	if e.Op == OpCompare || e.Op == OpCall {
		name = e.Name
	}
	if e.Negated {
		name = "not-" + name
	}
	parts := []string{name}
	for _, a := range e.Args {
		parts = append(parts, dump(s, a))
	}
	if e.Sub != nil {
		parts = append(parts, "{"+s[e.Sub.Start:e.Sub.End]+"}")
	}
	return "(" + strings.Join(parts, " ") + ")"
}

var dialectNames = map[string]Dialect{"mysql": MySQL, "pgsql": PostgreSQL, "sqlite": SQLite}

func TestConditions(t *testing.T) {
	for _, tt := range []struct{ dialects, condition, want string }{
		{"mysql pgsql sqlite", "a = 1 AND b = 2 OR c = 3", "(or (and (= a 1) (= b 2)) (= c 3))"},
		{"mysql pgsql sqlite", "a = 1 OR b = 2 AND c = 3", "(or (= a 1) (and (= b 2) (= c 3)))"},
		{"mysql pgsql sqlite", "NOT a = 1 AND b", "(and (not (= a 1)) b)"},
		{"mysql", "a AND b XOR c OR d", "(or (xor (and a b) c) d)"},
		{"mysql", "a && b || c", "(? (and a b) c)"},
		{"mysql", "a DIV 2 = 1 AND b", "(and (= (? a 2) 1) b)"},
		{"mysql", "!a AND b", "(and (? a) b)"},
		{"mysql", "BINARY a = 'x'", "(= (cast a) 'x')"},
		{"mysql", `a = "x" AND b = 'it''s'`, `(and (= a "x") (= b 'it''s'))`},
		{"mysql", "a REGEXP '^x' OR b", "(or (like a '^x') b)"},
		{"pgsql sqlite", "a || '@' || b = 'x'", "(= (|| a '@' b) 'x')"},
		{"pgsql sqlite", "a || '@' + b = 'x'", "(= (? a '@' b) 'x')"},
		{"pgsql", "a::text = 'x' AND b::varchar(5) = c", "(and (= (cast a) 'x') (= (cast b) c))"},
		{"pgsql", "a ILIKE 'x' AND b ~* 'y'", "(and (like a 'x') (like b 'y'))"},
		{"mysql pgsql sqlite", "a BETWEEN 1 AND 2 AND b", "(and (between a 1 2) b)"},
		{"mysql pgsql sqlite", "a NOT IN ('x', 'y') AND b IN (SELECT c FROM d)", "(and (not-in a 'x' 'y') (in b {SELECT c FROM d}))"},
		{"mysql pgsql sqlite", "a IS NOT NULL AND b IS NULL", "(and (not-null? a) (null? b))"},
		{"mysql pgsql sqlite", "EXISTS (SELECT 1 FROM x) OR NOT EXISTS (SELECT 2)", "(or (exists {SELECT 1 FROM x}) (not (exists {SELECT 2})))"},
		{"mysql pgsql sqlite", "CASE WHEN a THEN b WHEN c THEN d ELSE e END = f", "(= (case a b c d e) f)"},
		{"mysql pgsql sqlite", "CASE a WHEN 1 THEN b END = f", "(= (case a 1 b) f)"},
		{"mysql pgsql sqlite", "a LIKE 'x' ESCAPE '!' AND t.b = 'y' COLLATE nocase", "(and (like a 'x' '!') (= t.b (collate 'y')))"},
		{"mysql", "a = _utf8mb4'x' COLLATE utf8mb4_general_ci", "(= a (collate _utf8mb4'x'))"},
		{"mysql pgsql sqlite", "(a = 1 OR b) AND ((c))", "(and (or (= a 1) b) ((c)))"},
		{"mysql pgsql sqlite", "(a, b) = ('x', 'y')", "(= (row a b) (row 'x' 'y'))"},
		{"mysql pgsql sqlite", "coalesce((SELECT a FROM b LIMIT 1), 'x') = lower(c)", "(= (coalesce (query {(SELECT a FROM b LIMIT 1)}) 'x') (lower c))"},
		{"mysql pgsql sqlite", "cast(a AS char(20)) = -1", "(= (cast a) (? 1))"},
		{"mysql pgsql sqlite", "a /* so */ = 1", "(= a 1)"},
	} {
		for name := range strings.FieldsSeq(tt.dialects) {
			text := "SELECT x FROM t WHERE " + tt.condition
			q, err := Parse(text, dialectNames[name])
			if err != nil {
				t.Errorf("%s: %s: %v", name, tt.condition, err)
				continue
			}
			// A query's own span has no parentheses.
			got := strings.ReplaceAll(dump(text, q.Terms[0].Select.Where), "{(SELECT", "{SELECT")
			want := strings.ReplaceAll(tt.want, "{(SELECT a FROM b LIMIT 1)}", "{SELECT a FROM b LIMIT 1}")
			if got != want {
				t.Errorf("%s: %s\n got %s\nwant %s", name, tt.condition, got, want)
			}
		}
	}
}

// TestStatements names the tables, and how many terms a statement has.
func TestStatements(t *testing.T) {
	for _, tt := range []struct {
		dialects, query string
		want            string
	}{
		{"mysql pgsql", "(SELECT a FROM b LIMIT 1) UNION (SELECT c FROM d)", "2 b d"},
		{"mysql pgsql sqlite", "SELECT a FROM b UNION ALL SELECT c FROM d UNION SELECT e FROM f ORDER BY 1 LIMIT 2", "3 b d f"},
		{"mysql pgsql sqlite", "SELECT a FROM (SELECT x AS a FROM y) AS z, w LEFT JOIN v ON v.a = w.a", "1 y w v"},
		{"mysql pgsql sqlite", "SELECT (SELECT a FROM b WHERE c IN (SELECT d FROM e)) FROM f", "1 b e f"},
		{"mysql pgsql sqlite", "WITH q AS (SELECT a FROM b) SELECT a FROM q JOIN c ON q.a = c.a", "1 b c"},
		{"mysql pgsql sqlite", "SELECT 1", "1"},
		{"mysql pgsql sqlite", "select t.* from t join u using (a, b) natural join v;", "1 t u v"},
		{"mysql pgsql sqlite", `SELECT a FROM s.t AS "x" WHERE x.a = 'k' GROUP BY a HAVING count(*) > 1`, "1 s.t"},
		{"mysql", "SELECT a FROM `select` WHERE b = 'c' LIMIT 1, 2 FOR UPDATE", "1 `select`"},
		{"sqlite", "SELECT a FROM [order] WHERE b == 'c'", "1 [order]"},
		{"pgsql", "SELECT * FROM lookup('x')", "1"},
		{"mysql", "SELECT group_concat(DISTINCT a ORDER BY b SEPARATOR ',') FROM c", "1 c"},
		{"mysql pgsql sqlite", "SELECT substring(a FROM 1 FOR 2), trim(BOTH 'x' FROM b) FROM c", "1 c"},
		{"mysql", "SELECT a FROM b WHERE c > NOW() - INTERVAL 1 DAY", "1 b"},
		{"pgsql", "SELECT a FROM b WHERE c > now() - interval '1 day' AND d = E'x' AND e = date '2020-01-01'", "1 b"},
	} {
		for name := range strings.FieldsSeq(tt.dialects) {
			if name == "mysql" {
				tt.query = strings.ReplaceAll(tt.query, `"x"`, "x")
			}
			q, err := Parse(tt.query, dialectNames[name])
			if err != nil {
				t.Errorf("%s: %s: %v", name, tt.query, err)
				continue
			}
			got := fmt.Sprint(len(q.Terms))
			q.Tables(func(f *From) { got += " " + f.Table })
			// Tables come in the order of the clauses.
			if fmt.Sprint(sortedWords(got)) != fmt.Sprint(sortedWords(tt.want)) {
				t.Errorf("%s: %s: got %q, want %q", name, tt.query, got, tt.want)
			}
		}
	}
}

func sortedWords(s string) map[string]int {
	m := map[string]int{}
	for w := range strings.FieldsSeq(s) {
		m[w]++
	}
	return m
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct{ dialect, query, want string }{
		{"mysql", "SELECT a FROM b WHERE c = %s", "outside of quotes"},
		{"mysql", "SELECT a FROM b WHERE c = '%s", "doesn't end"},
		{"mysql", `SELECT a FROM b WHERE c = '\%s'`, "backslash"},
		{"mysql", "SELECT a FROM b WHERE c = d = '%s'", "comparison"},
		{"pgsql", "SELECT a FROM b WHERE c = '%s' IS NULL", "comparison"},
		{"sqlite", "SELECT a FROM b WHERE NOT c LIKE '%s' LIKE d", "comparison"},
		{"mysql", "SELECT a FROM b -- c", "comment"},
		{"mysql", "SELECT a FROM b # c", "comment"},
		{"mysql", "SELECT a /*! , b */ FROM b", "comment"},
		{"mysql", "SELECT a FROM b; SELECT c FROM d", "the end"},
		{"mysql", "DELETE FROM b", "select"},
		{"pgsql", "SELECT a FROM b WHERE c = $$x$$", "dollars"},
		{"pgsql", "SELECT DISTINCT ON (a) a FROM b", "DISTINCT ON"},
		{"pgsql", "SELECT rank() OVER w FROM b", "window"},
		{"pgsql", "SELECT rank() OVER (ORDER BY (SELECT c)) FROM b", "window"},
		{"pgsql", "SELECT a FROM b WHERE c = ANY('{x}')", "ANY"},
		{"mysql", "SELECT 'a' '%s' FROM b", "side by side"},
		{"mysql", "SELECT a FROM b WHERE c = '%q'", "%q"},
		{"mysql", "SELECT a FROM b WHERE c = '%", "ends in %"},
		{"mysql", "SELECT a FROM b WHERE " + strings.Repeat("(", 200) + "1" + strings.Repeat(")", 200), "deep"},
	} {
		text, err := Template(tt.query)
		if err == nil {
			_, err = Parse(text, dialectNames[tt.dialect])
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.query, err, tt.want)
		}
	}
}

// FuzzParse wants every node within its parent's text, and a condition's text
// to be read alike when it stands alone.
func FuzzParse(f *testing.F) {
	f.Add("SELECT goto FROM alias WHERE address = CONCAT('%u', '@', d) AND x = '%d' OR y IN (SELECT z FROM w)")
	f.Add("(SELECT a FROM b LIMIT 1) UNION ALL SELECT CASE WHEN '%s' LIKE 'x' THEN 1 ELSE NULL END ORDER BY 1")
	f.Add("SELECT a::text || '%s' COLLATE x FROM (b LEFT JOIN c ON b.d = c.d) WHERE NOT EXISTS (SELECT 1)")
	f.Fuzz(func(t *testing.T, query string) {
		text, err := Template(query)
		if err != nil {
			return
		}
		for _, d := range []Dialect{MySQL, PostgreSQL, SQLite} {
			q, err := Parse(text, d)
			if err != nil {
				continue
			}
			q.Tables(func(f *From) {
				if !strings.Contains(text[f.Start:f.End], f.Table) {
					t.Errorf("table %q isn't in %q", f.Table, text[f.Start:f.End])
				}
			})
			q.Walk(func(e *Expr) {
				for _, a := range e.Args {
					if a.Start < e.Start || a.End > e.End || a.Start >= a.End {
						t.Fatalf("%q: %q isn't in %q", text, text[a.Start:a.End], text[e.Start:e.End])
					}
				}
			})
			if w := q.Terms[0].Select; w != nil && w.Where != nil {
				alone := "SELECT 1 FROM t WHERE " + text[w.Where.Start:w.Where.End]
				again, err := Parse(alone, d)
				if err != nil {
					t.Fatalf("%q: its condition alone: %v", text, err)
				}
				if a, b := dump(text, w.Where), dump(alone, again.Terms[0].Select.Where); a != b {
					t.Fatalf("%q: %s and alone %s", text, a, b)
				}
			}
		}
	})
}
