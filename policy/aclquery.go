package policy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/policy/expansion"
)

// dnsTypes are the record types of dnsdb that are asked for.
var dnsTypes = []string{"a", "aaaa", "a+", "mx", "mxh", "ns", "ptr", "txt"}

// CheckDNSQuery says why a query of the DNS in a string can't be asked. What is given is
// its constant beginning.
func CheckDNSQuery(query string) error {
	q, err := parseDNSQuery(query)
	if err != nil {
		return err
	}
	for _, t := range dnsTypes {
		if t == q.typ {
			return nil
		}
	}
	return fmt.Errorf("dnsdb look-ups of type %s aren't asked", q.typ)
}

// dnsQuery is what ${lookup dnsdb{…}} asks.
//
//	>: defer_never,ptr=192.0.2.1
type dnsQuery struct {
	separator     string
	typ           string
	names         []string
	never, strict bool // of failing look-ups
}

func parseDNSQuery(s string) (q dnsQuery, err error) {
	q.separator = "\n"
	s = strings.TrimLeft(s, " \t\r\n")
	if rest, ok := strings.CutPrefix(s, ">"); ok && rest != "" {
		q.separator, s = rest[:1], rest[1:]
		for s != "" && (s[0] == ',' || s[0] == ';') { // between the strings of a TXT record
			s = s[min(len(s), 2):]
		}
		s = strings.TrimLeft(s, " \t\r\n")
	}
	for {
		word, rest, more := strings.Cut(s, ",")
		word = strings.ToLower(strings.TrimSpace(word))
		if !more || strings.Contains(word, "=") {
			break
		}
		switch {
		case word == "defer_never":
			q.never = true
		case word == "defer_strict":
			q.strict = true
		case word == "defer_lax", word == "dnssec_lax", word == "dnssec_never", strings.HasPrefix(word, "retrans_"), strings.HasPrefix(word, "retry_"):
		default:
			return q, fmt.Errorf("dnsdb look-ups with %s aren't asked", word)
		}
		s = strings.TrimLeft(rest, " \t\r\n")
	}
	typ, names, ok := strings.Cut(s, "=")
	if !ok {
		typ, names = "txt", s
	}
	q.typ = strings.ToLower(strings.TrimSpace(typ))
	if strings.Contains(names, ":") && q.typ == "ptr" {
		if _, err := netip.ParseAddr(strings.TrimSpace(names)); err == nil { // IPv6
			q.names = []string{strings.TrimSpace(names)}
			return q, nil
		}
	}
	q.names = expansion.List(names)
	return q, nil
}

// dnsdb asks the DNS.
func (r *aclRun) dnsdb(query string) (string, bool, error) {
	q, err := parseDNSQuery(query)
	if err != nil {
		return "", false, err
	}
	if len(q.names) > maxNames {
		return "", false, expansion.ErrDefer
	}
	var all []string
	failed := false
	for _, name := range q.names {
		a := r.lookups.get(r.ctx, r.lookups.records(q.typ, name))
		switch a.status {
		case dnsFound:
			all = append(all, a.hosts...)
		case dnsTemp:
			if q.strict {
				return "", false, expansion.ErrDefer
			}
			failed = true
		}
	}
	if len(all) == 0 && failed && !q.never {
		return "", false, expansion.ErrDefer
	}
	return strings.Join(all, q.separator), len(all) > 0, nil
}

// records looks up the records of a type; a.hosts are these, as dnsdb spells them.
func (l *lookups) records(typ, name string) question {
	return question{"dnsdb " + typ + " " + name, func(ctx context.Context, a *answer) {
		err := l.ask(ctx, typ, name, a)
		if a.status = a.outcome(err); a.status == dnsFound && len(a.hosts) == 0 {
			a.status = dnsNotFound
		}
	}}
}

