package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// zone is a DNS list with its filter. Without a filter any answer counts, but
// for 127.255.255.0/24: those codes say that the list refused the question
// (asked through a public resolver, over quota), and counting them would
// refuse all mail. Postfix does count them; this is a deliberate
// difference, and it errs towards accepting.
type zone struct {
	name   string // as configured, with its filter
	suffix string // the zone to ask
	filter *codeFilter
	weight int
	reply  string // template, "" for the default
}

// codeFilter matches IPv4 answers, as "127.0.0.[2..11;20]" describes them.
type codeFilter [4][]octetRange

type octetRange struct{ lo, hi uint8 }

// parseZone reads "zone" or "zone=filter".
func parseZone(s string) (*zone, error) {
	z := &zone{name: s, weight: 1}
	suffix, filter, filtered := strings.Cut(s, "=")
	z.suffix = strings.TrimSuffix(suffix, ".")
	if !envelope.ValidHostname(z.suffix) {
		return nil, fmt.Errorf("%q is not a DNS zone", suffix)
	}
	if filtered {
		f, err := parseCodes(filter)
		if err != nil {
			return nil, err
		}
		z.filter = f
	}
	return z, nil
}

// CheckZone says what is wrong with "zone" or "zone=filter", a DNS list as
// restrictions name it.
func CheckZone(s string) error {
	_, err := parseZone(s)
	return err
}

// parseCodes reads a filter of return codes: four fields with dots between,
// each a number or a bracketed list of numbers and ranges.
func parseCodes(s string) (*codeFilter, error) {
	bad := func(why string) (*codeFilter, error) {
		return nil, fmt.Errorf("filter %q: %s; write it as 127.0.0.2 or 127.0.0.[2..11;20]", s, why)
	}
	var f codeFilter
	rest := s
	for i := range f {
		field := rest
		if strings.HasPrefix(rest, "[") {
			end := strings.IndexByte(rest, ']')
			if end < 0 {
				return bad("a bracket isn't closed")
			}
			field, rest = rest[1:end], rest[end+1:]
		} else {
			field = rest[:strings.IndexByte(rest+".", '.')]
			rest = rest[len(field):]
			if strings.ContainsAny(field, ";") {
				return bad("a list needs brackets")
			}
		}
		for part := range strings.SplitSeq(field, ";") {
			lo, hi, ranged := strings.Cut(part, "..")
			if !ranged {
				hi = lo
			}
			l, errL := parseOctet(lo)
			h, errH := parseOctet(hi)
			if errL != nil || errH != nil || l > h {
				return bad(fmt.Sprintf("%q is no number or range from 0 to 255", part))
			}
			f[i] = append(f[i], octetRange{l, h})
		}
		if i < 3 {
			var ok bool
			if rest, ok = strings.CutPrefix(rest, "."); !ok {
				return bad("it needs four fields")
			}
		}
	}
	if rest != "" {
		return bad(fmt.Sprintf("%q is left over", rest))
	}
	return &f, nil
}

func parseOctet(s string) (uint8, error) {
	if !allDigits(s) || len(s) > 3 {
		return 0, strconv.ErrSyntax
	}
	n, err := strconv.ParseUint(s, 10, 8)
	return uint8(n), err
}

// match says that one of the answers means "listed".
func (z *zone) match(addrs []netip.Addr) bool {
	for _, a := range addrs {
		if a = a.Unmap(); !a.Is4() {
			continue
		}
		b := a.As4()
		if z.filter == nil {
			if b[0] != 127 || b[1] != 255 || b[2] != 255 {
				return true
			}
			continue
		}
		if z.filter.match(b) {
			return true
		}
	}
	return false
}

func (f *codeFilter) match(b [4]byte) bool {
	for i, ranges := range f {
		in := false
		for _, r := range ranges {
			in = in || b[i] >= r.lo && b[i] <= r.hi
		}
		if !in {
			return false
		}
	}
	return true
}

// reverseAddr is an address as a DNS list wants it: octets or nibbles, last
// first, with a trailing dot.
func reverseAddr(a netip.Addr) string {
	var b []byte
	if a.Is4() {
		o := a.As4()
		for i := range o {
			b = append(strconv.AppendUint(b, uint64(o[3-i]), 10), '.')
		}
		return string(b)
	}
	const hex = "0123456789abcdef"
	for o, i := a.As16(), 15; i >= 0; i-- {
		b = append(b, hex[o[i]&15], '.', hex[o[i]>>4], '.')
	}
	return string(b)
}

// query asks a list about name and says whether it is listed, and whether the
// question failed for now.
func (e *eval) query(z *zone, name string) (a *answer, listed, temp bool) {
	a = e.lookups.get(e.ctx, e.lookups.listed(name+z.suffix))
	return a, a.status == dnsFound && z.match(a.addrs), a.status == dnsTemp
}

// listedDomain is query for a domain, or for an address' domain. Those that no
// list can hold aren't asked about.
func (e *eval) listedDomain(z *zone, what string) (a *answer, listed, temp bool) {
	d := what
	if i := strings.LastIndexByte(what, '@'); i >= 0 {
		d = what[i+1:]
	}
	if d == "" || d[0] == '[' || allDigits(d[strings.LastIndexByte(d, '.')+1:]) {
		return nil, false, false
	}
	if d = toASCII(d); !envelope.ValidHostname(d) {
		return nil, false, false
	}
	return e.query(z, d+".")
}

