package policy

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Actions of postscreen's tests. Enforce lets the session go on and refuses
// every recipient; drop refuses in place of the greeting and hangs up.
const (
	screenIgnore  = "ignore"
	screenEnforce = "enforce"
	screenDrop    = "drop"
)

const permitNetworks = "permit_mynetworks"

// Greet says how long the server waits before its greeting, and whether an early
// client fails.
type Greet struct {
	Wait time.Duration // 0: greet at once
	// Teaser is sent when the wait begins, as "220-" + Teaser, and "" sends
	// nothing: postscreen_greet_banner.
	Teaser string
	// Early says that a client that speaks during the wait fails a test, and
	// that the wait may end then.
	Early bool
	// TTL is how long a client that passed needn't wait again; 0: not at all.
	TTL time.Duration
}

// Greet returns what the door has to do before the greeting, zero without
// postscreen. A client in postscreen's access list isn't made to wait: see
// Session.Waits.
func (s *Snapshot) Greet() Greet {
	p := s.spec.Postscreen
	if p == nil {
		return Greet{}
	}
	return Greet{
		Wait: time.Duration(p.GreetWait) * time.Second, Teaser: p.GreetBanner,
		Early: p.GreetAction != screenIgnore && p.GreetAction != "",
		TTL:   time.Duration(p.GreetTTL) * time.Second,
	}
}

// screening holds postscreen's findings about a client.
type screening struct {
	done  bool
	early bool   // it spoke too early
	st    status // refused: every recipient is
	drop  bool
	e     *eval // with the reply
}

// Waits says whether the client has to wait for its greeting: not when
// postscreen's access list permits it, or drops it at once.
func (s *Session) Waits() bool {
	if s.snap.spec.Postscreen == nil {
		return false
	}
	permitted, rejected, _ := s.screenAccess()
	return !permitted && !(rejected && s.snap.spec.Postscreen.DenylistAction == screenDrop)
}

// GreetPassed is until when the client is spared the wait, since it passed the
// primary's test; zero for a client that the primary doesn't know.
func (s *Session) GreetPassed() time.Time {
	h := s.find.one(s.snap.screenPassed, s.client.Addr.String(), "", s.client.Addr, true)
	if !h.ok() {
		return time.Time{}
	}
	n, err := strconv.ParseInt(s.find.value(h), 10, 40)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(n*GreetUnit, 0)
}

// Screen judges the client as postscreen(8) does, after Connect and the wait of
// Greet, before the greeting. early says that the client spoke during the
// wait. A refusal is sent in place of the greeting and ends the session. What
// is to be enforced later comes at each Rcpt, before everything else, and
// Helo and Mail then permit. Without a call of Screen the first Rcpt makes it.
func (s *Session) Screen(ctx context.Context, early bool) Verdict {
	s.screen(ctx, early)
	if s.screened.drop {
		return s.screened.e.verdict(Connect, refused)
	}
	return s.eval(ctx, Connect).verdict(Connect, dunno)
}

// Screened says that postscreen lets the client go on, and refuses every
// recipient: there it reads MAIL and RCPT no further than up to the colon.
func (s *Session) Screened() bool { return s.screened.st == refused }

// screen runs the tests once.
func (s *Session) screen(ctx context.Context, early bool) {
	p := s.snap.spec.Postscreen
	if s.screened.done || p == nil {
		return
	}
	s.start(ctx)
	s.screened = screening{done: true, early: early, e: s.eval(ctx, Connect)}
	permitted, rejected, rule := s.screenAccess()
	if permitted {
		return
	}
	if rejected {
		s.fail(p.DenylistAction, rule, "5.3.2", "Service currently unavailable")
	}
	if s.screened.drop {
		return
	}
	e := s.screened.e
	t := e.tally()
	if early && !(p.AllowlistThreshold < 0 && t.score <= p.AllowlistThreshold) {
		s.fail(p.GreetAction, Rule{Stage: Connect, Kind: kindPregreet}, "5.5.1", "Protocol error")
	}
	if s.screened.drop {
		return
	}
	addr := s.client.Addr.String()
	rule = Rule{Stage: Connect, Kind: kindScreenDNSBL, Key: addr}
	switch {
	case e.open(&t):
		acts := p.DNSBLAction == screenEnforce || p.DNSBLAction == screenDrop
		if rule.Table = t.silent.name; acts && s.screened.st != refused {
			s.screened.st = e.answer(rule, 450, "4.7.1", unansweredText(addr))
		}
	case t.top != nil && t.score >= s.snap.spec.DNSBL.Threshold:
		rule.Table = t.top.name
		s.fail(p.DNSBLAction, rule, "5.7.1", "Service unavailable; client ["+addr+"] blocked using "+s.shownName(t.top))
	}
}

