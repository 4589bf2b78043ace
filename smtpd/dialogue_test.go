package smtpd

import (
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
)

// session of a dialogue file: a line "== name | RFC section | words for equip",
// the last part only where the server isn't newServer's, then the script.
type scripted struct{ name, rfc, words, script string }

// shorthands stand for lines that many scripts begin with. Besides, "@as
// ADDRESS" is a session of that client, and TLS a handshake.
var shorthands = map[string]string{
	"@open":   "S: 220\nC: EHLO client.example\nS: 250",
	"@hello":  "C: EHLO client.example\nS: 250",
	"@mail":   "C: MAIL FROM:<bob@sender.example>\nS: 250 2.1.0",
	"@rcpt":   "C: RCPT TO:<alice@corp.example>\nS: 250 2.1.5",
	"@data":   "C: DATA\nS: 354",
	"@queued": "S: 250 2.0.0 Ok: queued as ID",
}

// long stands in scripts for text that nobody wants to read there.
var long = []string{
	"LONG", strings.Repeat("x", maxCommand),
	"KILO", strings.Repeat("h", 1000),
	"FIVE00", strings.Repeat("x", 512-len("NOOP \r\n")),
	"MOST", strings.Repeat("x", maxCommand-len("NOOP \r\n")),
	"NINE98", strings.Repeat("x", 998),
	"HUNDRED", strings.Repeat(`RCPT TO:<alice@corp.example>\r\n`, 100),
	"FIELDS", strings.Repeat(`A: b\r\n`, 1000),
	"BUFFER", strings.Repeat("x", bodyBuffer-1),
}

// TestDialogues plays test/dialogues, and counts the messages that a session
// gets accepted: one for each @queued.
func TestDialogues(t *testing.T) {
	files, err := filepath.Glob("../test/dialogues/*.smtp")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dialogues: %v", err)
	}
	certificate := tlsConfig(t)
	total := 0
	for _, file := range files {
		for _, d := range dialogues(t, file) {
			total++
			t.Run(strings.TrimSuffix(filepath.Base(file), ".smtp")+"/"+d.name, func(t *testing.T) {
				t.Parallel()
				if d.rfc == "" {
					t.Error("names no RFC")
				}
				play(t, d, certificate)
			})
		}
	}
	if total < 300 {
		t.Errorf("%d sessions; there were more", total)
	}
}

func play(t *testing.T, d scripted, certificate *tls.Config) {
	s, spool := newServer(t)
	equip(t, s, strings.Fields(d.words), certificate)
	ln := listen(t)
	stop := serve(t, s, ln)
	var c net.Conn = dial(t, ln)
	for i, part := range strings.Split(d.script, "\nTLS\n") {
		if i > 0 {
			c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		}
		testmx.Dialogue(t, c, part, long...)
	}
	c.Close()
	stop()
	if got, want := len(spool.accepted()), strings.Count(d.script, "queued as ID"); got != want {
		t.Errorf("%d messages accepted, want %d", got, want)
	}
	for _, m := range spool.accepted() {
		if dirty := unclean(m.body); dirty != "" {
			t.Errorf("accepted with %s: %q", dirty, m.body)
		}
	}
}

// dialogues reads a file of sessions.
func dialogues(t *testing.T, file string) []scripted {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []scripted
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		if head, is := strings.CutPrefix(line, "== "); is {
			part := append(strings.Split(head, " | "), "", "")
			all = append(all, scripted{name: part[0], rfc: part[1], words: part[2]})
			continue
		}
		if len(all) == 0 {
			continue // the file's introduction
		}
		if address, is := strings.CutPrefix(line, "@as "); is {
			line = "S: 220\nC: XCLIENT NAME=client.example ADDR=" + address + "\nS: 220"
		} else if text, is := shorthands[line]; is {
			line = text
		}
		all[len(all)-1].script += line + "\n"
	}
	return all
}

// equip makes the server what the words say.
func equip(t *testing.T, s *Server, words []string, certificate *tls.Config) {
	for _, word := range words {
		switch word {
		case "xclient":
			s.XClientFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		case "tls":
			s.TLS = certificate
		case "normalize":
			s.BareNewline = word
		case "few-transactions":
			s.MaxTransactions = 3
		case "harvest":
			s.MaxUnknownRecipients = 3
		case "greet-ignore", "greet-enforce", "greet-drop":
			s.GreetWait, s.GreetAction = 20*time.Second, strings.TrimPrefix(word, "greet-")
		}
	}
	snap := snapshot(t, func(spec *policy.Spec) {
		for _, word := range words {
			configure(t, spec, word)
		}
	})
	s.Policy = func() *policy.Snapshot { return snap }
	if len(words) == 1 && words[0] == "no-policy" {
		s.Policy = func() *policy.Snapshot { return nil }
	}
}

// configure makes the policy what a word says.
func configure(t *testing.T, spec *policy.Spec, word string) {
	refuse := []policy.Restriction{{Kind: "reject"}}
	switch word {
	case "undelayed":
		spec.DelayReject = false
	case "helo-required":
		spec.HeloRequired = true
	case "helo-fqdn":
		spec.Restrictions.Helo = []policy.Restriction{{Kind: "reject_non_fqdn_helo_hostname"}}
	case "refuse-data":
		spec.Restrictions.Data = refuse
	case "refuse-message":
		spec.Restrictions.EndOfData = refuse
	case "unlimited":
		spec.Limits.MessageSize = 0
	case "small":
		spec.Limits.MessageSize, spec.Limits.Recipients, spec.Limits.HardErrors, spec.Limits.JunkCommands = 1000, 2, 5, 5
		spec.Limits.Hops, spec.Limits.RcptOvershoot = 5, 1
	case "xclient", "tls", "normalize", "few-transactions", "harvest", "greet-ignore", "greet-enforce", "greet-drop", "no-policy":
	default:
		t.Fatalf("unknown server feature %q", word)
	}
}
