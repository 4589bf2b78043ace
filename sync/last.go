package policysync

import (
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/understudy-mx/understudy/policy"
)

// lastDir is the part of a publisher's directory that holds the last policy
// that was published, in a store like a follower's.
const lastDir = "last"

// ErrNothing says that nothing was ever published from this directory.
var ErrNothing = errors.New("no policy was published before")

// Restore offers again what was published last: a publisher that starts while a
// source is broken has nothing better. Without any it is ErrNothing.
func (p *Publisher) Restore() error {
	names, err := p.last.heads()
	if err == nil && len(names) == 0 {
		err = ErrNothing
	}
	if err != nil {
		return fmt.Errorf("restore policy: %w", err)
	}
	for _, name := range names {
		var v *version
		var s *policy.Snapshot
		if v, err = p.load(name); err == nil {
			s, err = policy.Compile(v.content.spec)
		}
		if err == nil {
			return p.Publish(s)
		}
	}
	return fmt.Errorf("restore policy: %w", err)
}

// load reads a stored policy. Its signature doesn't matter: the key that made
// it lies beside it, or was replaced since.
func (p *Publisher) load(name string) (*version, error) {
	raw, err := p.last.head(name)
	if err != nil {
		return nil, err
	}
	h, err := decodeHead(raw[:max(0, len(raw)-ed25519.SignatureSize)])
	if err != nil {
		return nil, err
	}
	l, err := p.last.layout(h)
	if err != nil {
		return nil, err
	}
	c, err := build(h, l, nil, p.last.get)
	if err != nil {
		return nil, err
	}
	return &version{head: h, content: c}, nil
}
