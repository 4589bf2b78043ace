package policy

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/mailauth"
	"github.com/understudy-mx/understudy/policy/table"
)

const kindSPF = "check_spf"

// spfService is an SPFService compiled.
type spfService struct {
	*SPFService
	name        string
	skip, allow []netip.Prefix
}

// Bounds of an SPFService.
const (
	maxVoidLookups = 1000
	maxSPFSeconds  = 300
)

func (c *compiler) spf(where, name string) *spfService {
	spec, ok := c.s.spec.Filters.SPF[name]
	if !ok {
		c.errorf("%s: filters.policyd_spf has no %q", where, name)
		return nil
	}
	s := &spfService{SPFService: &spec, name: name}
	where = "filters.policyd_spf." + name
	for _, l := range []struct {
		key  string
		list []string
		to   *[]netip.Prefix
	}{{"skip_addresses", spec.Skip, &s.skip}, {"whitelist", spec.Allow, &s.allow}} {
		for _, p := range l.list {
			prefix, err := table.ParsePrefix(p)
			if err != nil {
				c.errorf("%s.%s: %w", where, l.key, err)
				continue
			}
			*l.to = append(*l.to, prefix)
		}
	}
	for _, r := range []struct{ key, value string }{{"helo_reject", spec.HELO}, {"mail_from_reject", spec.MailFrom}} {
		if r.value == "" {
			c.errorf("%s.%s: is missing", where, r.key)
		}
	}
	if spec.VoidLookups < 0 || spec.VoidLookups > maxVoidLookups || spec.Seconds < 1 || spec.Seconds > maxSPFSeconds {
		c.errorf("%s: void_limit %d isn't within 0 and %d, or lookup_time %d not within 1 and %d", where, spec.VoidLookups, maxVoidLookups, spec.Seconds, maxSPFSeconds)
	}
	return s
}

// checkSPF is what policyd-spf says. It speaks once about a message, for all of
// its recipients.
func checkSPF(e *eval, c *check) status {
	answer := e.lookups.get(e.ctx, question{"policyd-spf " + c.spf.name + " " + e.client.Helo + " " + e.sender.raw, func(ctx context.Context, a *answer) {
		a.spf, a.txt = c.spf.judge(ctx, e)
	}})
	e.spfPass[c.spf.name] = answer.spf == mailauth.Pass
	if answer.txt == "" {
		return dunno
	}
	a := parseAccess(answer.txt)
	return e.act(&a, e.ruleKey(c, answer.spf.String()), e.what, e.class)
}

// judge returns the result of the check of the sender, and the action, ""
// for none.
func (s *spfService) judge(ctx context.Context, e *eval) (mailauth.Result, string) {
	helo, sender := strings.ToLower(e.client.Helo), strings.ToLower(e.sender.raw)
	if helo == "" && sender == "" || within(s.skip, e.client.Addr) || within(s.allow, e.client.Addr) || s.vouched(ctx, e, helo) {
		return mailauth.None, ""
	}
	_, domain, _ := strings.Cut(sender, "@")
	if helo == "" {
		if helo = domain; helo == "" {
			helo = "unknown"
		}
	}
	if s.HELO != "No_Check" && !(s.HELO == "Null" && sender != "") {
		r := s.check(ctx, e, helo, "postmaster@"+helo)
		if action := s.action(e, r, s.HELO, "helo", helo, helo); action != "" {
			return mailauth.None, action
		}
	}
	if sender == "" || s.MailFrom == "No_Check" {
		return mailauth.None, ""
	}
	r := s.check(ctx, e, helo, sender)
	return r.Result, s.action(e, r, s.MailFrom, "mfrom", sender, domain)
}

func (s *spfService) check(ctx context.Context, e *eval, helo, sender string) mailauth.SPFResult {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(s.Seconds)*time.Second)
	defer cancel()
	return mailauth.SPF{Resolver: e.lookups.r, VoidLookups: s.VoidLookups}.Check(ctx, e.client.Addr, helo, sender)
}

// action is what follows a result under a policy of policyd-spf.conf(5).
func (s *spfService) action(e *eval, r mailauth.SPFResult, policy, scope, identity, domain string) string {
	own := slices.ContainsFunc(s.NotPass, func(d string) bool { // as policyd-spf has it: what it lists below the domain counts
		d = strings.ToLower(d)
		return d == domain || strings.HasSuffix(d, "."+domain)
	})
	why := r.Why
	if own {
		policy, why = "SPF_Not_Pass", "Receiver policy for SPF "+capitalize(r.Result.String())
	}
	var rejects, fault bool
	switch r.Result {
	case mailauth.Fail:
		rejects = slices.Contains([]string{"Fail", "Null", "Softfail", "SPF_Not_Pass"}, policy)
	case mailauth.SoftFail:
		rejects = policy == "Softfail" || policy == "SPF_Not_Pass"
	case mailauth.Neutral:
		rejects = policy == "SPF_Not_Pass"
	case mailauth.PermError:
		rejects, fault = s.PermError && policy != "False", true
	case mailauth.TempError:
		if s.TempError && policy != "False" {
			return s.code("defer_if_permit", "4.7.24") + s.text(e, "deferred", why, scope, identity)
		}
	}
	switch {
	case !rejects || s.NoMail && r.Record != "v=spf1 -all":
		return ""
	case fault:
		return s.code("550", "5.7.24") + s.text(e, "rejected", why, scope, identity)
	}
	return s.code("550", "5.7.23") + s.text(e, "rejected", why, scope, identity)
}

func (s *spfService) code(action, dsn string) string {
	if s.OldCodes {
		return action + " "
	}
	return action + " " + dsn + " "
}

func (s *spfService) text(e *eval, done, why, scope, identity string) string {
	rcpt := "<UNKNOWN>"
	if !s.HideRcpt {
		_, domain, at := strings.Cut(strings.ToLower(e.rcpt.raw), "@")
		if rcpt = domain; !at {
			rcpt = strings.ToLower(e.rcpt.raw)
		}
		if rcpt == "" {
			rcpt = "none"
		}
	}
	return strings.NewReplacer("{rejectdefer}", done, "{spf}", why,
		"{url}", "http://www.openspf.net/Why?s="+scope+";id="+identity+";ip="+e.client.Addr.String()+";r="+rcpt).Replace(s.Message)
}

func capitalize(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// vouched says that one of the lists of names lets the client pass unchecked. A
// look-up that fails lets nobody pass.
func (s *spfService) vouched(ctx context.Context, e *eval, helo string) bool {
	r, addr := e.lookups.r, e.client.Addr
	for _, d := range s.AllowDomains {
		if s.check(ctx, e, d, d).Result == mailauth.Pass {
			return true
		}
	}
	if slices.Contains(s.AllowHELO, helo) {
		network := "ip4"
		if addr.Is6() {
			network = "ip6"
		}
		if addrs, _ := r.LookupNetIP(ctx, network, helo); slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Unmap() == addr }) {
			return true
		}
	}
	if len(s.AllowPTR) > 0 {
		names, _ := r.LookupAddr(ctx, addr.String())
		return len(names) > 0 && slices.ContainsFunc(s.AllowPTR, func(d string) bool { return strings.HasSuffix(trimDot(names[0]), d) })
	}
	return false
}
