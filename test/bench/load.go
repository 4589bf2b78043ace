package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	sender  = "bob@sender.example"
	known   = "user7@example.org"
	unknown = "nobody@example.org"
)

// perSession is how many messages a session carries at most, on average:
// Understudy ends one after 1,000.
const perSession = 700

// smtpSource sends n messages with Postfix's load generator.
func smtpSource(ctx context.Context, addr string, c cell, n int) (time.Duration, error) {
	return source(ctx, addr, c, n, "-t", known)
}

func source(ctx context.Context, addr string, c cell, n int, more ...string) (took time.Duration, err error) {
	args := append([]string{"-s", strconv.Itoa(c.sessions), "-l", strconv.Itoa(c.size), "-f", sender, "-M", "client.sender.example"}, more...)
	batch := n
	if c.many {
		args = append(args, "-d")
		batch = perSession * c.sessions
	}
	start := time.Now()
	for ; n > 0 && err == nil; n -= batch {
		now := append(args[:len(args):len(args)], "-m", strconv.Itoa(min(n, batch)), addr)
		if err = exec.CommandContext(ctx, "smtp-source", now...).Run(); err != nil {
			err = fmt.Errorf("smtp-source: %w", err)
		}
	}
	return time.Since(start), err
}

// client is an SMTP client of the benchmark's own.
type client struct {
	net.Conn
	br   *bufio.Reader
	sent int
}

func dial(addr string) (*client, error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	return &client{Conn: c, br: bufio.NewReaderSize(c, 1024)}, nil
}

// reply reads one reply and returns its code.
func (c *client) reply() (string, error) {
	for {
		line, err := c.br.ReadSlice('\n')
		if err != nil {
			return "", err
		}
		if len(line) > 3 && line[3] != '-' {
			return string(line[:3]), nil
		}
	}
}

// talk sends each command and wants its reply to begin with the code after it.
func (c *client) talk(dialogue ...string) error {
	for i := 0; i < len(dialogue); i += 2 {
		if dialogue[i] != "" {
			if _, err := c.Write([]byte(dialogue[i] + "\r\n")); err != nil {
				return err
			}
		}
		code, err := c.reply()
		if err != nil {
			return err
		}
		if code[0] != dialogue[i+1][0] {
			return fmt.Errorf("%.40q was answered %s", dialogue[i], code)
		}
	}
	return nil
}

// each runs do n times in all, from a number of sessions at once.
func each(sessions, n int, do func() error) error {
	var left atomic.Int64
	left.Store(int64(n))
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range sessions {
		wg.Go(func() {
			for left.Add(-1) >= 0 && failed.Load() == nil {
				if err := do(); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// mustRefuse is a session with one recipient that the server must refuse.
func mustRefuse(addr string) error {
	c, err := dial(addr)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.talk("", "220", "EHLO sender.example", "250", "MAIL FROM:<"+sender+">", "250",
		"RCPT TO:<"+unknown+">", "550", "QUIT", "221")
}

// randomText is a message of about size octets that doesn't compress, with the
// dot at its end.
func randomText(size int) (string, error) {
	raw := make([]byte, size*3/4+57)
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	text := base64.StdEncoding.EncodeToString(raw)
	var body strings.Builder
	body.WriteString("Subject: random\r\n\r\n")
	for i := 0; body.Len() < size-2; i += 76 {
		body.WriteString(text[i:min(i+76, len(text))] + "\r\n")
	}
	body.WriteString(".")
	return body.String(), nil
}

// randomMail sends n messages of bodies that do not compress, many to a session.
func randomMail(addr string, sessions, size, n int) error {
	body, err := randomText(size)
	if err != nil {
		return err
	}
	return randomBodies(addr, sessions, n, body)
}

func randomBodies(addr string, sessions, n int, body string) error {
	idle := make(chan *client, sessions)
	defer func() {
		close(idle)
		for c := range idle {
			c.Close()
		}
	}()
	return each(sessions, n, func() (err error) {
		var c *client
		select {
		case c = <-idle:
		default:
			if c, err = dial(addr); err != nil {
				return err
			}
			if err = c.talk("", "220", "EHLO sender.example", "250"); err != nil {
				return err
			}
		}
		err = c.talk("MAIL FROM:<"+sender+">", "250", "RCPT TO:<"+known+">", "250", "DATA", "354", body, "250")
		if err != nil {
			c.Close()
			return err
		}
		if c.sent++; c.sent == perSession {
			return c.Close()
		}
		idle <- c
		return nil
	})
}

// sit opens sessions that have got as far as RCPT and wait there.
func sit(addr string, n int) (leave func(), err error) {
	var all []*client
	leave = func() {
		for _, c := range all {
			c.Close()
		}
	}
	for range n {
		c, err := dial(addr)
		if err == nil {
			all = append(all, c)
			err = c.talk("", "220", "EHLO sender.example", "250", "MAIL FROM:<"+sender+">", "250", "RCPT TO:<"+known+">", "250")
		}
		if err != nil {
			leave()
			return nil, err
		}
	}
	return leave, nil
}
