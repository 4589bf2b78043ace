package mailauth

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"strconv"
	"strings"
	"time"
)

// unknown is the status of a signature that is still to be verified.
const unknown = statuses

// maxKeyBits bounds what verifying costs.
const maxKeyBits = 16384

// signature is one that is being verified.
type signature struct {
	index   int // of its field
	status  Status
	testing bool

	domain, selector, identity string
	algorithm                  string // rsa or ed25519
	hash                       crypto.Hash
	relaxedHeader, relaxedBody bool
	names                      string // h=
	length                     int64  // l=; -1: none
	bodyHash, value            string // bh=, and b= without white space
	digest                     []byte // of the header
	body                       *bodyHash
}

// parseTags reads a tag-list, RFC 6376 §3.2, as libopendkim does: white space
// doesn't count, and of tags that are there twice the last one holds.
func parseTags(s string) (map[string]string, bool) {
	for i := range len(s) {
		if c := s[i]; c > '~' || c < ' ' && (c < '\t' || c > '\r') {
			return nil, false
		}
	}
	tags := map[string]string{}
	for part := range strings.SplitSeq(strings.TrimSuffix(strings.TrimSpace(s), ";"), ";") {
		name, value, ok := strings.Cut(part, "=")
		name = strings.TrimSpace(name)
		if !ok || name == "" || !isAlnum(name[0]) || strings.ContainsAny(name, " \t\r\n\v\f") {
			return nil, false
		}
		tags[name] = collapse(value)
	}
	return tags, true
}

// collapse takes white space out.
func collapse(s string) string { return strings.Join(strings.Fields(s), "") }

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func hasAll(tags map[string]string, names ...string) bool {
	for _, n := range names {
		if _, ok := tags[n]; !ok {
			return false
		}
	}
	return true
}

// isTime is whether a tag is absent or a number of seconds.
func isTime(tags map[string]string, name string) bool {
	v, ok := tags[name]
	if !ok {
		return true
	}
	_, err := strconv.ParseUint(v, 10, 64)
	return err == nil
}

// newSignature checks what can be checked without the key. What fails has
// status CantVerify.
func newSignature(tags map[string]string, index int, d DKIM) *signature {
	s := &signature{index: index, status: CantVerify, domain: tags["d"], selector: tags["s"], names: tags["h"],
		bodyHash: tags["bh"], value: tags["b"], length: -1, identity: "@" + tags["d"]}
	if i, ok := tags["i"]; ok {
		s.identity = quotedPrintable(i)
	}
	if s.domain == "" || s.selector == "" || tags["v"] != "1" && tags["v"] != "0.5" || !s.identityOK() || !timesOK(tags, d) {
		return s
	}
	header, body, both := strings.Cut(orElse(tags, "c", "simple"), "/")
	if !both {
		body = "simple"
	}
	var ok1, ok2 bool
	s.relaxedHeader, ok1 = canonicalization(header)
	s.relaxedBody, ok2 = canonicalization(body)
	algorithm, hash, _ := strings.Cut(strings.ToLower(tags["a"]), "-")
	s.algorithm, s.hash = algorithm, hashes[hash]
	if !ok1 || !ok2 || s.hash == 0 || algorithm != "rsa" && (algorithm != "ed25519" || s.hash != crypto.SHA256) {
		return s
	}
	if !namesFrom(s.names) || s.bodyHash == "" || s.value == "" || !queries(orElse(tags, "q", "dns/txt")) {
		return s
	}
	if l, ok := tags["l"]; ok {
		n, err := strconv.ParseInt("0"+l, 10, 64) // nothing is 0
		if err != nil || n < 0 {
			return s
		}
		s.length = n
	}
	s.status = unknown
	return s
}

func orElse(tags map[string]string, name, other string) string {
	if v, ok := tags[name]; ok {
		return v
	}
	return other
}

func canonicalization(s string) (relaxed, ok bool) {
	s = strings.ToLower(s)
	return s == "relaxed", s == "relaxed" || s == "simple"
}

func (s *signature) identityOK() bool {
	_, domain, ok := strings.Cut(s.identity, "@")
	return ok && isWithin(domain, s.domain)
}

// timesOK is whether x= and t= are plausible now.
func timesOK(tags map[string]string, d DKIM) bool {
	now, drift := uint64(d.Now.Unix()), uint64(d.ClockDrift/time.Second)
	t, errT := strconv.ParseUint(tags["t"], 10, 64)
	x, errX := strconv.ParseUint(tags["x"], 10, 64)
	switch {
	case errX == nil && now >= x+drift:
		return false
	case errT == nil && t > now+drift:
		return false
	}
	return errT != nil || errX != nil || t < x
}

