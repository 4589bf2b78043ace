package relay

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
)

// primary is a small, correct SMTP server that keeps what it accepted.
type primary struct {
	lockStep bool        // offers no PIPELINING
	config   *tls.Config // offers STARTTLS
	rcpt     func(path string) string
	forget   bool   // keeps nothing
	eager    bool   // answers each command before it looks at the next
	plain    string // extensions that are offered in plain text alone
	xclient  bool   // takes us for others, in TLS if it offers that

	mu       sync.Mutex
	accepted []received
	secure   int    // sessions that went to TLS
	want     string // the reply to MAIL and RSET, "" for the right one
}

type received struct {
	from, content string
	to            []string
}

func (p *primary) serve(conn net.Conn) {
	br, bw := bufio.NewReaderSize(conn, 4<<10), bufio.NewWriterSize(conn, 64<<10)
	reply := func(s string) error {
		bw.WriteString(s + "\r\n")
		if br.Buffered() > 0 && !p.eager {
			return nil // more of the group is here
		}
		return bw.Flush()
	}
	if reply("220 primary.example ESMTP") != nil {
		return
	}
	var m received
	open, secure := false, false
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSuffix(line, "\r\n")
		verb, arg, _ := strings.Cut(line, " ")
		p.mu.Lock()
		want := p.want
		p.mu.Unlock()
		if want != "" && (verb == "RSET" || verb == "MAIL") {
			if reply(want) != nil {
				return
			}
			continue
		}
		switch verb {
		case "EHLO":
			s := "250-primary.example\r\n"
			if !p.lockStep {
				s += "250-PIPELINING\r\n"
			}
			if p.config != nil && !secure {
				s += "250-STARTTLS\r\n"
			}
			if p.plain != "" && !secure {
				s += "250-" + p.plain + "\r\n"
			}
			if p.xclient && secure == (p.config != nil) {
				s += "250-" + offer + "\r\n"
			}
			err = reply(s + "250-8BITMIME\r\n250 SIZE")
		case "XCLIENT":
			open, m = false, received{}
			err = reply("220 primary.example ESMTP")
		case "STARTTLS":
			reply("220 2.0.0 Ready")
			tc := tls.Server(conn, p.config)
			if tc.Handshake() != nil {
				return
			}
			p.mu.Lock()
			p.secure++
			p.mu.Unlock()
			conn, secure = tc, true
			br.Reset(conn)
			bw.Reset(conn)
		case "RSET":
			open, m = false, received{}
			err = reply("250 2.0.0 Ok")
		case "MAIL":
			if open {
				err = reply("503 5.5.1 nested MAIL")
				break
			}
			open, m = true, received{from: arg}
			err = reply("250 2.1.0 Ok")
		case "RCPT":
			s := "250 2.1.5 Ok"
			if !open {
				s = "503 5.5.1 need MAIL"
			} else if p.rcpt != nil {
				s = p.rcpt(arg)
			}
			if s[0] == '2' {
				m.to = append(m.to, arg)
			}
			err = reply(s)
		case "DATA":
			if len(m.to) == 0 {
				err = reply("554 5.5.1 no valid recipients")
				break
			}
			if err = reply("354 Go ahead"); err != nil {
				return
			}
			content, ok := readData(br)
			if !ok {
				return
			}
			m.content = content
			p.mu.Lock()
			if !p.forget {
				p.accepted = append(p.accepted, m)
			}
			p.mu.Unlock()
			open, m = false, received{}
			err = reply("250 2.0.0 queued")
		case "QUIT":
			reply("221 2.0.0 Bye")
			bw.Flush()
			return
		default:
			err = reply("500 5.5.1 what?")
		}
		if err != nil {
			return
		}
	}
}

// readData reads up to the end of data and undoes dot-stuffing, octet by octet.
func readData(br *bufio.Reader) (string, bool) {
	var b strings.Builder
	for {
		line, err := br.ReadString('\n')
		for err == nil && !strings.HasSuffix(line, "\r\n") { // a bare LF ends nothing
			var more string
			more, err = br.ReadString('\n')
			line += more
		}
		if err != nil {
			return "", false
		}
		if line == ".\r\n" {
			return b.String(), true
		}
		b.WriteString(strings.TrimPrefix(line, "."))
	}
}

// cutter is a connection that breaks when a number of octets has passed.
type cutter struct {
	net.Conn
	left *int // of both directions
	mu   *sync.Mutex
}

func (c cutter) take(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = min(n, *c.left)
	*c.left -= n
	return n
}

func (c cutter) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if m := c.take(n); m < n {
		c.Close()
		return m, io.ErrUnexpectedEOF
	}
	return n, err
}

func (c cutter) Write(p []byte) (int, error) {
	if m := c.take(len(p)); m < len(p) {
		n, _ := c.Conn.Write(p[:m])
		c.Close()
		return n, io.ErrClosedPipe
	}
	return c.Conn.Write(p)
}
