// Package envelope has mail's nouns: mailboxes, paths, replies, the SMTP client and
// the envelope of RFC 5321 §2.3.1. All packages share these types. It only parses
// and prints them, does no I/O and imports none of our other packages.
package envelope

import (
	"io"
	"net/netip"
	"time"
)

// Client is the SMTP client as the server knows it: from the connection, or
// as a trusted proxy stated it by XCLIENT or the PROXY protocol.
type Client struct {
	Addr netip.Addr `json:"addr"` // unmapped: an IPv4 client is never ::ffff:a.b.c.d
	Port uint16     `json:"port"`

	// Name is the host name that the address maps to and that maps back to
	// it, "unknown" when there is none, and "" while nobody has asked.
	Name string `json:"name,omitempty"`
	// ReverseName is the PTR name, whether it maps back or not; "unknown"
	// and "" as for Name.
	ReverseName string `json:"reverse_name,omitempty"`
	// NameStatus and ReverseStatus tell why a name is "unknown".
	NameStatus    NameStatus `json:"-"`
	ReverseStatus NameStatus `json:"-"`

	Helo     string `json:"helo,omitempty"`     // argument of HELO or EHLO
	Protocol string `json:"protocol,omitempty"` // SMTP or ESMTP, as XCLIENT's PROTO
	TLS      string `json:"tls,omitempty"`      // protocol version and cipher, "" in plain text
	HasCert  bool   `json:"-"`                  // it showed a certificate, whosever
}

// NameStatus is the outcome of a name look-up. A temporary failure is a value of its
// own, because it must never turn into a permanent refusal.
type NameStatus uint8

const (
	NameUnasked  NameStatus = iota // not looked up yet
	NameOK                         // looked up, found
	NameNotFound                   // the DNS says that there is none
	NameTemp                       // the DNS failed or did not answer
	NameForged                     // a PTR exists, but the name does not map back
)

// Recipient is one forward-path of a mail transaction with its RFC 3461
// parameters, passed on as the client gave them.
type Recipient struct {
	Path   ForwardPath
	Notify string // NOTIFY=, "" when absent
	ORcpt  string // ORCPT=, "" when absent
	Rule   string // the policy rule that let the recipient in, for the operator
}

// Envelope is RFC 5321 §2.3.1's mail envelope: all that is known of a message
// besides its content.
type Envelope struct {
	ID       string // ours, assigned when the spool opens the message
	Client   Client
	From     ReversePath
	To       []Recipient
	EightBit bool   // BODY=8BITMIME, RFC 6152
	UTF8     bool   // SMTPUTF8, RFC 6531
	Ret      string // RET=, RFC 3461 §4.3, "" when absent
	EnvID    string // ENVID=, RFC 3461 §4.4, "" when absent
	Received time.Time
	Hold     bool   // the policy's verdict was hold: kept for the operator at once
	HoldRule string // the policy rule that said so
	// MayHaveArrived says that the next hop had the whole message in a live
	// session and didn't answer: it may get it twice.
	MayHaveArrived bool
	Auth           Auth // what SPF and DKIM said when the message came
	// Report says that the message is a DSN of our own: no client brought it.
	Report bool
}

// Auth is what SPF and DKIM said about a message.
type Auth struct {
	Checked bool `json:"checked"`
	// SPF is RFC 8601's word for the client's right to the reverse-path, or for
	// the null one to the HELO name; "" where nobody asked.
	SPF  string      `json:"spf,omitempty"`
	DKIM []Signature `json:"dkim,omitempty"` // at most MaxSignatures, from the top
	// Vouched is "spf" or "dkim" when one of them vouches for the reverse-path:
	// a DSN would reach the author of the message, and nobody else.
	Vouched string `json:"vouched,omitempty"`
}

// MaxSignatures bounds Auth.DKIM.
const MaxSignatures = 8

// Signature is one DKIM signature.
type Signature struct {
	Domain string `json:"domain"` // d=
	Result string `json:"result"` // RFC 8601's word
}

// Transfer is one message on its way to one next hop. The queue makes it, the
// relay carries it out.
type Transfer struct {
	// Envelope lists in To only the recipients that this attempt is for.
	Envelope *Envelope
	// Size is the content's length in octets, CRLF line ends included,
	// without dot-stuffing.
	Size int64
	// Open reads the content from its start: lines end in CRLF, no
	// dot-stuffing, our Received field first.
	Open func() (io.ReadCloser, error)
	// Held, if not nil, is asked right before the final dot goes out: its error means
	// that another may relay the message now, and the session ends.
	Held func() error
	// Settle MUST be called exactly once for each Transfer that was taken.
	// With a nil err, replies has one final reply for each of Envelope.To,
	// in that order. A non-nil err says that the session ended before the
	// next hop answered for all; then replies may be nil, and a recipient
	// whose reply is zero counts as not tried. A reply that is not zero is
	// the next hop's word and counts even beside an err.
	Settle func(replies []Reply, err error)
}