func namesFrom(list string) bool {
	for n := range strings.SplitSeq(list, ":") {
		if strings.EqualFold(n, "from") {
			return true
		}
	}
	return false
}

func queries(list string) bool {
	for q := range strings.SplitSeq(list, ":") {
		if method, option, _ := strings.Cut(q, "/"); strings.EqualFold(method, "dns") && option == "txt" { // libopendkim folds but the one
			return true
		}
	}
	return false
}

// quotedPrintable decodes DKIM's form of it, RFC 6376 §2.11.
func quotedPrintable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '=' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// verify gives the signature its status.
func (s *signature) verify(ctx context.Context, d DKIM) {
	if s.length >= 0 && s.body.written < s.length {
		s.status = CantVerify
		return
	}
	key, st := s.lookUp(ctx, d)
	if s.status = st; st != unknown {
		return
	}
	s.testing = key.has("t", "y")
	if !s.keyFits(key) {
		s.status = CantVerify
		return
	}
	s.status = s.check(key, d)
	if s.status == Good && s.bodyHash != base64.StdEncoding.EncodeToString(s.body.sum.Sum(nil)) {
		s.status = BadSignature
	}
	if _, domain, _ := strings.Cut(s.identity, "@"); key.has("t", "s") && !strings.EqualFold(domain, s.domain) {
		s.status = CantVerify
	}
}

// keyRecord is the tags of a key.
type keyRecord map[string]string

// has is whether a tag's list, split at colons, has the word.
func (k keyRecord) has(tag, word string) bool {
	for w := range strings.SplitSeq(k[tag], ":") {
		if strings.EqualFold(w, word) {
			return true
		}
	}
	return false
}

func (s *signature) lookUp(ctx context.Context, d DKIM) (keyRecord, Status) {
	name := s.selector + "._domainkey." + s.domain
	if !isDomain(name) {
		return nil, NoKey
	}
	texts, err := d.Resolver.LookupTXT(ctx, name)
	switch {
	case isNotFound(err) || err == nil && len(texts) == 0:
		return nil, NoKey
	case err != nil:
		return nil, KeyFailed
	case len(texts) > 1:
		return nil, CantVerify
	}
	key, ok := parseTags(texts[0])
	if !ok || len(key) == 0 {
		return nil, CantVerify
	}
	if p, ok := key["p"]; ok && p == "" {
		return nil, Revoked
	}
	return key, unknown
}

// keyFits is whether the key's record lets it verify this signature.
func (s *signature) keyFits(key keyRecord) bool {
	if v, ok := key["v"]; ok && v != "DKIM1" {
		return false
	}
	if h, ok := key["h"]; ok && h != "" && !(key.has("h", "sha256") && s.hash == crypto.SHA256 || key.has("h", "sha1") && s.hash == crypto.SHA1) {
		return false
	}
	if _, ok := key["s"]; ok && !key.has("s", "*") && !key.has("s", "email") {
		return false
	}
	k := strings.ToLower(orElse(key, "k", "rsa")) // libopendkim doesn't compare it with a=
	return k == "rsa" || k == "ed25519"
}

// decode is libopendkim's base64: what isn't of the alphabet is passed over.
func decode(s string) []byte {
	s, _, _ = strings.Cut(s, "=")
	s = strings.Map(func(r rune) rune {
		if r < 0x80 && (isAlnum(byte(r)) || r == '+' || r == '/') {
			return r
		}
		return -1
	}, s)
	if len(s)%4 == 1 {
		s = s[:len(s)-1]
	}
	out, _ := base64.RawStdEncoding.DecodeString(s)
	return out
}

func (s *signature) check(key keyRecord, d DKIM) Status {
	octets, value := decode(key["p"]), decode(s.value)
	if s.algorithm == "ed25519" {
		switch {
		case len(octets) != ed25519.PublicKeySize:
			return CantVerify
		case !ed25519.Verify(octets, s.digest, value):
			return BadSignature
		}
		return Good
	}
	public, err := x509.ParsePKIXPublicKey(octets)
	pub, ok := public.(*rsa.PublicKey)
	if err != nil || !ok || pub.N.BitLen() > maxKeyBits || pub.N.BitLen() < d.MinKeyBits {
		return CantVerify
	}
	if rsa.VerifyPKCS1v15(pub, s.hash, s.digest, value) != nil {
		return BadSignature
	}
	return Good
}
