package policysync

import (
	"fmt"
	"maps"
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
	listing    *listing // of what is left; it knows how keys are spelled
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
	old, now, comparable := alike(old, now)
	d.listing = newListing(now, old.spec)
	if !comparable {
		return d
	}
	l := d.listing
	for _, name := range recipientTables(old.spec) {
		diffTables(old.spec.Tables[name], now.spec.Tables[name], func(t *policy.Table, key []byte) {
			if l.lists(t, key) {
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
		case *n < smallDomain || now.domains[name] != nil || l.everyone(name):
		case name == l.tag(""): // bare local-parts
			d.domains = append(d.domains, old.spec.Addresses.Local.Domains...)
		default:
			d.domains = append(d.domains, l.name(name))
		}
	}
	slices.Sort(d.domains)
	d.domains = slices.Compact(d.domains)
	return d
}

// alike brings two contents to keys of the same spelling: plain, or hashed
// under one secret. ok is false where that can't be done, because they were
// hashed for two pairings.
func alike(old, now *content) (o, n *content, ok bool) {
	switch {
	case sameSecret(old.secret, now.secret):
		return old, now, true
	case old.secret == nil:
		o, err := old.hashed(now.secret)
		return o, now, err == nil
	case now.secret == nil:
		n, err := now.hashed(old.secret)
		return old, n, err == nil
	}
	return old, now, false
}

// hashed is a plain content with the keys of its recipients hashed.
func (c *content) hashed(s *policy.Secret) (*content, error) {
	spec := *c.spec
	spec.Tables = maps.Clone(spec.Tables)
	for _, name := range recipientTables(&spec) {
		if t := spec.Tables[name]; t != nil && t.Keyed() {
			h, err := t.Hashed(s, false, nil, nil)
			if err != nil {
				return c, fmt.Errorf("hash table %s: %w", name, err)
			}
			spec.Tables[name] = h
		}
	}
	h := &content{spec: &spec, secret: s}
	h.count(nil)
	return h, nil
}

// listing says whether a policy still has a recipient, in whatever table.
type listing struct {
	tables []*policy.Table
	all    bool            // there is a table with one answer for everyone
	open   []string        // domains in which every recipient exists
	whole  map[string]bool // what everyone said, by domain or its tag

	hasher *policy.Hasher    // nil: keys are plain
	secret *policy.Secret    // of hasher
	names  map[string]string // domains by their tags, as far as the policy names them
}

// newListing makes the listing of a content. It knows the names of its domains
// and of those that another policy accepts mail for.
func newListing(c *content, other *policy.Spec) *listing {
	l := &listing{whole: map[string]bool{}}
	for _, name := range recipientTables(c.spec) {
		switch t := c.spec.Tables[name]; {
		case t == nil:
		case t.Type() == kindNames[kindStatic]:
			l.all = true
		case t.Keyed() && t.Len() > 0:
			l.tables = append(l.tables, t)
		}
	}
	a := &c.spec.Addresses
	for _, c := range []*policy.AddressClass{&a.Local, &a.VirtualAliases, &a.VirtualMailbox, &a.Relay} {
		if len(c.Recipients) == 0 {
			l.open = append(l.open, c.Domains...)
		}
	}
	if l.secret = c.secret; l.secret != nil {
		l.hasher, l.names = policy.NewHasher(l.secret), map[string]string{}
		for _, spec := range []*policy.Spec{c.spec, other} {
			for _, name := range append(acceptedDomains(spec), "") {
				l.names[l.tag(name)] = name
			}
		}
	}
	return l
}

// tag is the domain of keys as domainOf says it.
func (l *listing) tag(name string) string {
	if l.hasher == nil {
		return name
	}
	return string(l.hasher.Tag([]byte(name)))
}

// hiddenName stands for what only a digest is known of.
const hiddenName = "(hashed)"

// name is the opposite of tag.
func (l *listing) name(tag string) string {
	if l.hasher == nil {
		return tag
	}
	if name, known := l.names[tag]; known {
		return name
	}
	return hiddenName
}

// spell shows a key to the operator.
func (l *listing) spell(key string) string {
	if l.hasher == nil {
		return clipText(key, maxShown)
	}
	switch name := l.name(key[:policy.TagSize]); name {
	case "", hiddenName:
		return hiddenName
	default:
		return clipText(hiddenName+"@"+name, maxShown)
	}
}

// special says that a digest is of a bare local-part or of a catch-all.
func (l *listing) special(digest string) bool {
	name := l.name(digest[:policy.TagSize])
	return name == "" || l.key("@"+name) == digest
}

// key spells a key as the tables do.
func (l *listing) key(plain string) string {
	if l.hasher == nil {
		return plain
	}
	return string(l.hasher.Digest([]byte(plain)))
}

// everyone says whether all recipients of a domain exist, by a catch-all or
// because nothing lists them.
func (l *listing) everyone(tag string) bool {
	whole, known := l.whole[tag]
	if !known {
		name := l.name(tag)
		whole = slices.Contains(l.open, name)
		key := []byte(l.key("@" + name))
		for _, t := range l.tables {
			whole = whole || name != "" && t.Find(key) >= 0
		}
		l.whole[tag] = whole
	}
	return whole
}

func (l *listing) lists(of *policy.Table, key []byte) bool {
	if l.all {
		return true
	}
	for _, t := range l.tables {
		if t.Find(key) >= 0 {
			return true
		}
	}
	return l.everyone(string(domainOf(of, key)))
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
	kind := kindNames[kindHash]
	if d.listing.secret != nil {
		kind = kindNames[kindHashedHash]
	}
	b, err := policy.NewTableBuilder(kind, d.listing.secret)
	for i := 0; i < len(keys) && err == nil; i++ {
		err = b.Add([]byte(keys[i]), []byte(withdrawnAction))
	}
	if err != nil {
		return nil, err
	}
	t, err := b.Table()
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
		case d.listing.hasher != nil:
			if _, known := d.listing.names[k[:policy.TagSize]]; !known || d.listing.special(k) {
				exact = false
			} else {
				keys = append(keys, k)
			}
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
			keys = append(keys, d.listing.key(strings.ToLower(n)))
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
