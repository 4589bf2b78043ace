package milter

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Event is what macros are sent for. The first seven have the numbers by which
// a filter chooses its own macros.
type Event int

const (
	OnConnect Event = iota
	OnHelo
	OnMail
	OnRcpt
	OnData
	OnEndOfData
	OnEndOfHeader
	OnUnknown
	events
)

// Macros are the names of macros for each event, as main.cf spells them.
type Macros [events][]string

// Settings are those of the primary for one of its milters.
type Settings struct {
	Version       int  // of the protocol: 2, 3, 4 or 6
	NoHeaderReply bool // offers the filter not to answer to header fields
	Default       string
	Connecting    time.Duration // limits on waits: for a connection, …
	Command       time.Duration // an answer to a command, …
	Content       time.Duration // and to a piece of the message
	HeaderSize    int           // a longer header field is cut, 0: 60000 octets
	Macros        *Macros
}

// longest bounds the wait for a filter that only reports progress: a sender
// waits ten minutes for the reply to its message (RFC 5321 §4.5.3.2.6).
const longest = 10 * time.Minute

// Client asks one filter about one SMTP session. Its methods follow the session's
// commands, and are called one after another.
type Client struct {
	Settings
	// Dial connects to the filter.
	Dial func(context.Context) (net.Conn, error)
	// Macro is the value of a macro, by its name without braces.
	Macro func(name string) (value string, known bool)
	// Failed, if not nil, is told why the filter is unavailable from now on.
	Failed func(error)
	// Dropped, if not nil, is told of each edit that the filter wants and that
	// isn't made.
	Dropped func()

	state    state
	conn     net.Conn
	r        *bufio.Reader
	w        *bufio.Writer
	by       time.Time // when the wait ends at the latest
	wait     time.Duration
	never    uint32 // events that the protocol's version lacks
	mask     uint32 // what the filter negotiated
	version  uint32
	macros   map[Event][]string // the filter's own
	standing *Answer            // to everything that follows
	skip     byte               // events of this kind
	dead     bool               // the connection was lost in a message
}

type state uint8

const (
	unconnected state = iota
	broken
	envelopes // between and in transactions
	message
	acceptsAll
	acceptsMessage
	refusesAll
)

// Connect tells the filter of a client. name is "unknown" where it has none.
func (c *Client) Connect(ctx context.Context, name string, addr netip.Addr, port uint16) Answer {
	defer c.begin(ctx, c.Command)()
	if c.state == unconnected {
		c.open(ctx)
	}
	if c.state != envelopes {
		return c.stands()
	}
	if name == "unknown" || name == "" {
		name = "[" + addr.String() + "]"
	}
	family := byte('4')
	if addr.Is6() {
		family = '6'
	}
	data := append(appendStrings(nil, name), family)
	data = binary.BigEndian.AppendUint16(data, port)
	return c.event(OnConnect, cmdConnect, noConnect, noReplyConnect, appendStrings(data, addr.String()))
}

// Helo tells of HELO or EHLO.
func (c *Client) Helo(ctx context.Context, name string) Answer {
	defer c.begin(ctx, c.Command)()
	if c.state != envelopes && c.state != acceptsMessage {
		return c.stands()
	}
	return c.event(OnHelo, cmdHelo, noHelo, noReplyHelo, appendStrings(nil, name))
}

// Mail tells of a reverse-path in angle brackets and MAIL's parameters.
func (c *Client) Mail(ctx context.Context, args []string) Answer {
	return c.command(ctx, OnMail, cmdMail, noMail, noReplyMail, appendStrings(nil, args...))
}

// Rcpt tells of a forward-path and RCPT's parameters.
func (c *Client) Rcpt(ctx context.Context, args []string) Answer {
	return c.command(ctx, OnRcpt, cmdRcpt, noRcpt, noReplyRcpt, appendStrings(nil, args...))
}

// WantsRejected says that the filter wants to hear of recipients that are
// refused already. Its answer to them doesn't count.
func (c *Client) WantsRejected() bool { return c.mask&wantsRejected != 0 }

