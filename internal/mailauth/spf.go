package mailauth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The limits of RFC 7208 §4.6.4. That of the void look-ups is configurable.
const (
	spfMaxLookups = 10
	spfMaxNames   = 10 // of an MX or a PTR answer
	// DefaultVoidLookups is the limit that the RFC recommends.
	DefaultVoidLookups = 2
	// The explanation goes into a reply.
	spfMaxExplanation = 400
)

// SPF checks whether a client may speak for a domain.
type SPF struct {
	Resolver    Resolver
	VoidLookups int // that many may find nothing
}

// SPFResult is a verdict.
type SPFResult struct {
	Result Result
	Why    string // in pyspf's words, or the domain's own: printable ASCII
	Record string // the domain's own record, if it has one
	// Anyone says that the record passes more or less every client.
	Anyone bool
}

// Check is RFC 7208's check_host for a reverse-path, or for the HELO name if
// that is empty. The ctx bounds its time; when it ends the result is TempError.
func (s SPF) Check(ctx context.Context, ip netip.Addr, helo, sender string) SPFResult {
	q := &spfQuery{ctx: ctx, dns: s.Resolver, maxVoid: s.VoidLookups, ip: ip.Unmap(), helo: helo, sender: sender}
	if sender == "" {
		q.sender = "postmaster@" + helo
	}
	var ok bool
	if q.local, q.domain, ok = strings.Cut(q.sender, "@"); !ok {
		q.local, q.domain = "", q.sender
	}
	if q.local == "" {
		q.local = "postmaster"
	}
	out := SPFResult{}
	record, err := q.record(q.domain)
	if err == nil {
		out.Record = record
		out.Result, err = q.evaluate(record, q.domain, true)
	}
	switch {
	case errors.As(err, new(spfTemporary)):
		out.Result, out.Why = TempError, "SPF Temporary Error: "+err.Error()
	case err != nil:
		out.Result, out.Why = PermError, "SPF Permanent Error: "+err.Error()
	default:
		out.Why = q.why(out.Result)
		out.Anyone = out.Result == Pass && q.anyone
	}
	out.Why = printable(out.Why, spfMaxExplanation)
	return out
}

// spfTemporary is a look-up that failed; every other error is the record's.
type spfTemporary struct{ cause error }

func (e spfTemporary) Error() string { return "DNS look-up failed" }
func (e spfTemporary) Unwrap() error { return e.cause }

// spfQuery is one check under way.
type spfQuery struct {
	ctx     context.Context
	dns     Resolver
	maxVoid int
	ip      netip.Addr
	helo    string
	sender  string
	local   string // of the sender
	domain  string // of the sender

	lookups int
	void    int
	ptr     string // the macro p, once it was needed
	explain string // domain-spec of the record that counts, expanded
	anyone  bool   // the last mechanism that matched would match more or less every client
}

func (q *spfQuery) why(r Result) string {
	if (r == Fail || r == SoftFail) && q.explain != "" {
		if texts, err := q.dns.LookupTXT(q.ctx, q.explain); err == nil && len(texts) == 1 && isASCII(texts[0]) {
			if text, err := q.expand(texts[0], q.domain, true); err == nil {
				return text
			}
		}
	}
	return map[Result]string{
		Pass:     "sender SPF authorized",
		Fail:     "SPF fail - not authorized",
		SoftFail: "domain owner discourages use of this host",
		Neutral:  "access neither permitted nor denied",
		None:     "no SPF record",
	}[r]
}

// record is the SPF record of a domain, "" if it has none. A domain that the
// DNS can't have has none either.
func (q *spfQuery) record(domain string) (string, error) {
	if !isDomain(domain) {
		return "", nil
	}
	texts, err := q.dns.LookupTXT(q.ctx, domain)
	if err := q.note(len(texts), err); err != nil {
		return "", err
	}
	var found []string
	for _, t := range texts {
		if version, _, _ := strings.Cut(t, " "); strings.EqualFold(version, "v=spf1") {
			found = append(found, t)
		}
	}
	switch {
	case len(found) == 0:
		return "", nil
	case len(found) > 1:
		return "", spfMistake("Two or more type TXT spf records found.")
	case !isASCII(found[0]):
		return "", spfMistake("Non-ascii characters found in TXT record")
	}
	return found[0], nil
}

// spfMistake is why a record is no good, in pyspf's words: the client reads them.
type spfMistake string

func (m spfMistake) Error() string { return string(m) }

// isDomain is whether the DNS can have the name at all.
func isDomain(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
	}
	return len(name) <= 253
}

// note counts a look-up that found nothing.
func (q *spfQuery) note(n int, err error) error {
	if err != nil && !isNotFound(err) {
		return spfTemporary{err}
	}
	if n == 0 {
		if q.void++; q.void > q.maxVoid {
			return spfMistake(fmt.Sprintf("Void lookup limit of %d exceeded", q.maxVoid))
		}
	}
	return nil
}

// count counts a term that asks the DNS.
func (q *spfQuery) count() error {
	if q.lookups++; q.lookups > spfMaxLookups {
		return spfMistake("Too many DNS lookups")
	}
	return nil
}

