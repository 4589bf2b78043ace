package table

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
)

// Secret is the key under which one primary and one secondary hash the keys of
// their tables. With it, guesses can be tested.
type Secret [32]byte

// MarshalText spells the secret in hexadecimal.
func (s Secret) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(s[:])), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *Secret) UnmarshalText(b []byte) error {
	if len(b) != 2*len(s) {
		return fmt.Errorf("secret: want %d hexadecimal digits", 2*len(s))
	}
	_, err := hex.Decode(s[:], b)
	return err
}

// Sizes of a digest in octets: first the tag of the key's domain, so that the
// keys of a domain lie together and can be counted, then the key's own hash. A
// key that isn't listed passes for one of n others of its domain with a
// probability of n/2^96.
const (
	TagSize    = 6
	DigestSize = TagSize + 12
)

// Hashed data begin with their purpose.
const (
	purposeDomain = "d"
	purposeKey    = "k"
)

// Hasher makes digests. It belongs to one goroutine and keeps what it returns
// only until the next call.
type Hasher struct {
	secret Secret
	mac    hash.Hash
	buf    []byte
	sum    [sha256.Size]byte
	domain []byte // whose tag digest begins with; nil: none yet
	digest [DigestSize]byte
}

// NewHasher makes a Hasher for a secret.
func NewHasher(s *Secret) *Hasher {
	return &Hasher{secret: *s, mac: hmac.New(sha256.New, s[:])}
}

// Sum is HMAC-SHA-256 of a purpose and data.
func (h *Hasher) Sum(purpose string, data []byte) []byte {
	h.buf = append(append(h.buf[:0], purpose...), data...)
	h.mac.Reset()
	h.mac.Write(h.buf)
	return h.mac.Sum(h.sum[:0])
}

// Digest stands for a key of a table, folded.
func (h *Hasher) Digest(key []byte) []byte {
	h.Tag(DomainOf(key))
	copy(h.digest[TagSize:], h.Sum(purposeKey, key))
	return h.digest[:]
}

// Tag stands for the domain of keys.
func (h *Hasher) Tag(domain []byte) []byte {
	if h.domain == nil || !bytes.Equal(h.domain, domain) {
		copy(h.digest[:TagSize], h.Sum(purposeDomain, domain))
		if h.domain = append(h.domain[:0], domain...); h.domain == nil {
			h.domain = []byte{}
		}
	}
	return h.digest[:TagSize]
}

// DomainOf is the domain of a key: what follows its last "@", or nothing.
func DomainOf(key []byte) []byte {
	if i := bytes.LastIndexByte(key, '@'); i >= 0 {
		return key[i+1:]
	}
	return nil
}

// change is an entry that is new or gone, by its digest.
type change struct {
	digest [DigestSize]byte
	gone   bool
	value  uint32 // index in the values
}

// Hashed returns a set or hash with digests in place of its keys; without
// values, as a set. before and hashed, if not nil, are an older version of the
// table and what Hashed made of it: then only the difference is hashed.
func (t *Table) Hashed(s *Secret, values bool, before, hashed *Table) (*Table, error) {
	n := &Table{typ: TypeSet, secret: s}
	if values {
		n.typ = t.typ
	}
	if before == nil || hashed == nil || hashed.typ != n.typ || hashed.secret == nil || *hashed.secret != *s {
		before, hashed = &Table{typ: t.typ}, &Table{typ: n.typ}
	}
	h, tags := NewHasher(s), map[string][TagSize]byte{}
	var changes []change
	texts := []string{""}
	before.keys.diff(&t.keys, func(left, _ bool, key, value []byte) {
		c := change{gone: left}
		domain := DomainOf(key)
		tag, known := tags[string(domain)]
		if !known {
			tag = [TagSize]byte(h.Tag(domain))
			tags[string(domain)] = tag
		}
		copy(c.digest[:], tag[:])
		copy(c.digest[TagSize:], h.Sum(purposeKey, key))
		if n.typ == TypeHash && !left {
			c.value = uint32(len(texts))
			texts = append(texts, string(value))
		}
		changes = append(changes, c)
	})
	slices.SortFunc(changes, func(a, b change) int { return bytes.Compare(a.digest[:], b.digest[:]) })
	var err error
	n.keys, err = hashed.keys.apply(changes, texts, n.typ == TypeHash)
	return n, err
}

// apply makes segments of digests with sorted changes.
func (x *segments) apply(changes []change, values []string, valued bool) (segments, error) {
	b, at := segmentsBuilder{fixed: true, valued: valued, auto: true}, 0
	for i := range changes {
		c := &changes[i]
		to, found := x.search(c.digest[:])
		if err := b.share(x, at, max(at, to)); err != nil {
			return segments{}, err
		}
		at = max(at, to)
		if c.gone {
			if found {
				at = to + 1
			}
			continue
		}
		if err := b.add(c.digest[:], []byte(values[c.value])); err != nil {
			return segments{}, err
		}
	}
	if err := b.share(x, at, x.len()); err != nil {
		return segments{}, err
	}
	b.cut()
	return newSegments(b.segs)
}
