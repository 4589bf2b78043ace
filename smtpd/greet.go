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
		f.hangUp("refused", envelope.NewReply(421, "4.7.0", "%s Error: too many connections from your address", f.srv.Hostname))
	case limit != "":
		f.limit(limit)
		f.hangUp("refused", envelope.NewReply(421, "4.7.0", "%s Error: too many connections from your network", f.srv.Hostname))
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
		f.refuse(v)
		f.hangUp("refused", envelope.Reply{})
		return
	}
	if f.srv.GreetWait > 0 && f.verb == "connect" && !f.xclient && !f.srv.crowd.good.has(f.client.Addr) {
		f.listen()
	}
	if !f.over {
		f.reply(envelope.NewReply(220, "", "%s ESMTP Understudy", f.srv.Hostname))
	}
}

// listen waits before the greeting, as Postfix's postscreen does: who speaks
// first is no mail server (RFC 5321 §3.1). A first line of the greeting lures
// those who don't wait for its last. The DNS is asked about the client
// meanwhile.
func (f *front) listen() {
	f.out = appendLine(f.out, 220, '-', "", f.srv.Hostname+" ESMTP Understudy")
	wait := f.srv.GreetWait
	if f.srv.crowd.stressed.Load() {
		wait = min(wait, max(wait/3, time.Second))
	}
	err := f.fill(time.Now().Add(wait), true)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && !f.isDraining():
		return
	case f.isDraining():
		f.hangUp("aborted", f.closing421())
		return
	case err != nil:
		f.over = true // the client has gone
		return
	}
	f.limit("pregreet")
	early := f.in.pending()
	f.srv.Log.LogAttrs(f.ctx, slog.LevelInfo, "spoke before the greeting", slog.String("client", f.client.Addr.String()),
		peer("said", string(early)), slog.String("action", f.srv.GreetAction))
	switch f.srv.GreetAction {
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
	if !refused(v) && f.client.Helo != "" {
		v = f.policy.Helo(f.ctx, f.client.Helo)
		f.judged(policy.Helo, v)
	}
	return v
}
