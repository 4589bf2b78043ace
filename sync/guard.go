package policysync

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// A deletion is staged when it takes half of a list, of whatever size, a whole
// domain, or more than one recipient in a hundred and more than minDeletion.
// What other versions took in the last window counts.
const (
	minDeletion = 100
	deletionPct = 1
	// maxWithdrawn bounds the list of withdrawn recipients. Beyond it, every
	// unknown recipient is answered 450 while the deletion is staged.
	maxWithdrawn = 100_000
)

// withdrawnTable is the name of the table of withdrawn recipients in the
// policy in force.
const withdrawnTable = "understudy:withdrawn"

// withdrawnAction is the reply to withdrawn recipients.
const withdrawnAction = "450 4.1.1 Recipient list is being verified, try again later"

// deletion is what a version takes away from the one before.
type deletion struct {
	recipients uint64          // removed
	of         uint64          // before
	lists      map[string]loss // of each list that lost some
	domains    []string        // removed, or without recipients now
	dropped    []string        // of them, those for which no mail is accepted now
	keys       []lostKey       // of the removed, at most maxWithdrawn
	listing    *listing        // of what is left; it knows how keys are spelled
}

// lostKey is an entry of a recipient table that was removed.
type lostKey struct{ table, key string }

// loss is how many entries of a list were removed, and how many it had.
type loss struct{ n, of uint64 }

func (l loss) plus(o loss) loss { return loss{l.n + o.n, max(l.of, o.of)} }

// The lists of recipients in which a deletion is looked for: all of them, each
// table, and each domain.
const allLists = ""

func tableList(name string) string { return "t" + name }

// domainList names the list of a domain, or of its tag where keys are hashed.
func domainList(domain string) string { return "d" + domain }

// mass says whether the operator must confirm the deletion. recent counts, by
// list, what other versions removed within the last window, so that a list can't
// be removed in slices.
func (d *deletion) mass(recent map[string]loss) bool {
	for name, l := range d.lists {
		l = l.plus(recent[name])
		if 2*l.n >= l.of || name == allLists && l.n > minDeletion && l.n*100 > l.of*deletionPct {
			return true
		}
	}
	return len(d.domains) > 0
}

// deleted compares two contents. What goes in foreign domains, which were never
// accepted here, doesn't matter.
func deleted(old, now *content, foreign []string) *deletion {
	d := &deletion{of: old.recipients, lists: map[string]loss{}}
	after := acceptedDomains(now.spec)
	for _, name := range acceptedDomains(old.spec) {
		if _, found := slices.BinarySearch(after, name); !found && !slices.Contains(foreign, name) {
			d.domains = append(d.domains, name)
			d.dropped = append(d.dropped, name)
		}
	}
	old, now, comparable := alike(old, now)
	d.listing = newListing(now, old.spec)
	if !comparable {
		return d
	}
	before := newListing(old, now.spec)
	ignored := map[string]bool{}
	for _, name := range foreign {
		ignored[d.listing.tag(name)] = true
	}
	left := unmoved(old.spec, now.spec)
	for _, name := range recipientTables(old.spec) {
		t := old.spec.Tables[name]
		diffTables(t, left[name], func(_ *table.Table, key []byte) {
			if domain := d.listing.domain(key); !ignored[domain] && !d.listing.lists(key) && before.serves(domain, t) {
				d.lose(old, lostKey{name, string(key)}, domain)
			}
		}, nil)
	}
	if d.recipients == 0 {
		return d
	}
	for name, n := range old.domains {
		switch l := d.lists[domainList(name)]; {
		case l.n < *n || ignored[name] || d.listing.everyone(name):
		case name == d.listing.tag(""): // bare local-parts
			d.domains = append(d.domains, old.spec.Addresses.Local.Domains...)
		default:
			d.domains = append(d.domains, d.listing.name(name))
		}
	}
	slices.Sort(d.domains)
	d.domains = slices.Compact(d.domains)
	return d
}

// lose notes a removed entry of old.
func (d *deletion) lose(old *content, k lostKey, domain string) {
	d.recipients++
	if len(d.keys) < maxWithdrawn {
		d.keys = append(d.keys, k)
	}
	inDomain := uint64(0)
	if n := old.domains[domain]; n != nil {
		inDomain = *n
	}
	for name, of := range map[string]uint64{allLists: old.recipients, tableList(k.table): uint64(old.spec.Tables[k.table].Len()), domainList(domain): inDomain} {
		d.lists[name] = d.lists[name].plus(loss{1, of})
	}
}

