package policy

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/policy/table"
)

// Greylist is postgrey's configuration; see postgrey(8). A client that it
// doesn't know with a sender and a recipient is put off, and let in when it comes
// again after Delay.
type Greylist struct {
	Delay       int    `json:"delay"`                            // seconds
	MaxAge      int    `json:"max_age"`                          // seconds that who passed is known for
	RetryWindow int    `json:"retry_window"`                     // seconds that a first attempt counts for
	AutoClients int    `json:"auto_whitelist_clients,omitempty"` // clients that passed so often are known whatever they send; 0: none is
	ByHost      bool   `json:"lookup_by_host,omitempty"`         // the whole address counts, not its network
	IPv4        int    `json:"ipv4cidr"`                         // the network's prefix length
	IPv6        int    `json:"ipv6cidr"`
	Privacy     bool   `json:"privacy,omitempty"` // keys are their SHA-1
	Action      string `json:"greylist_action"`   // as in access(5)
	Text        string `json:"greylist_text"`     // with %s, the seconds left, and %r, the recipient's domain

	Clients    []string `json:"whitelist_clients,omitempty"` // lines of those files, without comments
	Recipients []string `json:"whitelist_recipients,omitempty"`

	// Database is postgrey's dbdir on the primary.
	Database string `json:"dbdir,omitempty"`
	// Tables of what the primary knows, "" for none: the clients that passed,
	// with GreyClient's text, and the triplets that passed, with the day since
	// 1970 of their last attempt.
	KnownClients  string `json:"known_clients,omitempty"`
	KnownTriplets string `json:"known_triplets,omitempty"`
}

// GreyMemory remembers whom a Greylist put off, and who came again.
type GreyMemory interface {
	// Try notes an attempt and returns for how many seconds it is still too
	// early; none or less lets it pass.
	Try(t *GreyTry) (wait int64)
	// Passed notes that the primary let an attempt pass for which Try returned
	// a wait.
	Passed(t *GreyTry)
	// Exempt notes that a client or recipient is never put off.
	Exempt()
}

// GreyTry is an attempt: a client sends from a sender to a recipient.
type GreyTry struct {
	Service string // of Filters.Greylist
	Rules   *Greylist
	Client  string // postgrey's key of the client
	Triplet string // and of the three together

	// What the primary knew when the policy was made.
	Known   *GreyClient          // nil: nothing of the client
	Arrived func(now int64) bool // whether the triplet had passed, and isn't too old by now
}

// GreyClient says how often a client has passed, and when last, in Unix seconds.
type GreyClient struct{ Count, Last int64 }

// String spells it as postgrey's database does.
func (g GreyClient) String() string { return fmt.Sprintf("%d,%d", g.Count, g.Last) }

// ParseGreyClient reads what String wrote.
func ParseGreyClient(s string) (g GreyClient, err error) {
	count, last, ok := strings.Cut(s, ",")
	if g.Count, err = strconv.ParseInt(count, 10, 64); err == nil && ok {
		g.Last, err = strconv.ParseInt(last, 10, 64)
	}
	if err != nil || !ok || g.Count < 0 || g.Last < 0 {
		return g, fmt.Errorf("%.40q isn't a count and a time", s)
	}
	return g, nil
}

const kindGreylist = "check_greylist"

// greylist is a Greylist compiled.
type greylist struct {
	*Greylist
	name                        string
	clients                     greyClients
	recipients                  greyRecipients
	knownClients, knownTriplets *dict
}

// Bounds of a Greylist's times.
const maxGreySeconds = 10 * 365 * 24 * 3600

func (c *compiler) greylist(where, name string) *greylist {
	spec, ok := c.s.spec.Filters.Greylists[name]
	if !ok {
		c.errorf("%s: filters.postgrey has no %q", where, name)
		return nil
	}
	if g := c.greylists[name]; g != nil {
		return g
	}
	g := &greylist{Greylist: &spec, name: name}
	where = "filters.postgrey." + name
	for _, n := range []struct {
		key             string
		value, min, max int
	}{
		{"delay", spec.Delay, 1, maxGreySeconds}, {"max_age", spec.MaxAge, 1, maxGreySeconds}, {"retry_window", spec.RetryWindow, 0, maxGreySeconds},
		{"auto_whitelist_clients", spec.AutoClients, 0, 1 << 30}, {"ipv4cidr", spec.IPv4, 0, 32}, {"ipv6cidr", spec.IPv6, 0, 128},
	} {
		if n.value < n.min || n.value > n.max {
			c.errorf("%s.%s: %d isn't within %d and %d", where, n.key, n.value, n.min, n.max)
		}
	}
	g.clients, g.recipients = c.greyLists(where, &spec)
	for _, t := range []struct {
		key, name string
		to        **dict
	}{{"known_clients", spec.KnownClients, &g.knownClients}, {"known_triplets", spec.KnownTriplets, &g.knownTriplets}} {
		switch d := c.tables[t.name]; {
		case t.name == "":
		case d == nil || !d.Is(table.TypeHash):
			c.errorf("%s.%s: no hash is called %q", where, t.key, t.name)
		default:
			*t.to = d
		}
	}
	if c.greylists == nil {
		c.greylists = map[string]*greylist{}
	}
	c.greylists[name] = g
	return g
}