// evaluate is check_host's loop. base is true for the record that the check
// began with and those that it redirects to: theirs is the explanation.
func (q *spfQuery) evaluate(record, domain string, base bool) (Result, error) {
	if record == "" {
		return None, nil
	}
	p, err := q.parse(record, domain)
	if err != nil {
		return None, err
	}
	if base {
		q.explain = p.explain
	}
	for _, m := range p.mechanisms {
		matched, err := q.matches(m)
		if err != nil {
			return None, err
		}
		if matched {
			if m.name != "include" { // of that its own mechanism has said so
				q.anyone = m.anyone(q.ip.Is4())
			}
			return m.result, nil
		}
	}
	if p.redirect == "" {
		return Neutral, nil
	}
	next, err := q.record(p.redirect)
	if err != nil {
		return None, err
	}
	if next == "" {
		return None, errors.New("redirect domain has no SPF record")
	}
	return q.evaluate(next, p.redirect, base)
}

// anyone says that a mechanism matches a large part of the Internet: no network
// that one owner has is wider than an IPv4 /8 or an IPv6 /16.
func (m *spfMechanism) anyone(v4 bool) bool {
	widest, bits := 8, m.bits4
	if !v4 {
		widest, bits = 16, m.bits6
	}
	switch m.name {
	case "all":
		return true
	case "ip4", "ip6":
		return m.prefix.Bits() < widest
	case "a", "mx":
		return bits < widest
	}
	return false
}

func (q *spfQuery) matches(m spfMechanism) (bool, error) {
	switch m.name {
	case "all":
		return true, nil
	case "ip4", "ip6":
		return m.prefix.Contains(q.ip), nil
	}
	if err := q.count(); err != nil {
		return false, err
	}
	switch m.name {
	case "include":
		return q.include(m.domain)
	case "a":
		addrs, err := q.addresses(m.domain, q.ip.Is4())
		return q.within(addrs, m), err
	case "exists":
		addrs, err := q.addresses(m.domain, true)
		return len(addrs) > 0, err
	case "mx":
		return q.mx(m)
	}
	names, err := q.validated() // ptr
	return slices.ContainsFunc(names, func(n string) bool { return isWithin(n, m.domain) }), err
}

func (q *spfQuery) include(domain string) (bool, error) {
	record, err := q.record(domain)
	if err != nil {
		return false, err
	}
	r, err := q.evaluate(record, domain, false)
	if err == nil && r == None {
		err = spfMistake("No valid SPF record for included domain: " + domain)
	}
	return r == Pass, err
}

func (q *spfQuery) mx(m spfMechanism) (bool, error) {
	mxs, err := q.dns.LookupMX(q.ctx, m.domain)
	if err := q.note(len(mxs), err); err != nil {
		return false, err
	}
	if len(mxs) > spfMaxNames {
		return false, spfMistake(fmt.Sprintf("More than %d MX records returned", spfMaxNames))
	}
	var all []netip.Addr
	for _, mx := range mxs { // all of them, as pyspf does: one that fails counts even after one that matches
		addrs, err := q.addresses(mx.Host, q.ip.Is4())
		if err != nil {
			return false, err
		}
		all = append(all, addrs...)
	}
	return q.within(all, m), nil
}

func (q *spfQuery) within(addrs []netip.Addr, m spfMechanism) bool {
	bits := m.bits4
	if q.ip.Is6() {
		bits = m.bits6
	}
	for _, a := range addrs {
		if p, err := a.Unmap().Prefix(bits); err == nil && p.Contains(q.ip) {
			return true
		}
	}
	return false
}

func (q *spfQuery) addresses(name string, v4 bool) ([]netip.Addr, error) {
	if name = strings.TrimSuffix(name, "."); !isDomain(name) {
		return nil, nil
	}
	network := "ip6"
	if v4 {
		network = "ip4"
	}
	addrs, err := q.dns.LookupNetIP(q.ctx, network, name)
	return addrs, q.note(len(addrs), err)
}

// validated is the client's names that resolve to its address. As in pyspf a
// failed look-up ends the check, where RFC 7208 §5.5 goes on.
func (q *spfQuery) validated() ([]string, error) {
	names, err := q.dns.LookupAddr(q.ctx, q.ip.String())
	if err := q.note(len(names), err); err != nil {
		return nil, err
	}
	var out []string
	for _, n := range names[:min(len(names), spfMaxNames)] {
		addrs, err := q.addresses(n, q.ip.Is4())
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Unmap() == q.ip }) {
			out = append(out, strings.TrimSuffix(n, "."))
		}
	}
	return out, nil
}

// isWithin is whether name is domain or below it.
func isWithin(name, domain string) bool {
	name, domain = strings.ToLower(strings.TrimSuffix(name, ".")), strings.ToLower(strings.TrimSuffix(domain, "."))
	return name == domain || strings.HasSuffix(name, "."+domain)
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 })
}

// printable is s with what isn't printable ASCII replaced, and cut at n octets.
func printable(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), n)]
}
