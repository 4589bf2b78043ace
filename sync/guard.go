package policysync

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/policy"
)

// A deletion is staged when it takes more than one recipient in a hundred,
// and more than minDeletion, or a whole domain.
const (
	minDeletion = 100
	deletionPct = 1
	// smallDomain is how many recipients a domain had at least for the loss of
	// all of them to count as the loss of the domain.
	smallDomain = 10
	// maxWithdrawn bounds the list of withdrawn recipients. Beyond it, every
	// unknown recipient is answered 450 while the deletion is staged.
	maxWithdrawn = 100_000
)

// withdrawnTable is the name of the table of withdrawn recipients in the
// policy in force.
const withdrawnTable = "understudy:withdrawn"

// withdrawnAction is what they are told.
const withdrawnAction = "450 4.1.1 Recipient list is being verified, try again later"

// deletion is what a version takes away from the one before.
type deletion struct {
	recipients uint64   // removed
	of         uint64   // before
	domains    []string // removed
	keys       []string // of the removed, at most maxWithdrawn
}

// mass says whether the operator is to be asked. recent were removed by other
// versions within the last recentSpan: a list that is taken away in slices is
// taken away.
func (d *deletion) mass(recent uint64) bool {
	n := d.recipients + recent
	return len(d.domains) > 0 || d.recipients > 0 && n > minDeletion && n*100 > (d.of+recent)*deletionPct
}

// recentSpan is how long a small deletion is remembered.
const recentSpan = time.Hour

// slice is a deletion that was too small to ask about.
type slice struct {
	at time.Time
	n  uint64
}

// recently counts what small deletions removed, and forgets the old ones.
func (f *Follower) recently() (n uint64) {
	f.slices = slices.DeleteFunc(slices.Clone(f.slices), func(s slice) bool { return f.o.now().Sub(s.at) > recentSpan })
	for _, s := range f.slices {
		n += s.n
	}
	return n
}

// deleted compares two contents.
func deleted(old, now *content) *deletion {
	d := &deletion{of: old.recipients}
	after := acceptedDomains(now.spec)
	for _, name := range acceptedDomains(old.spec) {
		if _, found := slices.BinarySearch(after, name); !found {
			d.domains = append(d.domains, name)
		}
	}
	l := newListing(now.spec)
	for _, name := range recipientTables(old.spec) {
		ranges(old.spec.Tables[name], now.spec.Tables[name], func(t *policy.Table, i int) {
			key, _ := t.Entry(i)
			if l.lists(key) {
				return
			}
			if d.recipients++; len(d.keys) < maxWithdrawn {
				d.keys = append(d.keys, string(key))
			}
		}, nil)
	}
	if d.recipients == 0 {
		return d
	}
	for name, n := range old.domains {
		switch {
		case *n < smallDomain || now.domains[name] != nil || l.lists([]byte("@"+name)):
		case name == "": // bare local-parts
			d.domains = append(d.domains, old.spec.Addresses.Local.Domains...)
		default:
			d.domains = append(d.domains, name)
		}
	}
	slices.Sort(d.domains)
	d.domains = slices.Compact(d.domains)
	return d
}

// ranges walks two tables in step, and calls removed and added with the
// entries that only one of them has. Tables may be nil.
func ranges(old, now *policy.Table, removed, added func(t *policy.Table, i int)) {
	i, j, n, m := 0, 0, indexed(old), indexed(now)
	for i < n || j < m {
		cmp := 0
		switch {
		case j == m:
			cmp = -1
		case i == n:
			cmp = 1
		default:
			a, _ := old.Entry(i)
			b, _ := now.Entry(j)
			cmp = bytes.Compare(a, b)
		}
		if cmp < 0 && removed != nil {
			removed(old, i)
		}
		if cmp > 0 && added != nil {
			added(now, j)
		}
		if cmp <= 0 {
			i++
		}
		if cmp >= 0 {
			j++
		}
	}
}

// indexed is the length of a table of keys, 0 of any other.
func indexed(t *policy.Table) int {
	if t == nil || t.Type() != kindNames[kindSet] && t.Type() != kindNames[kindHash] {
		return 0
	}
	return t.Len()
}

// listing says whether a policy still has a recipient, in whatever table.
type listing struct {
	tables []*policy.Table
	all    bool     // there is a table with one answer for everyone
	open   []string // domains in which every recipient exists
}

func newListing(spec *policy.Spec) *listing {
	l := &listing{}
	for _, name := range recipientTables(spec) {
		switch t := spec.Tables[name]; {
		case t == nil:
		case t.Type() == kindNames[kindStatic]:
			l.all = true
		case indexed(t) > 0:
			l.tables = append(l.tables, t)
		}
	}
	a := &spec.Addresses
	for _, c := range []*policy.AddressClass{&a.Local, &a.VirtualAliases, &a.VirtualMailbox, &a.Relay} {
		if len(c.Recipients) == 0 {
			l.open = append(l.open, c.Domains...)
		}
	}
	return l
}

