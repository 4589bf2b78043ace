package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/table"
)

// Snapshot is one version of the whole policy, compiled. It is immutable.
type Snapshot struct {
	spec   *Spec
	digest func() [32]byte
	stats  Stats

	late func(value string) access // reads a value that depends on the key

	acl      *acl // nil: the restrictions decide
	patterns *patternCache

	client, helo, sender, relay, recipient, data, endOfData []check

	allowed        map[string]bool // domains that Confine allows, ".example.org" those below; nil: all
	networks       networkList
	bareLF         networkList // who may send bare line feeds
	unlimited      networkList // whom Limits.Client doesn't concern
	backupNetworks networkList // of permit_mx_backup
	forbidden      []matchItem // commands, by their first words
	noop           []matchItem
	content        contentChecks
	milterUses     []MilterUse
	needsRcpts     bool // a milter's greylisting knows envelopes
	milterMaps     []*dict
	domains        [classRelay + 1]domainSet
	recipients     [classRelay + 1][]*dict

	rcptCanonical, senderCanonical, canonical, virtualAlias []*dict
	transport, relocated, senderLogin, commandFilter        []*dict

	screenAccess, screenReply []*dict // of postscreen; nil is permit_mynetworks
	screenPassed              []*dict

	sites    []*zone   // of reject_dnsbl_score and postscreen
	prefetch []string  // DNS lists that every client is looked up in
	lists    []DNSList // all DNS lists, each zone once
	asks     bool
}

// Compile makes a Snapshot of a Spec. It sorts the Spec's domains; nothing may
// change the Spec afterwards. The error joins all that is wrong with it.
func Compile(spec *Spec) (_ *Snapshot, err error) {
	// It comes from another machine, and a mistake of ours in reading it must
	// not end the daemon that has a good one.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("policy can't be compiled: %v", r)
		}
	}()
	c := &compiler{
		s:       &Snapshot{spec: spec, patterns: new(patternCache)},
		tables:  map[string]*dict{},
		classes: map[string]*[]check{},
	}
	c.settings()
	c.addresses()
	c.restrictions()
	c.acl()
	c.s.late = c.lateAccess()
	if err := errors.Join(c.errs...); err != nil {
		return nil, err
	}
	c.s.digest = sync.OnceValue(c.s.sum)
	return c.s, nil
}

// Digest identifies the policy: equal policies have equal ones.
func (s *Snapshot) Digest() [32]byte { return s.digest() }

// Limits are the bounds that the SMTP server keeps.
func (s *Snapshot) Limits() Limits { return s.spec.Limits }

// Asks says that the primary must be asked about some recipients: Verdict.Ask.
func (s *Snapshot) Asks() bool { return s.asks }

// Stats describes the policy in numbers.
func (s *Snapshot) Stats() Stats { return s.stats }

// DNSList is a zone that the policy asks, and what for.
type DNSList struct {
	Zone      string
	Uses      []string // restrictions; of postscreen's "postscreen_dnsbl_sites"
	Weight    int      // in reject_dnsbl_score and postscreen, 0: in neither
	Addresses bool     // it is asked about clients' addresses
	Names     bool     // it is asked about domains
}

// DNSLists returns all DNS lists, each zone once.
func (s *Snapshot) DNSLists() []DNSList { return s.lists }

// Spec is the policy as data. The caller must not change it.
func (s *Snapshot) Spec() *Spec { return s.spec }

// Session starts judging one SMTP session. Its owner must Close it.
func (s *Snapshot) Session(r Resolver, c envelope.Client) *Session {
	c.Addr = c.Addr.Unmap()
	se := &Session{snap: s, client: c, heloGiven: c.Helo != "", stated: c.NameStatus != envelope.NameUnasked, spfPass: map[string]bool{}}
	se.find.snap = s
	se.lookups.init(r)
	return se
}

// Bounds of how many tables a union or pipe names, and how deeply they nest.
const (
	maxMembers = 16
	maxUnions  = 4
)

// compiler collects mistakes, so that all are reported at once.
type compiler struct {
	s       *Snapshot
	errs    []error
	tables  map[string]*dict
	classes map[string]*[]check

	greylists map[string]*greylist // by name, as far as they are compiled
}