// fail applies the action of a failed test; the reply of the last failure counts.
func (s *Session) fail(action string, rule Rule, dsn, text string) {
	switch action {
	case screenEnforce:
		s.screened.st = s.screened.e.answer(rule, 550, dsn, text)
	case screenDrop:
		s.screened.st, s.screened.drop = s.screened.e.answer(rule, 521, dsn, text), true
	}
}

// screenAccess evaluates postscreen_access_list.
func (s *Session) screenAccess() (permitted, rejected bool, rule Rule) {
	addr := s.client.Addr
	for i, name := range s.snap.spec.Postscreen.Access {
		rule = Rule{Stage: Connect, Kind: kindScreenAccess, Key: name}
		if name == permitNetworks {
			if s.snap.networks.has(&s.find, addr, "") {
				return true, false, rule
			}
			continue
		}
		s.find.buf = append(s.find.buf[:0], addr.String()...)
		h := s.find.query(s.snap.screenAccess[i], s.find.buf, addr, true)
		if !h.ok() {
			continue
		}
		rule.Table, rule.Key = h.t.name, h.key()
		word, _, _ := strings.Cut(strings.TrimSpace(s.find.value(h)), " ")
		switch word = strings.ToLower(word); word {
		case "permit", permitNetworks:
			if word != permitNetworks || s.snap.networks.has(&s.find, addr, "") {
				return true, false, rule
			}
		case "reject":
			return false, true, rule
		}
	}
	return false, false, Rule{}
}

// shownName is a DNS list's name in a reply: postscreen_dnsbl_reply_map hides
// secrets in it.
func (s *Session) shownName(z *zone) string {
	if h := s.find.one(s.snap.screenReply, z.suffix, "", netip.Addr{}, true); h.ok() {
		return s.find.value(h)
	}
	return z.suffix
}

// postscreen compiles its settings.
func (c *compiler) postscreen() {
	p := c.s.spec.Postscreen
	if p == nil {
		return
	}
	for _, a := range []struct{ name, value string }{
		{"denylist_action", p.DenylistAction}, {"dnsbl_action", p.DNSBLAction}, {"greet_action", p.GreetAction},
	} {
		switch a.value {
		case "", screenIgnore, screenEnforce, screenDrop:
		default:
			c.errorf("postscreen.%s: %q is none of %q, %q, %q", a.name, a.value, screenIgnore, screenEnforce, screenDrop)
		}
	}
	if p.GreetWait < 0 || p.GreetWait > 60 {
		c.errorf("postscreen.greet_wait: %d is no number of seconds up to 60", p.GreetWait)
	}
	if p.GreetTTL < 0 {
		c.errorf("postscreen.greet_ttl: %d is no number of seconds", p.GreetTTL)
	}
	c.s.screenAccess = make([]*dict, len(p.Access))
	for i, name := range p.Access {
		if rest, isTable := strings.CutPrefix(name, tablePrefix); isTable && c.tables[rest] != nil {
			c.s.screenAccess[i] = c.tables[rest]
		} else if name != permitNetworks {
			c.errorf("postscreen.access_list: %q is neither %q nor the name of a table behind %q", name, permitNetworks, tablePrefix)
		}
	}
	c.s.screenPassed = c.named("postscreen.greet_passed", p.GreetPassed)
	c.s.screenReply = c.named("postscreen.dnsbl_reply_map", p.DNSBLReply)
}
