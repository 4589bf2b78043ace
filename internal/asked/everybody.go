package asked

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Whoever accepts a made-up recipient says nothing by accepting any other: a server that
// looks at recipients after the message only, or a domain with a catch-all. Everybody
// exists there for us, too, since what the primary answers counts; the operator is told.

// trialEvery is how often a made-up recipient is asked about.
const trialEvery = time.Hour

// trial is what came of a domain's last made-up recipient.
type trial struct {
	next      time.Time
	everybody bool // was accepted
}

// untried is a domain whose trial is due, "" for none.
func (b *Book) untried() string {
	now := b.o.Now()
	for _, domain := range b.o.Domains() {
		b.mu.Lock()
		due := !now.Before(b.trials[domain].next)
		b.mu.Unlock()
		if due {
			return domain
		}
	}
	return ""
}

// try asks about a recipient that nobody can have.
func (b *Book) try(ctx context.Context, domain string) {
	reply, err := b.o.Ask(ctx, envelope.Mailbox{Local: "no-such-user-" + strings.ToLower(rand.Text()), Domain: domain})
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.trials[domain]
	now := trial{b.o.Now().Add(trialEvery), reply.Positive()}
	if err != nil || !reply.Positive() && !unknown(reply) { // nothing was learned
		now = trial{b.o.Now().Add(retryAfter), was.everybody}
	}
	b.trials[domain] = now
	switch {
	case now.everybody && !was.everybody:
		b.o.Log.Warn("the primary accepts a recipient that was made up: asking tells nothing about who exists, and everybody is accepted here", "domain", domain)
	case was.everybody && !now.everybody:
		b.o.Log.Info("the primary refuses a recipient that was made up, as it should", "domain", domain)
	}
}

// everybody lists the domains where everybody seems to exist. The caller holds mu.
func (b *Book) everybody() (domains []string) {
	for domain, t := range b.trials {
		if t.everybody {
			domains = append(domains, domain)
		}
	}
	slices.Sort(domains)
	return domains
}
