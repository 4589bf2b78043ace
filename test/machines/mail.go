package main

import (
	"errors"
	"fmt"
	"net"
	"net/smtp"
	"net/textproto"
	"strings"
	"time"
)

// send hands a mail to the machine, and remembers a 250.
func (m *machine) send() error {
	conn, err := net.DialTimeout("tcp", m.ip()+":25", 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	c, err := smtp.NewClient(conn, m.name)
	if err != nil {
		return err
	}
	id := fmt.Sprintf("<%d.%d@outside.example.net>", time.Now().UnixNano(), m.n)
	w, err := data(c)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "From: bob@outside.example.net\r\nTo: alice@example.org\r\nSubject: try\r\nMessage-ID: %s\r\n\r\nHello\r\n", id)
	if err := w.Close(); err != nil {
		return err
	}
	m.s.sent[id] = true
	return c.Quit()
}

func data(c *smtp.Client) (interface {
	Write([]byte) (int, error)
	Close() error
}, error) {
	if err := errors.Join(c.Hello("outside.example.net"), c.Mail("bob@outside.example.net"), c.Rcpt("alice@example.org")); err != nil {
		return nil, err
	}
	return c.Data()
}

// reply is what the machine answers to a mail, and how soon: "250", "451", or no
// connection.
func (m *machine) reply() (code string, after time.Duration) {
	began := time.Now()
	err := m.send()
	code = "no connection"
	var said *textproto.Error
	switch {
	case err == nil:
		code = "250"
	case errors.As(err, &said):
		code = fmt.Sprint(said.Code)
	}
	return code, time.Since(began)
}

// mails sends so many mails to each machine, each of which has to be taken.
func (s *stage) mails(count int, to ...*machine) error {
	for _, m := range to {
		for range count {
			if err := m.send(); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
		}
	}
	return nil
}

// arrived waits until the primary has all that was answered 250, and says how many
// it has more than once.
func (s *stage) arrived(within time.Duration) error {
	twice := 0
	err := retry(within, func() error {
		out, err := s.primary.do("grep -rih ^Message-ID: /home/alice/Maildir/new")
		if err != nil {
			return err
		}
		times := map[string]int{}
		for line := range strings.Lines(out) {
			_, id, _ := strings.Cut(strings.TrimSpace(line), " ")
			times[id]++
		}
		missing := 0
		twice = 0
		for id := range s.sent {
			if times[id] == 0 {
				missing++
			} else if times[id] > 1 {
				twice++
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d messages are missing at the primary", missing, len(s.sent))
		}
		return nil
	})
	fmt.Printf("-- %d messages sent, %d of them twice at the primary\n", len(s.sent), twice)
	return err
}

func (s *stage) primaryUp(up bool) error {
	verb := "stop"
	if up {
		verb = "start"
	}
	_, err := s.primary.do("systemctl " + verb + " postfix")
	return err
}
