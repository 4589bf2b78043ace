package policysync

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"
)

// Files of a publisher's keys.
const (
	serverKeyFile     = "server.key"
	nextServerKeyFile = "server.next.key"
	policyKeyFile     = "policy.key"
	nextPolicyKeyFile = "policy.next.key"
)

// pubKeys are the keys in use and, while they change, those to come.
type pubKeys struct {
	server, policy         ed25519.PrivateKey
	nextServer, nextPolicy ed25519.PrivateKey
	since                  time.Time // start of the change, as far as this process knows
}

func (p *Publisher) loadKeys() error {
	for _, k := range []struct {
		key    *ed25519.PrivateKey
		file   string
		create bool
	}{
		{&p.keys.server, serverKeyFile, true}, {&p.keys.policy, policyKeyFile, true},
		{&p.keys.nextServer, nextServerKeyFile, false}, {&p.keys.nextPolicy, nextPolicyKeyFile, false},
	} {
		var err error
		*k.key, err = loadKey(p.o.fs, path.Join(p.o.Dir, k.file), k.create)
		if err != nil && (k.create || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	p.keys.since = p.o.now()
	return nil
}

func (k *pubKeys) pins() []Pin {
	pins := []Pin{PinOf(publicOf(k.server))}
	if k.nextServer != nil {
		pins = append(pins, PinOf(publicOf(k.nextServer)))
	}
	return pins
}

func (k *pubKeys) policies() []Pin {
	pins := []Pin{Pin(publicOf(k.policy))}
	if k.nextPolicy != nil {
		pins = append(pins, Pin(publicOf(k.nextPolicy)))
	}
	return pins
}

// RotateKeys makes new keys and announces them. The old ones stay in use until
// FinishRotation, so that every follower can learn of the new.
func (p *Publisher) RotateKeys() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keys.nextServer != nil || p.keys.nextPolicy != nil {
		return errors.New("rotate keys: new keys are announced already; finish that first")
	}
	var err error
	if p.keys.nextServer, err = makeKey(p.o.fs, path.Join(p.o.Dir, nextServerKeyFile)); err == nil {
		p.keys.nextPolicy, err = makeKey(p.o.fs, path.Join(p.o.Dir, nextPolicyKeyFile))
	}
	p.keys.since = p.o.now()
	p.sign()
	if err != nil {
		return fmt.Errorf("rotate keys: %w", err)
	}
	return nil
}

// FinishRotation takes the announced keys into use and forgets the old. With a
// follower that hasn't heard of them it refuses, unless forced: that follower
// would have to be paired again.
func (p *Publisher) FinishRotation(force bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keys.nextServer == nil && p.keys.nextPolicy == nil {
		return errors.New("finish rotation: no new keys are announced")
	}
	for _, q := range p.peers.list() {
		if s := p.seen[q.Name]; !force && (s == nil || s.report == nil || s.report.Signed <= p.keys.since.Unix()) {
			return fmt.Errorf("finish rotation: follower %s hasn't fetched the new keys yet; wait for it, revoke it, or force", q.Name)
		}
	}
	for _, k := range []struct {
		next, key *ed25519.PrivateKey
		from, to  string
	}{
		{&p.keys.nextServer, &p.keys.server, nextServerKeyFile, serverKeyFile},
		{&p.keys.nextPolicy, &p.keys.policy, nextPolicyKeyFile, policyKeyFile},
	} {
		if *k.next == nil {
			continue
		}
		if err := p.o.fs.Rename(path.Join(p.o.Dir, k.from), path.Join(p.o.Dir, k.to)); err != nil {
			return fmt.Errorf("finish rotation: %w", err)
		}
		*k.key, *k.next = *k.next, nil
	}
	p.sign()
	if err := p.o.fs.SyncDir(p.o.Dir); err != nil {
		return fmt.Errorf("finish rotation: %w", err)
	}
	return nil
}
