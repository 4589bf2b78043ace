package milter

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// Commands to a filter.
const (
	cmdAbort   = 'A'
	cmdBody    = 'B'
	cmdConnect = 'C'
	cmdMacro   = 'D'
	cmdEnd     = 'E'
	cmdHelo    = 'H'
	cmdHeader  = 'L'
	cmdMail    = 'M'
	cmdEOH     = 'N'
	cmdOptions = 'O'
	cmdQuit    = 'Q'
	cmdRcpt    = 'R'
	cmdData    = 'T'
	cmdUnknown = 'U'
)

// Answers of a filter.
const (
	ansAddRcpt     = '+'
	ansDelRcpt     = '-'
	ansAddRcptPar  = '2'
	ansShutdown    = '4'
	ansAccept      = 'a'
	ansReplaceBody = 'b'
	ansContinue    = 'c'
	ansDiscard     = 'd'
	ansChangeFrom  = 'e'
	ansAddHeader   = 'h'
	ansInsHeader   = 'i'
	ansChgHeader   = 'm'
	ansProgress    = 'p'
	ansQuarantine  = 'q'
	ansReject      = 'r'
	ansSkip        = 's'
	ansTempfail    = 't'
	ansReplyCode   = 'y'
)

// Bits of the negotiation that keep an event away, or its answer.
const (
	noConnect = 1 << iota
	noHelo
	noMail
	noRcpt
	noBody
	noHeaders
	noEOH
	noReplyHeader
	noUnknown
	noData
	canSkip
	wantsRejected
	noReplyConnect
	noReplyHelo
	noReplyMail
	noReplyRcpt
	noReplyData
	noReplyUnknown
	noReplyEOH
	noReplyBody
	leadingSpace
)

const (
	eventsV2  = noConnect | noHelo | noMail | noRcpt | noBody | noHeaders | noEOH
	eventsV3  = eventsV2 | noUnknown
	eventsV4  = eventsV3 | noData
	allEvents = eventsV4
	eventsV6  = eventsV4 | canSkip | wantsRejected | noReplyHeader | noReplyConnect | noReplyHelo | noReplyMail | noReplyRcpt |
		noReplyData | noReplyUnknown | noReplyEOH | noReplyBody | leadingSpace

	// allActions are what a filter may ask for. All are offered: one that misses
	// any that it wants hangs up.
	allActions = 0x1ff
)

const (
	// maxHeld is how much of a packet is held in memory: a reply text, a
	// quarantine's reason, lists of macros.
	maxHeld = 64 << 10
	// maxEdit is the longest edit that is read and dropped, and maxEdits what
	// all edits of a message may take.
	maxEdit  = 128 << 20
	maxEdits = 1 << 30
	// chunk is how much of a body is sent at once.
	chunk = 65535
)

var errTooLong = errors.New("packet too long")

// readPacket reads a packet's head: its letter, and how much data follows.
func readPacket(r io.Reader) (letter byte, size int, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, fmt.Errorf("read answer: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	switch {
	case n < 1:
		return 0, 0, errors.New("empty packet")
	case n > maxEdit:
		return 0, 0, fmt.Errorf("%w: %d octets", errTooLong, n)
	}
	return head[4], int(n) - 1, nil
}

// readData reads a packet's data, at most maxHeld of it.
func readData(r io.Reader, size int) ([]byte, error) {
	if size > maxHeld {
		return nil, fmt.Errorf("%w: %d octets", errTooLong, size)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	return b, nil
}

// appendStrings ends each string with a NUL. None may hold one.
func appendStrings(b []byte, list ...string) []byte {
	for _, s := range list {
		for i := range len(s) {
			if s[i] != 0 {
				b = append(b, s[i])
			}
		}
		b = append(b, 0)
	}
	return b
}

func writePacket(w *bufio.Writer, letter byte, data []byte) error {
	if len(data) >= math.MaxInt32 {
		return errTooLong
	}
	var head [5]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(data)+1))
	head[4] = letter
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}
