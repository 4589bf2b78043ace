// Package policy decides. From an immutable Snapshot of the whole filtering
// policy and the answers of the DNS it derives what the primary would say to a
// client, its HELO name, a reverse-path, a forward-path, DATA and a message.
//
// The model is Postfix's, because the primary is a Postfix: ordered lists of
// restrictions for each stage (smtpd_*_restrictions), look-up tables with
// their own orders of look-up (access(5)), address classes with their
// recipient tables, DNS block- and allowlists. A Spec is the policy as data,
// Compile makes a Snapshot of it, and a Session asks the Snapshot on behalf of
// one SMTP session. A hand-written TOML file compiles into the same Spec.
//
// What a server calls, in a session's order: Snapshot.Greet, Limits and Protocol
// for its own settings; Session.Connect, Waits, Screen (after the wait, before
// the greeting); Command for each line and Pipelined when a client is ahead of
// its turn; Helo, Mail, Rcpt (and Withdraw, see Verdict.Ask), Data; Content, to
// write the message to when it isn't nil; Message; Reset.
//
// What it doesn't do: no SMTP, no log, no clock, no state across sessions, and
// no I/O but through its Resolver. Rate limits, greylisting and content
// scanners are not in the model; where Verdict.Ask says so, the server asks the
// primary about them.
//
// Invariants: a Snapshot never changes and may serve any number of sessions at
// once. The same Snapshot, the same words of the client and the same DNS
// answers give the same Verdict. A temporary DNS failure never makes a
// permanent reply. Nobody is accepted for a domain that isn't listed.
//
// One difference to Postfix is meant: an answer of a DNS list in
// 127.255.255.0/24 counts only where a filter names it. By such answers lists
// refuse to serve a resolver, and a secondary rarely shares the primary's.
//
// RFC 5321 (replies, postmaster), RFC 3463 (status codes), RFC 5782 (DNS
// lists), RFC 7505 (null MX).
package policy

import (
	"context"
	"net"
	"net/netip"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Resolver is the DNS, with the signatures of *net.Resolver. Errors are
// *net.DNSError: IsNotFound says that the DNS knows of no such record (NXDOMAIN
// or no data); every other error counts as temporary. Under a ctx that has
// ended a look-up takes no time: it gives what the Resolver remembers, or fails.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) // network is "ip4", "ip6" or "ip"
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)                // a null MX is one MX whose Host is "."
	LookupAddr(ctx context.Context, addr string) ([]string, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupNS(ctx context.Context, name string) ([]*net.NS, error)
}

// Action is what to do.
type Action uint8

// The zero Action is Permit. Discard accepts and throws away; Hold accepts and
// keeps for the operator.
const (
	Permit Action = iota
	Defer
	Reject
	Discard
	Hold
)

func (a Action) String() string { return name(a, "permit", "defer", "reject", "discard", "hold") }

// Stage is the point of an SMTP session at which a rule belongs. With
// delay_reject the rules of Connect, Helo and Mail are judged at Rcpt; their
// Rule still names the stage that they belong to.
type Stage uint8

// EndOfData is the end of the message; it prints as "message".
const (
	Connect Stage = iota
	Helo
	Mail
	Rcpt
	Data
	EndOfData
)

func (s Stage) String() string {
	return name(s, "connect", "helo", "mail", "rcpt", "data", "message")
}

func name[T ~uint8](v T, names ...string) string {
	if int(v) < len(names) {
		return names[v]
	}
	return "invalid"
}

// Rule names what decided. Kind is of a closed set (see Kinds) and fit for a
// metric's label; Table and Key tell the operator which entry it was.
type Rule struct {
	Stage Stage
	Kind  string
	Table string // look-up table or DNS list, "" when the rule has none
	Key   string // the entry that matched, "" when the rule has none
}

func (r Rule) String() string {
	parts := []string{r.Stage.String(), r.Kind}
	if r.Table != "" {
		parts = append(parts, r.Table)
	}
	if r.Key != "" {
		parts = append(parts, r.Key)
	}
	return strings.Join(parts, " ")
}

// Verdict is a decision.
type Verdict struct {
	Action   Action
	Reply    envelope.Reply // zero when Action is Permit, Discard or Hold
	Close    bool           // hang up after the reply
	Rule     Rule
	Warnings []Rule // rules that would have refused, but for warn_if_reject
	// Unsure is the recipient whom the primary has to be asked about before
	// anybody can say that it is unknown; "" when there is none. See
	// Spec.Learned.
	Unsure string
	// Ask is the rule for which the primary has to be asked before the recipient
	// that the verdict lets in may be accepted; its Kind is "" when there is
	// none. If the primary refuses, or can't be asked (see MustAsk), the caller
	// refuses and calls Session.Withdraw.
	Ask Rule
}

// MustAsk says that a recipient may not be accepted, for now, when the primary
// can't be asked.
func (v Verdict) MustAsk() bool { return v.Ask.Kind == kindAsk }

// MailParams are the parameters of MAIL that matter for the policy.
type MailParams struct {
	Size int64 // SIZE=, 0 when absent
	UTF8 bool  // SMTPUTF8
}

// Message is a whole message at the end of its data.
type Message struct {
	Size int64 // octets, CRLF line ends included
	Long int64 // octets that LongLine counts
	Hops int   // Received fields that the client sent
}

// Stats describes a Snapshot to the operator.
type Stats struct {
	Domains    int // domains that we accept mail for
	Recipients int // entries of the tables that say which recipients exist
	Rules      int // restrictions and the entries of access tables
}
