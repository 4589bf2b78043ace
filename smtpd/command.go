package smtpd

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

var ok = envelope.NewReply(250, "2.0.0", "Ok")

// space is what stands between a command's words.
const space = " \t\v\f"

// obey answers one command.
func (s *session) obey(line string) {
	line = strings.Trim(line, space)
	verb, arg := line, ""
	if i := strings.IndexAny(line, space); i >= 0 {
		verb, arg = line[:i], strings.TrimLeft(line[i:], space)
	}
	verb = upper(verb)
	if s.policy.NoOp(verb) {
		s.reply(ok)
		s.junkCommand()
		return
	}
	if s.aheadOfTurn(verb) {
		return
	}
	switch verb {
	case "EHLO", "HELO":
		s.verb = verb
		s.junkCommand()
		s.helo(arg)
	case "MAIL":
		s.verb = verb
		s.mail(arg)
	case "RCPT":
		s.verb = verb
		s.recipient(arg)
	case "DATA":
		s.verb = verb
		s.data(arg)
	case "NOOP", "VRFY", "RSET", "ETRN":
		s.verb = verb
		s.junkCommand()
		s.small(arg)
	case "QUIT":
		s.verb = verb
		s.hangUp("completed", envelope.NewReply(221, "2.0.0", "Bye"))
	case "STARTTLS":
		s.verb = verb
		s.startTLS(arg)
	case "XCLIENT":
		s.verb = verb
		s.xclientCommand(arg)
	default:
		s.unknownCommand(verb, line)
	}
}

// aheadOfTurn notes, for the policy, a client that sent more after a command
// that must be the last of a group (RFC 2920 §3.1), or after any without
// EHLO. It hangs up where the policy wants that.
func (s *session) aheadOfTurn(verb string) (over bool) {
	switch verb {
	case "MAIL", "RCPT", "RSET":
		if s.client.Protocol == "ESMTP" {
			return false
		}
	}
	if len(s.conn.in.pending()) == 0 {
		return false
	}
	return s.outOfTurn()
}

// outOfTurn notes that the client spoke when it wasn't its turn.
func (s *session) outOfTurn() (over bool) {
	s.hasty = true
	s.policy.Pipelined()
	if !s.snap.Protocol().ForbidPipelining {
		return false
	}
	s.limit("pipelining")
	s.hangUp("error", envelope.NewReply(554, "5.5.0", "Error: SMTP protocol synchronization"))
	return true
}

func (s *session) small(arg string) {
	switch {
	case s.verb == "NOOP":
		s.reply(ok)
	case s.verb == "VRFY":
		s.verify(arg)
	case s.verb == "ETRN":
		s.etrn(arg)
	case arg != "":
		s.reply(envelope.NewReply(501, "5.5.4", "Syntax: RSET"))
	default:
		s.abandon()
		s.reply(ok)
	}
}

// unknownCommand answers what isn't a command of ours, and hangs up on what
// isn't SMTP at all: the client may be a browser that somebody tricked.
func (s *session) unknownCommand(verb, line string) {
	forbidden := s.policy.Forbids(verb)
	switch verb {
	case "XFORWARD":
		s.xforward(line[len(verb):])
		return
	case "AUTH":
		s.reply(envelope.NewReply(503, "5.5.1", "Error: authentication not enabled"))
		return
	case "BDAT":
		s.chunk(line)
		return
	case "":
		s.reply(envelope.NewReply(500, "5.5.2", "Error: bad syntax"))
		return
	case "GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE", "CONNECT", "PRI":
	default:
		letter := verb[0] >= 'A' && verb[0] <= 'Z'
		name, _, isField := strings.Cut(verb, ":")
		isField = isField && isFieldName([]byte(name))
		if letter && !isField && !forbidden {
			s.notRecognized(line)
			return
		}
	}
	s.limit("not_smtp")
	s.srv.Log.LogAttrs(s.ctx, slog.LevelInfo, "not SMTP", slog.String("client", s.client.Addr.String()), peer("line", line))
	s.hangUp("error", envelope.NewReply(221, "2.7.0", "Error: I can break rules, too. Goodbye."))
}

