package policy

import (
	"cmp"
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/mailauth"
)

// Kinds of the rules of milters.
const (
	kindDKIM  = "opendkim"
	kindDMARC = "opendmarc"
)

// milterTime bounds the look-ups about one message. Postfix gives a milter five
// minutes.
const milterTime = 60 * time.Second

// milter is a Milter compiled.
type milter struct {
	dkim  *DKIMFilter
	dmarc *DMARCFilter
	hosts networkList // whom it doesn't look at
}

func (c *compiler) milters() {
	f := &c.s.spec.Filters
	for name := range f.SPF {
		c.spf("filters", name)
	}
	for name := range f.Greylists {
		c.greylist("filters", name)
	}
	c.s.milterMaps = c.named("filters.milter_maps", f.MilterMaps)
	if t := c.s.MilterSettings(); min(t.ConnectTimeout, t.CommandTimeout, t.ContentTimeout) <= 0 || t.HeaderSize < 0 {
		c.errorf("filters.milter_settings: want times above 0")
	}
	for _, m := range f.Milters {
		var to milter
		var use MilterUse
		if m.Where != "" {
			var err error
			if use, err = c.s.MilterSettings().Use(m.Where); err != nil {
				c.errorf("filters.milters: %w", err)
			}
		}
		use.Program, use.defers, use.grey = m.Program, m.Defer, c.rspamdGreylist(m.Greylist)
		switch {
		case m.DKIM != nil && m.DMARC == nil:
			d := m.DKIM
			to = milter{dkim: d, hosts: c.networks("filters.milters: peer_list", d.Peers, false)}
			for _, action := range []string{d.BadSignature, d.NoSignature, d.KeyNotFound, d.Security} {
				if !slices.Contains([]string{MilterAccept, MilterDiscard, MilterQuarantine, MilterReject, MilterTempfail}, action) {
					c.errorf("filters.milters: opendkim has no action %q", action)
				}
			}
			if min(d.MaxSignatures, d.MinKeyBits, d.MaxHeader, d.ClockDrift) < 0 {
				c.errorf("filters.milters: a limit of opendkim can't be negative")
			}
		case m.DMARC != nil && m.DKIM == nil:
			to = milter{dmarc: m.DMARC, hosts: c.networks("filters.milters: ignore_hosts", m.DMARC.IgnoreHosts, false)}
			if _, known := f.SPF[m.DMARC.SPF]; m.DMARC.SPF != "" && !known {
				c.errorf("filters.milters: filters.policyd_spf has no %q", m.DMARC.SPF)
			}
		case m.DKIM == nil && m.Where != "":
			c.s.milterUses = append(c.s.milterUses, use)
			continue
		default:
			c.errorf("filters.milters: want an endpoint, or one of opendkim and opendmarc")
			continue
		}
		use.follow = &to
		c.s.milterUses = append(c.s.milterUses, use)
	}
}

// Default replies of Postfix to a milter's reject and tempfail.
var (
	milterReject   = envelope.Reply{Code: 550, Enhanced: "5.7.1", Text: "Command rejected"}
	milterTempfail = envelope.Reply{Code: 451, Enhanced: "4.7.1", Text: "Service unavailable - try again later"}
)

// reader returns the writer for what the milters read of a message, nil when
// there are none. The signatures are verified once, by the first opendkim's
// limits.
func (s *Session) milterReader() io.Writer {
	var followed []*milter
	list := s.Milters(context.Background())
	for i := range list {
		if u := &list[i]; u.follow != nil && (u.follow.dkim != nil || !s.stands(u)) {
			followed = append(followed, u.follow)
		}
	}
	if len(followed) == 0 && !s.vouching {
		return nil
	}
	d := mailauth.DKIM{Resolver: s.lookups.r, Now: time.Now(), MaxHeader: s.snap.spec.Limits.HeaderBytes}
	for _, m := range followed {
		if m.dkim != nil {
			d = mailauth.DKIM{Resolver: s.lookups.r, Now: time.Now(), MaxSignatures: m.dkim.MaxSignatures, MinKeyBits: m.dkim.MinKeyBits,
				MaxHeader: m.dkim.MaxHeader, ClockDrift: time.Duration(m.dkim.ClockDrift) * time.Second, Signs: m.dkim.Signs}
			break
		}
	}
	s.milter = d.Verify()
	return s.milter
}

// askMilters asks the milters in order; the first that doesn't accept decides.
func (e *eval) askMilters(st status) status {
	list := e.Milters(e.ctx)
	if st == refused || e.discard || len(list) == 0 {
		return st
	}
	ctx, cancel := context.WithTimeout(e.ctx, milterTime)
	defer cancel()
	r := &mailauth.DKIMResult{}
	if e.milter != nil {
		r = e.signatures(ctx)
	}
	var good []string // domains whose signatures opendmarc hears of
	if e.hold {       // by a restriction; a milter that holds ends the list
		e.hold = false
		defer func(r Rule) { e.hold, e.holdRule = true, r }(e.holdRule)
	}
	for i := range list {
		m := list[i].follow
		if e.stands(&list[i]) {
			if e.askFilter != nil {
				if got := e.askStandIn(&list[i], i); got == refused || e.discard || e.hold {
					return got
				}
			}
			if m != nil && m.dkim != nil {
				good = append(good, goodSignatures(r)...)
			}
			continue
		}
		if m == nil || m.hosts.has(&e.find, e.client.Addr, known(e.client.Name)) {
			continue
		}
		got := st
		if m.dkim != nil {
			if slices.ContainsFunc(m.dkim.Exempt, func(d string) bool { return strings.EqualFold(d, r.Author.Domain) }) {
				continue
			}
			got = e.openDKIM(m.dkim, r)
			good = append(good, goodSignatures(r)...)
		} else {
			got = e.openDMARC(ctx, m.dmarc, r, good)
		}
		if got == refused || e.discard || e.hold {
			return got
		}
	}
	return st
}

