package smtpd

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

var ok = envelope.NewReply(250, "2.0.0", "Ok")

// refused says that v is answered with its own reply, not with our 250.
func refused(v policy.Verdict) bool { return v.Action == policy.Defer || v.Action == policy.Reject }

func (f *front) refuse(v policy.Verdict) {
	f.reply(v.Reply)
	if v.Close {
		f.hangUp("refused", envelope.Reply{})
	}
}

// judged counts a verdict, and logs it unless it is a plain permit.
func (f *front) judged(at policy.Stage, v policy.Verdict) {
	kind := v.Rule.Kind
	if kind == "" {
		kind = "default"
	}
	f.srv.Metrics.Verdicts.WithLabelValues(at.String(), v.Action.String(), kind).Inc()
	if v.Unsure != "" && f.srv.Unsure != nil {
		f.srv.Unsure(v.Unsure)
	}
	if v.Action == policy.Reject && v.Rule.Stage == policy.Connect {
		f.mu.Lock()
		f.listed = true
		f.mu.Unlock()
		f.srv.crowd.good.forget(group(f.client.Addr))
	}
	if v.Action == policy.Permit && len(v.Warnings) == 0 {
		return
	}
	attrs := []slog.Attr{
		slog.String("stage", at.String()),
		slog.String("action", v.Action.String()),
		peer("rule", v.Rule.String()),
		peer("reply", v.Reply.String()),
	}
	for _, w := range v.Warnings {
		attrs = append(attrs, peer("would_refuse", w.String()))
	}
	f.srv.Log.LogAttrs(f.ctx, slog.LevelInfo, "verdict", append(attrs, f.who(at)...)...)
}

// who describes the session to the log, as far as it has come at stage at.
func (f *front) who(at policy.Stage) []slog.Attr {
	attrs := []slog.Attr{slog.String("client", f.client.Addr.String()), peer("helo", f.client.Helo)}
	if f.tx == nil {
		return attrs
	}
	attrs = append(attrs, slog.String("id", f.tx.env.ID), peer("from", f.tx.env.From.String()))
	if at == policy.Rcpt {
		attrs = append(attrs, peer("to", f.rcpt.Path.String()))
	}
	return attrs
}

// peer is a log attribute whose value a peer chose.
func peer(key, value string) slog.Attr {
	return slog.String(key, strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, value[:min(len(value), 256)]))
}

// space is what stands between a command's words.
const space = " \t\v\f"

// command answers one command.
func (f *front) command(line string) {
	line = strings.Trim(line, space)
	verb, arg := line, ""
	if i := strings.IndexAny(line, space); i >= 0 {
		verb, arg = line[:i], strings.TrimLeft(line[i:], space)
	}
	verb = upper(verb)
	if f.policy.NoOp(verb) {
		f.reply(ok)
		f.junkCommand()
		return
	}
	if f.aheadOfTurn(verb) {
		return
	}
	switch verb {
	case "EHLO", "HELO":
		f.verb = verb
		f.junkCommand()
		f.helo(arg)
	case "MAIL":
		f.verb = verb
		f.mail(arg)
	case "RCPT":
		f.verb = verb
		f.recipient(arg)
	case "DATA":
		f.verb = verb
		f.data(arg)
	case "NOOP", "VRFY", "RSET", "ETRN":
		f.verb = verb
		f.junkCommand()
		f.small(arg)
	case "QUIT":
		f.verb = verb
		f.hangUp("completed", envelope.NewReply(221, "2.0.0", "Bye"))
	case "STARTTLS":
		f.verb = verb
		f.startTLS(arg)
	case "XCLIENT":
		f.verb = verb
		f.xclientCommand(arg)
	default:
		f.unknownCommand(verb, line)
	}
}

// aheadOfTurn notes, for the policy, a client that sent more behind a command
// that must be the last of a group (RFC 2920 §3.1), or behind any without
// EHLO. It hangs up where the policy wants that.
func (f *front) aheadOfTurn(verb string) (over bool) {
	switch verb {
	case "MAIL", "RCPT", "RSET":
		if f.client.Protocol == "ESMTP" {
			return false
		}
	}
	if len(f.in.pending()) == 0 {
		return false
	}
	return f.outOfTurn()
}

// outOfTurn notes that the client spoke when it wasn't its turn.
func (f *front) outOfTurn() (over bool) {
	f.hasty = true
	f.policy.Pipelined()
	if !f.snap.Protocol().ForbidPipelining {
		return false
	}
	f.limit("pipelining")
	f.hangUp("error", envelope.NewReply(554, "5.5.0", "Error: SMTP protocol synchronization"))
	return true
}

// junkCommand counts a command that does no work. As in Postfix the first
// beyond the limit is still free.
func (f *front) junkCommand() {
	limit := f.limits().JunkCommands
	if f.junk++; limit > 0 && f.junk > limit+1 {
		f.errs++
	}
}

func (f *front) small(arg string) {
	switch {
	case f.verb == "NOOP":
		f.reply(ok)
	case f.verb == "VRFY":
		f.verify(arg)
	case f.verb == "ETRN":
		f.etrn(arg)
	case arg != "":
		f.reply(envelope.NewReply(501, "5.5.4", "Syntax: RSET"))
	default:
		f.abandon()
		f.reply(ok)
	}
}

