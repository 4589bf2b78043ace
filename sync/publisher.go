package policysync

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"path"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// stateFile is the part of a publisher's directory that holds its pubState.
const stateFile = "state.json"

// headLife is how long a signature is good for.
const headLife = 10 * time.Minute

// PublisherOptions configure a Publisher. Dir and Metrics must be given.
type PublisherOptions struct {
	Dir     string                               // of keys, peers and the version's number
	Address string                               // host:port at which followers reach us; it goes into invitations
	Lists   func() []ListView                    // how we see the policy's DNS lists; nil: not known
	Hashed  bool                                 // followers get digests in place of recipients
	Passed  func(follower string, list []Passed) // takes whom a follower's greylisting has let in; may be nil
	Log     *slog.Logger
	Metrics *metrics.Metrics

	now     func() time.Time
	fs      fileSystem
	waiting func() // a test learns that a poll waits
}

// Publisher offers a policy to the followers that are paired with it. It keeps
// nothing about them but the file of peers, and their last report in memory.
type Publisher struct {
	o     PublisherOptions
	peers *peers
	codec *codec
	last  *store // of what was published last
	joins *rate.Limiter
	name  streamID // the stream's

	unsure unsure // what followers asked about

	mu      sync.Mutex // guards all below
	keys    pubKeys
	state   pubState
	src     *source
	head    *Head
	raw     []byte
	notice  string
	sources []Source
	wrong   []string
	changes changes
	changed chan struct{} // closed and replaced at each signature
	seen    map[string]*seen
	offers  map[table.Secret]*offer // when recipients are hashed
}

// pubState is what a publisher must not forget: a version's number names one
// content. Without it, it begins a new epoch.
type pubState struct {
	Epoch    uint64 `json:"epoch"`
	Version  uint64 `json:"version"`
	Prev     []byte `json:"prev"`
	Identity []byte `json:"identity"`
}

// seen holds what is known about a peer since the start.
type seen struct {
	polled   time.Time
	from     netip.Addr // where it asked from last
	report   *Report
	lists    []ListView
	inFlight int
	polls    int
	limit    *rate.Limiter
}

