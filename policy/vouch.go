package policy

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/mailauth"
)

// authTime bounds the look-ups of Auth: a client waits for them.
const authTime = 10 * time.Second

// Vouch has Auth check SPF and DKIM although no filter of the primary's does. It
// changes no verdict. Call it first.
func (s *Session) Vouch() { s.vouching = true }

// signatures is the verdict on the message's signatures, which the milters and
// Auth share.
func (s *Session) signatures(ctx context.Context) *mailauth.DKIMResult {
	if s.signed == nil {
		r := s.milter.Finish(ctx)
		s.signed = &r
	}
	return s.signed
}

// Auth returns what SPF and DKIM say of the message, which is complete. Without
// Vouch that is as much as the primary's filters check.
func (s *Session) Auth(ctx context.Context, from envelope.ReversePath) (a envelope.Auth) {
	ctx, cancel := context.WithTimeout(ctx, authTime)
	defer cancel()
	var spf mailauth.SPFResult
	var wait sync.WaitGroup
	if s.vouching || len(s.snap.spec.Filters.SPF) > 0 {
		a.Checked = true
		sender := ""
		if !from.Null() {
			sender = from.Local + "@" + from.Domain
		}
		wait.Go(func() {
			spf = mailauth.SPF{Resolver: s.lookups.r, VoidLookups: mailauth.DefaultVoidLookups}.Check(ctx, s.client.Addr, s.client.Helo, sender)
		})
	}
	if s.milter != nil {
		a.Checked = true
		r := s.signatures(ctx)
		for _, sig := range r.Signatures[:min(len(r.Signatures), envelope.MaxSignatures)] {
			a.DKIM = append(a.DKIM, envelope.Signature{Domain: strings.ToLower(sig.Domain), Result: sig.Status.Result().String()})
		}
		if !from.Null() && r.Vouches(from.Local, from.Domain) {
			a.Vouched = "dkim"
		}
	}
	if wait.Wait(); spf.Why != "" {
		a.SPF = spf.Result.String()
	}
	if spf.Result == mailauth.Pass && !spf.Anyone && !from.Null() {
		a.Vouched = "spf"
	}
	return a
}
