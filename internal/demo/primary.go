package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/understudy-mx/understudy/internal/envelope"
)

const (
	defaultKeep        = 64 << 10
	defaultMaxMessages = 20000
	maxMessageSize     = 64 << 20
)

// Received is one message that a Primary took.
type Received struct {
	From    string
	To      []string
	Size    int64    // octets, without dot-stuffing
	Sum     [32]byte // SHA-256 of the content as it came
	BodySum [32]byte // SHA-256 of the content without a leading Received field
	Content []byte   // nil when longer than Keep
}

// Primary is a toy MX on the loopback. Set the fields while it is not running.
type Primary struct {
	Keep        int64         // longest content that is kept, default 64 KiB
	MaxMessages int           // how many messages are remembered, default 20,000; more are refused with 452
	Delay       time.Duration // before the reply to each message

	mu       sync.Mutex // guards what follows
	addr     string     // chosen by the first Start
	run      *primaryRun
	received []Received
	rcpt     map[string]*script
	content  map[string]*script
	sessions int
}

// primaryRun is what lives from Start to Stop.
type primaryRun struct {
	server   *smtp.Server
	listener *trackedListener
	stop     chan struct{} // closed by Stop; ends delays
	ended    sync.WaitGroup
}

type script struct {
	replies []envelope.Reply
	next    int
}

// Start listens: the first time on a free port, then on the same one again.
func (p *Primary) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run != nil {
		return errors.New("primary is running already")
	}
	addr := p.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("start the primary: %w", err)
	}
	p.addr = l.Addr().String()
	r := &primaryRun{
		listener: &trackedListener{Listener: l, conns: make(map[net.Conn]struct{})},
		stop:     make(chan struct{}),
	}
	s := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) {
		p.mu.Lock()
		p.sessions++
		p.mu.Unlock()
		return &session{p: p, stop: r.stop}, nil
	}))
	s.Domain = "primary.example"
	s.EnableSMTPUTF8 = true
	s.EnableDSN = true
	s.MaxMessageBytes = maxMessageSize
	s.MaxLineLength = 1 << 20 // content lines count, too
	s.ReadTimeout, s.WriteTimeout = time.Minute, time.Minute
	s.ErrorLog = log.New(io.Discard, "", 0)
	r.server = s
	r.ended.Go(func() { s.Serve(r.listener) }) // ends with the listener
	p.run = r
	return nil
}

// Stop stops listening and cuts every connection, as a crash would, then
// waits for their ends. A Primary that isn't running stays so.
func (p *Primary) Stop() {
	p.mu.Lock()
	r := p.run
	p.run = nil
	p.mu.Unlock()
	if r == nil {
		return
	}
	close(r.stop)
	r.listener.Close()
	r.ended.Wait() // no connection is accepted from here on
	r.listener.cut()
	r.server.Shutdown(context.Background()) // waits for the connections' goroutines
}

// Addr returns "address:port", "" before the first Start.
func (p *Primary) Addr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addr
}

// Script makes the primary answer RCPT for the recipient with the replies in
// turn, the last one again and again. The zero Reply accepts.
func (p *Primary) Script(rcpt string, replies ...envelope.Reply) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rcpt == nil {
		p.rcpt = make(map[string]*script)
	}
	p.rcpt[strings.ToLower(rcpt)] = &script{replies: replies}
}

// ScriptContent does as Script for the reply to the content of messages whose
// first accepted recipient is rcpt.
func (p *Primary) ScriptContent(rcpt string, replies ...envelope.Reply) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.content == nil {
		p.content = make(map[string]*script)
	}
	p.content[strings.ToLower(rcpt)] = &script{replies: replies}
}

// Received returns what was taken so far, in order.
func (p *Primary) Received() []Received {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.received)
}

// Count returns how many messages were taken so far.
func (p *Primary) Count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.received)
}

// Sessions returns how many greetings (EHLO, HELO) were answered so far.
func (p *Primary) Sessions() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sessions
}

// scripted returns the next reply of scripts for rcpt as go-smtp's error.
func (p *Primary) scripted(scripts map[string]*script, rcpt string) error {
	s := scripts[strings.ToLower(rcpt)]
	if s == nil || len(s.replies) == 0 {
		return nil
	}
	r := s.replies[s.next]
	s.next = min(s.next+1, len(s.replies)-1)
	if r.Zero() || r.Positive() {
		return nil
	}
	e := &smtp.SMTPError{Code: r.Code, EnhancedCode: smtp.NoEnhancedCode, Message: r.Text}
	if r.Enhanced != "" {
		e.Message = r.Enhanced + " " + r.Text
	}
	return e
}

// session is one mail transaction after another on one connection.
type session struct {
	p    *Primary
	stop <-chan struct{}
	from string
	to   []string
}

func (s *session) Reset()        { s.from, s.to = "", nil }
func (s *session) Logout() error { return nil }

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.from, s.to = from, nil
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if err := s.p.scripted(s.p.rcpt, to); err != nil {
		return err
	}
	s.to = append(s.to, to)
	return nil
}

func (s *session) Data(r io.Reader) error {
	keep := s.p.Keep
	if keep == 0 {
		keep = defaultKeep
	}
	m := Received{From: s.from, To: slices.Clone(s.to)}
	whole, body := sha256.New(), sha256.New()
	var kept bytes.Buffer
	skip := &skipReceived{w: body}
	n, err := io.Copy(io.MultiWriter(whole, skip, &limited{&kept, keep + 1}), r)
	if err != nil {
		return err
	}
	skip.flush()
	m.Size = n
	whole.Sum(m.Sum[:0])
	body.Sum(m.BodySum[:0])
	if n <= keep {
		m.Content = kept.Bytes()
	}
	if s.p.Delay > 0 {
		select {
		case <-time.After(s.p.Delay):
		case <-s.stop:
			return io.ErrUnexpectedEOF // nobody reads it
		}
	}
	return s.p.take(m)
}

func (p *Primary) take(m Received) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(m.To) > 0 {
		if err := p.scripted(p.content, m.To[0]); err != nil {
			return err
		}
	}
	most := p.MaxMessages
	if most == 0 {
		most = defaultMaxMessages
	}
	if len(p.received) >= most {
		return &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 3, 1}, Message: "Mailbox full"}
	}
	p.received = append(p.received, m)
	return nil
}

// limited passes on the first n octets and drops the rest.
type limited struct {
	w io.Writer
	n int64
}

func (l *limited) Write(b []byte) (int, error) {
	part := b[:min(int64(len(b)), l.n)]
	l.n -= int64(len(part))
	if _, err := l.w.Write(part); err != nil {
		return 0, err
	}
	return len(b), nil
}

// trackedListener knows its open connections.
type trackedListener struct {
	net.Listener
	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu
}

type trackedConn struct {
	net.Conn
	l *trackedListener
}

func (l *trackedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	t := &trackedConn{c, l}
	l.mu.Lock()
	l.conns[t] = struct{}{}
	l.mu.Unlock()
	return t, nil
}

func (c *trackedConn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

// cut closes every connection.
func (l *trackedListener) cut() {
	l.mu.Lock()
	var open []net.Conn
	for c := range l.conns {
		open = append(open, c)
	}
	l.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
}
