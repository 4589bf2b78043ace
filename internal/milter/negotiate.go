package milter

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// open connects and negotiates.
func (c *Client) open(ctx context.Context) {
	dialing, cancel := context.WithTimeout(ctx, c.Connecting)
	conn, err := c.Dial(dialing)
	cancel()
	if err != nil {
		c.fail(err)
		return
	}
	c.conn, c.r, c.w = conn, bufio.NewReader(conn), bufio.NewWriterSize(conn, 8<<10)
	if err := c.negotiate(); err != nil {
		c.fail(err)
		return
	}
	c.state = envelopes
}

func (c *Client) offered() uint32 {
	bits := map[int]uint32{2: eventsV2, 3: eventsV3, 4: eventsV4, 6: eventsV6}[c.Version]
	if c.NoHeaderReply {
		bits |= noReplyHeader
	}
	return bits
}

func (c *Client) negotiate() error {
	mine := c.offered()
	if mine == 0 {
		return fmt.Errorf("no version %d of the protocol", c.Version)
	}
	if err := c.patience(); err != nil {
		return err
	}
	hello := binary.BigEndian.AppendUint32(nil, uint32(c.Version))
	hello = binary.BigEndian.AppendUint32(hello, allActions)
	hello = binary.BigEndian.AppendUint32(hello, mine)
	if err := errors.Join(writePacket(c.w, cmdOptions, hello), c.w.Flush()); err != nil {
		return err
	}
	letter, size, err := readPacket(c.r)
	if err != nil {
		return err
	}
	data, err := readData(c.r, size)
	switch {
	case err != nil:
		return err
	case letter != cmdOptions || len(data) < 12:
		return fmt.Errorf("answer %q to the negotiation", letter)
	}
	word := func(i int) uint32 { return binary.BigEndian.Uint32(data[4*i:]) }
	c.version, c.mask = word(0), word(2)
	switch actions := word(1); {
	case c.version > uint32(c.Version):
		return fmt.Errorf("it speaks version %d of the protocol, milter_protocol is %d", c.version, c.Version)
	case actions&^allActions != 0:
		return fmt.Errorf("it wants unknown actions %#x", actions&^allActions)
	}
	c.never = allEvents &^ mine
	for _, v := range []struct{ version, bits uint32 }{{6, eventsV6}, {4, eventsV4}, {3, eventsV3}, {2, eventsV2}} {
		if c.version < uint32(c.Version) && v.version <= c.version {
			c.never |= allEvents &^ v.bits
			break
		}
	}
	return c.chooseMacros(data[12:])
}

// chooseMacros reads the filter's own lists of macros.
func (c *Client) chooseMacros(data []byte) error {
	for len(data) > 0 {
		if len(data) < 5 {
			return errors.New("broken list of macros")
		}
		on := Event(binary.BigEndian.Uint32(data))
		list, rest, ended := strings.Cut(string(data[4:]), "\x00")
		if !ended {
			return errors.New("broken list of macros")
		}
		data = []byte(rest)
		if on < OnUnknown && on >= 0 {
			if c.macros == nil {
				c.macros = map[Event][]string{}
			}
			c.macros[on] = strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) })
		}
	}
	return nil
}

// Try connects to a filter, negotiates, and says what is wrong.
func Try(ctx context.Context, dial func(context.Context) (net.Conn, error)) (err error) {
	const patience = 10 * time.Second
	c := &Client{
		Settings: Settings{Version: 6, Default: "tempfail", Connecting: patience, Command: patience, Content: patience},
		Dial:     dial,
		Failed:   func(why error) { err = why },
	}
	defer c.Close()
	defer c.begin(ctx, patience)()
	c.open(ctx)
	return err
}
