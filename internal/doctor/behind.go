package doctor

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"slices"
	"strings"
)

// behind: the servers that a primary hands mail over to, when the primary is a filter.
// This machine is to them what any stranger is: one that lets it in has a back door past
// the filter. Nothing is sent; the session ends before DATA.
func (x *exam) behind(ctx context.Context) (looked bool) {
	for _, addr := range x.Behind {
		s := x.greet(ctx, addr, "")
		if s.err != nil {
			continue // nobody answers a stranger, or it is turned away
		}
		x.backDoor(addr, &s)
		s.conn.quit()
	}
	return len(x.Behind) > 0
}

// nobody is a recipient whom no server has.
func nobody(domain string) string {
	return "understudy-doctor-" + strings.ToLower(rand.Text()[:8]) + "@" + domain
}

func (x *exam) backDoor(addr string, s *server) {
	at := slices.IndexFunc(x.Domains, func(d string) bool { return d != "" && !strings.HasPrefix(d, ".") })
	if at < 0 {
		x.report(Unknown, "back-door-unknown", addr, "Whether the server behind the filter lets strangers in can't be asked: no domain is known.", "it greets: "+s.greeting, "")
		return
	}
	domain := x.Domains[at]
	ask := func(rcpt string) (code int, said string, unknown bool) {
		code, text, err := s.conn.say("MAIL FROM:<>")
		if err == nil && code == 250 {
			code, text, err = s.conn.say("RCPT TO:<%s>", rcpt)
		}
		if err != nil {
			return 0, err.Error(), false
		}
		_, _, _ = s.conn.say("RSET")
		unknown = code == 550 && (strings.HasPrefix(text, "5.1.1") || strings.Contains(strings.ToLower(text), "user unknown"))
		return code, fmt.Sprintf("RCPT TO:<%s> got %d %s", rcpt, code, text), unknown
	}
	code, there, _ := ask("postmaster@" + domain)
	anybody, nowhere, unknown := ask(nobody(domain))
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	remedy := "let only the filter in: on " + host + ", " + x.firewall()
	if slices.ContainsFunc(x.ours(context.Background()), isPublic) {
		remedy += " (with the filter's addresses in place of this machine's)"
	}
	switch {
	case anybody == 250:
		x.report(Fault, "back-door", addr, "The server behind the filter takes mail from strangers, even for recipients that it doesn't have: who knows its address goes past the filter.", nowhere, remedy)
	case code == 250:
		x.report(Fault, "back-door", addr, "The server behind the filter takes mail from strangers: who knows its address goes past the filter.", there+"; "+nowhere, remedy)
	case unknown: // who is turned away for what he is isn't told of recipients
		x.report(Warning, "back-door", addr, "The server behind the filter refuses a stranger for the recipient alone: it may take his mail for those that it has, past the filter.", nowhere, remedy)
	case code >= 400 && code < 500:
		x.report(Warning, "back-door", addr, "The server behind the filter only puts strangers off: it may take their mail later.", there, remedy)
	}
}
