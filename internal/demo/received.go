package demo

import (
	"bytes"
	"crypto/sha256"
	"io"
)

var receivedField = []byte("received:")

// skipReceived passes on content without the Received field that it starts
// with, if it does: all lines of it.
type skipReceived struct {
	w     io.Writer
	state int // one of the following
	start []byte
}

const (
	matchName = iota // comparing the content's start with the field's name
	inField
	afterLine // after a line end in the field: does a continuation follow?
	pass
)

func (s *skipReceived) Write(b []byte) (int, error) {
	n := len(b)
	for s.state != pass && len(b) > 0 {
		c := b[0]
		switch s.state {
		case matchName:
			s.start = append(s.start, c)
			switch name := bytes.ToLower(s.start); {
			case bytes.Equal(name, receivedField):
				s.state = inField
			case !bytes.HasPrefix(receivedField, name):
				s.state = pass
				if _, err := s.w.Write(s.start); err != nil {
					return 0, err
				}
			}
			b = b[1:]
		case inField:
			if c == '\n' {
				s.state = afterLine
			}
			b = b[1:]
		case afterLine:
			s.state = pass
			if c == ' ' || c == '\t' {
				s.state = inField
			}
		}
	}
	if len(b) > 0 {
		if _, err := s.w.Write(b); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// flush passes on what is held back when the content ends within the name.
func (s *skipReceived) flush() {
	if s.state == matchName {
		s.w.Write(s.start) // to a hash: can't fail
	}
}

// BodySum returns the SHA-256 of content without the Received field that it
// starts with, if it does.
func BodySum(content []byte) (sum [32]byte) {
	h := sha256.New()
	s := &skipReceived{w: h}
	s.Write(content)
	s.flush()
	h.Sum(sum[:0])
	return sum
}