// Data tells of DATA.
func (c *Client) Data(ctx context.Context) Answer {
	return c.command(ctx, OnData, cmdData, noData, noReplyData, nil)
}

// Unknown tells of a command that nobody knows.
func (c *Client) Unknown(ctx context.Context, verb string) Answer {
	return c.command(ctx, OnUnknown, cmdUnknown, noUnknown, noReplyUnknown, appendStrings(nil, verb))
}

func (c *Client) command(ctx context.Context, on Event, cmd byte, never, silent uint32, data []byte) Answer {
	defer c.begin(ctx, c.Command)()
	if c.state != envelopes {
		return c.stands()
	}
	return c.event(on, cmd, never, silent, data)
}

// Broken says that the default action answers for the filter.
func (c *Client) Broken() bool { return c.state == broken || c.dead }

// Standing is the answer to commands that the filter doesn't hear of.
func (c *Client) Standing() Answer { return c.stands() }

func (c *Client) stands() Answer {
	if c.standing != nil {
		return *c.standing
	}
	return Answer{}
}

// Abort ends the mail transaction.
func (c *Client) Abort() {
	if c.dead {
		return
	}
	switch c.state {
	case envelopes, message, acceptsMessage:
		defer c.begin(context.Background(), c.Command)()
		err := writePacket(c.w, cmdAbort, nil)
		if err == nil {
			err = c.w.Flush()
		}
		if err != nil {
			c.fail(err)
			return
		}
		c.state = envelopes
	}
}

// Close ends the session with the filter.
func (c *Client) Close() {
	if c.conn != nil {
		_ = c.conn.SetDeadline(time.Now().Add(time.Second))
		if writePacket(c.w, cmdQuit, nil) == nil {
			_ = c.w.Flush()
		}
		_ = c.conn.Close()
		c.conn = nil
	}
	c.state, c.standing = broken, nil
}

// begin bounds what follows by ctx and by wait for each answer. The function
// that it returns ends that.
func (c *Client) begin(ctx context.Context, wait time.Duration) func() {
	c.wait, c.by = wait, time.Now().Add(max(longest, wait))
	stop := context.AfterFunc(ctx, func() {
		if conn := c.conn; conn != nil {
			_ = conn.SetDeadline(time.Unix(1, 0))
		}
	})
	return func() { stop() }
}

// patience gives the filter another wait.
func (c *Client) patience() error {
	by := time.Now().Add(c.wait)
	if by.After(c.by) {
		by = c.by
	}
	return c.conn.SetDeadline(by)
}

// fail makes the default action the answer to everything from now on.
func (c *Client) fail(err error) { c.end(err, false) }

func (c *Client) end(err error, misused bool) {
	c.hangUp()
	c.state = broken
	a := byDefault(c.Default, misused)
	c.standing = &a
	if c.Failed != nil {
		c.Failed(err)
	}
}

func (c *Client) hangUp() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// sendMacros sends what is known of the macros for an event.
func (c *Client) sendMacros(on Event, cmd byte) error {
	names := c.macros[on]
	if len(names) == 0 && c.Settings.Macros != nil {
		names = c.Settings.Macros[on]
	}
	data := []byte{cmd}
	for _, name := range names {
		bare := strings.TrimSuffix(strings.TrimPrefix(name, "{"), "}")
		if value, known := c.Macro(bare); known {
			data = appendStrings(data, name, value)
		}
	}
	return writePacket(c.w, cmdMacro, data)
}

// event tells the filter of something and returns its answer.
func (c *Client) event(on Event, cmd byte, never, silent uint32, data []byte) Answer {
	switch {
	case c.standing != nil, c.never&never != 0:
		return c.stands()
	case c.skip == cmd:
		return Answer{}
	}
	c.skip = 0
	if c.dead {
		if c.mask&(never|silent) == 0 {
			c.fail(errLost)
		}
		return c.stands()
	}
	err := c.patience()
	if err == nil {
		err = c.sendMacros(on, cmd)
	}
	if err == nil && c.mask&never == 0 {
		err = writePacket(c.w, cmd, data)
		if err == nil && c.mask&silent == 0 {
			var a Answer
			if a, err = c.answer(cmd); err == nil {
				return a
			}
		}
	}
	if err != nil {
		c.fail(err)
	}
	return c.stands()
}

