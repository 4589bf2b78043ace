package policy

import (
	"strings"

	"github.com/understudy-mx/understudy/policy/table"
)

// Confine returns s for a server that accepts mail for certain domains only,
// whatever s itself accepts: for all others a permission becomes a temporary
// refusal. ".example.org" stands for all subdomains.
//
// A policy from another machine can let mail in in many ways: by domains, patterns
// of domains, mynetworks, a restriction that permits. All of them end here.
func (s *Snapshot) Confine(domains []string) *Snapshot {
	confined := *s
	confined.allowed = make(map[string]bool, len(domains))
	for _, d := range domains {
		confined.allowed[table.Fold(d)] = true
	}
	return &confined
}

// allows says that mail for a folded domain may be accepted at all.
func (s *Snapshot) allows(domain string) bool {
	if s.allowed == nil || s.allowed[domain] && !strings.HasPrefix(domain, ".") {
		return true
	}
	for i, c := range []byte(domain) {
		if c == '.' && i > 0 && s.allowed[domain[i:]] {
			return true
		}
	}
	return false
}

// confine refuses what the checks let through, for now, if its domain is not
// allowed.
func (e *eval) confine(st status, a *address) status {
	if st == refused || e.snap.allows(a.domain) {
		return st
	}
	return e.answer(Rule{Stage: Rcpt, Kind: kindForeignDomain, Key: a.domain}, 450, "4.7.1", rejectedText(a.raw, classRcpt, "Relay access denied"))
}
