package policy

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/pattern"
)

// finder looks keys up. Its buffer belongs to one session and is overwritten
// by each key, so that a look-up allocates nothing.
type finder struct {
	snap    *Snapshot
	buf     []byte
	hasher  *Hasher // made for the first table of digests
	subject pattern.Subject
	failed  bool                           // a look-up took too long; the owner asks and clears it
	unsure  bool                           // a learned table doesn't know a key; the owner asks and clears it
	ask     func(table string, key []byte) // told of each such key, unless nil
}

// one asks the tables for one key made of two parts. whole says that it is all
// of what is looked for: patterns and networks are asked nothing less.
func (f *finder) one(tables []*table, a, b string, addr netip.Addr, whole bool) hit {
	f.buf = append(append(f.buf[:0], a...), b...)
	for _, t := range tables {
		if t.wholes && !whole {
			continue
		}
		if h := f.query(t, f.buf, addr, whole); h.ok() {
			return h
		}
		if t.unsure != "" && mayHold(t.unsure, f.buf) {
			f.unsure = true
		}
		if t.absent != nil && !f.query(t.absent, f.buf, netip.Addr{}, true).ok() {
			f.unsure = true
			if f.ask != nil {
				f.ask(t.name, f.buf)
			}
		}
	}
	return hit{}
}

// mayHold says that a key has one of the characters of Learned.Unsure.
func mayHold(unsure string, key []byte) bool {
	for _, c := range key {
		if c >= utf8.RuneSelf && strings.Contains(unsure, anyLetter) || c < utf8.RuneSelf && strings.IndexByte(unsure, c) >= 0 {
			return true
		}
	}
	return false
}

// anyLetter stands in Learned.Unsure for all that isn't ASCII.
const anyLetter = "é"

// mailbox asks for local+rest with the local-part quoted where it needs it,
// then without.
func (f *finder) mailbox(tables []*table, local, rest string, whole bool) hit {
	if q := (envelope.Mailbox{Local: local}).String(); q != local {
		if h := f.one(tables, q, rest, netip.Addr{}, whole); h.ok() {
			return h
		}
	}
	return f.one(tables, local, rest, netip.Addr{}, whole)
}

// at is "@"+domain without an allocation where the domain is the folded end of
// the raw address.
func (a *address) at() string {
	if n := len(a.raw) - len(a.domain) - 1; n >= 0 && a.raw[n] == '@' && a.raw[n+1:] == a.domain {
		return a.raw[n:]
	}
	return "@" + a.domain
}

// recipient looks an address up as in a recipient or alias table: the
// address, without its extension, the bare local-part where the domain is
// local, the domain.
func (f *finder) recipient(tables []*table, a *address) hit {
	if len(tables) == 0 {
		return hit{}
	}
	at := a.at()
	user, extended := f.snap.splitExtension(a.local)
	h := f.mailbox(tables, a.local, at, true)
	if !h.ok() && extended {
		h = f.mailbox(tables, user, at, false)
	}
	if !h.ok() && (a.class == classLocal || f.snap.isOrigin(a.domain)) {
		h = f.mailbox(tables, a.local, "", false)
		if !h.ok() && extended {
			h = f.mailbox(tables, user, "", false)
		}
	}
	if !h.ok() {
		h = f.one(tables, at, "", netip.Addr{}, false)
	}
	return h
}

// mailAccess looks an address up as in a sender or recipient access table:
// the address, without its extension, the domain and its parents, the
// local-part with "@".
func (f *finder) mailAccess(t *table, a *address) hit {
	tables := []*table{t}
	h := f.addressOrDomain(tables, a, f.snap.spec.AccessMatchesSubdomain)
	if !h.ok() {
		h = f.mailbox(tables, a.local, "@", false)
		if user, extended := f.snap.splitExtension(a.local); !h.ok() && extended {
			h = f.mailbox(tables, user, "@", false)
		}
	}
	return h
}

// addressOrDomain asks for the address, without its extension, the domain and
// its parents.
func (f *finder) addressOrDomain(tables []*table, a *address, subdomains bool) hit {
	at := a.at()
	h := f.mailbox(tables, a.local, at, true)
	if user, extended := f.snap.splitExtension(a.local); !h.ok() && extended {
		h = f.mailbox(tables, user, at, false)
	}
	if !h.ok() {
		h = f.parents(tables, at[1:], false, subdomains)
	}
	return h
}

// domain looks a host name up with its parents. A bare address has none.
func (f *finder) domain(t *table, name string) hit {
	tables := []*table{t}
	if a, err := netip.ParseAddr(name); err == nil {
		return f.one(tables, name, "", a.Unmap(), true)
	}
	if t.whole() { // a pattern sees the name as it was given
		return f.one(tables, name, "", netip.Addr{}, true)
	}
	return f.parents(tables, fold(name), true, f.snap.spec.AccessMatchesSubdomain)
}

// parents asks for a name and its parent domains; these as ".parent" when
// names of domains don't match subdomains by themselves.
func (f *finder) parents(tables []*table, name string, whole, subdomains bool) hit {
	for name != "" {
		if h := f.one(tables, name, "", netip.Addr{}, whole); h.ok() {
			return h
		}
		whole = false
		i := strings.IndexByte(name[1:], '.')
		if i < 0 {
			break
		}
		name = name[i+1:]
		if subdomains {
			name = name[1:]
		}
	}
	return hit{}
}

// addr looks an address up with the networks above it, cut at its dots or
// colons.
func (f *finder) addr(t *table, a netip.Addr) hit {
	tables := []*table{t}
	s, delim, full := a.String(), ".", a
	if a.Is6() {
		delim = ":"
	}
	for {
		if h := f.one(tables, s, "", full, full.IsValid()); h.ok() {
			return h
		}
		i := strings.LastIndex(s, delim)
		if i < 0 {
			return hit{}
		}
		s, full = s[:i], netip.Addr{}
	}
}

func (s *Snapshot) isOrigin(domain string) bool {
	return s.spec.Addresses.MyOrigin != "" && domain == fold(s.spec.Addresses.MyOrigin)
}