// OpenPublisher loads a publisher's directory, or fills an empty one.
func OpenPublisher(o PublisherOptions) (*Publisher, error) {
	if o.fs == nil {
		o.fs = osFS{}
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.waiting == nil {
		o.waiting = func() {}
	}
	if err := makeDir(o.fs, o.Dir); err != nil {
		return nil, fmt.Errorf("open publisher: %w", err)
	}
	p := &Publisher{o: o, changed: make(chan struct{}), seen: map[string]*seen{}, offers: map[table.Secret]*offer{}, joins: rate.NewLimiter(rate.Every(2*time.Second), 5)}
	err := p.loadKeys()
	if err == nil {
		if p.peers, err = openPeers(o.fs, o.Dir); err == nil {
			p.name = p.peers.file.Stream
		}
	}
	if err == nil {
		err = p.loadState()
	}
	if err == nil {
		p.codec, err = newCodec()
	}
	if err == nil {
		p.last, err = openStore(o.fs, path.Join(o.Dir, lastDir), p.codec)
	}
	if err == nil {
		p.changes = p.last.loadChanges()
	}
	if err != nil {
		return nil, fmt.Errorf("open publisher: %w", err)
	}
	o.Metrics.Publisher(p.stats)
	return p, nil
}

func (p *Publisher) loadState() error {
	b, err := p.o.fs.ReadFile(path.Join(p.o.Dir, stateFile), 4096)
	if errors.Is(err, fs.ErrNotExist) {
		p.state = pubState{Epoch: uint64(p.o.now().Unix())}
		return nil
	}
	if err == nil {
		err = strictJSON(b, &p.state)
	}
	if err == nil && (p.state.Version == 0 || len(p.state.Identity) != len(hash{}) || len(p.state.Prev) != len(hash{})) {
		err = errors.New("it is damaged")
	}
	if err != nil {
		return fmt.Errorf("read %s (without it, a new epoch begins): %w", stateFile, err)
	}
	return nil
}

// Publish offers a policy. One that equals what is offered already makes no
// new version. Number and content are durable before anybody sees them.
func (p *Publisher) Publish(s *policy.Snapshot) error {
	p.mu.Lock()
	before := p.src
	p.mu.Unlock()
	src, err := newSource(s.Spec(), before)
	if err == nil {
		err = p.last.keep(src) // unlocked: followers needn't wait for the disk
	}
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	st, fresh := p.state, p.src == nil
	h := p.newHead(src, st)
	if h.sign(p.keys.policy); st.Version == 0 || !slices.Equal(h.identity[:], st.Identity) {
		st = pubState{Epoch: st.Epoch, Version: st.Version + 1, Prev: st.Identity}
		if st.Prev == nil {
			st.Prev = make([]byte, len(hash{}))
		}
		h = p.newHead(src, st)
		h.sign(p.keys.policy)
		st.Identity = h.identity[:]
		next := p.changes.after(p.published(), &version{head: h, content: &src.content}, p.o.now())
		if err := p.store(src, st, next); err != nil {
			return fmt.Errorf("publish: store version %d: %w", st.Version, err)
		}
		p.changes = next
		p.o.Metrics.PublishVersions.Inc()
		p.o.Log.Info("policy published", "epoch", st.Epoch, "version", st.Version, "recipients", h.Recipients, "domains", h.Domains)
	}
	p.state, p.src = st, src
	p.sign()
	if fresh {
		if err := p.last.saveHead(p.head, p.raw); err != nil { // it may be of a program that kept none
			return fmt.Errorf("publish: store version %d: %w", st.Version, err)
		}
	}
	p.last.collect(&version{head: p.head, content: &src.content})
	return nil
}

// store makes a version durable whose chunks are stored. The content comes first:
// after a restart a number without content could not be offered; a content without
// its number gets the same number again.
func (p *Publisher) store(src *source, st pubState, c changes) error {
	h, raw := p.signed(src, st)
	if err := p.last.saveChanges(c); err != nil {
		return err
	}
	if err := p.last.saveHead(h, raw); err != nil {
		return err
	}
	b, err := json.Marshal(&st)
	if err != nil {
		return err
	}
	return replaceFile(p.o.fs, path.Join(p.o.Dir, stateFile), b)
}

// published is the version before the one to come, nil when there is none.
// After a restart it comes from the disk; what can't be read has no content.
// The caller holds mu.
func (p *Publisher) published() *version {
	if p.src != nil {
		return &version{head: p.head, content: &p.src.content}
	}
	if p.state.Version == 0 {
		return nil
	}
	h := &Head{Epoch: p.state.Epoch, Version: p.state.Version}
	if v, err := p.load(headName(h)); err == nil {
		return v
	}
	return &version{head: h}
}

func (p *Publisher) newHead(src *source, st pubState) *Head {
	h := &Head{Stream: p.name, Epoch: st.Epoch, Version: st.Version}
	copy(h.Prev[:], st.Prev)
	if p.o.Hashed {
		h.Audience = hashingMark
	}
	src.fill(h)
	return h
}

// sign signs the version anew and wakes those who wait. The caller holds mu.
func (p *Publisher) sign() {
	if p.src == nil {
		return
	}
	p.head, p.raw = p.signed(p.src, p.state)
	close(p.changed)
	p.changed = make(chan struct{})
}

// signed is a version's head with a signature of now.
func (p *Publisher) signed(src *source, st pubState) (*Head, []byte) {
	h := p.newHead(src, st)
	h.Created = time.Unix(p.o.now().Unix(), 0)
	if p.head != nil && h.Created.Before(p.head.Created) {
		h.Created = p.head.Created // the clock was set back
	}
	h.Expires = h.Created.Add(headLife)
	h.ServerPins, h.PolicyKeys = p.keys.pins(), p.keys.policies()
	h.Notice = p.notice
	return h, h.sign(p.keys.policy)
}

// SetNotice sets the notice about our sources for the followers' operators; ""
// removes it.
func (p *Publisher) SetNotice(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s = clipText(s, maxNotice); s != p.notice {
		p.notice = s
		p.sign()
	}
}

// SetSources tells when each source was read last.
func (p *Publisher) SetSources(list []Source) {
	list = slices.Clone(list[:min(len(list), maxSources)])
	for i := range list {
		list[i].Name = clipText(list[i].Name, maxSourceName)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sources = list
}

// SetWrong tells which tables' listings their database contradicts, and how.
func (p *Publisher) SetWrong(list []string) {
	list = slices.Clone(list[:min(len(list), maxSources)])
	for i := range list {
		list[i] = clipText(list[i], maxNotice)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wrong = list
}

// PublisherStatus describes a publisher to its operator.
type PublisherStatus struct {
	Epoch      uint64            `json:"epoch"`
	Version    uint64            `json:"version"` // 0: nothing is published
	Digest     string            `json:"digest"`  // of the content, before it is hashed for anybody
	Signed     time.Time         `json:"signed"`
	Recipients uint64            `json:"recipients"`
	Counts     map[string]uint64 `json:"counts"` // recipients by domain, "" for local names
	Hashed     bool              `json:"hashed"`
	Notice     string            `json:"notice,omitempty"` // what is wrong with a source
	LastChange *LastChange       `json:"last_change,omitempty"`
	Sources    []Source          `json:"sources"`
	Wrong      []string          `json:"wrong,omitempty"` // listings that their database contradicts
	Peers      int               `json:"peers"`
}

// Status tells how things stand.
func (p *Publisher) Status() PublisherStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := PublisherStatus{Hashed: p.o.Hashed, Notice: p.notice, Sources: p.sources, Wrong: p.wrong, Peers: len(p.peers.list()), Counts: map[string]uint64{}}
	if p.src != nil {
		h := p.head
		s.Epoch, s.Version, s.Digest, s.Signed, s.Recipients = h.Epoch, h.Version, digestOf(h), h.Created, h.Recipients
		s.LastChange = p.changes.of(h)
		p.src.counts(s.Counts)
	}
	return s
}

// resign signs every minute until ctx ends.
func (p *Publisher) resign(ctx context.Context) {
	t := time.NewTicker(longPoll)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			p.mu.Lock()
			p.sign()
			p.dropOffers()
			p.mu.Unlock()
		}
	}
}

