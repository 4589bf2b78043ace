// Package maillog reads what a Postfix logs of its verdicts. A refusal is one line
// that has all of the session, as far as it had come:
//
//	NOQUEUE: reject: RCPT from mail.x.example[192.0.2.1]: 550 5.1.1 <a@b.example>: Recipient
//	address rejected: User unknown; from=<c@x.example> to=<a@b.example> proto=ESMTP helo=<x>
//
// An accepted recipient has none: the client, the sender and the recipients of a
// message come in lines of smtpd, qmgr and a delivery agent, joined by the queue ID,
// and its HELO name in none.
//
// Clients chose much of a line. Postfix puts "?" for control characters, and in a HELO
// name for blanks and angle brackets; quoted local-parts may hold anything else, also
// what looks like the rest of a line. So a line counts only if it can be read in just
// one way, and what doesn't fit is an error, never a guess.
//
// The formats are those of Postfix 3.7; the time stamps are syslog's, RFC 3339's, or
// the journal's JSON.
package maillog

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// MaxLine bounds a line: Postfix's own are cut at 2,000 octets or so.
const MaxLine = 8 << 10

// Kind is what a line says.
type Kind uint8

const (
	None       Kind = iota // nothing that matters here
	Connected              // a session began
	Refused                // a verdict
	Client                 // a message's client; its first recipient is accepted
	Sender                 // a message's sender: it is in the queue
	Recipient              // one of its recipients, as the client gave it
	Removed                // the message has left the queue
	StaleTable             // Text names a table whose source is newer than its index
)

// Event is one line.
type Event struct {
	Kind   Kind
	Queue  string // ID, "" for a refusal without one
	Client envelope.Client
	// Submitted: the client logged in, or passed the message on for another one.
	Submitted bool
	At        policy.Stage // of a refusal
	Reply     envelope.Reply
	From      envelope.ReversePath
	To        envelope.ForwardPath
	HasTo     bool
	Screened  bool // postscreen refused
	Text      string
}

var (
	errRead   = errors.New("the line can't be read")
	errFields = errors.New("the line can be read in no way, or in more than one")
)

// Line splits a line of a log file into program and message. ok is false if it has
// no such form.
func Line(line string) (program, message string, ok bool) {
	n := 2 // time and host
	if line == "" || line[0] < '0' || line[0] > '9' {
		n = 4 // month, day, time, host
	}
	rest := line
	for range n {
		i := strings.IndexByte(rest, ' ')
		if i < 0 {
			return "", "", false
		}
		rest = strings.TrimLeft(rest[i:], " ")
	}
	tag, message, ok := strings.Cut(rest, ": ")
	program, pid, isPid := strings.Cut(tag, "[")
	if _, err := strconv.ParseUint(strings.TrimSuffix(pid, "]"), 10, 32); !ok || !isPid || err != nil {
		return "", "", false
	}
	return program, message, true
}

// Journal does the same for an entry of `journalctl -o json`. The journal gives
// octets that aren't UTF-8 as a list of numbers.
func Journal(entry []byte) (program, message string, ok bool) {
	var e struct {
		Program string          `json:"SYSLOG_IDENTIFIER"`
		Message json.RawMessage `json:"MESSAGE"`
	}
	if json.Unmarshal(entry, &e) != nil || e.Program == "" {
		return "", "", false
	}
	if json.Unmarshal(e.Message, &message) == nil {
		return e.Program, message, message != ""
	}
	var octets []uint8
	var numbers []int
	if json.Unmarshal(e.Message, &numbers) != nil {
		return "", "", false
	}
	for _, n := range numbers {
		octets = append(octets, uint8(n))
	}
	return e.Program, string(octets), len(octets) > 0
}

// Names are the syslog_name of the service whose verdicts count, and of the
// postscreen before it.
type Names struct{ SMTPD, Postscreen string }

