package lister

import (
	"errors"
	"net"
)

// ldapStream is a connection that carries only LDAP messages, each a SEQUENCE of
// definite length, RFC 4511 §5.1. The LDAP library skips other octets and spends a
// hundred octets of memory on each; here the first one ends the connection.
type ldapStream struct {
	net.Conn
	mayTLS bool   // StartTLS may put TLS in the place of messages
	header []byte // of the message that begins
	left   int    // octets left of the message
	opaque bool   // TLS has begun: nothing to see here
}

var errNoLDAP = errors.New("the server doesn't speak LDAP")

func (s *ldapStream) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	for b := p[:n]; len(b) > 0 && !s.opaque; {
		if skip := min(s.left, len(b)); skip > 0 {
			s.left, b = s.left-skip, b[skip:]
			continue
		}
		s.header, b = append(s.header, b[0]), b[1:]
		if !s.begin() {
			return 0, errNoLDAP
		}
	}
	return n, err
}

// begin looks at what there is of a message's header.
func (s *ldapStream) begin() bool {
	const sequence, longForm, maxLengthOctets = 0x30, 0x80, 4
	if len(s.header) == 1 {
		s.opaque = s.mayTLS && s.header[0] >= 20 && s.header[0] <= 23 // ContentType, RFC 8446 §5.1
		return s.opaque || s.header[0] == sequence
	}
	length, more := int(s.header[1]), 0
	if length >= longForm {
		if more = length - longForm; more < 1 || more > maxLengthOctets {
			return false
		}
		length = 0
		for _, b := range s.header[2:] {
			length = length<<8 | int(b)
		}
	}
	if len(s.header) == 2+more {
		s.left, s.header = length, s.header[:0]
	}
	return true
}
