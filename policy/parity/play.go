package parity

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Dialer connects to a server that allows XCLIENT.
type Dialer func(ctx context.Context) (net.Conn, error)

type clientKey struct{}

// ClientOf is the client of the session that a Dialer is called for.
func ClientOf(ctx context.Context) Client {
	c, _ := ctx.Value(clientKey{}).(Client)
	return c
}

// sessionTimeout bounds a whole session; Postfix makes those who err wait.
const sessionTimeout = 2 * time.Minute

// maxReply bounds a reply, all its lines together.
const maxReply = 64 << 10

// ErrXClient says that a server doesn't let us state a client.
var ErrXClient = errors.New("XCLIENT is refused")

// Play plays a session. An error says that the server can't be asked, not that
// it refused something.
func (d Dialer) Play(ctx context.Context, s Session) (Transcript, error) {
	c, err := d(context.WithValue(ctx, clientKey{}, s.Client))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := c.SetDeadline(time.Now().Add(sessionTimeout)); err != nil {
		return nil, err
	}
	p := player{c: c, r: bufio.NewReader(c)}
	if s.Proxied {
		return p.proxied(ctx, s)
	}
	switch first, err := p.read(); {
	case err != nil:
		return nil, fmt.Errorf("greeting: %w", err)
	case first.Code != 220:
		return nil, fmt.Errorf("greeting: %s", first)
	}
	t, err := p.play(s)
	if err == nil {
		err = ctx.Err()
	}
	return t, err
}

// proxied states the client by the PROXY protocol. The greeting is the first reply.
func (p *player) proxied(ctx context.Context, s Session) (Transcript, error) {
	family, own := "TCP4", "192.0.2.25"
	if s.Client.Addr.Is6() {
		family, own = "TCP6", "2001:db8::25"
	}
	first, err := p.ask(fmt.Sprintf("PROXY %s %s %s 50000 25", family, s.Client.Addr, own))
	if err != nil {
		return nil, fmt.Errorf("greeting: %w", err)
	}
	t := Transcript{first}
	if first.Code == 220 {
		t, err = p.commands(t, s)
	}
	if err == nil {
		err = ctx.Err()
	}
	return t, err
}

type player struct {
	c net.Conn
	r *bufio.Reader
}

func (p *player) play(s Session) (Transcript, error) {
	r, err := p.ask(s.Client.xclient())
	if err != nil {
		return nil, err
	}
	if r.Code/10 == 50 || r.Code == 550 && r.Enhanced == "5.7.0" {
		return nil, fmt.Errorf("%w: %s", ErrXClient, r)
	}
	t := Transcript{r}
	if r.Code != 220 {
		return t, nil // what follows is of no use to a client
	}
	return p.commands(t, s)
}

// commands plays what follows the greeting.
func (p *player) commands(t Transcript, s Session) (Transcript, error) {
	for _, c := range s.Commands {
		r, err := p.ask(c.Line)
		if err != nil {
			return nil, err
		}
		t = append(t, r)
		if r.Code == 354 {
			if c.Message == "" {
				return t, nil // closing the connection now sends nothing
			}
			if r, err = p.ask(stuff(c.Message) + "."); err != nil {
				return nil, err
			}
			t = append(t, r)
		}
		if r.Code == 0 || r.Code == 421 || r.Code == 521 || r.Code == 221 {
			return t, nil
		}
	}
	_, err := p.ask("QUIT")
	return t, err
}

// stuff doubles the dots that begin a line.
func stuff(message string) string {
	message = strings.ReplaceAll(message, "\r\n.", "\r\n..")
	if strings.HasPrefix(message, ".") {
		message = "." + message
	}
	return message
}

// ask sends a line and reads the reply. A connection that the server closed
// gives the zero Reply. A server may speak without being asked (421, and hang
// up), and a Pipe holds nothing: so the line goes out while the reply is read.
func (p *player) ask(line string) (Reply, error) {
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(p.c, line+"\r\n")
		sent <- err
	}()
	r, err := p.read()
	werr := <-sent
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return r, fmt.Errorf("%.80q: %w", line, err)
	}
	if werr != nil && r.Code == 0 {
		return Reply{}, nil
	}
	if errors.Is(err, errReply) {
		return r, err
	}
	return r, nil
}

var errReply = errors.New("no SMTP reply")

// read reads one reply; the text is that of its last line, of a refusal all of it.
func (p *player) read() (Reply, error) {
	var before string
	for size := 0; size < maxReply; {
		line, err := p.r.ReadString('\n')
		if err != nil {
			return Reply{}, err
		}
		size += len(line)
		if line = strings.TrimRight(line, "\r\n"); line == "" || strings.HasPrefix(line, "****") {
			continue // exim -bh says what it is
		}
		code, cerr := strconv.Atoi(line[:min(3, len(line))])
		if cerr != nil || code < 200 || code > 599 || len(line) > 3 && line[3] != ' ' && line[3] != '-' {
			return Reply{}, fmt.Errorf("%w: %.80q", errReply, line)
		}
		if len(line) > 3 && line[3] == '-' {
			if before += line[4:] + " "; code < 400 {
				before = ""
			}
			continue
		}
		r := Reply{Code: code}
		if len(line) > 4 {
			r.Text = before + line[4:]
		}
		if word, rest, _ := strings.Cut(r.Text, " "); isStatus(word) {
			r.Enhanced, r.Text = word, rest
		}
		return r, nil
	}
	return Reply{}, fmt.Errorf("%w: it is longer than %d octets", errReply, maxReply)
}

// isStatus says that s is a status code of RFC 3463 §2.
func isStatus(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || len(parts[0]) != 1 {
		return false
	}
	for _, p := range parts {
		if _, err := strconv.ParseUint(p, 10, 10); err != nil || len(p) > 3 {
			return false
		}
	}
	return true
}
