package postfix

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// suiteData is a hosting provider's data, the same for each suite. It reaches
// a suite's columns by way of tables that fill.sql selects from and that are
// dropped then.
type suiteData struct {
	domains []genDomain
	boxes   []genAddress
	aliases []genAddress
	tables  map[string][][]any // gen_…: rows
}

type genDomain struct {
	id         int
	name, kind string // mail, alias or relay
	target     string // of an alias
	active, n  int
	nextHop    string
}

type genAddress struct {
	local, domain string
}

func (a genAddress) String() string { return a.local + "@" + a.domain }

var suiteColumns = map[string]string{
	"gen_domain":    "id INT, name VARCHAR(190), kind VARCHAR(10), target VARCHAR(190), active INT, transport VARCHAR(190), n INT",
	"gen_mailbox":   "id INT, address VARCHAR(190), local_part VARCHAR(190), domain VARCHAR(190), domain_id INT, maildir VARCHAR(250), active INT, n INT",
	"gen_alias":     "id INT, address VARCHAR(190), local_part VARCHAR(190), domain VARCHAR(190), domain_id INT, dest VARCHAR(500), kind VARCHAR(10), active INT, expires INT, n INT",
	"gen_transport": "id INT, destination VARCHAR(190), nexthop VARCHAR(190), active INT, n INT",
	"gen_access":    "id INT, pattern VARCHAR(190), action VARCHAR(190), active INT, n INT",
}

const (
	suiteMailboxes = 2200
	suiteAliases   = 700
)

// oddLocals are what local-parts go wrong with.
var oddLocals = []string{
	"o'brien", "sales+eu", "sales+us", "per%cent", "under_score", "dash-dash", "two.dots", "Caps", "ALLCAPS", "x", "1234", "back\\slash", "star*",
	"quo\"te", "sp ace", "semi;colon", "com,ma", "-- x", "#hash", "paren(s)", "dollar$1", "amp&", "ren\u00e9", "gro\u00df", "eq=ual", "sl/ash", "ti~lde", "q?", "postmaster",
}

var firstNames = strings.Fields("ada ben cleo dan eva finn gus hana ivo jan kim leo mia nils ole pia rui sara tom uma vic wim xena yuri zoe")

const asciiText = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.@+-_"