// blocked refuses with the list's reply.
func (e *eval) blocked(rule Rule, z *zone, what, class, txt string) status {
	template := z.reply
	if template == "" {
		template = e.snap.spec.DNSBL.DefaultReply
	}
	text := e.expand(template, map[string]string{
		"rbl_code": strconv.Itoa(e.snap.spec.Codes.MapsRBL), "rbl_domain": z.suffix,
		"rbl_reason": txt, "rbl_txt": txt, "rbl_what": what, "rbl_class": class,
	})
	code, rest, _ := strings.Cut(text, " ")
	if !isReplyCode(code) {
		return e.reject(rule, 450, "4.7.1", "Service unavailable")
	}
	dsn, rest := splitDSN("4.7.1", rest)
	if rest == "" {
		rest = "Service unavailable"
	}
	n, _ := strconv.Atoi(code)
	return e.reject(rule, n, fixDSN(dsn, class), rest)
}

func rejectRBLClient(e *eval, c *check) status {
	a, listed, temp := e.query(c.zone, reverseAddr(e.client.Addr))
	what := e.client.Addr.String()
	switch {
	case listed:
		return e.blocked(e.zoneRule(c, what), c.zone, what, classClient, a.txt)
	case temp && e.deferUnanswered:
		return e.unanswered(e.zoneRule(c, what), what)
	}
	return dunno
}

// unanswered defers what a DNS list can't be asked about, see
// Session.DeferUnanswered.
func (e *eval) unanswered(rule Rule, what string) status {
	return e.reject(rule, 450, "4.7.1", unansweredText(what))
}

// unansweredText doesn't name the list: its name may hold a secret.
func unansweredText(what string) string {
	return "Service unavailable; [" + what + "] can't be looked up in a DNS list for now"
}

// tally sums up the weighted DNS lists for a client.
type tally struct {
	score     int
	top       *zone  // the heaviest that lists it
	txt       string // its text
	low, high int    // the score's bounds, whatever the silent lists would say
	silent    *zone  // the first that didn't answer
}

func (e *eval) tally() (t tally) {
	for _, z := range e.snap.sites {
		a, listed, temp := e.query(z, reverseAddr(e.client.Addr))
		if temp {
			t.low, t.high = t.low+min(z.weight, 0), t.high+max(z.weight, 0)
			if t.silent == nil {
				t.silent = z
			}
		}
		if !listed {
			continue
		}
		if t.score += z.weight; t.top == nil || z.weight > t.top.weight {
			t.top, t.txt = z, a.txt
		}
	}
	t.low, t.high = t.low+t.score, t.high+t.score
	return t
}

// open says that the lists that didn't answer might decide, and that mail is to be
// deferred because of that.
func (e *eval) open(t *tally) bool {
	threshold := e.snap.spec.DNSBL.Threshold
	return e.deferUnanswered && t.silent != nil && t.low < threshold && t.high >= threshold
}

// rejectScore refuses a client whose DNS lists' weights reach the threshold;
// the reply names the heaviest of them.
func rejectScore(e *eval, c *check) status {
	t := e.tally()
	addr := e.client.Addr.String()
	rule := Rule{Stage: e.stage, Kind: c.kind.name, Key: addr}
	switch {
	case e.open(&t):
		rule.Table = t.silent.name
		return e.unanswered(rule, addr)
	case t.top == nil || t.score < e.snap.spec.DNSBL.Threshold:
		return dunno
	}
	rule.Table = t.top.name
	return e.blocked(rule, t.top, addr, classClient, t.txt)
}

// rejectRHSBL refuses names that a list of domains holds.
func rejectRHSBL(subject func(*eval) (what, class string)) checkFunc {
	return func(e *eval, c *check) status {
		what, class := subject(e)
		if what == "" {
			return dunno
		}
		a, listed, temp := e.listedDomain(c.zone, what)
		switch {
		case listed:
			return e.blocked(e.zoneRule(c, what), c.zone, what, class, a.txt)
		case temp && e.deferUnanswered:
			return e.unanswered(e.zoneRule(c, what), what)
		}
		return dunno
	}
}

// permitDNSWL and permitRHSWL permit entries of an allowlist, but never a recipient
// elsewhere.
func permitDNSWL(e *eval, c *check) status {
	return e.allowed(c, e.client.Addr.String(), func() (*answer, bool, bool) {
		return e.query(c.zone, reverseAddr(e.client.Addr))
	})
}

func permitRHSWL(e *eval, c *check) status {
	if e.client.Name == unknown {
		return dunno
	}
	return e.allowed(c, e.client.Name, func() (*answer, bool, bool) {
		return e.listedDomain(c.zone, e.client.Name)
	})
}

func (e *eval) allowed(c *check, what string, ask func() (*answer, bool, bool)) status {
	if e.atRcpt && e.hasRcpt && !e.authorized() {
		return dunno
	}
	_, listed, temp := ask()
	switch {
	case temp:
		return e.deferIfReject(e.zoneRule(c, what), 450, "4.7.1",
			fmt.Sprintf("<%s>: %s rejected: Service unavailable", what, classClient))
	case listed:
		return e.permit(e.zoneRule(c, what))
	}
	return dunno
}

func (e *eval) zoneRule(c *check, key string) Rule {
	return Rule{Stage: e.stage, Kind: c.kind.name, Table: c.zone.name, Key: key}
}