// chunk answers BDAT as a Postfix does that doesn't offer CHUNKING: what follows
// is message text and must not be read as commands.
func (s *session) chunk(line string) {
	r := envelope.NewReply(521, "5.5.1", "Error: command not implemented")
	if !bdat.MatchString(line) {
		r = envelope.NewReply(521, "5.5.4", "Syntax: BDAT count [LAST]")
	}
	s.hangUp("error", r)
}

// bdat has counts that Postfix takes for numbers.
var bdat = regexp.MustCompile(`(?i)^BDAT\s+\d{1,18}(\s+LAST)?\s*$`)

// notRecognized answers a command that nobody knows, in a filter's words if one
// has any.
func (s *session) notRecognized(line string) {
	verb, _, _ := strings.Cut(line, " ")
	r := envelope.NewReply(500, "5.5.2", "Error: command not recognized")
	if !s.policy.Screened() {
		if word := s.filters.unknown(verb); !word.Zero() {
			r = word
		}
	}
	s.reply(r)
}

// barred answers a command that the filters don't hear of, where one of them
// refuses the whole session.
func (s *session) barred() bool {
	r := s.filters.standing()
	if s.verb == "STARTTLS" && r.Temporary() {
		r = envelope.NewReply(454, "4.3.0", "Try again later")
	}
	if r.Zero() {
		return false
	}
	s.reply(r)
	return true
}

// abandon ends the mail transaction, if there is one, for us and for go-smtp.
func (s *session) abandon() {
	s.size, s.author = 0, false
	if s.tx != nil {
		s.endTransaction()
		if !s.lost { // go-smtp would want recipients
			s.library.hand("RSET", nil)
		}
	}
}

func (s *session) endTransaction() {
	if s.tx != nil {
		s.tx.endInquiry()
		if s.tx.draft != nil {
			s.abort()
		}
	}
	s.tx, s.size, s.author = nil, 0, false
	s.decider.Reset()
}

func (s *session) helo(arg string) {
	s.esmtp = s.verb == "EHLO"
	name := strings.Join(strings.Fields(arg), " ")
	if name == "" && s.snap.Spec().ACL == nil {
		s.reply(envelope.NewReply(501, "", "Syntax: %s hostname", s.verb))
		return
	}
	if s.snap.Protocol().NoUTF8 {
		name = masked(name)
	}
	if s.snap.Spec().DelayReject { // before that, it is judged as it came
		name = neutered(name)
	}
	hello := Command{At: policy.Helo, Helo: name}
	if s.verb == "EHLO" {
		hello.Keywords = s.extensions()
	}
	d := s.decide(hello)
	if !s.answer(d, envelope.Reply{}) {
		return
	}
	s.abandon()
	s.client.Helo = neutered(name)
	if !s.esmtp {
		if s.client.Protocol == "" {
			s.client.Protocol = "SMTP"
		}
		s.reply(envelope.NewReply(250, "", "%s", s.srv.Hostname))
		return
	}
	s.client.Protocol = "ESMTP"
	s.offer(hello.Keywords, d.Keywords)
	if d.Bare {
		s.offered = slices.DeleteFunc(slices.Clone(s.offered), func(ext string) bool { return ext != "ENHANCEDSTATUSCODES" })
	}
	s.reply(envelope.Reply{Code: 250, Text: strings.Join(append([]string{s.srv.Hostname}, s.offered...), "\n")})
}