// Read reads a message of a program. An error says that it is one that matters, and
// unreadable.
func (n Names) Read(program, message string) (Event, error) {
	name, daemon := "", program
	if i := strings.LastIndexByte(program, '/'); i >= 0 {
		name, daemon = program[:i], program[i+1:]
	}
	switch daemon {
	case "smtpd":
		if name == n.SMTPD {
			return readSMTPD(message)
		}
	case "postscreen":
		if name == n.Postscreen {
			return readPostscreen(message)
		}
	case "qmgr":
		return readQmgr(message)
	case "cleanup", "bounce", "master", "postlogd", "anvil", "scache", "tlsproxy", "proxymap":
	default:
		return readDelivery(message)
	}
	return Event{}, nil
}

func readSMTPD(m string) (Event, error) {
	if strings.HasPrefix(m, "connect from ") {
		return Event{Kind: Connected}, nil
	}
	if table, ok := strings.CutPrefix(m, "warning: database "); ok {
		name, source, ok := strings.Cut(table, " is older than source file ")
		if !ok {
			return Event{}, nil
		}
		return Event{Kind: StaleTable, Text: name + " is older than " + source}, nil
	}
	id, rest, ok := strings.Cut(m, ": ")
	if !ok || !isQueueID(id) {
		return Event{}, nil
	}
	if of, ok := strings.CutPrefix(rest, "client="); ok {
		c, attrs, err := readClient(of, ",")
		return Event{Kind: Client, Queue: id, Client: c, Submitted: strings.Contains(attrs, "sasl_") || strings.Contains(attrs, "orig_client=")}, err
	}
	return readRefusal(id, rest)
}

func readPostscreen(m string) (Event, error) {
	rest, ok := strings.CutPrefix(m, "NOQUEUE: ")
	if !ok || strings.HasPrefix(rest, "reject: CONNECT ") { // too many clients
		return Event{}, nil
	}
	e, err := readRefusal("NOQUEUE", rest)
	e.Screened = e.Kind == Refused
	return e, err
}

