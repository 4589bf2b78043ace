package policy

import (
	"cmp"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/table"
)

// parts is an address taken apart.
type parts []envelope.Token

// first and last are where the first and last of a kind stand, -1 without.
func (t parts) first(kind byte) int {
	return slices.IndexFunc(t, func(k envelope.Token) bool { return k.Kind == kind })
}

func (t parts) last(kind byte) int {
	for i := len(t) - 1; i >= 0; i-- {
		if t[i].Kind == kind {
			return i
		}
	}
	return -1
}

// endsInDot says that the address ends in one dot, which has a name before it.
func (t parts) endsInDot() bool {
	n := len(t)
	return n > 1 && t[n-1].Kind == '.' && t[n-2].Kind != '.' && t[n-2].Kind != '@'
}

// empty says that the address is an empty quoted string.
func (t parts) empty() bool {
	return len(t) == 1 && t[0].Kind == envelope.Quoted && t[0].Text == ""
}

// route resolves an address as Postfix's trivial-rewrite(8) does. A local domain is
// stripped, and the rest is resolved again, with "@", "%" and "!" as operators even
// in a quoted string (allow_percent_hack, swap_bangpath, resolve_dequoted_address):
//
//	relay.example!bob@local.example → bob@relay.example
//
// A missing local-part or domain is replaced by the primary's own. The result may
// still not be an address.
func (s *Snapshot) route(f *finder, raw string) string {
	hostname := cmp.Or(s.spec.Addresses.BareDomain, s.spec.Content.Hostname, s.spec.Addresses.MyOrigin)
	t := s.rewrite(envelope.Scan(envelope.Quote(raw)))
	t = envelope.Scan(envelope.Quote(envelope.Join(t)))
	var local parts // the local domain that was stripped last, with its "@"
	for range len(raw) + 100 {
		if t.endsInDot() && t.last('@') >= 0 {
			t = t[:len(t)-1]
		}
		if at := t.last('@'); at >= 0 {
			if at+1 < len(t) && !s.isLocal(f, envelope.Join(t[at+1:])) {
				return envelope.Join(t)
			}
			local, t = t[at:], t[:at]
		}
		switch {
		case t.last('@') >= 0 || s.operator(t) != 0:
			t = s.rewrite(t)
			continue
		case len(t) == 1 && t[0].Kind == envelope.Quoted:
			if cracked := s.crack(t[0].Text); cracked != nil {
				t = s.rewrite(cracked)
				continue
			}
		}
		if t.empty() || len(t) == 0 {
			t = envelope.Scan("MAILER-DAEMON") // empty_address_recipient
			continue
		}
		if local != nil || hostname == "" {
			break
		}
		t = append(append(slices.Clip(t), envelope.Token{Kind: '@'}), envelope.Scan(hostname)...)
	}
	return envelope.Join(slices.Concat(t, local))
}

// isLocal says that a domain is the primary's own, one trailing dot aside.
func (s *Snapshot) isLocal(f *finder, domain string) bool {
	domain = strings.TrimSuffix(domain, ".")
	return domain != "" && domain[len(domain)-1] != '.' && s.inClass(f, classLocal, table.Fold(domain))
}

// operator is the routing operator besides "@" that an address has, 0 for
// none: "!" goes first.
func (s *Snapshot) operator(t parts) byte {
	switch a := &s.spec.Addresses; {
	case !a.NoSwapBangpath && t.first('!') >= 0:
		return '!'
	case !a.NoPercentHack && t.first('%') >= 0:
		return '%'
	}
	return 0
}

// crack looks for routing operators in a quoted local-part; nil if none counts.
func (s *Snapshot) crack(local string) parts {
	a := &s.spec.Addresses
	switch i := strings.LastIndexByte(local, '%'); {
	case a.KeepQuoted:
	case strings.Contains(local, "@"):
		return envelope.Scan(envelope.Quote(local))
	case i >= 0 && !a.NoPercentHack:
		return envelope.Scan(envelope.Quote(local[:i] + "@" + local[i+1:]))
	case strings.Contains(local, "!") && !a.NoSwapBangpath:
		return envelope.Scan(local)
	}
	return nil
}

// rewrite puts an address into the form user@domain, as far as one rule of
// Postfix's does it.
func (s *Snapshot) rewrite(t parts) parts {
	at := envelope.Token{Kind: '@'}
	switch {
	case len(t) == 0 || t.empty():
		return t
	case len(t) == 1 && t[0].Kind == '@':
		return parts{{Kind: envelope.Quoted}}
	}
	if colon := t.first(':'); t[0].Kind == '@' && colon >= 0 {
		t = t[colon+1:] // a source route
	}
	if t.last('@') < 0 {
		a := &s.spec.Addresses
		switch s.operator(t) {
		case '!':
			i := t.first('!')
			t = slices.Concat(t[i+1:], parts{at}, t[:i])
		case '%':
			t = slices.Clone(t)
			t[t.last('%')] = at
		default:
			if a.BareDomain == "" && a.MyOrigin != "" {
				t = append(append(slices.Clip(t), at), envelope.Scan(a.MyOrigin)...)
			}
		}
	}
	if i := t.last('@'); i >= 0 && i+1 < len(t) && t[i:].first('.') < 0 && t[i:].first(envelope.Literal) < 0 && s.spec.Addresses.AppendDotDomain != "" {
		t = append(append(slices.Clip(t), envelope.Token{Kind: '.'}), envelope.Scan(s.spec.Addresses.AppendDotDomain)...)
	}
	if t.endsInDot() {
		t = t[:len(t)-1]
	}
	return t
}
