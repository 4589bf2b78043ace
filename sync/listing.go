package policysync

import (
	"slices"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// listing says whether a policy still has a recipient, in whatever table.
type listing struct {
	spec   *policy.Spec
	tables []*table.Table
	by     map[string][]*table.Table // tables that count, by domain or its tag; nil: not asked for yet
	all    bool                      // there is a table with one answer for everyone
	open   []string                  // domains in which every recipient exists
	whole  map[string]bool           // results of everyone, by domain or its tag

	hasher *table.Hasher     // nil: keys are plain
	secret *table.Secret     // of hasher
	names  map[string]string // domains by their tags, as far as the policy names them
}

// newListing makes the listing of a content. It knows the names of its domains
// and of those that another policy accepts mail for.
func newListing(c *content, other *policy.Spec) *listing {
	l := &listing{spec: c.spec, whole: map[string]bool{}}
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
		l.hasher, l.names = table.NewHasher(l.secret), map[string]string{}
		for _, spec := range []*policy.Spec{c.spec, other} {
			for _, name := range append(acceptedDomains(spec), "") {
				l.names[l.tag(name)] = name
			}
		}
	}
	return l
}

// tag is the domain of keys as domainOf returns it.
func (l *listing) tag(name string) string {
	if l.hasher == nil {
		return name
	}
	return string(l.hasher.Tag([]byte(name)))
}

// hiddenName is shown for a name of which only a digest is known.
const hiddenName = "(hashed)"

// name is the inverse of tag.
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
	switch name := l.name(key[:table.TagSize]); name {
	case "", hiddenName:
		return hiddenName
	default:
		return clipText(hiddenName+"@"+name, maxShown)
	}
}

// special says that a digest is of a bare local-part or of a catch-all.
func (l *listing) special(digest string) bool {
	name := l.name(digest[:table.TagSize])
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
		for _, t := range l.of(tag) {
			whole = whole || name != "" && t.Find(key) >= 0
		}
		l.whole[tag] = whole
	}
	return whole
}

// domain is the domain of a key, or its tag.
func (l *listing) domain(key []byte) string {
	if l.hasher != nil {
		return string(key[:table.TagSize])
	}
	return string(table.DomainOf(key))
}

// of returns the tables that list the recipients of a domain: all of them where
// a pattern may name it.
func (l *listing) of(tag string) []*table.Table {
	if l.by == nil {
		l.by = map[string][]*table.Table{}
		for domain, names := range tablesByDomain(l.spec) {
			tables := slices.DeleteFunc(slices.Clone(l.tables), func(t *table.Table) bool {
				return !slices.ContainsFunc(names, func(n string) bool { return l.spec.Tables[n] == t })
			})
			l.by[l.tag(domain)] = tables
		}
	}
	if tables, known := l.by[tag]; known {
		return tables
	}
	return l.tables
}

// serves says whether a table counts for a domain.
func (l *listing) serves(tag string, t *table.Table) bool { return slices.Contains(l.of(tag), t) }

func (l *listing) lists(key []byte) bool {
	if l.all {
		return true
	}
	tag := l.domain(key)
	for _, t := range l.of(tag) {
		if t.Find(key) >= 0 {
			return true
		}
	}
	return l.everyone(tag)
}

// tablesByDomain names the tables that list the recipients of each domain, ""
// for bare local-parts. It knows nothing of domains that only a pattern names.
func tablesByDomain(spec *policy.Spec) map[string][]string {
	a, by := &spec.Addresses, map[string][]string{}
	for _, c := range []*policy.AddressClass{&a.Local, &a.VirtualAliases, &a.VirtualMailbox, &a.Relay} {
		names := slices.Concat(a.VirtualAlias, c.Recipients)
		for _, domain := range c.Domains {
			by[domain] = append(by[domain], names...)
		}
		if c == &a.Local {
			by[""] = names
		}
	}
	return by
}
