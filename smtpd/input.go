package smtpd

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// maxCommand is the longest command line, CRLF included: Postfix's
// line_length_limit. RFC 5321 §4.5.3.1.4 asks for 512 and room for the
// extensions' parameters.
const maxCommand = 2048

// maxFlood is how much of a line that is too long is read before we hang up.
const maxFlood = 64 << 10

const (
	commandBuffer = 8 << 10 // holds a small message, too
	bodyBuffer    = 64 << 10
)

var commandBuffers = sync.Pool{New: func() any { return new([commandBuffer]byte) }}

var bodyBuffers = sync.Pool{New: func() any { return new([bodyBuffer]byte) }}

var (
	errTooLong = errors.New("line too long")
	errFlood   = errors.New("endless line")
)

// input holds what was read from a client and not yet used. It is small, and
// borrows a large buffer while a message comes fast.
type input struct {
	buf   []byte
	r, w  int
	small *[commandBuffer]byte
	large *[bodyBuffer]byte // buf's array in place of small
}

func newInput() input {
	small := commandBuffers.Get().(*[commandBuffer]byte)
	return input{buf: small[:], small: small}
}

func (in *input) pending() []byte { return in.buf[in.r:in.w] }

// fill reads once from src. There must be room: pending() must not fill buf.
func (in *input) fill(src io.Reader) error {
	if in.r > 0 {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	n, err := src.Read(in.buf[in.w:])
	in.w += n
	if n > 0 {
		return nil // an error will come again
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// full says that the last read may have left something.
func (in *input) full() bool { return in.w == len(in.buf) }

// grow borrows a large buffer.
func (in *input) grow() {
	if in.large != nil {
		return
	}
	in.large = bodyBuffers.Get().(*[bodyBuffer]byte)
	in.w = copy(in.large[:], in.pending())
	in.r, in.buf = 0, in.large[:]
}

// shrink gives the large buffer back when what it holds fits a small one.
func (in *input) shrink() {
	if in.large == nil || in.w-in.r > commandBuffer/2 {
		return
	}
	n := copy(in.small[:], in.pending())
	bodyBuffers.Put(in.large)
	in.buf, in.r, in.w, in.large = in.small[:], 0, n, nil
}

// release gives all memory back. The input must not be used again.
func (in *input) release() {
	if in.large != nil {
		bodyBuffers.Put(in.large)
	}
	if in.small != nil {
		commandBuffers.Put(in.small)
	}
	*in = input{}
}

// line takes the next line, its line feed included, or returns nil when there
// is none yet. A line that is too long gives errTooLong once its end has come.
func (in *input) line(skipped *int) ([]byte, error) {
	p := in.pending()
	i := bytes.IndexByte(p, '\n')
	if i >= 0 {
		in.r += i + 1
		if *skipped > 0 || i+1 > maxCommand {
			*skipped = 0
			return nil, errTooLong
		}
		return p[:i+1], nil
	}
	if len(p) >= maxCommand {
		*skipped += len(p)
		in.r = in.w
		if *skipped > maxFlood {
			return nil, errFlood
		}
	}
	return nil, nil
}