func newSuiteData(seed uint64) *suiteData {
	r := rand.New(rand.NewPCG(seed, 0))
	d := &suiteData{tables: map[string][][]any{}}
	on := func(percent int) int {
		if r.IntN(100) < percent {
			return 1
		}
		return 0
	}
	add := func(table string, row ...any) { d.tables[table] = append(d.tables[table], row) }
	for i := 1; i <= 60; i++ {
		g := genDomain{id: i, n: i, name: fmt.Sprintf("d%02d.example", i), kind: "mail", active: on(90)}
		switch {
		case i > 50:
			g.kind, g.name = "relay", fmt.Sprintf("relay%d.example", i)
		case i > 40:
			g.kind, g.name, g.target = "alias", fmt.Sprintf("alias%d.example", i), d.domains[r.IntN(39)].name
		case i == 40:
			g.name = "under_score.example"
		case i%13 == 0:
			g.name = fmt.Sprintf("Caps%d.Example", i)
		case i%5 == 0:
			g.name = fmt.Sprintf("sub.d%02d.example", i/5)
		}
		if i < 4 || i == 41 || i == 51 || i == 52 {
			g.active = 1
		}
		if i == 7 {
			g.nextHop = "smtp:[far.example]"
		}
		d.domains = append(d.domains, g)
		add("gen_domain", g.id, g.name, g.kind, g.target, g.active, g.nextHop, g.n)
	}
	used := map[string]bool{}
	for i := 1; i <= suiteMailboxes; i++ {
		dom := d.domains[r.IntN(40)]
		local := fmt.Sprintf("%s.%s%d", firstNames[r.IntN(25)], firstNames[r.IntN(25)], i)
		switch {
		case i <= 10*len(oddLocals):
			dom, local = d.domains[i%10], oddLocals[i%len(oddLocals)]
		case i%20 == 0:
			local = strings.ToUpper(local[:1]) + local[1:]
		case i%23 == 0:
			local += "+box"
		}
		a := genAddress{local, dom.name}
		if used[strings.ToLower(a.String())] {
			a.local += fmt.Sprint(i)
		}
		used[strings.ToLower(a.String())] = true
		d.boxes = append(d.boxes, a)
		add("gen_mailbox", i, a.String(), a.local, a.domain, dom.id, fmt.Sprintf("%s/%d/", dom.name, i), on(92), i)
	}
	for i := 1; i <= suiteAliases; i++ {
		dom := d.domains[r.IntN(40)]
		a, kind := genAddress{fmt.Sprintf("%s%d", firstNames[r.IntN(25)], i), dom.name}, "alias"
		dest := d.ascii(r)
		switch {
		case i <= 15:
			dom = d.domains[i*2]
			a, kind = genAddress{"", dom.name}, "catchall"
		case i%6 == 0:
			kind = "list"
			dest += "," + d.ascii(r) + ", someone@far.example"
		case i%25 == 0:
			a.local += "+tag"
		case i%26 == 0:
			a.local = strings.ToUpper(a.local)
		case i%27 == 0:
			a.local = "it's." + a.local
		}
		d.aliases = append(d.aliases, a)
		add("gen_alias", i, a.String(), a.local, a.domain, dom.id, dest, kind, on(90), r.IntN(3)-1, i)
	}
	for i := range 24 {
		dest := d.domains[r.IntN(60)].name
		switch i % 4 {
		case 1:
			dest = "." + dest
		case 2:
			dest = d.boxes[i*7].String()
		case 3:
			dest = fmt.Sprintf("routed%d.example", i)
		}
		add("gen_transport", i, dest, fmt.Sprintf("smtp:[hop%d.example]:25", i), on(85), i)
		add("gen_access", i, []string{dest, d.boxes[i*9].String(), fmt.Sprintf("192.0.2.%d", i), fmt.Sprintf("bad%d.example", i)}[i%4],
			[]string{"REJECT", "OK", "DISCARD gone", "550 5.7.1 No", "DUNNO"}[i%5], on(85), i)
	}
	return d
}

// cut leaves n mailboxes.
func (d *suiteData) cut(n int) *suiteData {
	d.boxes, d.tables["gen_mailbox"] = d.boxes[:n], d.tables["gen_mailbox"][:n]
	return d
}

// ascii is a mailbox that Postfix can be told of by any database. It refuses
// a value that isn't UTF-8, and takes Latin-1 from PostgreSQL.
func (d *suiteData) ascii(r *rand.Rand) string {
	for {
		if s := d.boxes[r.IntN(len(d.boxes))].String(); strings.Trim(s, asciiText) == "" {
			return s
		}
	}
}