func (c *compiler) errorf(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

func (c *compiler) settings() {
	spec := c.s.spec
	if spec.Version != SpecVersion {
		c.errorf("version: this program knows version %d, not %d", SpecVersion, spec.Version)
	}
	for _, t := range []struct{ name, value string }{
		{"unknown_address_tempfail_action", spec.UnknownAddressTempfail},
		{"unknown_helo_hostname_tempfail_action", spec.UnknownHeloTempfail},
	} {
		if t.value != actionPermit && t.value != actionDefer {
			c.errorf("%s: %q is neither %q nor %q", t.name, t.value, actionPermit, actionDefer)
		}
	}
	for name, code := range spec.Codes.byName() {
		if code < 400 || code > 599 {
			c.errorf("codes.%s: %d is no reply code from 400 to 599", name, code)
		}
	}
	c.limits(&spec.Limits)
	for _, name := range slices.Sorted(maps.Keys(spec.Tables)) {
		if t := spec.Tables[name]; t == nil || t.Type() == "" {
			c.errorf("tables.%s: is empty", name)
		} else {
			c.tables[name] = &dict{Table: t, name: name}
		}
	}
	c.members()
	c.learned()
	c.s.networks = c.networks("mynetworks", spec.MyNetworks, spec.NetworksMatchSubdomain)
	c.s.backupNetworks = c.networks("mx_backup.networks", spec.MXBackup.Networks, spec.MXBackup.MatchSubdomain)
	c.content()
	c.milters()
	c.postscreen()
	for _, ext := range c.s.spec.Protocol.Discard {
		if ext != "DSN" && ext != "SMTPUTF8" {
			c.errorf("protocol.discard_ehlo_keywords: %q is neither \"DSN\" nor \"SMTPUTF8\"", ext)
		}
	}
	c.bareNewline()
	c.s.unlimited = c.networks("limits.client.client_event_limit_exceptions", spec.Limits.Client.Exceptions, spec.Limits.Client.MatchSubdomain)
	c.s.forbidden = c.names("protocol.forbidden_commands", spec.Protocol.ForbiddenCommands)
	c.s.noop = c.names("protocol.noop_commands", spec.Protocol.NoopCommands)
	for _, site := range spec.DNSBL.Sites {
		use := "reject_dnsbl_score"
		if spec.Postscreen != nil {
			use = "postscreen_dnsbl_sites"
		}
		z := c.zone("dnsbl.sites", use, site.Zone)
		if z != nil {
			z.weight = site.Weight
			c.listOf(z.suffix).Weight += site.Weight
			c.s.sites = append(c.s.sites, z)
		}
	}
}

func (c *compiler) limits(l *Limits) {
	client := &l.Client
	if l.MessageSize < 0 || min(l.Recipients, l.HeaderBytes, l.LineLength, l.Hops, l.SoftErrors, l.HardErrors, l.JunkCommands, l.RcptOvershoot,
		l.ErrorSleep, l.Stress.SoftErrors, l.Stress.HardErrors, l.Stress.JunkCommands,
		client.Connections, client.ConnectionRate, client.MessageRate, client.RecipientRate, client.NewTLSRate, client.RateTime) < 0 {
		c.errorf("limits: a limit can't be negative")
	}
	if client.IPv4Prefix < 0 || client.IPv4Prefix > 32 || client.IPv6Prefix < 0 || client.IPv6Prefix > 128 {
		c.errorf("limits.client: no network has the prefix length %d or %d", client.IPv4Prefix, client.IPv6Prefix)
	}
}

func (c *compiler) bareNewline() {
	p := &c.s.spec.Protocol
	switch p.BareNewline {
	case "", bareReject, bareNormalize:
	default:
		c.errorf("protocol.forbid_bare_newline: %q is neither %q nor %q", p.BareNewline, bareReject, bareNormalize)
	}
	if code := p.BareNewlineCode; code != 0 && (code < 500 || code > 599) {
		c.errorf("protocol.forbid_bare_newline_reject_code: %d is no reply code from 500 to 599", code)
	}
	c.s.bareLF = c.networks("protocol.forbid_bare_newline_exclusions", p.BareNewlineExclusions, c.s.spec.NetworksMatchSubdomain)
}

// zone compiles a DNS list that use, a restriction, asks.
func (c *compiler) zone(where, use, arg string) *zone {
	z, err := parseZone(arg)
	if err != nil {
		c.errorf("%s: %w", where, err)
		return nil
	}
	z.reply = c.s.spec.DNSBL.Replies[arg]
	l := c.listOf(z.suffix)
	if !slices.Contains(l.Uses, use) {
		l.Uses = append(l.Uses, use)
	}
	byName := strings.Contains(use, "_rhs") // reject_rhsbl_sender, permit_rhswl_client
	l.Names, l.Addresses = l.Names || byName, l.Addresses || !byName
	return z
}

// listOf is what is known of a zone so far.
func (c *compiler) listOf(zone string) *DNSList {
	i := slices.IndexFunc(c.s.lists, func(l DNSList) bool { return l.Zone == zone })
	if i < 0 {
		i = len(c.s.lists)
		c.s.lists = append(c.s.lists, DNSList{Zone: zone})
	}
	return &c.s.lists[i]
}

func (c *compiler) addresses() {
	a, s := &c.s.spec.Addresses, c.s
	for class, ac := range map[addressClass]*AddressClass{
		classLocal: &a.Local, classVirtualAlias: &a.VirtualAliases,
		classVirtualMailbox: &a.VirtualMailbox, classRelay: &a.Relay,
	} {
		for i := range ac.Domains {
			ac.Domains[i] = table.Fold(ac.Domains[i])
		}
		slices.Sort(ac.Domains) // for the canonical encoding
		for i := 1; i < len(ac.Domains); i++ {
			if ac.Domains[i] == ac.Domains[i-1] {
				c.errorf("addresses: domains: %q appears twice", ac.Domains[i])
			}
		}
		s.domains[class] = domainSet{ac.Domains, c.domainList(ac)}
		s.recipients[class] = c.named("addresses: recipients", ac.Recipients)
		s.stats.Domains += len(ac.Domains)
		for _, t := range s.recipients[class] {
			s.stats.Recipients += t.Len()
		}
	}
	s.rcptCanonical = c.named("addresses: recipient_canonical_maps", a.RecipientCanonical)
	s.senderCanonical = c.named("addresses: sender_canonical_maps", a.SenderCanonical)
	s.canonical = c.named("addresses: canonical_maps", a.Canonical)
	s.virtualAlias = c.named("addresses: virtual_alias_maps", a.VirtualAlias)
	s.transport = c.named("addresses: transport_maps", a.TransportMaps)
	s.relocated = c.named("addresses: relocated_maps", a.Relocated)
	s.senderLogin = c.named("sender_login_maps", c.s.spec.SenderLogin)
	s.commandFilter = c.named("command_filter", c.s.spec.CommandFilter)
	for _, t := range s.virtualAlias {
		s.stats.Recipients += t.Len()
	}
}

// members finds the tables that unions and pipes name. None may contain
// itself.
func (c *compiler) members() {
	for _, name := range slices.Sorted(maps.Keys(c.tables)) {
		t := c.tables[name]
		if !t.Is(table.TypeUnion, table.TypePipe) {
			continue
		}
		if n := len(t.Members()); n == 0 || n > maxMembers {
			c.errorf("tables.%s: names no table, or more than %d", name, maxMembers)
		}
		t.members = c.named("tables."+name, t.Members())
		for _, m := range t.members {
			if t.Is(table.TypePipe) && m.Is(table.TypeSet) {
				c.errorf("tables.%s: %q has no values", name, m.name)
			}
		}
	}
	flat := map[*dict]bool{} // nested no deeper than the rounds so far
	for range maxUnions + 1 {
		var more []*dict
		for _, t := range c.tables {
			if !slices.ContainsFunc(t.members, func(m *dict) bool { return !flat[m] }) {
				more = append(more, t)
			}
		}
		for _, t := range more {
			flat[t] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.tables)) {
		if !flat[c.tables[name]] {
			c.errorf("tables.%s: contains itself, or nests too deeply", name)
		}
	}
}

func (c *compiler) named(where string, names []string) []*dict {
	var list []*dict
	for _, n := range names {
		if t := c.tables[n]; t != nil {
			list = append(list, t)
		} else {
			c.errorf("%s: no table is called %q", where, n)
		}
	}
	return list
}

func (c *compiler) restrictions() {
	spec, s := c.s.spec, c.s
	for name := range spec.Classes {
		if findKind(name) != nil {
			c.errorf("restriction_classes: %q is a restriction's name", name)
		}
		c.classes[name] = new([]check)
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Classes)) {
		*c.classes[name] = c.list("restriction_classes."+name, spec.Classes[name])
	}
	r := &spec.Restrictions
	s.client = c.list("restrictions.client", r.Client)
	s.helo = c.list("restrictions.helo", r.Helo)
	s.sender = c.list("restrictions.sender", r.Sender)
	s.relay = c.list("restrictions.relay", r.Relay)
	s.recipient = c.list("restrictions.recipient", r.Recipient)
	s.data = c.list("restrictions.data", r.Data)
	s.endOfData = c.list("restrictions.end_of_data", r.EndOfData)
	c.prefetch(slices.Concat(s.client, s.helo, s.sender, s.relay, s.recipient))
}

