// Package policy decides. From an immutable Snapshot of the whole filtering
// policy and the answers of the DNS it derives what the primary would say to a
// client, its HELO name, a reverse-path, a forward-path, DATA and a message.
//
// A Spec is the policy as data, Compile makes a Snapshot of it, and a Session
// asks the Snapshot on behalf of one SMTP session. The model is Postfix's,
// because the primary is a Postfix.
//
// # Restrictions
//
// Each stage has a list (smtpd_client_restrictions and so on). Its restrictions
// are asked in order, and each says OK, which ends the list, REJECT, which ends
// everything, or nothing (DUNNO). With delay_reject the lists for the client, its
// HELO name and the sender wait until RCPT. So
//
//	permit_mynetworks, check_client_access hash:/etc/postfix/clients, reject_rbl_client zen.spamhaus.org
//
// never asks the DNS list about a client in mynetworks, nor about one that the
// table permits. defer_if_permit and defer_if_reject are remembered: they turn a
// later OK or REJECT into 450.
//
// # Access tables
//
// An access(5) table is asked first about the whole key, then about less and less
// of it, and the first entry found decides. For joe+news@mx.example.com, where
// "+" is a recipient delimiter:
//
//	joe+news@mx.example.com  joe@mx.example.com  mx.example.com  example.com  com  joe+news@  joe@
//
// The client's address 192.0.2.1 is looked for as 192.0.2.1, 192.0.2, 192.0 and
// 192, its name like a domain. Where parent_domain_matches_subdomains lacks
// smtpd_access_maps, parents are spelled with a dot: .example.com. Networks and
// patterns see nothing but the whole key.
//
// # DNS lists
//
// RFC 5782: the octets of an IPv4 address, or the 32 nibbles of an IPv6 address,
// last first, and the list's zone make a name, and an A record there means
// "listed". A list of domains is asked about the domain before its zone:
//
//	192.0.2.99 in zen.spamhaus.org     99.2.0.192.zen.spamhaus.org   A 127.0.0.4
//	example.com in dbl.spamhaus.org    example.com.dbl.spamhaus.org  A 127.0.1.2
//
// A filter picks answers: zen.spamhaus.org=127.0.0.[2..11]. An error is no
// listing: NXDOMAIN means "not listed", and so does a time-out, unless
// Session.DeferUnanswered was called. An answer in 127.255.255.0/24 counts only where
// a filter names it: with it a list refuses to serve a resolver, and a secondary
// rarely shares the primary's. This is one of two intended differences from Postfix; the other is a Resolver's, which may
// make look-ups in a list fail that can't be right (docs/decisions/0013).
//
// postscreen(8) adds up weights. With a threshold of 3 and
//
//	zen.spamhaus.org*3  bl.spamcop.net*2  list.dnswl.org=127.0.[0..255].[1..3]*-2
//
// a client in SpamCop's list and DNSWL's has 0 points and passes; one in both
// blocklists has 5 and is refused in the name of the heaviest, zen.spamhaus.org.
//
// # A server's calls
//
// In a session's order: Snapshot.Greet, Limits and Protocol for the server's own
// settings; Session.Connect, Waits, Screen (after the wait, before the
// greeting); Command for each line and Pipelined when a client is ahead of
// its turn; Helo, Mail, Rcpt (and Withdraw, see Verdict.Ask), Data; Content, to
// write the message to when it isn't nil; Message; Reset.
//
// # Promises
//
// A Snapshot never changes and may serve any number of sessions at once. The same
// Snapshot, the same words of the client and the same DNS answers give the same
// Verdict. A temporary DNS failure never makes a permanent reply. Nobody is
// accepted for a domain that isn't listed.
//
// There is no SMTP here, no log, no clock, no state across sessions but in a
// GreyMemory, and no I/O but through that and the Resolver. Rate limits and content
// scanners are not in the model; where Verdict.Ask says so, the server asks the
// primary about them.
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
	Listed   Rule   // the entry that says that a recipient who is let in exists; its Kind is "" when none was looked for
	// Unsure is a recipient that can't be called unknown before the primary has
	// been asked; "" when there is none. See Spec.Learned.
	Unsure string
	Lost   bool // at RCPT: permitted, but this recipient gets no copy
	// Ask is the rule for which the primary must be asked before a permitted
	// recipient may be accepted; its Kind is "" when there is none. If the primary
	// refuses, or can't be asked (see MustAsk), the caller refuses and calls
	// Session.Withdraw.
	Ask Rule
}

// MustAsk says that a recipient must be deferred when the primary can't be asked.
func (v Verdict) MustAsk() bool { return v.Ask.Kind == kindAsk || v.MustVerify() }

// MustVerify says that only the recipient's existence is in question, whoever the
// client is: an earlier answer counts.
func (v Verdict) MustVerify() bool { return v.Ask.Kind == kindVerify }

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
	// Ask asks the filter that stands for one of Session.Milters; see StandIns.
	// What it permits, the next one may still refuse. nil: none is asked.
	Ask func(ctx context.Context, milter int) Verdict
}

// Stats describes a Snapshot to the operator.
type Stats struct {
	Domains    int // domains that we accept mail for
	Recipients int // entries of the tables that say which recipients exist
	Rules      int // restrictions and the entries of access tables
}
