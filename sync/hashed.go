package policysync

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// Purposes of a secret besides those of table.Hasher.
const (
	purposeID      = "i"
	purposeVersion = "v"
)

// exportSecret derives the secret under which a pairing's recipients are hashed
// from the TLS session in which the pairing is made. The secret never travels.
func exportSecret(cs *tls.ConnectionState) (*table.Secret, error) {
	b, err := cs.ExportKeyingMaterial("EXPORTER-understudy-recipients", nil, len(table.Secret{}))
	if err != nil {
		return nil, fmt.Errorf("derive the pairing's secret: %w", err)
	}
	s := table.Secret(b)
	return &s, nil
}

// secretID names a secret.
func secretID(s *table.Secret) (id [8]byte) {
	copy(id[:], table.NewHasher(s).Sum(purposeID, nil))
	return id
}

// sourceOf stands for the identity of a plain version, which would let guesses
// of the whole list be tested.
func sourceOf(s *table.Secret, identity hash) hash {
	return hash(table.NewHasher(s).Sum(purposeVersion, identity[:]))
}

// hashed says whether the content's keys are hashed.
func (h *Head) hashed() bool { return h.SecretID != [8]byte{} }

// unlock finds the secret of a head among those of the pairing.
func (h *Head) unlock(secrets []*table.Secret) error {
	if !h.hashed() {
		return nil
	}
	for _, s := range secrets {
		if secretID(s) == h.SecretID {
			h.secret = s
			return nil
		}
	}
	return alarm(AlarmSecret, "version %d.%d is hashed under a secret that this secondary doesn't hold: pair again with invite and join", h.Epoch, h.Version)
}

// follows says whether last is the version before h. Across pairings this can't
// be told.
func (h *Head) follows(last *Head) bool {
	switch {
	case h.secret == nil && last.secret == nil:
		return h.Prev == last.identity
	case last.secret == nil:
		return h.Prev == sourceOf(h.secret, last.identity)
	case h.secret == nil:
		return sourceOf(last.secret, h.Prev) == last.Source
	}
	return h.Prev == last.Source || !sameSecret(h.secret, last.secret)
}

// renewedSecret says whether h was hashed anew after the secondary was paired
// again: then one version has two identities.
func (h *Head) renewedSecret(last *Head) bool {
	return h.secret != nil && last.secret != nil && !sameSecret(h.secret, last.secret)
}

// hashingMark is the audience of the plain head that hashed heads are made from,
// which is sent to nobody. So beginning, ending or changing the hashing makes a
// new version.
var hashingMark = [32]byte{'h', 'a', 's', 'h', 'e', 'd', 1}

// offer is the policy hashed for one follower. It is made when that asks.
type offer struct {
	mu     sync.Mutex             // guards all below; held while the policy is hashed
	base   *source                // what src was made of
	src    atomic.Pointer[source] // read without mu
	signed *Head                  // the plain head that raw stands for
	raw    []byte
}