// prefetch notes the DNS lists that every client will be looked up in. Those
// in classes and tables are for some clients only, and asked when needed.
func (c *compiler) prefetch(checks []check) {
	zones := map[string]bool{}
	if c.s.spec.Postscreen != nil {
		checks = append(checks, check{kind: findKind("reject_dnsbl_score")})
	}
	for _, ch := range checks {
		switch ch.kind.name {
		case "reject_rbl_client", "permit_dnswl_client":
			zones[ch.zone.suffix] = true
		case "reject_dnsbl_score":
			for _, z := range c.s.sites {
				zones[z.suffix] = true
			}
		}
	}
	c.s.prefetch = slices.Sorted(maps.Keys(zones))
}

func (c *compiler) list(where string, rs []Restriction) []check {
	var checks []check
	for _, r := range rs {
		if ch, ok := c.check(where, r); ok {
			checks = append(checks, ch)
			if ch.fn != nil {
				c.s.stats.Rules++
			}
		}
	}
	return checks
}

// check compiles one restriction.
func (c *compiler) check(where string, r Restriction) (check, bool) {
	k := findKind(r.Kind)
	ch := check{kind: k}
	before := len(c.errs)
	switch {
	case k == nil && c.classes[r.Kind] != nil:
		return check{kind: &kind{name: r.Kind, fn: evalClass}, list: c.classes[r.Kind]}, true
	case k == nil:
		c.errorf("%s: unknown restriction %q", where, r.Kind)
	case k.arg == argNone && r.Arg != "":
		c.errorf("%s: %s takes no argument, not %q", where, k.name, r.Arg)
	case k.arg == argTable:
		ch.table = c.tables[r.Arg]
		if ch.table == nil {
			c.errorf("%s: %s: no table is called %q", where, k.name, r.Arg)
		} else {
			c.actions(ch.table)
		}
	case k.arg == argZone:
		ch.zone = c.zone(where+": "+k.name, k.name, r.Arg)
	case k.arg == argNumber && !allDigits(r.Arg):
		c.errorf("%s: %s needs a number, not %q", where, k.name, r.Arg)
	case k.arg == argSPF:
		ch.spf = c.spf(where+": "+k.name, r.Arg)
	case k.arg == argGrey:
		ch.grey = c.greylist(where+": "+k.name, r.Arg)
	case k.arg == argNote:
		ch.note = r.Arg
		c.s.asks = true
	}
	return ch, len(c.errs) == before
}