// Invite makes an invitation for a follower to be called name: one line to
// paste, good once and for 15 minutes.
func (p *Publisher) Invite(name string) (string, error) {
	if l := len(p.o.Address); l == 0 || l > 255 {
		return "", errors.New("invite: configure the address (host:port) at which followers reach this machine")
	}
	t := &token{address: p.o.Address}
	p.mu.Lock()
	t.server = PinOf(publicOf(p.keys.server))
	p.mu.Unlock()
	if _, err := rand.Read(t.id[:]); err != nil {
		return "", fmt.Errorf("invite: %w", err)
	}
	if _, err := rand.Read(t.secret[:]); err != nil {
		return "", fmt.Errorf("invite: %w", err)
	}
	return t.String(), p.peers.invite(t, name, p.o.now())
}

// Revoke ends a follower's access, at once.
func (p *Publisher) Revoke(name string) error {
	if err := p.peers.revoke(name); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.seen, name)
	p.dropOffers()
	p.sign() // whoever waits is looked at again
	p.o.Log.Info("follower revoked", "name", name)
	return nil
}

// Peer is a paired follower, for the operator.
type Peer struct {
	Name        string     `json:"name"`
	Key         Pin        `json:"key"` // its own
	Fingerprint string     `json:"fingerprint"`
	Paired      time.Time  `json:"paired"`
	Polled      time.Time  `json:"polled"`            // zero: not since the publisher started
	Address     string     `json:"address,omitempty"` // where it asked from then
	Report      *Report    `json:"report,omitempty"`
	Lists       []ListView `json:"lists,omitempty"` // how it sees the DNS lists
}

// Peers lists the followers by name.
func (p *Publisher) Peers() []Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	byName := map[string]Peer{}
	for _, q := range p.peers.list() {
		out := Peer{Name: q.Name, Key: q.Pins[0], Fingerprint: q.Fingerprint, Paired: q.Paired}
		if s := p.seen[q.Name]; s != nil {
			out.Polled, out.Report, out.Lists = s.polled, s.report, s.lists
			if s.from.IsValid() {
				out.Address = s.from.String()
			}
		}
		byName[q.Name] = out
	}
	var list []Peer
	for _, n := range slices.Sorted(maps.Keys(byName)) {
		list = append(list, byName[n])
	}
	return list
}

// Close releases what Serve doesn't, after Serve has returned.
func (p *Publisher) Close() { p.codec.close() }

func (p *Publisher) stats() metrics.PublisherStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := metrics.PublisherStats{Peers: len(p.peers.list()), Wrong: len(p.wrong)}
	if p.head != nil {
		s.Version, s.Signed = p.head.Version, p.head.Created
		if c := p.changes.of(p.head); c != nil {
			s.Changed = c.At
		}
	}
	for _, q := range p.seen {
		if p.o.now().Sub(q.polled) < 5*time.Minute {
			s.Following++
		}
		if q.report != nil && q.report.Alarm != "" {
			s.Alarmed++
		}
	}
	return s
}
