package parity

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// Material is what sessions are made of. The first of Clients, Helos and Senders
// should be one that servers accept; it is drawn most.
type Material struct {
	Clients    []Client
	Helos      []string
	Senders    []string // domains
	Authors    []string // whole addresses, as senders
	Recipients []string // mailboxes that exist, or nearly
	Domains    []string // that recipients are at
	Strings    []string // what patterns match: for any part, and header fields
	Fields     []string // of messages, in place of Strings
	Delimiters string   // of address extensions
	Size       int64    // message_size_limit, 0 for none

	// Sober sessions leave out what servers take apart each in its own way: spellings of
	// addresses and commands that nobody writes, parameters that aren't valid.
	Sober bool
	// Proxied: both servers take the PROXY protocol.
	Proxied bool

	// Data says whom messages may be sent to: nobody when "", any recipient
	// when "*", else this one.
	Data string
}

// maxKeys bounds how many keys of a table take part, evenly spread.
const maxKeys = 1000

// NewMaterial draws from a policy. The caller adds, before the rest, what must be
// in the DNS: a good client, its name, domains of senders of every kind; see Plain.
func NewMaterial(spec *policy.Spec, plain Material) *Material {
	m := plain
	m.Delimiters = cmp.Or(spec.Addresses.RecipientDelimiter, "+")
	m.Size = spec.Limits.MessageSize
	for _, n := range spec.MyNetworks {
		m.network(strings.TrimPrefix(n, "!"))
	}
	a := &spec.Addresses
	for _, c := range []*policy.AddressClass{&a.Local, &a.VirtualAliases, &a.VirtualMailbox, &a.Relay} {
		for _, d := range c.Domains {
			if rest, sub := strings.CutPrefix(d, "."); sub {
				m.Domains = append(m.Domains, "sub."+rest, "a.b."+rest)
			} else if !strings.HasPrefix(d, "[") {
				m.Domains = append(m.Domains, d)
			}
			m.Recipients = append(m.Recipients, "nobody@"+strings.TrimPrefix(d, "."))
		}
	}
	for _, name := range sortedKeys(spec.Tables) {
		t := spec.Tables[name]
		step := max(1, t.Len()/maxKeys)
		authors := len(m.Authors)
		for i := 0; i < t.Len(); i += step {
			key, value := t.Entry(i)
			m.key(t.Type(), string(key), value, a)
		}
		if t.Type() == "regexp" || t.Type() == "pcre" {
			m.cross(m.Authors[authors:])
		}
	}
	m.Domains = append(m.Domains, "sub."+cmp.Or(a.MyOrigin, "example.org"))
	m.Helos = append(m.Helos, m.Domains...)
	for _, list := range []*[]string{&m.Helos, &m.Senders, &m.Authors, &m.Recipients, &m.Domains, &m.Strings} {
		*list = unique(*list)
	}
	m.Clients = slices.DeleteFunc(unique(m.Clients), func(c Client) bool { return !sayable(c.Name) || !sayable(c.Reverse) })
	return &m
}

// sayable says that a client's name can be stated by XCLIENT.
func sayable(name string) bool {
	return name == "" || name == Temporary || envelope.ValidDomain(name) && !strings.ContainsFunc(name, func(r rune) bool { return r > 0x7e })
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// unique drops what comes again, keeping the order.
func unique[T comparable](list []T) []T {
	seen := map[T]bool{}
	return slices.DeleteFunc(slices.Clone(list), func(v T) bool {
		again := seen[v]
		seen[v] = true
		return again
	})
}

// key makes probes of one key of a table, by what it looks like.
func (m *Material) key(typ, key, value string, a *policy.Addresses) {
	switch {
	case key == "" || key == "<>":
	case typ == "regexp" || typ == "pcre":
		m.pattern(key)
	case typ == "cidr":
		m.network(key)
	case strings.Contains(key, "@"):
		m.address(key)
	case m.partial(key):
	case !strings.Contains(key, "."):
		for _, d := range slices.Concat(a.Local.Domains, []string{a.MyOrigin}) {
			m.Recipients = append(m.Recipients, key+"@"+d)
		}
		m.name(key)
	default:
		m.name(key)
	}
}

// address takes "local@domain", "@domain" or "local@".
func (m *Material) address(key string) {
	at := strings.LastIndexByte(key, '@')
	local, domain := key[:at], key[at+1:]
	for _, l := range []string{local, "nobody"} {
		for _, d := range []string{domain, m.first(m.Domains), m.first(m.Senders)} {
			if l != "" && d != "" {
				m.Authors = append(m.Authors, l+"@"+d)
				m.Recipients = append(m.Recipients, l+"@"+d)
			}
			if domain != "" {
				break
			}
		}
		if local != "" {
			break
		}
	}
}

// cross joins the local-parts of addresses with the domains of others: one of a
// table's rules may be inside of another's condition.
func (m *Material) cross(list []string) {
	list = list[:min(len(list), 20)]
	for _, a := range list {
		local, _, _ := strings.Cut(a, "@")
		for _, b := range list {
			_, domain, _ := strings.Cut(b, "@")
			m.Authors = append(m.Authors, local+"@"+domain)
			m.Recipients = append(m.Recipients, local+"@"+domain)
		}
	}
}

func (m *Material) first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// name takes a host or domain name, in any role, with a subdomain of it.
func (m *Material) name(key string) {
	key = strings.TrimPrefix(key, ".")
	addr := m.plainClient().Addr
	for _, n := range []string{key, "sub." + key} {
		m.Clients = append(m.Clients, Client{addr, n, n}, Client{addr, "", n})
		m.Helos = append(m.Helos, n)
		m.Senders = append(m.Senders, n)
		m.Recipients = append(m.Recipients, "nobody@"+n)
	}
}

func (m *Material) plainClient() Client {
	if len(m.Clients) == 0 {
		return Client{Addr: netip.MustParseAddr("192.0.2.1")}
	}
	return m.Clients[0]
}

// partial takes an address, or its beginning as access(5) has it.
func (m *Material) partial(key string) bool {
	full := key
	if strings.Contains(key, ":") {
		if _, err := netip.ParseAddr(full); err != nil {
			full += "::7"
		}
	} else {
		for strings.Count(full, ".") < 3 {
			full += ".7"
		}
	}
	a, err := netip.ParseAddr(full)
	if err != nil {
		return false
	}
	m.client(a)
	m.Helos = append(m.Helos, a.String())
	return true
}

// client adds an address with and without a name.
func (m *Material) client(a netip.Addr) {
	p := m.plainClient()
	m.Clients = append(m.Clients, Client{a, p.Name, p.Reverse}, Client{a, "", ""})
}

// network adds addresses at both borders of a prefix, inside and outside.
func (m *Material) network(s string) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil {
			p = netip.PrefixFrom(a, a.BitLen())
		} else {
			return
		}
	}
	first := p.Masked().Addr()
	b := first.AsSlice()
	for i := range b {
		if host := 8*(i+1) - p.Bits(); host > 0 {
			b[i] |= byte(1<<min(host, 8) - 1)
		}
	}
	last, _ := netip.AddrFromSlice(b)
	for _, a := range []netip.Addr{first.Prev(), first, last, last.Next()} {
		if a.IsValid() {
			m.client(a)
		}
	}
}
