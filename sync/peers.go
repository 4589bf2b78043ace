package policysync

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/policy/table"
)

// Bounds of pairing.
const (
	maxPeers   = 64
	maxInvites = 8
	maxTries   = 5 // wrong proofs before an invitation is void
	inviteLife = 15 * time.Minute
)

const peersFile = "peers.json"

// peer is a paired follower. It has two pins while its key changes.
type peer struct {
	Name        string    `json:"name"`
	Pins        []Pin     `json:"pins"`
	Paired      time.Time `json:"paired"`
	Fingerprint string    `json:"fingerprint"`

	// Secret is that under which its recipients are hashed; nil when it was
	// paired before understudy could hash.
	Secret *table.Secret `json:"secret,omitempty"`
}

// invite is an invitation that nobody has used. Its secret is kept as the
// public half of a key derived from it.
type invite struct {
	ID       string    `json:"id"` // hexadecimal
	Name     string    `json:"name"`
	Verifier []byte    `json:"verifier"`
	Expires  time.Time `json:"expires"`
	Tries    int       `json:"tries,omitempty"`
}

// peers is the one file about followers: who is paired, who is invited. An
// invitation becomes a peer by one rename, so it is used once or not at all.
type peers struct {
	fs  fileSystem
	dir string

	mu   sync.Mutex // guards file; its slices are replaced, never written to
	file peersState
}

type peersState struct {
	Stream  streamID `json:"stream"`
	Peers   []peer   `json:"peers"`
	Invites []invite `json:"invites,omitempty"`
}

func openPeers(fsys fileSystem, dir string) (*peers, error) {
	p := &peers{fs: fsys, dir: dir}
	b, err := fsys.ReadFile(path.Join(dir, peersFile), 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := rand.Read(p.file.Stream[:]); err != nil {
			return nil, fmt.Errorf("name stream: %w", err)
		}
		return p, p.save(p.file)
	}
	if err == nil {
		err = strictJSON(b, &p.file)
	}
	if err != nil {
		return nil, fmt.Errorf("read peers: %w", err)
	}
	return p, nil
}

// save makes s durable and then current. The caller holds mu.
func (p *peers) save(s peersState) error {
	b, err := json.MarshalIndent(&s, "", " ")
	if err == nil {
		err = replaceFile(p.fs, path.Join(p.dir, peersFile), append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("store peers: %w", err)
	}
	p.file = s
	return nil
}

// lookup returns the peer whose key has a pin.
func (p *peers) lookup(pin Pin) (peer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.file.Peers {
		if anyPin(q.Pins, pin) {
			return q, true
		}
	}
	return peer{}, false
}

// paired says whether a peer that was looked up is still paired.
func (p *peers) paired(q *peer) bool {
	return slices.ContainsFunc(p.list(), func(o peer) bool { return o.Name == q.Name && o.Fingerprint == q.Fingerprint })
}

func (p *peers) list() []peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.file.Peers
}

// inviting says whether a stranger may come in to join.
func (p *peers) inviting(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.file.Invites, func(i invite) bool { return i.open(now) })
}

func (i *invite) open(now time.Time) bool { return now.Before(i.Expires) && i.Tries < maxTries }

// invite stores an invitation and drops those that are over.
func (p *peers) invite(t *token, name string, now time.Time) error {
	if !validName(name) {
		return fmt.Errorf("invite: name %.80q: use 1 to 63 of a-z, 0-9, '-' and '.'", name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.file
	s.Invites = slices.DeleteFunc(slices.Clone(s.Invites), func(i invite) bool { return !i.open(now) || i.Name == name })
	if len(s.Invites) >= maxInvites {
		return fmt.Errorf("invite: %d invitations are open; wait until one is used or over", len(s.Invites))
	}
	if len(s.Peers) >= maxPeers {
		return fmt.Errorf("invite: %d followers are paired, no more are possible; revoke one", len(s.Peers))
	}
	s.Invites = append(s.Invites, invite{
		ID: hex.EncodeToString(t.id[:]), Name: name, Verifier: publicOf(t.proofKey()), Expires: now.Add(inviteLife),
	})
	return p.save(s)
}

func validName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 63
}

var errInvite = errors.New("no such invitation, or a wrong proof")

// redeem makes a peer of a follower that proves an invitation's secret. Every
// failure is the same error.
func (p *peers) redeem(id string, proof, msg []byte, pin Pin, now time.Time, fingerprint string, secret *table.Secret) (*peer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.file
	at := -1
	for i := range s.Invites {
		if subtle.ConstantTimeCompare([]byte(s.Invites[i].ID), []byte(id)) == 1 && s.Invites[i].open(now) {
			at = i
		}
	}
	if at < 0 {
		return nil, errInvite
	}
	s.Invites = slices.Clone(s.Invites)
	inv := &s.Invites[at]
	if len(inv.Verifier) != ed25519.PublicKeySize || !ed25519.Verify(inv.Verifier, msg, proof) {
		inv.Tries++
		return nil, errors.Join(errInvite, p.save(s))
	}
	q := peer{Name: inv.Name, Pins: []Pin{pin}, Paired: now.UTC().Truncate(time.Second), Fingerprint: fingerprint, Secret: secret}
	s.Peers = slices.DeleteFunc(slices.Clone(s.Peers), func(o peer) bool { return o.Name == q.Name || anyPin(o.Pins, pin) })
	s.Peers = append(s.Peers, q)
	s.Invites = slices.Delete(s.Invites, at, at+1)
	return &q, p.save(s)
}

// revoke forgets a follower and its open invitation.
func (p *peers) revoke(name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.file
	s.Peers = slices.DeleteFunc(slices.Clone(s.Peers), func(q peer) bool { return q.Name == name })
	s.Invites = slices.DeleteFunc(slices.Clone(s.Invites), func(i invite) bool { return i.Name == name })
	if len(s.Peers) == len(p.file.Peers) && len(s.Invites) == len(p.file.Invites) {
		return fmt.Errorf("revoke: nobody is called %.80q; `understudy peers` lists who is", name)
	}
	return p.save(s)
}

// setPins replaces a peer's pins.
func (p *peers) setPins(name string, pins []Pin) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.file
	s.Peers = slices.Clone(s.Peers)
	for i := range s.Peers {
		if s.Peers[i].Name == name {
			s.Peers[i].Pins = pins
		}
	}
	return p.save(s)
}
