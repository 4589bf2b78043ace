package testmx

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
)

// Milter is a filter that does what its sessions tell it to, wrong things
// included. It is asked by the milter protocol, which it speaks octet by octet:
// a library would keep it from misbehaving.
//
// What it does is in the session itself, as ACTION (see answer):
//
//	connect  the address 192.0.2.N and 2001:db8::N: the N-th of Actions, else c
//	HELO     the name ACTION.helo.test, "_" for spaces
//	MAIL     the local-part ACTION
//	RCPT     the local-part ACTION
//	DATA     a local-part data-ACTION of MAIL
//	unknown  the command XX-ACTION
//	message  fields "X-header:", "X-eoh:", "X-body:" and "X-eom:", with an ACTION
//
// An ACTION is obeyed by the milter whose Name begins it, "B:" for instance, or
// by each if none is named.
type Milter struct {
	Name string
	// Version, Flags and Macros are its part of the negotiation; Macros by the
	// number of the event.
	Version uint32
	Flags   uint32
	Macros  map[uint32]string
	// Actions are the answers to a connection.
	Actions []string

	ln net.Listener

	mu   sync.Mutex // guards the rest
	cond *sync.Cond
	open int
	logs []*strings.Builder
}

// Start listens at addr. Its owner must Close it.
func (m *Milter) Start(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	m.ln, m.cond = ln, sync.NewCond(&m.mu)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			log := &strings.Builder{}
			m.mu.Lock()
			m.open++
			m.logs = append(m.logs, log)
			m.mu.Unlock()
			go func() {
				defer func() {
					_ = c.Close()
					m.mu.Lock()
					m.open--
					m.cond.Broadcast()
					m.mu.Unlock()
				}()
				s := milterSession{m: m, c: c, r: bufio.NewReader(c), log: log, todo: map[string]string{}}
				s.serve()
			}()
		}
	}()
	return nil
}

// Close stops listening. Connections end when their other side ends them.
func (m *Milter) Close() { _ = m.ln.Close() }

// Heard waits until so many have connected since the last call, at least, and
// all of them have gone. It returns what each said.
func (m *Milter) Heard(atLeast int) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.open > 0 || len(m.logs) < atLeast {
		m.cond.Wait()
	}
	var all []string
	for _, l := range m.logs {
		all = append(all, l.String())
	}
	m.logs = nil
	return all
}

type milterSession struct {
	m    *Milter
	c    net.Conn
	r    *bufio.Reader
	log  *strings.Builder
	todo map[string]string // actions that the session asked for, by event
}

// send writes a packet. What fails is met by the next read.
func (s *milterSession) send(letter byte, data string) {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(data)+1))
	_, _ = s.c.Write(append(append(b, letter), data...))
}