// goodSignatures are the domains that have signed the message.
func goodSignatures(r *mailauth.DKIMResult) (domains []string) {
	for _, s := range r.Signatures {
		if s.Status == mailauth.Good {
			domains = append(domains, s.Domain)
		}
	}
	return domains
}

// openDKIM is what opendkim does about a verdict.
func (e *eval) openDKIM(d *DKIMFilter, r *mailauth.DKIMResult) status {
	rule := Rule{Stage: EndOfData, Kind: kindDKIM, Key: r.Status.String()}
	switch r.Status {
	case mailauth.HeaderTooLarge:
		return e.milterAction(d, rule, d.Security, "", "")
	case mailauth.SyntaxError:
		return e.milterAction(d, rule, d.BadSignature, "7.0", "DKIM signature syntax error")
	case mailauth.NoSignature:
		if d.AlwaysAddsAR { // then it doesn't look at the action
			return dunno
		}
		return e.milterAction(d, rule, d.NoSignature, "7.0", "no DKIM signature data")
	case mailauth.BadSignature:
		if r.Testing && d.BadSignature != MilterQuarantine {
			return dunno
		}
		return e.milterAction(d, rule, d.BadSignature, "7.0", "bad DKIM signature data")
	case mailauth.Revoked:
		return e.milterAction(d, rule, d.BadSignature, "", "")
	case mailauth.NoKey:
		return e.milterAction(d, rule, d.KeyNotFound, "7.5", "DKIM key retrieval failed")
	case mailauth.KeyFailed: // opendkim makes of it what the moment makes of it
		if d.KeyNotFound == MilterAccept {
			return dunno
		}
		return e.milterAction(d, rule, MilterTempfail, "7.5", "DKIM key retrieval failed")
	}
	return dunno
}

// milterAction carries one of opendkim's actions out. Without a text the reply
// is Postfix's own.
func (e *eval) milterAction(d *DKIMFilter, rule Rule, action, dsn, text string) status {
	reply := milterTempfail
	switch action {
	case MilterDiscard:
		e.discard, e.discardRule = true, rule
		return dunno
	case MilterQuarantine:
		if d.Quarantine {
			return e.delegate(opHold, rule)
		}
		return dunno
	case MilterReject:
		reply = milterReject
		if text != "" {
			reply = envelope.Reply{Code: 550, Enhanced: "5.7.0", Text: text}
		}
	case MilterTempfail:
		if text != "" {
			reply = envelope.Reply{Code: 451, Enhanced: "4." + dsn, Text: text}
		}
	default:
		return dunno
	}
	return e.answer(rule, reply.Code, reply.Enhanced, reply.Text)
}

// openDMARC is what opendmarc does.
func (e *eval) openDMARC(ctx context.Context, d *DMARCFilter, r *mailauth.DKIMResult, dkim []string) status {
	rule := Rule{Stage: EndOfData, Kind: kindDMARC}
	reject := func(key string, when bool) status {
		if rule.Key = key; !when {
			return dunno
		}
		return e.answer(rule, milterReject.Code, milterReject.Enhanced, milterReject.Text)
	}
	a := &r.Author
	switch {
	case d.RequiredHeaders && !e.milter.WellFormed():
		return reject("header", true)
	case a.Fields == 0:
		return dunno
	case len(a.Domains) > 1:
		return reject("several authors", d.RejectMultiFrom)
	case a.User == "" || a.Domain == "":
		return reject("author", d.RequiredHeaders)
	case !d.RejectFailures || slices.ContainsFunc(d.IgnoreDomains, func(i string) bool { return strings.EqualFold(i, a.Domain) }):
		return dunno
	}
	if !d.DKIM {
		dkim = nil
	}
	got := mailauth.DMARC{Resolver: e.lookups.r, NoSuffixes: d.NoSuffixes}.Check(ctx, a.Domain, e.spfDomain(ctx, d), dkim)
	rule.Key = got.Policy.String()
	switch {
	case got.Policy == mailauth.DMARCTempError && e.deferUnanswered, // opendmarc accepts
		got.Policy == mailauth.DMARCReject && got.Percent > 0 && got.Percent < 100: // the primary tosses a coin
		return e.answer(rule, milterTempfail.Code, milterTempfail.Enhanced, milterTempfail.Text)
	case got.Policy == mailauth.DMARCReject && got.Percent > 0:
		text := cmp.Or(d.RejectString, "rejected by DMARC policy for %s")
		return e.answer(rule, 550, "5.7.1", strings.Replace(text, "%s", got.Domain, 1))
	case got.Policy == mailauth.DMARCQuarantine && d.Quarantine && got.Percent > 0:
		return e.delegate(opHold, rule)
	}
	return dunno
}

// spfDomain is the domain for which SPF passed, as opendmarc hears it.
func (e *eval) spfDomain(ctx context.Context, d *DMARCFilter) string {
	_, domain, _ := strings.Cut(e.sender.raw, "@")
	pass, spoke := e.spfPass[d.SPF]
	if !spoke && d.SelfSPF {
		r := mailauth.SPF{Resolver: e.lookups.r, VoidLookups: maxVoidLookups}.Check(ctx, e.client.Addr, e.client.Helo, e.sender.raw)
		if pass = r.Result == mailauth.Pass; domain == "" {
			domain = e.client.Helo
		}
	}
	if !pass {
		return ""
	}
	return domain
}
