// Package mailauth says what SPF, DKIM and DMARC say about a message: the
// verdicts only. What a filter makes of a verdict (a reply, a quarantine) is
// its user's business, and so is the DNS, which comes in as a Resolver.
//
// It follows the programs that Postfix sites run, since a secondary has to
// agree with them: SPF as pyspf (policyd-spf) has it, DKIM as libopendkim,
// DMARC as libopendmarc. Where they are stricter or laxer than the RFCs, so is
// this package, and the place says so.
//
// Invariants: a failed look-up is never taken for an answer; it gives
// TempError. Every loop over what a peer or a DNS server wrote has a bound. A
// message passes through; no part of it but its header stays in memory.
//
// RFC 7208 (SPF), RFC 6376, RFC 8301 and RFC 8463 (DKIM), RFC 7489 (DMARC).
package mailauth

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// Resolver is the DNS, with the signatures of *net.Resolver. A *net.DNSError
// with IsNotFound says that there is no such record; any other error counts as
// temporary.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
	LookupAddr(ctx context.Context, addr string) ([]string, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
}

// Result is the result of a check, in the words of RFC 8601.
type Result uint8

// The zero Result is None: there was nothing to check.
const (
	None Result = iota
	Neutral
	Pass
	Fail
	SoftFail
	TempError
	PermError
)

func (r Result) String() string {
	return [...]string{"none", "neutral", "pass", "fail", "softfail", "temperror", "permerror"}[r]
}

func isNotFound(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound
}