// unmoved returns the recipient tables of now whose entries mean what they did
// in old. One that another class of domains looks into now is not among them.
func unmoved(old, now *policy.Spec) map[string]*table.Table {
	same := map[string]*table.Table{}
	for _, name := range recipientTables(now) {
		same[name] = now.Tables[name]
	}
	if reflect.DeepEqual(old.Addresses, now.Addresses) {
		return same
	}
	after := tablesByDomain(now)
	for domain, names := range tablesByDomain(old) {
		left, known := after[domain]
		for _, name := range names {
			if known && !slices.Contains(left, name) {
				delete(same, name)
			}
		}
	}
	return same
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
func (c *content) hashed(s *table.Secret) (*content, error) {
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

// milder is a policy that answers unknown recipients 450 in place of 550.
func milder(spec *policy.Spec) *policy.Spec {
	s := *spec
	c := &s.Codes
	for _, code := range []*int{&c.UnknownLocalRcpt, &c.UnknownRelayRcpt, &c.UnknownVirtualAlias, &c.UnknownVirtualMailbox} {
		*code = 450
	}
	return &s
}

// fleeting says what came and went while a deletion was staged. It is in neither
// version that is compared, and its names aren't kept.
type fleeting struct {
	Recipients bool `json:"recipients,omitempty"`
	Domains    bool `json:"domains,omitempty"`
}

// milder makes a policy that answers 450 to all who may have come and gone.
func (g fleeting) milder(spec *policy.Spec) *policy.Spec {
	if g.Recipients || g.Domains {
		spec = milder(spec)
	}
	if g.Domains {
		spec.Codes.RelayDomains = 450
	}
	return spec
}

// between examines the step to cur from a version that was in force while the
// deletion earlier was staged. A version that reverts that deletion may be one
// itself; the few recipients of a broken list don't count.
func (f *Follower) between(before *version, earlier fleeting) {
	step := deleted(before.content, f.cur.content, before.foreign)
	if f.base == nil {
		if 2*step.recipients >= f.cur.content.recipients || len(step.dropped) > 0 {
			f.stage(before, false)
		}
		return
	}
	f.fleeting = earlier
	known := make(map[string]bool, len(f.gone.keys))
	for _, k := range f.gone.keys {
		known[k.key] = true
	}
	if slices.ContainsFunc(step.keys, func(k lostKey) bool { return !known[k.key] }) {
		f.fleeting.Recipients = true
	}
	if slices.ContainsFunc(step.dropped, func(n string) bool { return !slices.Contains(f.gone.dropped, n) }) {
		f.fleeting.Domains = true
	}
}

// withdraw makes a policy that answers 450 to deleted recipients. They stay out of
// the tables, so that none of them can be accepted.
func (d *deletion) withdraw(spec *policy.Spec) (*policy.Spec, error) {
	keys, exact := d.accessKeys()
	actions := map[string]string{}
	for _, k := range d.below(spec) {
		actions[k] = "DUNNO"
	}
	for _, k := range keys {
		actions[k] = withdrawnAction
	}
	s := *spec
	if !exact || unlistedElsewhere(spec) {
		s = *milder(spec)
	}
	kind := kindNames[kindHash]
	if d.listing.secret != nil {
		kind = kindNames[kindHashedHash]
	}
	b, err := table.NewBuilder(kind, d.listing.secret)
	for _, k := range slices.Sorted(maps.Keys(actions)) {
		if err == nil {
			err = b.Add([]byte(k), []byte(actions[k]))
		}
	}
	if err != nil {
		return nil, err
	}
	t, err := b.Table()
	if err != nil {
		return nil, err
	}
	s.Tables = make(map[string]*table.Table, len(spec.Tables)+1)
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

// accessKeys spells deleted recipients as keys of an access table. exact is false
// if one of them, such as a catch-all, can't be spelled exactly.
func (d *deletion) accessKeys() (keys []string, exact bool) {
	exact = uint64(len(d.keys)) == d.recipients
	local := d.listing.spec.Addresses.Local.Domains
	for _, lost := range d.keys {
		k := lost.key
		switch i := strings.LastIndexByte(k, '@'); {
		case d.listing.hasher != nil:
			if _, known := d.listing.names[k[:table.TagSize]]; !known || d.listing.special(k) {
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
	for _, n := range d.dropped {
		if !strings.HasPrefix(n, ".") && n != "" {
			keys = append(keys, d.listing.key(strings.ToLower(n)))
		}
	}
	return keys, exact
}

// below lists the keys of kept domains below a dropped one, whose entry would be
// found for them too.
func (d *deletion) below(spec *policy.Spec) (keys []string) {
	dropped := map[string]bool{}
	for _, n := range d.dropped {
		dropped[strings.ToLower(n)] = true
	}
	for _, n := range acceptedDomains(spec) {
		low := strings.ToLower(n)
		for i, c := range []byte(low) {
			if c == '.' && i > 0 && dropped[low[i+1:]] {
				keys = append(keys, d.listing.key(low))
				break
			}
		}
	}
	return keys
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

// foreignDomains lists the domains of the policy that aren't allowed.
// ".example.org" allows the domains below example.org.
func foreignDomains(spec *policy.Spec, allowed []string) (foreign []string) {
	for _, d := range append(acceptedDomains(spec), matchedDomains(spec)...) {
		if !slices.ContainsFunc(allowed, func(a string) bool {
			a, low := strings.ToLower(a), strings.ToLower(d)
			return a == low || strings.HasPrefix(a, ".") && strings.HasSuffix(low, a)
		}) {
			foreign = append(foreign, d)
		}
	}
	return foreign
}