func isQueueID(s string) bool {
	if s == "NOQUEUE" {
		return true
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return len(s) >= 6 && len(s) <= 32
}

// stages are the words for them.
var stages = map[string]policy.Stage{
	"CONNECT": policy.Connect, "XCLIENT": policy.Connect, "HELO": policy.Helo, "EHLO": policy.Helo, "MAIL": policy.Mail, "RCPT": policy.Rcpt,
	"DATA": policy.Data, "BDAT": policy.Data, "END-OF-MESSAGE": policy.EndOfData,
}

// readRefusal reads "reject: RCPT from ...". A reject_warning is no verdict, nor is
// what a recipient's mail is to do later: hold, filter, redirect.
func readRefusal(id, rest string) (Event, error) {
	what, rest, ok := strings.Cut(rest, ": ")
	if !ok || what != "reject" && what != "milter-reject" {
		return Event{}, nil
	}
	stage, rest, ok := strings.Cut(rest, " from ")
	at, known := stages[stage]
	if !ok {
		return Event{}, errRead
	}
	if !known { // VRFY, ETRN
		return Event{}, nil
	}
	c, rest, err := readClient(rest, ": ")
	if err != nil {
		return Event{}, err
	}
	e := Event{Kind: Refused, At: at, Client: c}
	if id != "NOQUEUE" {
		e.Queue = id
	}
	text, err := e.readFields(rest)
	if err != nil {
		return Event{}, err
	}
	e.Reply, err = readReply(text)
	return e, err
}

func readReply(s string) (r envelope.Reply, err error) {
	code, text, _ := strings.Cut(s, " ")
	if r.Code, err = strconv.Atoi(code); err != nil || r.Code < 400 || r.Code > 599 {
		return r, errRead
	}
	if r.Text = text; len(text) > 4 && text[1] == '.' && (text[0] == '4' || text[0] == '5') {
		r.Enhanced, r.Text, _ = strings.Cut(text, " ")
	}
	return r, nil
}

// readClient reads "name[address]" or "[address]", with ":port" perhaps, up to end or
// the end of the line.
func readClient(s, end string) (c envelope.Client, rest string, err error) {
	name, after, ok := strings.Cut(s, "[")
	addr, after, closed := strings.Cut(after, "]")
	if !ok || !closed || len(name) > 255 || strings.ContainsAny(name, " <>:;") {
		return c, "", errRead
	}
	if c.Addr, err = netip.ParseAddr(addr); err != nil {
		return c, "", errRead
	}
	c.Addr = c.Addr.Unmap()
	if name != "" && name != "unknown" {
		c.Name, c.ReverseName = name, name
		c.NameStatus, c.ReverseStatus = envelope.NameOK, envelope.NameOK
	}
	if port, ok := strings.CutPrefix(after, ":"); ok && port != "" && port[0] >= '0' && port[0] <= '9' {
		after = strings.TrimLeft(port, "0123456789")
	}
	if after == "" {
		return c, "", nil
	}
	rest, ok = strings.CutPrefix(after, end)
	if !ok {
		return c, "", errRead
	}
	return c, rest, nil
}

// readFields reads "text; from=<> to=<> proto=ESMTP helo=<>", where the text may hold
// the like: there must be one place from where the rest of the line is just that.
func (e *Event) readFields(s string) (text string, err error) {
	found := false
	for i := 0; ; {
		n := strings.Index(s[i:], "; ")
		if n < 0 {
			break
		}
		at := i + n
		i = at + 2
		if !strings.HasPrefix(s[i:], "from=<") && !strings.HasPrefix(s[i:], "proto=") {
			continue
		}
		try := *e
		if try.fields(s[i:]) != nil {
			continue
		}
		if found {
			return "", errFields
		}
		found, text, *e = true, s[:at], try
	}
	if !found {
		return "", errFields
	}
	return text, nil
}

// fields reads the fields and nothing else.
func (e *Event) fields(s string) (err error) {
	sep := func() { s = strings.TrimPrefix(strings.TrimPrefix(s, ","), " ") }
	if path, rest, ok := angled(s, "from="); ok {
		if s = rest; path != "" {
			if e.From, _, err = envelope.ParseReversePath("<" + path + ">"); err != nil {
				return err
			}
		}
		sep()
	}
	if path, rest, ok := angled(s, "to="); ok {
		s, e.HasTo = rest, true
		if e.To, _, err = envelope.ParseForwardPath("<" + path + ">"); err != nil {
			return err
		}
		sep()
	}
	if rest, ok := strings.CutPrefix(s, "proto="); ok {
		s = strings.TrimLeft(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
		e.Client.Protocol = rest[:len(rest)-len(s)]
		sep()
	}
	if helo, ok := strings.CutPrefix(s, "helo=<"); ok {
		if e.Client.Helo, s, ok = strings.Cut(helo, ">"); !ok || len(e.Client.Helo) > 512 {
			return errFields
		}
	}
	if s != "" {
		return errFields
	}
	return nil
}

// angled cuts "name=<path>" off, where the path may have a quoted local-part.
func angled(s, name string) (path, rest string, ok bool) {
	s, ok = strings.CutPrefix(s, name+"<")
	quoted := false
	for i := 0; ok && i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == '>' && !quoted:
			return s[:i], s[i+1:], true
		}
	}
	return "", "", false
}

func readQmgr(m string) (e Event, err error) {
	id, rest, ok := strings.Cut(m, ": ")
	if !ok || !isQueueID(id) {
		return e, nil
	}
	if rest == "removed" {
		return Event{Kind: Removed, Queue: id}, nil
	}
	path, rest, ok := angled(rest, "from=")
	if !ok || !strings.HasPrefix(rest, ", size=") {
		return e, nil
	}
	e = Event{Kind: Sender, Queue: id}
	if path != "" {
		e.From, _, err = envelope.ParseReversePath("<" + path + ">")
	}
	return e, err
}

// readDelivery reads "ID: to=<expanded>, orig_to=<as given>, relay=...". The lines of
// probes, verify(8)'s, are of messages that no client brought.
func readDelivery(m string) (e Event, err error) {
	id, rest, ok := strings.Cut(m, ": ")
	if !ok || !isQueueID(id) {
		return e, nil
	}
	to, rest, ok := angled(rest, "to=")
	if !ok {
		return e, nil
	}
	if given, after, ok := angled(rest, ", orig_to="); ok {
		to, rest = given, after
	}
	if !strings.HasPrefix(rest, ", relay=") {
		return e, nil
	}
	e = Event{Kind: Recipient, Queue: id, HasTo: true}
	e.To, _, err = envelope.ParseForwardPath("<" + to + ">")
	return e, err
}