// hashedHead returns the head for a follower, signed as the plain one was, and
// nil when there is no policy yet.
func (p *Publisher) hashedHead(q *peer) ([]byte, error) {
	p.mu.Lock()
	base, plain, key := p.src, p.head, p.keys.policy
	o := p.offers[*q.Secret]
	if o == nil {
		o = new(offer)
		p.offers[*q.Secret] = o
	}
	p.mu.Unlock()
	if plain == nil {
		return nil, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.base != base {
		start := p.o.now()
		src, err := hashSource(base, q.Secret, o.base, o.src.Load())
		if err != nil {
			return nil, err
		}
		o.base = base
		o.src.Store(src)
		p.o.Log.Info("policy hashed", "for", q.Name, "version", plain.Version, "took", p.o.now().Sub(start).Round(time.Millisecond))
	}
	if o.signed != plain {
		h := *plain
		h.Audience = [32]byte{}
		h.SecretID, h.Source = secretID(q.Secret), sourceOf(q.Secret, plain.identity)
		if h.Version > 1 {
			h.Prev = sourceOf(q.Secret, plain.Prev)
		}
		o.src.Load().fill(&h)
		o.raw, o.signed = h.sign(key), plain
	}
	return o.raw, nil
}

// headFor chooses the head that a follower gets; raw is the plain one.
func (p *Publisher) headFor(q *peer, raw []byte) ([]byte, int) {
	switch {
	case !p.o.Hashed:
		return raw, http.StatusOK
	case q.Secret == nil:
		p.o.Log.Warn("a follower was paired before recipients could be hashed, and gets nothing until it is paired again", "name", q.Name)
		return nil, http.StatusConflict
	}
	raw, err := p.hashedHead(q)
	if err != nil {
		p.o.Log.Error("the policy could not be hashed", "name", q.Name, "err", err)
		return nil, http.StatusInternalServerError
	}
	return raw, http.StatusOK
}

// sourceFor is where a follower's chunks come from, nil when there is none.
func (p *Publisher) sourceFor(q *peer) *source {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.o.Hashed {
		return p.src
	}
	if q.Secret == nil || p.offers[*q.Secret] == nil {
		return nil
	}
	return p.offers[*q.Secret].src.Load()
}

// dropOffers frees what was hashed for followers that have gone. The caller
// holds mu.
func (p *Publisher) dropOffers() {
	live := map[table.Secret]bool{}
	for _, q := range p.peers.list() {
		if s := p.seen[q.Name]; q.Secret != nil && s != nil && p.o.now().Sub(s.polled) < 5*time.Minute {
			live[*q.Secret] = true
		}
	}
	maps.DeleteFunc(p.offers, func(s table.Secret, _ *offer) bool { return !live[s] })
}

// hashSource hashes a policy's tables and lays it out. before and hashed are
// an older one and what was made of it, or nil: what they share isn't hashed
// again.
func hashSource(plain *source, s *table.Secret, before, hashed *source) (*source, error) {
	spec := *plain.spec
	spec.Tables = make(map[string]*table.Table, len(plain.spec.Tables))
	bare := presenceOnly(plain.spec)
	for name, t := range plain.spec.Tables {
		if t.Keyed() {
			var old, was *table.Table
			if before != nil && hashed != nil {
				old, was = before.spec.Tables[name], hashed.spec.Tables[name]
			}
			var err error
			if t, err = t.Hashed(s, !bare[name], old, was); err != nil {
				return nil, fmt.Errorf("hash table %s: %w", name, err)
			}
		}
		spec.Tables[name] = t
	}
	return layOut(&spec, plain.pieces, s, hashed)
}

// presenceOnly names the tables of which only the keys matter: they list
// recipients or senders, and nothing else in the policy mentions them.
func presenceOnly(spec *policy.Spec) map[string]bool {
	bare := map[string]bool{}
	a := &spec.Addresses
	for _, name := range slices.Concat(recipientTables(spec), a.RecipientCanonical, a.SenderCanonical, a.Canonical, spec.SenderLogin) {
		bare[name] = true
	}
	rest := *spec
	rest.Tables, rest.SenderLogin = nil, nil
	r := &rest.Addresses
	r.RecipientCanonical, r.SenderCanonical, r.Canonical, r.VirtualAlias = nil, nil, nil, nil
	for _, c := range []*policy.AddressClass{&r.Local, &r.VirtualAliases, &r.VirtualMailbox, &r.Relay} {
		c.Recipients = nil
	}
	var tree any
	if b, err := json.Marshal(&rest); err != nil || json.Unmarshal(b, &tree) != nil {
		return nil // newSource would have failed before
	}
	mentioned := map[string]bool{}
	var mention func(text string)
	mention = func(text string) {
		for _, word := range append(strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) }), text) {
			word = strings.TrimPrefix(word, "table:")
			t := spec.Tables[word]
			if t == nil || mentioned[word] {
				continue
			}
			mentioned[word] = true
			delete(bare, word)
			for _, value := range t.Entries(0, t.Len()) { // it may name tables too
				mention(value)
			}
		}
	}
	eachString(tree, mention)
	for _, t := range spec.Tables {
		if !t.Keyed() {
			for _, value := range t.Entries(0, t.Len()) { // members, above all
				mention(value)
			}
		}
	}
	return bare
}

// eachString calls fn with the strings in a JSON value.
func eachString(v any, fn func(string)) {
	switch v := v.(type) {
	case string:
		fn(v)
	case []any:
		for _, e := range v {
			eachString(e, fn)
		}
	case map[string]any:
		for _, e := range v {
			eachString(e, fn)
		}
	}
}
