package mailauth

import (
	"bytes"
	"context"
	"crypto"
	"strings"
	"sync"
	"time"
)

// DKIM says how signatures are verified. The zero value of a limit is none.
type DKIM struct {
	Resolver      Resolver
	Now           time.Time
	MaxSignatures int           // the rest counts as absent
	MaxHeader     int           // octets of the header
	MinKeyBits    int           // of RSA keys
	ClockDrift    time.Duration // by which t= and x= may be off
	Signs         bool          // opendkim's mode s beside v: it looks at the author first
}

// MaxSignatures bounds what the zero MaxSignatures leaves unbounded: each costs
// a look-up and a hash of the whole message.
const MaxSignatures = 16

// Status is what libopendkim makes of a message, or of one signature.
type Status uint8

const (
	NoSignature    Status = iota
	Good                  // it verifies
	BadSignature          // it doesn't
	NoKey                 // the DNS has no key
	KeyFailed             // the key couldn't be looked up
	Revoked               // the key is empty
	CantVerify            // the signature or its key is unusable
	SyntaxError           // the signature isn't a list of tags
	NoAuthor              // there is no From, or none that can be read
	HeaderTooLarge        // beyond MaxHeader
	statuses       = iota // how many there are
)

func (s Status) String() string {
	return [statuses]string{"no signature", "good", "bad signature", "no key", "key look-up failed", "key revoked",
		"can't be verified", "syntax error", "no author", "header too large"}[s]
}

// Signature is the verdict on one.
type Signature struct {
	Domain  string // d=
	Status  Status
	Testing bool // the key says so
	Sound   bool // it covers the whole body, by a hash that RFC 8301 still allows
}

// DKIMResult is the verdict on a message.
type DKIMResult struct {
	Status     Status // Good if any signature is; else that of the first
	Testing    bool
	Signatures []Signature // those that were looked at, from the top
	Author     Author
}

// Verifier reads a message by Write and has the verdict in Finish. It keeps the
// header and no part of the body.
type Verifier struct {
	d      DKIM
	header headerReader
	sigs   []*signature
	bodies []*bodyHash
	result DKIMResult
	begun  bool // the body has
}

// Verify starts on a message.
func (d DKIM) Verify() *Verifier {
	return &Verifier{d: d, header: headerReader{limit: d.MaxHeader}}
}

// Write takes octets of the message, lines ending in CRLF. It never fails.
func (v *Verifier) Write(p []byte) (int, error) {
	n := len(p)
	if !v.begun {
		if p = v.header.read(p); !v.header.done {
			return n, nil
		}
		v.begin()
	}
	for _, b := range v.bodies {
		b.write(p)
	}
	return n, nil
}

// begin reads the signatures once the header is there.
func (v *Verifier) begin() {
	v.begun = true
	v.result.Author = v.header.author()
	switch {
	case v.header.tooLarge:
		v.result.Status = HeaderTooLarge
		return
	case v.result.Author.Fields == 0 || v.d.Signs && !v.result.Author.known():
		v.result.Status = NoAuthor
		return
	}
	limit := v.d.MaxSignatures
	if limit <= 0 || limit > MaxSignatures {
		limit = MaxSignatures
	}
	for i, f := range v.header.fields {
		if !strings.EqualFold(f.name, "DKIM-Signature") {
			continue
		}
		tags, ok := parseTags(f.value())
		if !ok || !hasAll(tags, "s", "h", "d", "b", "v", "a") || !isTime(tags, "t") || !isTime(tags, "x") {
			v.result.Status, v.sigs = SyntaxError, nil
			return
		}
		if len(v.sigs) < limit {
			v.sigs = append(v.sigs, newSignature(tags, i, v.d))
		}
	}
	if !v.result.Author.known() {
		v.result.Status, v.sigs = NoAuthor, nil
	}
	for _, s := range v.sigs {
		if s.status == unknown {
			s.body = v.body(s)
			s.digest = s.hashHeader(v.header.fields)
		}
	}
}

// body is the hash that a signature needs; signatures share them.
func (v *Verifier) body(s *signature) *bodyHash {
	for _, b := range v.bodies {
		if b.hash == s.hash && b.relaxed == s.relaxedBody && b.limit == s.length {
			return b
		}
	}
	b := newBodyHash(s.hash, s.relaxedBody, s.length)
	v.bodies = append(v.bodies, b)
	return b
}

// Finish looks the keys up and verifies; the message is complete.
func (v *Verifier) Finish(ctx context.Context) DKIMResult {
	if !v.begun {
		v.header.end()
		v.begin()
	}
	for _, b := range v.bodies {
		b.close()
	}
	var wait sync.WaitGroup
	for _, s := range v.sigs {
		if s.status == unknown {
			wait.Go(func() { s.verify(ctx, v.d) })
		}
	}
	wait.Wait()
	for i, s := range v.sigs {
		v.result.Signatures = append(v.result.Signatures, Signature{s.domain, s.status, s.testing, s.length < 0 && s.hash != crypto.SHA1})
		if i == 0 || s.status == Good && v.result.Status != Good {
			v.result.Status, v.result.Testing = s.status, s.testing
		}
	}
	return v.result
}

// hashHeader is the digest of the fields that h= names and the signature's own.
func (s *signature) hashHeader(fields []field) []byte {
	h := s.hash.New()
	used := make([]bool, len(fields))
	for name := range strings.SplitSeq(s.names, ":") {
		for i := len(fields) - 1; i >= 0; i-- {
			if !used[i] && strings.EqualFold(fields[i].name, name) {
				used[i] = true
				h.Write(canonicalField(fields[i], s.relaxedHeader))
				h.Write([]byte("\r\n"))
				break
			}
		}
	}
	own := fields[s.index]
	own.raw = withoutSignature(own.raw)
	h.Write(canonicalField(own, s.relaxedHeader))
	return h.Sum(nil)
}

// canonicalField is a field without its final CRLF, RFC 6376 §3.4.
func canonicalField(f field, relaxed bool) []byte {
	if !relaxed {
		return f.raw
	}
	out := append([]byte(strings.ToLower(f.name)), ':')
	for i, word := range bytes.Fields(f.raw[f.colon+1:]) {
		if i > 0 {
			out = append(out, ' ')
		}
		out = append(out, word...)
	}
	return out
}

// withoutSignature is a DKIM-Signature field with the value of b= taken out.
func withoutSignature(raw []byte) []byte {
	start := bytes.IndexByte(raw, ':') + 1
	for i := start; i < len(raw); {
		end := len(raw)
		if j := bytes.IndexByte(raw[i:], ';'); j >= 0 {
			end = i + j
		}
		if name, _, ok := bytes.Cut(raw[i:end], []byte("=")); ok && string(bytes.TrimSpace(name)) == "b" {
			return append(append([]byte{}, raw[:i+len(name)+1]...), raw[end:]...)
		}
		i = end + 1
	}
	return raw
}

var hashes = map[string]crypto.Hash{"sha1": crypto.SHA1, "sha256": crypto.SHA256}
