package postfix

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// What Postfix's db_common(3) does to a key and to what comes back, for tables
// of mysql, pgsql, sqlite and ldap alike.

// errExpansion is that of a key with more values than the table's
// expansion_limit: Postfix answers 451.
var errExpansion = errors.New("has more values than expansion_limit")

// errEncoding is that of a value that isn't ASCII, where PostgreSQL is asked in
// Latin-1: Postfix takes UTF-8 alone, and answers 451.
var errEncoding = errors.New("has a value that isn't UTF-8 to Postfix before 3.8")

// latin says that Postfix talks Latin-1 to the database, as it did to
// PostgreSQL before it had the setting encoding.
func (d *Database) latin() bool {
	return d.Type == "pgsql" && d.Settings["encoding"] == "" && !d.utf8
}

// template says what a query asks of a key.
type template struct {
	user, domain bool // it has %u, %d: keys without that part aren't asked for
	labels       int  // the highest of %1 to %9
	whole        bool // it has %s
}

func newTemplate(formats ...string) (t template, err error) {
	for n, f := range formats {
		for i := 0; i < len(f); i++ {
			if f[i] != '%' {
				continue
			}
			c := byte(0)
			if i++; i < len(f) {
				c = f[i]
			}
			switch {
			case c == '%':
			case c == 's' || c == 'S':
				t.whole = t.whole || n == 0
			case c == 'U' || n == 0 && c == 'u':
				t.user = true
			case c == 'D' || n == 0 && c == 'd':
				t.domain = true
			case c >= '1' && c <= '9':
				t.labels, t.domain = max(t.labels, int(c-'0')), true
			case n > 0 && (c == 'u' || c == 'd'):
			default:
				return t, fmt.Errorf("%q has a placeholder that isn't one: Postfix doesn't start with it", f)
			}
		}
	}
	return t, nil
}

// parts cuts a key. ok is false for those that the template leaves out.
func (t template) parts(key string) (local, domain string, labels []string, ok bool) {
	at := strings.LastIndexByte(key, '@')
	local = key
	if at >= 0 {
		local, domain = key[:at], key[at+1:]
	}
	if key == "" || t.domain && domain == "" || t.user && at == 0 {
		return "", "", nil, false
	}
	if t.labels > 0 {
		// argv_split takes several dots for one separator.
		labels = strings.FieldsFunc(domain, func(r rune) bool { return r == '.' })
		if len(labels) < t.labels {
			return "", "", nil, false
		}
	}
	return local, domain, labels, true
}

// expandKey puts a key into a query, quoted.
func (t template) expandKey(query, key string, quote func(string) string) (string, bool) {
	local, domain, labels, ok := t.parts(key)
	if !ok {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(query); i++ {
		if query[i] != '%' || i+1 == len(query) {
			b.WriteByte(query[i])
			continue
		}
		i++
		switch c := query[i]; c | 0x20 {
		case 's':
			b.WriteString(quote(key))
		case 'u':
			b.WriteString(quote(local))
		case 'd':
			b.WriteString(quote(domain))
		default:
			if c >= '1' && c <= '9' {
				b.WriteString(quote(labels[len(labels)-int(c-'0')]))
			} else {
				b.WriteByte(c)
			}
		}
	}
	return b.String(), true
}

// asks says that Postfix puts a key to the database at all.
func (d *Database) asks(key string) bool {
	list := words(strings.ToLower(d.Settings["domain"]))
	if len(list) == 0 {
		return true
	}
	at := strings.LastIndexByte(key, '@')
	return at > 0 && at < len(key)-1 && inDomains(list, key[at+1:])
}

// answer is what Postfix makes of the rows that a query returns.
func (d *Database) answer(key string, rows [][]string) (value string, ok bool, err error) {
	limit, n := d.expansionLimit(), 0
	for _, row := range rows {
		if d.Type == "sqlite" && len(row) > 1 {
			row = row[:1] // dict_sqlite(3) looks at no other
		}
		for _, v := range row {
			text, there := expand(d.resultFormat(), key, v)
			if !there {
				continue
			}
			if d.latin() && !ascii(v) {
				return "", false, errEncoding
			}
			if n++; limit > 0 && n > limit {
				return "", false, errExpansion
			}
			if value != "" { // as db_common_expand has it
				value += ","
			}
			value += text
		}
	}
	return value, value != "", nil
}

func (d *Database) expansionLimit() int {
	n, _ := strconv.Atoi(d.Settings["expansion_limit"])
	return n
}