func (s *milterSession) serve() {
	for {
		var head [5]byte
		if _, err := io.ReadFull(s.r, head[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(head[:])
		if n == 0 || n > 1<<20 {
			fmt.Fprintf(s.log, "bad length %d\n", n)
			return
		}
		data := make([]byte, n-1)
		if _, err := io.ReadFull(s.r, data); err != nil {
			return
		}
		if !s.event(head[4], string(data)) {
			return
		}
	}
}

// event answers one packet; false hangs up.
func (s *milterSession) event(letter byte, data string) bool {
	args := strings.Split(strings.TrimSuffix(data, "\x00"), "\x00")
	if letter == 'C' {
		if name, rest, _ := strings.Cut(data, "\x00"); len(rest) > 3 {
			args = []string{name, rest[:1], strings.TrimSuffix(rest[3:], "\x00")} // without the port
		}
	}
	s.note(letter, data, args)
	action := ""
	silent := map[byte]uint32{'C': 0x1000, 'H': 0x2000, 'M': 0x4000, 'R': 0x8000, 'T': 0x10000, 'U': 0x20000, 'N': 0x40000, 'B': 0x80000, 'L': 0x80}[letter]
	switch letter {
	case 'O':
		s.negotiate(data)
		return true
	case 'A':
		s.todo = map[string]string{}
		return true
	case 'Q', 'K':
		return false
	case 'C':
		action = s.connected(args[len(args)-1])
	case 'H':
		action, _, _ = strings.Cut(args[0], ".helo.test")
		action = strings.ReplaceAll(action, "_", " ")
	case 'M', 'R':
		local, _, _ := strings.Cut(strings.Trim(args[0], "<>"), "@")
		action = strings.Trim(local, `"`)
		if later, is := strings.CutPrefix(action, "data-"); is {
			s.todo["data"], action = later, ""
		}
	case 'T':
		action = s.todo["data"]
	case 'U':
		action = strings.TrimPrefix(args[0], "XX-")
	case 'L':
		if event, is := strings.CutPrefix(args[0], "X-"); is && len(args) > 1 {
			s.todo[event] = strings.TrimSpace(args[1])
		}
		action = s.todo["header"]
	case 'N':
		action = s.todo["eoh"]
	case 'B':
		action = s.todo["body"]
	case 'E':
		action = s.todo["eom"]
	default:
		return true
	}
	if s.m.Flags&silent != 0 {
		return true
	}
	if name, own, named := strings.Cut(action, ":"); named && len(name) == 1 {
		if action = own; name != s.m.Name {
			action = "c"
		}
	}
	return s.answer(letter, action)
}

// note writes an event to the log.
func (s *milterSession) note(letter byte, data string, args []string) {
	switch letter {
	case 'O', 'A': // the second comes more often than need be
	case 'D':
		fmt.Fprintf(s.log, "  %s\n", describe(data))
	case 'B':
		fmt.Fprintf(s.log, "B %d octets, %q\n", len(data), data[:min(len(data), 40)])
	default:
		fmt.Fprintf(s.log, "%c %q\n", letter, args)
	}
}

func (s *milterSession) connected(addr string) string {
	i := strings.LastIndexAny(addr, ".:")
	var n int
	if _, err := fmt.Sscan(addr[i+1:], &n); err != nil || n < 1 || n > len(s.m.Actions) || strings.Contains(addr, "127.0.0.1") {
		return "c"
	}
	return s.m.Actions[n-1]
}

func (s *milterSession) negotiate(data string) {
	fmt.Fprintf(s.log, "O %x\n", data)
	version := s.m.Version
	if version == 0 {
		version = 6
	}
	answer := binary.BigEndian.AppendUint32(nil, version)
	answer = binary.BigEndian.AppendUint32(answer, 0x1ff)
	answer = binary.BigEndian.AppendUint32(answer, s.m.Flags)
	for on, list := range s.m.Macros {
		answer = append(append(binary.BigEndian.AppendUint32(answer, on), list...), 0)
	}
	s.send('O', string(answer))
}

// answer does what an action says: c, a, r, t, d, s, 4 and q are the protocol's
// letters; "550 text" is a reply, "/" between its lines; what isn't known
// continues.
func (s *milterSession) answer(event byte, action string) bool {
	switch {
	case action == "hang": // until the other side gives up
		_, _ = s.r.ReadByte()
		return false
	case action == "close":
		return false
	case action == "short":
		_, _ = s.c.Write([]byte{0, 0, 0, 9, 'c'})
		return false
	case action == "zero":
		_, _ = s.c.Write([]byte{0, 0, 0, 0, 'c'})
	case action == "huge":
		_, _ = s.c.Write([]byte{0x7f, 0xff, 0xff, 0xff, 'y'})
	case action == "odd":
		s.send('!', "")
	case action == "data":
		s.send('c', "more")
	case action == "edit":
		s.send('h', "X-New\x00field\x00")
		s.send('m', "\x00\x00\x00\x01Subject\x00\x00")
		s.send('i', "\x00\x00\x00\x00X-First\x00one\x00")
		s.send('b', strings.Repeat("body\r\n", 1000))
		s.send('c', "")
	case action == "progress":
		s.send('p', "")
		s.send('p', "")
		s.send('c', "")
	case action == "q":
		s.send('q', "looks odd\x00")
		s.send('c', "")
	case action == "qr":
		s.send('q', "looks odd\x00")
		s.send('r', "")
	case len(action) > 3 && strings.Trim(action[:3], "0123456789") == "":
		s.send('y', strings.ReplaceAll(action, "/", "\r\n")+"\x00")
	case len(action) == 1 && strings.Contains("artds4", action):
		s.send(action[0], "")
	default:
		s.send('c', "")
	}
	return true
}

// describe spells macros so that two servers can be compared: their queue IDs
// and ports differ.
func describe(data string) string {
	list := strings.Split(data[1:], "\x00")
	var b strings.Builder
	fmt.Fprintf(&b, "%c", data[0])
	for i := 0; i+1 < len(list); i += 2 {
		name, value := list[i], list[i+1]
		switch strings.Trim(name, "{}") {
		case "i", "client_port", "daemon_port", "client_connections":
			value = "*"
		case "mail_mailer", "rcpt_mailer": // a test's Postfix delivers nothing
			if value != "error" {
				value = "*"
			}
		}
		fmt.Fprintf(&b, " %s=%q", name, value)
	}
	return b.String()
}
