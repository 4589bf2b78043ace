package mailauth

import "strings"

// Vouches says that a signature shows the message to be of the author to whom a
// reverse-path leads. Anybody can send a signed message again, under any
// reverse-path of the signer's domain; so only the author's own counts. The
// signer is the domain of the reverse-path or stands above it, within its
// organization: a subdomain has no say about others.
func (r *DKIMResult) Vouches(local, domain string) bool {
	if r.Author.Fields != 1 || len(r.Author.Domains) != 1 || r.Author.User != local || !strings.EqualFold(r.Author.Domain, domain) {
		return false
	}
	organization := DMARC{}.organization(strings.ToLower(domain))
	for _, s := range r.Signatures {
		if s.Status == Good && s.Sound && !s.Testing && isWithin(domain, s.Domain) && isWithin(s.Domain, organization) {
			return true
		}
	}
	return false
}

// Result is RFC 8601's word (§2.7.1) for a verdict.
func (s Status) Result() Result {
	switch s {
	case NoSignature:
		return None
	case Good:
		return Pass
	case BadSignature:
		return Fail
	case KeyFailed:
		return TempError
	case CantVerify, SyntaxError, NoAuthor, HeaderTooLarge:
		return Neutral
	}
	return PermError
}