func (l *lookups) ask(ctx context.Context, typ, name string, a *answer) error {
	add := func(s string) { a.hosts = append(a.hosts, s) }
	switch typ {
	case "a", "aaaa":
		addrs, err := l.r.LookupNetIP(ctx, map[string]string{"a": "ip4", "aaaa": "ip6"}[typ], name)
		for _, addr := range addrs {
			add(addr.Unmap().String())
		}
		return err
	case "a+":
		err6, err4 := l.ask(ctx, "aaaa", name, a), l.ask(ctx, "a", name, a)
		switch {
		case len(a.hosts) > 0:
			return nil
		case statusOf(err6) == dnsTemp:
			return err6
		}
		return err4
	case "mx", "mxh":
		mxs, err := l.r.LookupMX(ctx, name)
		for _, mx := range mxs {
			if host := trimDot(mx.Host); typ == "mx" {
				add(fmt.Sprint(mx.Pref, " ", host))
			} else {
				add(host)
			}
		}
		return err
	case "ns":
		nss, err := l.r.LookupNS(ctx, name)
		for _, ns := range nss {
			add(trimDot(ns.Host))
		}
		return err
	case "ptr":
		if _, err := netip.ParseAddr(name); err != nil {
			return &net.DNSError{Err: "no address", Name: name, IsNotFound: true}
		}
		names, err := l.r.LookupAddr(ctx, name)
		for _, n := range names {
			add(trimDot(n))
		}
		return err
	case "txt":
		texts, err := l.r.LookupTXT(ctx, name)
		a.hosts = append(a.hosts, texts...)
		return err
	}
	return fmt.Errorf("no records of type %q are looked up", typ)
}

// KeySeparator stands between the keys of a look-up in several tables.
const KeySeparator = "\x1e"

// FillMark stands in a table's values for the n-th of the texts that a look-up brings.
func FillMark(n int) string { return "\x02" + string(rune('0'+n)) + "\x03" }

// TableLookup says how tables of ours are asked that stand for a query of a database. It
// is the type of a look-up: "table,exact".
//
// The tables' names have a space between, the keys a KeySeparator; the texts that fill
// marks follow the keys. What several tables have is joined by line feeds.
type TableLookup struct {
	Exact    bool   // capitals count: keys are those of ExactKey
	Plain    bool   // the database sees keys without quoting, and the look-up fails for now with some
	Missed   bool   // … or finds nothing
	Distinct bool   // the same answer counts once
	Default  string // what is answered where nothing is found
	Fill     int    // how many texts fill marks
}

func (l TableLookup) String() string {
	s := "table"
	if !l.Exact {
		s += ",folded"
	}
	for _, o := range []struct {
		word string
		set  bool
	}{{"exact", l.Exact}, {"plain", l.Plain}, {"missed", l.Missed}, {"distinct", l.Distinct}} {
		if o.set {
			s += "," + o.word
		}
	}
	if l.Default != "" {
		s += ",default=" + l.Default
	}
	if l.Fill > 0 {
		s += ",fill=" + strconv.Itoa(l.Fill)
	}
	return s
}

func parseTableLookup(typ string) (l TableLookup) {
	_, options, _ := strings.Cut(typ, ",")
	for o := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "exact":
			l.Exact = true
		case "plain":
			l.Plain = true
		case "missed":
			l.Missed = true
		case "distinct":
			l.Distinct = true
		case "default":
			l.Default = value
		case "fill":
			l.Fill, _ = strconv.Atoi(value)
		}
	}
	return l
}

// ExactKey spells a key so that no two differ by capitals alone.
func ExactKey(key string) string {
	var b strings.Builder
	for i := range len(key) {
		if c := key[i]; c >= 'A' && c <= 'Z' {
			b.WriteByte('\x01')
			b.WriteByte(c | 0x20)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// inTables asks tables that stand for a query.
func (r *aclRun) inTables(typ, names, key string) (string, bool, error) {
	l := parseTableLookup(typ)
	keys := strings.Split(key, KeySeparator)
	tables := strings.Fields(names)
	if len(keys) != len(tables)+l.Fill {
		return "", false, expansion.ErrDefer // a key that has the separator in it
	}
	var found []string
	asked := map[string]bool{}
	for n, name := range tables {
		k := keys[n]
		switch {
		case l.Plain && strings.ContainsAny(k, `'\`):
			return "", false, expansion.ErrDefer
		case l.Missed && strings.Contains(k, "'"):
			return "", false, nil
		}
		if l.Exact {
			k = ExactKey(k)
		}
		t := r.acl.tables[name]
		if t == nil {
			return "", false, errNoFile
		}
		if asked[name+"\n"+k] {
			continue
		}
		asked[name+"\n"+k] = true
		v, ok, err := r.get(t, k)
		if err != nil {
			return "", false, err
		}
		if ok && (!l.Distinct || !slices.Contains(found, v)) {
			found = append(found, v)
		}
	}
	if len(found) == 0 {
		return l.Default, l.Default != "", nil
	}
	v := strings.Join(found, "\n")
	for n, text := range keys[len(tables):] {
		v = strings.ReplaceAll(v, FillMark(n), text)
	}
	return v, true, nil
}