// answer reads answers up to the one that decides. An error is of the
// connection or the protocol.
func (c *Client) answer(cmd byte) (Answer, error) {
	if err := c.w.Flush(); err != nil {
		return Answer{}, err
	}
	edited := 0
	for {
		if err := c.patience(); err != nil {
			return Answer{}, err
		}
		letter, size, err := readPacket(c.r)
		if err != nil {
			return Answer{}, err
		}
		a, decided, err := c.decision(cmd, letter, size)
		if err == errNoDecision {
			if edited += size; cmd != cmdEnd || !isEdit(letter) || edited > maxEdits {
				return Answer{}, fmt.Errorf("answer %q to event %q", letter, cmd)
			}
			err = c.drop(size)
		}
		if err != nil || decided {
			return a, err
		}
	}
}

var errLost = errors.New("connection lost")

var errNoDecision = errors.New("no decision")

// decision reads an answer that isn't an edit. decided is false when another
// follows.
func (c *Client) decision(cmd, letter byte, size int) (a Answer, decided bool, err error) {
	first := cmd == cmdConnect || cmd == cmdHelo // then it counts for the whole session
	switch letter {
	case ansReplyCode, ansQuarantine:
	case ansProgress, ansContinue, ansAccept, ansDiscard, ansReject, ansTempfail, ansShutdown, ansSkip:
		if size > 0 {
			return a, false, fmt.Errorf("answer %q with %d octets of data", letter, size)
		}
	default:
		return a, false, errNoDecision
	}
	switch letter {
	case ansProgress:
		return a, false, nil
	case ansAccept:
		if c.state = acceptsMessage; first {
			c.hangUp() // it hears no more
			c.state = acceptsAll
		}
	case ansSkip:
		c.skip = cmd
	case ansDiscard:
		if !first {
			c.state = acceptsMessage
			return Answer{Action: Discard}, true, nil
		}
	case ansReject:
		return c.refuse(first, refuse(rejected)), true, nil
	case ansTempfail:
		return c.refuse(first, refuse(tempfailed)), true, nil
	case ansShutdown:
		return c.refuse(true, refuse(shutdown)), true, nil
	case ansReplyCode:
		data, err := readData(c.r, size)
		if err != nil {
			return a, false, err
		}
		reply, ok := parseReply(data)
		if !ok {
			c.end(fmt.Errorf("malformed reply %q", printable(data)), true)
			return c.stands(), true, nil
		}
		return c.refuse(first, refuse(reply)), true, nil
	case ansQuarantine:
		data, err := readData(c.r, size)
		if err != nil {
			return a, false, err
		}
		c.standing = &Answer{Action: Hold, Reason: printable(data)}
		return a, false, nil
	}
	return c.stands(), true, nil
}

func (c *Client) refuse(always bool, a Answer) Answer {
	if always {
		c.hangUp()
		c.state, c.standing = refusesAll, &a
	}
	return a
}

func isEdit(letter byte) bool {
	return strings.IndexByte(string([]byte{ansAddRcpt, ansDelRcpt, ansAddRcptPar, ansReplaceBody, ansChangeFrom, ansAddHeader, ansInsHeader, ansChgHeader}), letter) >= 0
}

// drop reads over an edit's data.
func (c *Client) drop(size int) error {
	if c.Dropped != nil {
		c.Dropped()
	}
	for size > 0 {
		if err := c.patience(); err != nil {
			return err
		}
		n, err := io.CopyN(io.Discard, c.r, int64(min(size, maxHeld)))
		if err != nil {
			return fmt.Errorf("read edit: %w", err)
		}
		size -= int(n)
	}
	return nil
}