func evalClass(e *eval, c *check) status { return e.list(*c.list) }

// actions reads a table's values as access(5) actions, each once. A value that
// Postfix would stumble over at run time is refused by the same reply there.
func (c *compiler) actions(t *dict) {
	if t.actions != nil {
		return
	}
	if t.Is(table.TypeSet) {
		c.errorf("table %s: a set has no actions", t.name)
		return
	}
	c.s.stats.Rules += t.Len()
	known := map[string]int{}
	t.actions, t.action = []access{{op: opTemplate}}, make([][]int, t.Parts())
	for part := range t.action {
		for v, fixed := range t.Values(part) {
			i, ok := known[v]
			switch {
			case !fixed:
				i = 0
			case !ok:
				i = len(t.actions)
				known[v] = i
				t.actions = append(t.actions, c.action(t, v))
			}
			t.action[part] = append(t.action[part], i)
		}
	}
}

func (c *compiler) action(t *dict, v string) access {
	a := parseAccess(v)
	if a.op == opList {
		if a.list = c.valueList(t.name, v); a.list == nil {
			a.op = opBad
		}
	}
	return a
}

// lateAccess reads values at run time. A list of restrictions in one can't
// name tables.
func (c *compiler) lateAccess() func(string) access {
	spec, classes := c.s.spec, c.classes
	return func(value string) access {
		a := parseAccess(value)
		if a.op == opList {
			c := &compiler{s: &Snapshot{spec: spec}, classes: classes}
			if a.list = c.valueList("", value); a.list == nil {
				a.op = opBad
			}
		}
		return a
	}
}

// valueList compiles a list of restrictions in a table's value. As in Postfix, an
// unreadable element is a server error when it is reached.
func (c *compiler) valueList(table, v string) []check {
	rs, err := parseRestrictions(v)
	var list []check
	for _, r := range rs {
		before := len(c.errs)
		ch, ok := c.check("table "+table, r)
		if c.errs = c.errs[:before]; !ok {
			ch = check{kind: badRestriction}
		}
		list = append(list, ch)
	}
	if err != nil {
		list = append(list, check{kind: badRestriction})
	}
	return list
}

var badRestriction = &kind{name: kindServerError, fn: func(e *eval, c *check) status { return e.serverError(e.ruleOf(c)) }}
