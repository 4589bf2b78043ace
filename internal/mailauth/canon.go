package mailauth

import (
	"crypto"
	_ "crypto/sha1" // opendkim verifies rsa-sha1, which RFC 8301 forbids
	_ "crypto/sha256"
	"hash"
)

// bodyHash hashes a body in a canonical form, RFC 6376 §3.4.3 and §3.4.4.
type bodyHash struct {
	hash    crypto.Hash
	relaxed bool
	limit   int64 // l=; -1: all of it
	written int64 // octets in canonical form, at most limit
	sum     hash.Hash

	blanks int  // empty lines that count only if something follows
	space  bool // white space that counts only if something follows on its line
	cr     bool // a CR that may be half of a CRLF
	inLine bool // the line has something in it
	out    []byte
}

func newBodyHash(h crypto.Hash, relaxed bool, limit int64) *bodyHash {
	return &bodyHash{hash: h, relaxed: relaxed, limit: limit, sum: h.New()}
}

func (b *bodyHash) write(p []byte) {
	for _, c := range p {
		if b.cr {
			b.cr = false
			if c == '\n' {
				b.endLine()
				continue
			}
			b.octet('\r')
		}
		switch {
		case c == '\r':
			b.cr = true
		case b.relaxed && (c == ' ' || c == '\t'):
			b.space = true
		default:
			b.octet(c)
		}
	}
	b.flush()
}

func (b *bodyHash) octet(c byte) {
	for ; b.blanks > 0; b.blanks-- {
		b.emit('\r', '\n')
	}
	if b.space {
		b.emit(' ')
		b.space = false
	}
	b.inLine = true
	b.emit(c)
}

func (b *bodyHash) endLine() {
	b.space = false
	if b.inLine {
		b.emit('\r', '\n')
	} else {
		b.blanks++
	}
	b.inLine = false
}

func (b *bodyHash) emit(p ...byte) {
	if b.out = append(b.out, p...); len(b.out) >= 4096 {
		b.flush()
	}
}

func (b *bodyHash) flush() {
	p := b.out
	if b.limit >= 0 {
		p = p[:min(int64(len(p)), b.limit-b.written)]
	}
	b.sum.Write(p)
	b.written += int64(len(p))
	b.out = b.out[:0]
}

// close ends the body: what has no end of line gets one, and an empty body is
// an empty line in the simple form.
func (b *bodyHash) close() {
	if b.cr {
		b.octet('\r')
	}
	if b.inLine {
		b.endLine()
	} else if !b.relaxed && b.written == 0 && len(b.out) == 0 {
		b.emit('\r', '\n')
	}
	b.flush()
}