// script makes the tables, fills the suite's by fill and drops them again.
func (d *suiteData) script(typ, schema, fill string) string {
	var b, drop strings.Builder
	b.WriteString(schema)
	for table, columns := range suiteColumns {
		fmt.Fprintf(&b, "CREATE TABLE %s (%s);\n", table, columns)
		fmt.Fprintf(&drop, "DROP TABLE %s;\n", table)
		for n, row := range d.tables[table] {
			sep := ",\n"
			if n%200 == 0 {
				sep = "INSERT INTO " + table + " VALUES\n"
			}
			b.WriteString(sep)
			for i, v := range row {
				if i == 0 {
					b.WriteByte('(')
				} else {
					b.WriteByte(',')
				}
				if s, ok := v.(string); ok {
					if typ == "mysql" {
						s = strings.ReplaceAll(s, `\`, `\\`)
					}
					v = "'" + strings.ReplaceAll(s, "'", "''") + "'"
				}
				fmt.Fprint(&b, v)
			}
			b.WriteByte(')')
			if n%200 == 199 || n == len(d.tables[table])-1 {
				b.WriteString(";\n")
			}
		}
	}
	return b.String() + fill + "\n" + drop.String()
}

// keys are what a fuzz looks up: names that are there, near misses, other
// case, extensions, domains alone, and what quoting goes wrong with.
func (d *suiteData) keys(n int, seed uint64) []string {
	r := rand.New(rand.NewPCG(seed, 1))
	seen := map[string]bool{"": true}
	var keys []string
	put := func(k string) {
		// No address ends in a space.
		if !seen[k] && len(keys) < n && !strings.ContainsAny(k, "\t\n\x00") && !strings.HasSuffix(k, " ") {
			seen[k] = true
			keys = append(keys, k)
		}
	}
	for _, g := range d.domains {
		for _, k := range []string{g.name, "@" + g.name, "nobody@" + g.name, "." + g.name, "sub." + g.name, "x@sub." + g.name, "postmaster@" + g.name, g.name + ".", "in." + fmt.Sprint(g.id) + "@" + g.name, strings.ToUpper(g.name)} {
			put(k)
		}
	}
	for _, table := range []string{"gen_transport", "gen_access"} {
		for _, row := range d.tables[table] {
			put(row[1].(string))
		}
	}
	for _, k := range []string{"%", "_", "%@%", "a@%", "*", "'", "''", `"`, `\`, `\'`, "a@b@c", "@", "a@", "@@", "x' OR '1'='1", "%s", "%u@%d", "root", "mx1.hop0.example", "mx7.hop4.example", "mx2.hop8.example", "mx3.hop12.example", "d0_.example", "%.example", "xd01.example", "[127.0.0.1]", " ", "nobody", "caf\u00e9@d01.example", "0", "NULL"} {
		put(k)
	}
	odd := []string{"'", "%", "_", "\\", "\"", " ", ".", "+", "*", "-", "@", "\u00e9", "\u00fc", "#", ";", "1"}
	for tries := 0; len(keys) < n && tries < 100*n; tries++ {
		var a genAddress
		if r.IntN(3) == 0 {
			a = d.aliases[r.IntN(len(d.aliases))]
		} else {
			a = d.boxes[r.IntN(len(d.boxes))]
		}
		k := a.String()
		at := r.IntN(len(k) + 1)
		for at < len(k) && k[at]&0xc0 == 0x80 {
			at++
		}
		switch r.IntN(20) {
		case 0, 1, 2, 3:
		case 4:
			k = strings.ToUpper(k)
		case 5:
			k = k[:at] + strings.ToUpper(k[at:])
		case 6:
			k = a.local + "+" + firstNames[r.IntN(25)] + "@" + a.domain
		case 7, 8:
			k = k[:at] + odd[r.IntN(len(odd))] + k[at:]
		case 9:
			_, rest := splitRune(k[at:])
			k = k[:at] + rest
		case 10, 11:
			k = a.local + "@" + d.domains[r.IntN(len(d.domains))].name
		case 12, 13:
			k = a.local + "@" + d.domains[40+r.IntN(10)].name
		case 14:
			k = a.local
		case 15:
			k = a.local + "@" + strings.TrimSuffix(a.domain, "example") + "test"
		case 16:
			k = []string{"spam.", "old.", "x", "spam", "-"}[r.IntN(5)] + k
		case 17:
			k = strings.NewReplacer("\u00e9", "e", "\u00df", "s", "a", "\u00e4").Replace(k)
		case 18:
			k = fmt.Sprintf("%s.%s%d@%s", firstNames[r.IntN(25)], firstNames[r.IntN(25)], r.IntN(3000), d.domains[r.IntN(60)].name)
		case 19:
			b := make([]byte, 1+r.IntN(12))
			for i := range b {
				b[i] = byte(' ' + r.IntN(95))
			}
			k = string(b) + []string{"", "@" + a.domain, "@"}[r.IntN(3)]
		}
		put(k)
	}
	return keys
}

func splitRune(s string) (first, rest string) {
	for i := range s {
		if i > 0 {
			return s[:i], s[i:]
		}
	}
	return s, ""
}