// unknownCommand answers what isn't a command of ours, and hangs up on what
// isn't SMTP at all: the client may be a browser that somebody tricked.
func (f *front) unknownCommand(verb, line string) {
	forbidden := f.policy.Forbids(verb)
	switch verb {
	case "XFORWARD":
		f.xforward(line[len(verb):])
		return
	case "AUTH":
		f.reply(envelope.NewReply(503, "5.5.1", "Error: authentication not enabled"))
		return
	case "BDAT":
		// What follows is message text and must not be read as commands.
		f.hangUp("error", envelope.NewReply(502, "5.5.1", "Error: CHUNKING was not offered"))
		return
	case "":
		f.reply(envelope.NewReply(500, "5.5.2", "Error: bad syntax"))
		return
	case "GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE", "CONNECT", "PRI":
	default:
		letter := verb[0] >= 'A' && verb[0] <= 'Z'
		if letter && !strings.HasSuffix(verb, ":") && !forbidden {
			f.reply(envelope.NewReply(500, "5.5.2", "Error: command not recognized"))
			return
		}
	}
	f.limit("not_smtp")
	f.srv.Log.LogAttrs(f.ctx, slog.LevelInfo, "not SMTP", slog.String("client", f.client.Addr.String()), peer("line", line))
	f.hangUp("error", envelope.NewReply(221, "2.7.0", "Error: I can break rules, too. Goodbye."))
}

// abandon ends the mail transaction, if there is one, for us and for go-smtp.
func (f *front) abandon() {
	f.size, f.author = 0, false
	if f.tx == nil {
		return
	}
	f.endTransaction()
	f.ours, f.feed = true, "RSET\r\n"
}

func (f *front) endTransaction() {
	if f.tx != nil {
		f.tx.endInquiry()
	}
	f.tx, f.size, f.author = nil, 0, false
	f.policy.Reset()
}

func (f *front) helo(arg string) {
	name := strings.Join(strings.Fields(arg), " ")
	if name == "" {
		f.reply(envelope.NewReply(501, "", "Syntax: %s hostname", f.verb))
		return
	}
	if f.snap.Protocol().NoUTF8 {
		name = masked(name)
	}
	if f.snap.Spec().DelayReject { // before that, it is judged as it came
		name = neutered(name)
	}
	v := f.policy.Helo(f.ctx, name)
	f.judged(policy.Helo, v)
	if refused(v) {
		f.refuse(v)
		return
	}
	f.abandon()
	f.client.Helo = neutered(name)
	if f.verb == "HELO" {
		if f.client.Protocol == "" {
			f.client.Protocol = "SMTP"
		}
		f.reply(envelope.NewReply(250, "", "%s", f.srv.Hostname))
		return
	}
	f.client.Protocol = "ESMTP"
	f.offered = f.extensions()
	f.reply(envelope.Reply{Code: 250, Text: f.srv.Hostname + "\n" + strings.Join(f.offered, "\n")})
}

// extensions lists what works, and only that.
func (f *front) extensions() []string {
	size := "SIZE"
	if f.lim.MessageSize > 0 {
		size = fmt.Sprintf("SIZE %d", f.lim.MessageSize)
	}
	list := []string{"PIPELINING", size, "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN"}
	list = slices.DeleteFunc(list, func(ext string) bool { return !f.snap.Protocol().Offers(ext) })
	if f.srv.TLS != nil && f.tls == nil {
		list = append(list, "STARTTLS")
	}
	if f.xclient {
		list = append(list, "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT")
	}
	if f.lim.Recipients > 0 {
		list = append(list, fmt.Sprintf("LIMITS RCPTMAX=%d", f.lim.Recipients))
	}
	return list
}

func (f *front) startTLS(arg string) {
	switch {
	case arg != "":
		f.reply(envelope.NewReply(501, "5.5.4", "Syntax: STARTTLS"))
	case f.tls != nil:
		f.reply(envelope.NewReply(554, "5.5.1", "Error: TLS already active"))
	case f.srv.TLS == nil:
		f.reply(envelope.NewReply(502, "5.5.1", "Error: command not implemented"))
	case len(f.in.pending()) > 0:
		// RFC 3207 §6: whoever can write in plain text could have put
		// commands here that would count as sent under TLS.
		f.limit("starttls_injection")
		f.hangUp("error", envelope.NewReply(554, "5.5.1", "Error: commands behind STARTTLS"))
	case f.tooManyHandshakes(0):
		f.reply(f.tooManyTLS(454, "4.7.0", ""))
	default:
		f.abandon()
		f.reply(envelope.NewReply(220, "2.0.0", "Ready to start TLS"))
		f.handshake()
	}
}

// handshake starts TLS and forgets what the client said before (RFC 3207 §4.2).
func (f *front) handshake() {
	err := f.flush()
	var conn *tls.Conn
	if err == nil {
		conn = tls.Server(f.raw, f.srv.tlsConfig(f.snap.Protocol().AskCert))
		err = conn.SetDeadline(time.Now().Add(min(time.Minute, f.srv.CommandTimeout)))
	}
	if err == nil {
		err = conn.HandshakeContext(context.Background()) // the deadline bounds it
	}
	if err != nil {
		f.tooManyHandshakes(1)
		f.srv.Metrics.TLSHandshakes.WithLabelValues("failed").Inc()
		f.srv.Log.LogAttrs(f.ctx, slog.LevelInfo, "TLS handshake failed",
			slog.String("client", f.client.Addr.String()), peer("error", err.Error()))
		f.over = true
		return
	}
	f.srv.Metrics.TLSHandshakes.WithLabelValues("ok").Inc()
	state := conn.ConnectionState()
	f.tls = &state
	f.mu.Lock()
	f.conn = conn
	f.mu.Unlock()
	f.client.TLS = strings.Replace(tls.VersionName(state.Version), " ", "v", 1) + " " + tls.CipherSuiteName(state.CipherSuite)
	f.client.HasCert = len(state.PeerCertificates) > 0
	f.client.Helo, f.client.Protocol = "", ""
	f.forgot = true
	if !state.DidResume && f.tooManyHandshakes(1) {
		f.hangUp("refused", f.tooManyTLS(421, "4.7.0", f.srv.Hostname+" "))
	}
}
