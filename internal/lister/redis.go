package lister

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

	"github.com/understudy-mx/understudy/internal/host"
)

// Redis is a server that speaks RESP2, without TLS. It hears AUTH, SELECT, SCAN, GET and
// PTTL alone.
type Redis struct {
	Address            string // "host:port" or "/path"
	Username, Password string
	DB                 string

	// Host is where programs would know the address; nil is this machine.
	Host *host.Host
	Limits
}

// List calls entry for every string whose key matches a glob, with how long it
// will be kept; forever is negative. An entry that comes or goes meanwhile may be missing,
// and one may come twice.
func (r *Redis) List(ctx context.Context, match string, entry func(key, value string, left time.Duration) error) error {
	limits := r.defaults()
	ctx, cancel := context.WithTimeout(ctx, limits.Time)
	defer cancel()
	network := "tcp"
	if strings.HasPrefix(r.Address, "/") {
		network = "unix"
	}
	c, err := r.Host.Dial(ctx, network, r.Address, redisWait)
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	s := &redisConn{c: c, r: bufio.NewReader(io.LimitReader(c, limits.Bytes))}
	if err = r.list(s, limits.Rows, match, entry); err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("redis %s: %w", r.Address, err)
	}
	return nil
}

func (r *Redis) list(s *redisConn, rows int, match string, entry func(key, value string, left time.Duration) error) error {
	if r.Password != "" {
		auth := []string{"AUTH", r.Password}
		if r.Username != "" {
			auth = []string{"AUTH", r.Username, r.Password}
		}
		if _, err := s.ask(auth); err != nil {
			return fmt.Errorf("AUTH: %w", err)
		}
	}
	if r.DB != "" {
		if _, err := s.ask([]string{"SELECT", r.DB}); err != nil {
			return fmt.Errorf("SELECT: %w", err)
		}
	}
	for cursor := "0"; ; {
		got, err := s.ask([]string{"SCAN", cursor, "MATCH", match, "COUNT", strconv.Itoa(redisBatch)})
		if err != nil {
			return fmt.Errorf("SCAN: %w", err)
		}
		if len(got[0].list) != 2 {
			return errRESP
		}
		keys := got[0].list[1].list
		if rows -= len(keys); rows < 0 {
			return errors.New("more keys than are listed")
		}
		if err := s.values(keys, entry); err != nil {
			return err
		}
		if cursor = got[0].list[0].text; cursor == "0" {
			return nil
		}
	}
}

// values asks for the keys of one SCAN.
func (s *redisConn) values(keys []resp, entry func(key, value string, left time.Duration) error) error {
	var commands [][]string
	for _, k := range keys {
		commands = append(commands, []string{"GET", k.text}, []string{"PTTL", k.text})
	}
	if len(commands) == 0 {
		return nil
	}
	got, err := s.ask(commands...)
	if err != nil {
		return err
	}
	for i, k := range keys {
		value, left := got[2*i], got[2*i+1]
		if value.null { // it went meanwhile
			continue
		}
		ms, err := strconv.ParseInt(left.text, 10, 64)
		if err != nil {
			return errRESP
		}
		if err := entry(k.text, value.text, time.Duration(ms)*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

const (
	redisWait  = 10 * time.Second // for a reply
	redisBatch = 500              // keys that a SCAN looks at
	// Bounds of a reply: octets of a string, elements of a list, and depth.
	maxRESPText, maxRESPList, maxRESPDepth = 64 << 10, 64 << 10, 3
)

var errRESP = errors.New("the answer isn't a Redis server's")

// resp is a reply: a text, a list, or nothing.
type resp struct {
	text string
	list []resp
	null bool
}

type redisConn struct {
	c net.Conn
	r *bufio.Reader
}

// ask sends commands and reads a reply to each. The first that is an error is its error.
func (s *redisConn) ask(commands ...[]string) ([]resp, error) {
	var b []byte
	for _, c := range commands {
		b = fmt.Appendf(b, "*%d\r\n", len(c))
		for _, word := range c {
			b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(word), word)
		}
	}
	if err := s.c.SetDeadline(time.Now().Add(redisWait)); err != nil {
		return nil, err
	}
	if _, err := s.c.Write(b); err != nil {
		return nil, err
	}
	replies := make([]resp, 0, len(commands))
	for range commands {
		one, err := s.reply(0)
		if err != nil {
			return nil, err
		}
		replies = append(replies, one)
	}
	return replies, nil
}

// reply reads one.
func (s *redisConn) reply(depth int) (r resp, err error) {
	line, err := s.r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return r, errRESP
	case err != nil:
		return r, err
	case len(line) < 3 || line[len(line)-2] != '\r' || depth > maxRESPDepth:
		return r, errRESP
	}
	kind, text := line[0], string(line[1:len(line)-2])
	if kind == '+' || kind == ':' {
		return resp{text: text}, nil
	}
	if kind == '-' {
		return r, fmt.Errorf("%.80q", text)
	}
	n, err := strconv.Atoi(text)
	switch {
	case err != nil || n < -1:
		return r, errRESP
	case n == -1:
		return resp{null: true}, nil
	case kind == '$' && n <= maxRESPText:
		b := make([]byte, n+2)
		_, err := io.ReadFull(s.r, b)
		return resp{text: string(b[:n])}, err
	case kind == '*' && n <= maxRESPList:
		for range n {
			one, err := s.reply(depth + 1)
			if err != nil {
				return r, err
			}
			r.list = append(r.list, one)
		}
		return r, nil
	}
	return r, errRESP
}
