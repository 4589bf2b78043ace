// Package dnslist tells whether the DNS lists of a policy can be believed.
//
// A DNS list (RFC 5782) says by an address in the DNS that a client is listed, and
// by its absence that it isn't. Lists fail in ways that look like answers:
//
//	2.0.0.127.zen.example  A  127.0.0.2         the test entry: the list is well
//	2.0.0.127.zen.example  NXDOMAIN             it lists nobody any more: spam comes in
//	1.0.0.127.zen.example  A  203.0.113.9       its domain was sold: all mail is refused
//	2.0.0.127.zen.example  A  127.255.255.254   it refuses the questions of this resolver
//
// Probe asks a list about its test entries. Watch does so for as long as the process
// runs, and sets lists aside whose answers can't be right: Resolver makes each look-up
// in them one that failed for now, which Postfix passes over. docs/decisions/0013
// has the rule.
package dnslist

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/policy"
)

// State is the health of a list.
type State string

// The states. Untested is of a list without a test entry that was never seen to
// have one: a private list may well be so.
const (
	OK       State = "ok"
	Untested State = "untested"
	Dead     State = "dead"      // it lists nobody, and has listed its test entry before
	ListsAll State = "lists_all" // it lists what no list may list
	Refuses  State = "refuses"   // it refuses our questions
	Silent   State = "silent"    // it can't be asked; each look-up fails by itself
)

// States are all.
func States() []State { return []State{OK, Untested, Dead, ListsAll, Refuses, Silent} }

// Resolver is what a probe needs of a policy.Resolver.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Answer is that to a question about a test entry.
type Answer struct {
	Asked string `json:"asked"` // without the zone: "2.0.0.127"
	Got   string `json:"got"`   // addresses, "not listed", or why there was no answer
}

// Probe is the result of one.
type Probe struct {
	State   State // Untested: no test entry is listed
	Answers []Answer
	Took    time.Duration // the slowest answer
}

// The test entries. Every list of addresses has 127.0.0.2, and none 127.0.0.1; a list of
// names has TEST and not INVALID (RFC 5782 §5). The others are what the lists of
// Spamhaus, URIBL and SURBL document in place of TEST.
var (
	addressTests = []string{"2.0.0.127"}
	nameTests    = []string{"test", "dbltest.com", "2.0.0.127", "test.uribl.com", "surbl-org-permanent-test-point.com"}
)

const (
	addressNever = "1.0.0.127"
	nameNever    = "invalid"
)

// Ask probes a list: its test entries until one is listed, and then an entry
// that must not be.
func Ask(ctx context.Context, r Resolver, l policy.DNSList) (p Probe) {
	p.State = Untested
	ask := func(entry string) (listed bool) {
		start := time.Now()
		addrs, err := r.LookupNetIP(ctx, "ip4", entry+"."+l.Zone)
		p.Took = max(p.Took, time.Since(start))
		p.Answers = append(p.Answers, Answer{entry, got(addrs, err)})
		var dns *net.DNSError
		switch {
		case err != nil && (!errors.As(err, &dns) || !dns.IsNotFound):
			p.State = Silent
		case anyRefusal(addrs):
			p.State = Refuses
		}
		return err == nil && len(addrs) > 0
	}
	var tests, never []string
	if l.Addresses || !l.Names {
		tests, never = append(tests, addressTests...), append(never, addressNever)
	}
	if l.Names || !l.Addresses {
		tests, never = append(tests, nameTests...), append(never, nameNever)
	}
	for i, entry := range tests {
		if i > 0 && entry == tests[0] {
			continue // asked already
		}
		listed := ask(entry)
		if p.State != Untested {
			return p
		}
		if listed {
			p.State = OK
			break
		}
	}
	for _, entry := range never {
		before := p.State
		listed := ask(entry)
		if p.State != before {
			return p
		}
		if listed {
			p.State = ListsAll
			return p
		}
	}
	return p
}

// got is an answer as text.
func got(addrs []netip.Addr, err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound, err == nil && len(addrs) == 0:
		return "not listed"
	case errors.As(err, &dns):
		return "no answer: " + dns.Err
	case err != nil:
		return "no answer: " + err.Error()
	}
	const most = 8
	var all []string
	for _, a := range addrs[:min(len(addrs), most)] {
		all = append(all, a.String())
	}
	return strings.Join(all, " ")
}

// anyRefusal says that a list answers that it refused the question: 127.255.255.x is
// Spamhaus's word for it, and others follow; 127.0.0.1 is URIBL's, 127.0.0.255 that of
// dnswl.org. None of the three ever is a listing.
func anyRefusal(addrs []netip.Addr) bool {
	for _, a := range addrs {
		if b := a.Unmap(); b.Is4() && refusals.Contains(b) || b == uriblRefusal || b == dnswlRefusal {
			return true
		}
	}
	return false
}

var (
	refusals     = netip.MustParsePrefix("127.255.255.0/24")
	uriblRefusal = netip.MustParseAddr("127.0.0.1")
	dnswlRefusal = netip.MustParseAddr("127.0.0.255")
)