// offer notes what EHLO offers: all, or what the Decider chose of it.
func (s *session) offer(all, chosen []string) {
	s.offered, s.cut, s.cutSize = all, nil, 0
	if chosen == nil {
		return
	}
	s.offered = chosen
	for _, ext := range all {
		name, _, _ := strings.Cut(ext, " ")
		i := slices.IndexFunc(chosen, func(c string) bool { return c == name || strings.HasPrefix(c, name+" ") })
		if i < 0 {
			s.cut = append(s.cut, name)
		} else if size, found := strings.CutPrefix(chosen[i], "SIZE "); found {
			s.cutSize, _ = strconv.ParseInt(size, 10, 64)
		}
	}
}

// maxSize is the limit on a message's size, 0 when there is none.
func (s *session) maxSize() int64 {
	if own := s.lim.MessageSize; s.cutSize == 0 || own > 0 && own < s.cutSize {
		return own
	}
	return s.cutSize
}

// offers says that the client may use an extension.
func (s *session) offers(ext string) bool {
	return s.snap.Protocol().Offers(ext) && !slices.Contains(s.cut, ext)
}

// extensions lists what works, and only that.
func (s *session) extensions() []string {
	size := "SIZE"
	if s.lim.MessageSize > 0 {
		size = fmt.Sprintf("SIZE %d", s.lim.MessageSize)
	}
	list := []string{"PIPELINING", size, "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN"}
	list = slices.DeleteFunc(list, func(ext string) bool { return !s.snap.Protocol().Offers(ext) })
	if s.srv.TLS != nil && s.tls == nil {
		list = append(list, "STARTTLS")
	}
	if s.xclient {
		list = append(list, "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT")
	}
	if s.lim.Recipients > 0 {
		list = append(list, fmt.Sprintf("LIMITS RCPTMAX=%d", s.lim.Recipients))
	}
	return list
}

func (s *session) startTLS(arg string) {
	switch {
	case arg != "":
		s.reply(envelope.NewReply(501, "5.5.4", "Syntax: STARTTLS"))
	case s.barred():
	case s.tls != nil:
		s.reply(envelope.NewReply(554, "5.5.1", "Error: TLS already active"))
	case s.srv.TLS == nil:
		s.reply(envelope.NewReply(502, "5.5.1", "Error: command not implemented"))
	case len(s.conn.in.pending()) > 0:
		// RFC 3207 §6: whoever can write in plain text could have put
		// commands here that would count as sent under TLS.
		s.limit("starttls_injection")
		s.hangUp("error", envelope.NewReply(554, "5.5.1", "Error: commands behind STARTTLS"))
	case s.tooManyHandshakes(0):
		s.reply(s.tooManyTLS(454, "4.7.0", ""))
	default:
		s.abandon()
		s.reply(envelope.NewReply(220, "2.0.0", "Ready to start TLS"))
		s.handshake()
	}
}

// handshake starts TLS and forgets what the client said before (RFC 3207 §4.2).
func (s *session) handshake() {
	state, err := s.conn.secure(s.srv.tlsConfig(s.snap.Protocol().AskCert))
	if err != nil {
		s.tooManyHandshakes(1)
		s.srv.Metrics.TLSHandshakes.WithLabelValues("failed").Inc()
		s.srv.Log.LogAttrs(s.ctx, slog.LevelInfo, "TLS handshake failed",
			slog.String("client", s.client.Addr.String()), peer("error", err.Error()))
		s.over = true
		return
	}
	s.srv.Metrics.TLSHandshakes.WithLabelValues("ok").Inc()
	s.tls = state
	s.client.TLS = strings.Replace(tls.VersionName(state.Version), " ", "v", 1) + " " + tls.CipherSuiteName(state.CipherSuite)
	s.client.HasCert = len(state.PeerCertificates) > 0
	s.client.Helo, s.client.Protocol, s.esmtp = "", "", false
	s.forgot = true
	if !state.DidResume && s.tooManyHandshakes(1) {
		s.hangUp("refused", s.tooManyTLS(421, "4.7.0", s.srv.Hostname+" "))
	}
}