func (l *listing) lists(key []byte) bool {
	if l.all {
		return true
	}
	at := key[max(0, len(key)-len(domainOf(key))-1):]
	for _, t := range l.tables {
		if t.Find(key) >= 0 || len(at) > 0 && at[0] == '@' && t.Find(at) >= 0 {
			return true
		}
	}
	return len(l.open) > 0 && slices.Contains(l.open, string(domainOf(key)))
}

// milder is a policy that answers unknown recipients 450 in place of 550.
func milder(spec *policy.Spec) *policy.Spec {
	s := *spec
	c := &s.Codes
	for _, code := range []*int{&c.UnknownLocalRcpt, &c.UnknownRelayRcpt, &c.UnknownVirtualAlias, &c.UnknownVirtualMailbox} {
		*code = 450
	}
	return &s
}

// withdraw is a policy that answers the deleted 450. They stay out of the
// tables, so that none of them can be accepted.
func (d *deletion) withdraw(spec *policy.Spec) (*policy.Spec, error) {
	keys, exact := d.accessKeys(spec)
	s := *spec
	if !exact || unlistedElsewhere(spec) {
		s = *milder(spec)
	}
	entries := make(map[string]string, len(keys))
	for _, k := range keys {
		entries[k] = withdrawnAction
	}
	t, err := policy.NewHash(entries)
	if err != nil {
		return nil, err
	}
	s.Tables = make(map[string]*policy.Table, len(spec.Tables)+1)
	for name, old := range spec.Tables {
		s.Tables[name] = old
	}
	s.Tables[withdrawnTable] = t
	first := policy.Restriction{Kind: "check_recipient_access", Arg: withdrawnTable}
	s.Restrictions.Recipient = append([]policy.Restriction{first}, spec.Restrictions.Recipient...)
	s.Restrictions.Relay = append([]policy.Restriction{first}, spec.Restrictions.Relay...)
	if slices.ContainsFunc(d.domains, func(n string) bool { return strings.HasPrefix(n, ".") }) {
		s.Codes.RelayDomains = 450
	}
	return &s, nil
}

// accessKeys spells the deleted as keys of an access table. What can't be
// spelled exactly, a catch-all for one, leaves exact false.
func (d *deletion) accessKeys(spec *policy.Spec) (keys []string, exact bool) {
	exact = uint64(len(d.keys)) == d.recipients
	local := spec.Addresses.Local.Domains
	for _, k := range d.keys {
		switch i := strings.LastIndexByte(k, '@'); {
		case i > 0:
			keys = append(keys, strings.ToLower(k))
		case i < 0 && len(keys)+len(local) <= maxWithdrawn && !slices.ContainsFunc(local, func(n string) bool { return n == "" || n[0] == '.' }):
			for _, domain := range local {
				keys = append(keys, strings.ToLower(k+"@"+domain))
			}
		default:
			exact = false
		}
	}
	after := acceptedDomains(spec)
	for _, n := range d.domains {
		if _, kept := slices.BinarySearch(after, n); !kept && !strings.HasPrefix(n, ".") && n != "" {
			keys = append(keys, strings.ToLower(n))
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), exact
}

// unlistedElsewhere says whether an unknown recipient may be refused before
// the lists in which the withdrawn are looked up.
func unlistedElsewhere(spec *policy.Spec) bool {
	r := &spec.Restrictions
	return slices.ContainsFunc(slices.Concat(r.Client, r.Helo, r.Sender), func(r policy.Restriction) bool {
		return r.Kind == "reject_unlisted_recipient" || r.Kind == "check_recipient_maps"
	})
}

// matchedDomains lists the names of domain lists that a set can't express.
// What their tables hold is left to policy.Snapshot.Confine.
func matchedDomains(spec *policy.Spec) (names []string) {
	a := &spec.Addresses
	for _, c := range []*policy.AddressClass{&a.Local, &a.VirtualAliases, &a.VirtualMailbox, &a.Relay} {
		for _, m := range c.Match {
			if !strings.HasPrefix(m, "!") && !strings.HasPrefix(m, "table:") && !strings.HasPrefix(m, "[") {
				names = append(names, m)
			}
		}
	}
	return names
}

// foreignDomain returns a domain of the policy that isn't allowed, "" when all
// are. ".example.org" allows the domains below example.org.
func foreignDomain(spec *policy.Spec, allowed []string) string {
	for _, d := range append(acceptedDomains(spec), matchedDomains(spec)...) {
		if !slices.ContainsFunc(allowed, func(a string) bool {
			a, low := strings.ToLower(a), strings.ToLower(d)
			return a == low || strings.HasPrefix(a, ".") && strings.HasSuffix(low, a)
		}) {
			return d
		}
	}
	return ""
}