// Remember has greylisting remember by m. Without it nobody is known but to the
// primary. Call it first.
func (s *Session) Remember(m GreyMemory) { s.grey = m }

// LetIn says that the primary has let the recipient in that Rcpt was asked about
// last: whom greylisting put off has passed.
func (s *Session) LetIn() {
	for i := range s.putOff {
		s.grey.Passed(&s.putOff[i])
	}
	s.putOff = nil
}

// checkGreylist decides as postgrey 1.37 does.
func checkGreylist(e *eval, c *check) status {
	g := c.grey
	addr, rcpt, sender := e.client.Addr, attribute(e.rcpt.raw), attribute(e.sender.raw)
	if g.clients.has(&e.find, addr, attribute(e.client.Name)) || g.recipients.has(&e.find, rcpt) {
		if e.grey != nil {
			e.grey.Exempt()
		}
		return dunno
	}
	t := GreyTry{Service: g.name, Rules: g.Greylist, Client: g.hidden(spelled(addr)), Triplet: g.hidden(lowerASCII(g.network(addr) + "/" + rewritten(sender) + "/" + rcpt))}
	g.remembered(e, &t)
	wait := int64(g.Delay)
	if e.grey != nil {
		wait = e.grey.Try(&t)
	} else if t.Known != nil && g.AutoClients > 0 && t.Known.Count >= int64(g.AutoClients) || t.Arrived(0) {
		wait = 0
	}
	if wait <= 0 {
		return dunno
	}
	if e.grey != nil && e.stage <= Rcpt {
		e.putOff = append(e.putOff, t)
	}
	a := e.snap.late(g.Action + " " + g.text(wait, rcpt))
	return e.act(&a, Rule{Stage: e.stage, Kind: c.kind.name, Table: g.name}, e.what, e.class)
}

// remembered fills in what the primary knew.
func (g *greylist) remembered(e *eval, t *GreyTry) {
	look := func(d *dict, key string) (string, bool) {
		if d == nil {
			return "", false
		}
		e.find.buf = append(e.find.buf[:0], table.Fold(key)...)
		h := e.find.entry(d, e.find.buf, netip.Addr{})
		if !h.ok() {
			return "", false
		}
		return e.find.value(h), true
	}
	if v, found := look(g.knownClients, t.Client); found {
		if known, err := ParseGreyClient(v); err == nil {
			t.Known = &known
		}
	}
	v, found := look(g.knownTriplets, t.Triplet)
	day, err := strconv.ParseInt(v, 10, 64)
	end := (day + 1) * secondsPerDay
	t.Arrived = func(now int64) bool { return found && err == nil && now-end <= int64(g.MaxAge) }
}

const secondsPerDay = int64(24 * time.Hour / time.Second)

// text is what postgrey says to Postfix, after the action.
func (g *greylist) text(wait int64, rcpt string) string {
	text := g.Text
	if text == "" || text[0] < '0' || text[0] > '9' {
		text = "4.2.0 " + text
	}
	text = strings.Replace(text, "%s", strconv.FormatInt(wait, 10), 1)
	return strings.Replace(text, "%r", rcpt[strings.LastIndexByte(rcpt, '@')+1:], 1)
}

// hidden is a key as postgrey stores it.
func (g *greylist) hidden(key string) string {
	if !g.Privacy {
		return key
	}
	sum := sha1.Sum([]byte(key))
	return hex.EncodeToString(sum[:])
}

// network is the part of an address that counts.
func (g *greylist) network(a netip.Addr) string {
	if g.ByHost {
		return spelled(a) + "/" + strconv.Itoa(a.BitLen())
	}
	bits := g.IPv6
	if a.Is4() {
		bits = g.IPv4
	}
	return spelled(netip.PrefixFrom(a, bits).Masked().Addr())
}

// spelled is an address as Perl's NetAddr::IP spells it: 2001:DB8:0:0:0:0:0:1.
func spelled(a netip.Addr) string {
	if a.Is4() {
		return a.String()
	}
	b := a.As16()
	var s []string
	for i := 0; i < len(b); i += 2 {
		s = append(s, fmt.Sprintf("%X", int(b[i])<<8|int(b[i+1])))
	}
	return strings.Join(s, ":")
}

// attribute is a value as postgrey reads it from Postfix.
func attribute(s string) string { return s[:min(len(s), 512)] }

var (
	batvTag   = regexp.MustCompile(`^[0-9a-z]{10}`)
	wholeNums = regexp.MustCompile(`\b\d+\b`)
)

// rewritten is a sender without what changes from message to message: BATV's tag, an
// extension, numbers.
func rewritten(sender string) string {
	user, domain, ok := strings.Cut(sender, "@")
	if !ok {
		return sender
	}
	if strings.HasPrefix(user, "prvs=") {
		a := strings.Split(user, "=")
		for len(a) > 0 && a[len(a)-1] == "" { // as Perl's split
			a = a[:len(a)-1]
		}
		if len(a) == 3 {
			user = a[2]
			if batvTag.MatchString(a[2]) && !batvTag.MatchString(a[1]) {
				user = a[1]
			}
		}
	}
	user, _, _ = strings.Cut(user, "+")
	return wholeNums.ReplaceAllString(user, "#") + "@" + domain
}
