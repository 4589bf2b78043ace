package smtpd

import (
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// start greets a new client, or sends it away.
func (s *session) start() {
	s.verb = "connect"
	s.began = time.Now()
	grow(0)
	if p, isProxy := s.conn.raw.(*proxyproto.Conn); isProxy && p.ProxyHeader() == nil {
		s.srv.Log.Warn("no PROXY header from a listed proxy", "proxy", p.Raw().RemoteAddr())
		s.hangUp("error", envelope.Reply{})
		return
	}
	ap := addrOf(s.conn.raw.RemoteAddr())
	s.client.Addr, s.client.Port = ap.Addr(), ap.Port()
	s.xclient = contains(s.srv.XClientFrom, s.client.Addr)
	limit := ""
	if !s.xclient {
		s.counted = s.client.Addr
		limit = s.srv.crowd.enter(s.counted)
	}
	switch {
	case s.srv.crowd.full(s.conn.place, s.client.Addr):
		s.dismiss("refused", "connections", "4.7.0", "Error: too many connections")
	case limit == "connections_per_client":
		s.limit(limit)
		s.hangUp("refused", s.tooMany(s.client.Addr.String()))
	case limit != "":
		s.limit(limit)
		s.hangUp("refused", s.tooMany("your network"))
	default:
		s.greet()
	}
}

// greet starts an SMTP session: after the connection and after XCLIENT.
func (s *session) greet() {
	snap := s.srv.Policy()
	if snap == nil {
		s.dismiss("refused", "", "4.3.2", "Service not available, no policy yet")
		return
	}
	if s.decider != nil {
		s.decider.Close()
	}
	s.decider, s.cut, s.cutSize = judge{s}, nil, 0
	if s.srv.Decide != nil {
		s.decider = s.srv.Decide(s.decider)
	}
	if s.filters = nil; len(s.srv.Filters) > 0 {
		s.filters = newFiltering(s, s.decider)
		s.decider = s.filters
	}
	s.adopt(snap)
	if d := s.decide(Command{At: policy.Connect}); refused(d.Verdict) {
		if s.admitted() {
			s.answer(d, envelope.Reply{})
			s.hangUp("refused", envelope.Reply{})
		}
		return
	}
	if s.verb == "connect" && !s.xclient {
		s.listen(snap.Greet())
	}
	if s.over {
		return
	}
	if v := s.screen(); refused(v) {
		s.answer(Decision{Verdict: v}, envelope.Reply{})
		s.hangUp("refused", envelope.Reply{})
		return
	}
	if s.verb == "connect" && s.spokeFirst() && s.outOfTurn() {
		return
	}
	if !s.policy.Screened() && !s.admitted() { // whom postscreen keeps never comes to smtpd
		return
	}
	hello := envelope.NewReply(220, "", "%s ESMTP Understudy", s.srv.Hostname)
	if !s.policy.Screened() {
		hello = s.filters.greeting(hello)
	}
	s.reply(hello)
}

// moment is how long a client is watched where the policy minds that it speaks
// before the greeting, and has no postscreen: Postfix needs about as long to
// greet.
const moment = 5 * time.Millisecond

// spokeFirst says that the client spoke before the greeting, where the policy
// counts that as speaking out of turn.
func (s *session) spokeFirst() bool {
	if s.snap.Spec().Postscreen != nil || !s.snap.MindsPipelining() {
		return false
	}
	if !s.early {
		s.conn.await(moment, time.Time{})
		_ = s.conn.fill(true) // a client that has gone is noticed soon
	}
	return len(s.conn.in.pending()) > 0
}

// screen asks the policy for its postscreen's verdict, if it has one.
func (s *session) screen() policy.Verdict {
	if s.snap.Spec().Postscreen == nil {
		return policy.Verdict{}
	}
	v := s.policy.Screen(s.ctx, s.early)
	s.judged(policy.Connect, v)
	return v
}

// listen waits before the greeting, as Postfix's postscreen does: who speaks
// first is no mail server (RFC 5321 §3.1). A first line of the greeting lures
// those who don't wait for its last. The DNS is asked about the client
// meanwhile. The policy's postscreen goes before our own configuration.
func (s *session) listen(greet policy.Greet) {
	own := greet.Wait == 0
	if own {
		greet = policy.Greet{Wait: s.srv.GreetWait, Teaser: s.srv.Hostname + " ESMTP Understudy", Early: true}
	}
	if greet.Wait == 0 || s.knownToWait(own, greet.TTL) {
		return
	}
	if greet.Teaser != "" {
		s.conn.out = appendLine(s.conn.out, 220, '-', "", greet.Teaser)
	}
	if s.srv.crowd.stressed.Load() {
		greet.Wait = min(greet.Wait, max(greet.Wait/3, time.Second))
	}
	s.conn.await(greet.Wait, time.Time{})
	err := s.conn.fill(true)
	for err == nil && !greet.Early && len(s.conn.in.pending()) < len(s.conn.in.buf) {
		err = s.conn.fill(true)
	}
	s.early = len(s.conn.in.pending()) > 0
	switch {
	case errors.Is(err, errDraining):
		s.dismiss("aborted", "", "4.3.2", "Service shutting down")
	case errors.Is(err, errBusy): // the next command is answered with that
	case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
		s.over = true // the client has gone
	case s.early:
		s.spokeEarly(own)
	case !own && greet.Early:
		s.srv.crowd.passed.add(alone(s.client.Addr))
	}
}

// knownToWait says that the client needn't be watched. Our own wait spares who
// brought mail before. That is no reason to the policy's postscreen, which may
// have let that mail in untested: it spares those of its access list and, for
// ttl, who passed this test here or on the primary.
func (s *session) knownToWait(own bool, ttl time.Duration) bool {
	if own {
		return s.srv.crowd.good.has(group(s.client.Addr), 0)
	}
	return !s.policy.Waits() || ttl > 0 && (s.srv.crowd.passed.has(alone(s.client.Addr), ttl) || time.Now().Before(s.policy.GreetPassed()))
}

// spokeEarly counts a client that spoke before the greeting, and does what our
// own configuration wants unless the policy decides.
func (s *session) spokeEarly(own bool) {
	s.limit("pregreet")
	action := s.srv.GreetAction
	if !own {
		action = "policy"
	}
	s.srv.Log.LogAttrs(s.ctx, slog.LevelInfo, "spoke before the greeting", slog.String("client", s.client.Addr.String()),
		peer("said", string(s.conn.in.pending())), slog.String("action", action))
	switch action {
	case "drop":
		s.hangUp("refused", envelope.NewReply(521, "5.5.1", "Protocol error"))
	case "enforce":
		s.pregreeted = true
	}
}

// adopt makes snap the session's policy.
func (s *session) adopt(snap *policy.Snapshot) {
	if s.policy != nil {
		s.policy.Close()
	}
	s.snap, s.lim = snap, snap.Limits()
	s.policy = snap.Session(s.srv.Resolver, s.client)
	if s.hasty {
		s.policy.Pipelined()
	}
	if len(s.srv.Filters) > 0 {
		s.policy.StandIns(func(u *policy.MilterUse) bool { return s.srv.filterFor(u) != nil })
	}
	if s.srv.DeferUnanswered {
		s.policy.DeferUnanswered()
	}
	if s.srv.Vouch {
		s.policy.Vouch()
	}
	s.policy.Remember(s.srv.Greylist)
}

// pin makes the transaction that begins use the snapshot that is in force now.
// What is known of the client is judged again when that is another one; the
// Decider has decided about it and isn't asked again.
func (s *session) pin() policy.Verdict {
	snap := s.srv.Policy()
	if snap == nil || snap == s.snap && !s.forgot {
		return policy.Verdict{}
	}
	s.forgot = false
	s.adopt(snap)
	v := s.policy.Connect(s.ctx)
	s.judged(policy.Connect, v)
	if !refused(v) {
		v = s.screen()
	}
	if !refused(v) && s.client.Helo != "" {
		v = s.policy.Helo(s.ctx, s.client.Helo)
		s.judged(policy.Helo, v)
	}
	return v
}
