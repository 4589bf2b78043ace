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
func (f *front) start() {
	f.verb = "connect"
	f.began = time.Now()
	if p, isProxy := f.raw.(*proxyproto.Conn); isProxy && p.ProxyHeader() == nil {
		f.srv.Log.Warn("no PROXY header from a listed proxy", "proxy", p.Raw().RemoteAddr())
		f.hangUp("error", envelope.Reply{})
		return
	}
	ap := addrOf(f.raw.RemoteAddr())
	f.client.Addr, f.client.Port = ap.Addr(), ap.Port()
	f.xclient = contains(f.srv.XClientFrom, f.client.Addr)
	limit := ""
	if !f.xclient {
		f.counted = f.client.Addr
		limit = f.srv.crowd.enter(f.counted)
	}
	switch {
	case f.srv.crowd.full(f.place, f.client.Addr):
		f.limit("connections")
		f.hangUp("refused", envelope.NewReply(421, "4.7.0", "%s Error: too many connections", f.srv.Hostname))
	case limit == "connections_per_client":
		f.limit(limit)
		f.hangUp("refused", f.tooMany(f.client.Addr.String()))
	case limit != "":
		f.limit(limit)
		f.hangUp("refused", f.tooMany("your network"))
	default:
		f.greet()
	}
}

// greet starts an SMTP session: after the connection and after XCLIENT.
func (f *front) greet() {
	snap := f.srv.Policy()
	if snap == nil {
		f.hangUp("refused", envelope.NewReply(421, "4.3.2", "%s Service not available, no policy yet", f.srv.Hostname))
		return
	}
	v := f.adopt(snap)
	if refused(v) {
		if f.admitted() {
			f.refuse(v)
			f.hangUp("refused", envelope.Reply{})
		}
		return
	}
	if f.verb == "connect" && !f.xclient {
		f.listen(snap.Greet())
	}
	if f.over {
		return
	}
	if v := f.screen(); refused(v) {
		f.refuse(v)
		f.hangUp("refused", envelope.Reply{})
		return
	}
	if f.verb == "connect" && f.spokeFirst() && f.outOfTurn() {
		return
	}
	if !f.policy.Screened() && !f.admitted() { // whom postscreen keeps never comes to smtpd
		return
	}
	f.reply(envelope.NewReply(220, "", "%s ESMTP Understudy", f.srv.Hostname))
}

// moment is how long a client is watched where the policy minds that it speaks
// before the greeting, and has no postscreen: Postfix needs about as long to
// greet.
const moment = 5 * time.Millisecond

// spokeFirst says that the client spoke before the greeting, where the policy
// counts that as speaking out of turn.
func (f *front) spokeFirst() bool {
	if f.snap.Spec().Postscreen != nil || !f.snap.MindsPipelining() {
		return false
	}
	if !f.early {
		_ = f.fill(time.Now().Add(moment), true) // a client that has gone is noticed soon
	}
	return len(f.in.pending()) > 0
}

// screen asks the policy for its postscreen's verdict, if it has one.
func (f *front) screen() policy.Verdict {
	if f.snap.Spec().Postscreen == nil {
		return policy.Verdict{}
	}
	v := f.policy.Screen(f.ctx, f.early)
	f.judged(policy.Connect, v)
	return v
}

// listen waits before the greeting, as Postfix's postscreen does: who speaks
// first is no mail server (RFC 5321 §3.1). A first line of the greeting lures
// those who don't wait for its last. The DNS is asked about the client
// meanwhile. The policy's postscreen goes before our own configuration.
func (f *front) listen(greet policy.Greet) {
	own := greet.Wait == 0
	if own {
		greet = policy.Greet{Wait: f.srv.GreetWait, Teaser: f.srv.Hostname + " ESMTP Understudy", Early: true}
	}
	if greet.Wait == 0 || f.knownToWait(own, greet.TTL) {
		return
	}
	if greet.Teaser != "" {
		f.out = appendLine(f.out, 220, '-', "", greet.Teaser)
	}
	if f.srv.crowd.stressed.Load() {
		greet.Wait = min(greet.Wait, max(greet.Wait/3, time.Second))
	}
	until := time.Now().Add(greet.Wait)
	err := f.fill(until, true)
	for err == nil && !greet.Early && len(f.in.pending()) < len(f.in.buf) {
		err = f.fill(until, true)
	}
	f.early = len(f.in.pending()) > 0
	switch {
	case f.isDraining():
		f.hangUp("aborted", f.closing421())
	case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
		f.over = true // the client has gone
	case f.early:
		f.spokeEarly(own)
	case !own && greet.Early:
		f.srv.crowd.passed.add(alone(f.client.Addr))
	}
}

// knownToWait says that the client needn't be watched. Our own wait spares who
// brought mail before. That is no reason to the policy's postscreen, which may
// have let that mail in untested: it spares those of its access list and, for
// ttl, who passed this test.
func (f *front) knownToWait(own bool, ttl time.Duration) bool {
	if own {
		return f.srv.crowd.good.has(group(f.client.Addr), 0)
	}
	return !f.policy.Waits() || ttl > 0 && f.srv.crowd.passed.has(alone(f.client.Addr), ttl)
}

// spokeEarly counts a client that spoke before the greeting, and does what our
// own configuration wants unless the policy decides.
func (f *front) spokeEarly(own bool) {
	f.limit("pregreet")
	action := f.srv.GreetAction
	if !own {
		action = "policy"
	}
	f.srv.Log.LogAttrs(f.ctx, slog.LevelInfo, "spoke before the greeting", slog.String("client", f.client.Addr.String()),
		peer("said", string(f.in.pending())), slog.String("action", action))
	switch action {
	case "drop":
		f.hangUp("refused", envelope.NewReply(521, "5.5.1", "Protocol error"))
	case "enforce":
		f.pregreeted = true
	}
}

// adopt makes snap the session's policy and asks it about the client.
func (f *front) adopt(snap *policy.Snapshot) policy.Verdict {
	if f.policy != nil {
		f.policy.Close()
	}
	f.snap, f.lim = snap, snap.Limits()
	f.policy = snap.Session(f.srv.Resolver, f.client)
	if f.hasty {
		f.policy.Pipelined()
	}
	if f.srv.DeferUnanswered {
		f.policy.DeferUnanswered()
	}
	v := f.policy.Connect(f.ctx)
	f.judged(policy.Connect, v)
	return v
}

// pin makes the transaction that begins use the snapshot that is in force now.
// What is known of the client is judged again when that is another one.
func (f *front) pin() policy.Verdict {
	snap := f.srv.Policy()
	if snap == nil || snap == f.snap && !f.forgot {
		return policy.Verdict{}
	}
	f.forgot = false
	v := f.adopt(snap)
	if !refused(v) {
		v = f.screen()
	}
	if !refused(v) && f.client.Helo != "" {
		v = f.policy.Helo(f.ctx, f.client.Helo)
		f.judged(policy.Helo, v)
	}
	return v
}
