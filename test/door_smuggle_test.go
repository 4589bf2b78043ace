package test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// set puts lines of TOML into a section of the configuration.
func (s *secondary) set(section, lines string) {
	s.t.Helper()
	head := "[" + section + "]\n"
	conf := readFile(s.t, s.path("understudy.toml"))
	if strings.Count(conf, head) != 1 {
		s.t.Fatalf("the configuration has no one section %s", section)
	}
	write(s.t, s.path("understudy.toml"), strings.Replace(conf, head, head+lines+"\n", 1))
}

// Line ends, true and false, as they stand around a dot in a smuggled mail.
var lineEnds = []string{"\n", "\r", "\r\n", "\r\r\n", "\r\n\x00", "\n\r"}

// seams are all pairs of line ends around a dot, the genuine one apart, and
// dots that only look like one.
func seams() []string {
	var all []string
	for _, before := range lineEnds {
		for _, after := range lineEnds {
			if s := before + "." + after; !strings.Contains("x"+s, "\r\n.\r\n") {
				all = append(all, s)
			}
		}
	}
	return append(all, "\r\n..\r\n", "\r\n. \r\n", "\r\n .\r\n", "\r\n\t.\r\n", "\u0085.\u0085", "\u2028.\u2028", "\v.\v", "\f.\f")
}

// smuggle sends a mail whose text holds seam and a second mail behind it, and
// returns how many mails the server said it took. The write that holds the
// seam is cut in two behind split octets of it; -1 leaves it whole.
func smuggle(t *testing.T, addr, seam, subject string, split int, encrypt bool) (accepted int) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	if encrypt {
		for _, command := range []string{"EHLO client.sender.example\r\n", "STARTTLS\r\n", ""} {
			if _, _, err := demo.ReadReply(r); err != nil {
				t.Fatalf("STARTTLS: %v", err)
			}
			io.WriteString(c, command)
		}
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true}) // whose key it is doesn't matter here
		r = bufio.NewReader(io.MultiReader(strings.NewReader("220 TLS\r\n"), c))
	}
	second := "MAIL FROM:<evil@evil.example>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\nSubject: smuggled behind " + subject + "\r\n\r\nboo\r\n.\r\n"
	for _, part := range []string{
		"EHLO client.sender.example\r\n", "MAIL FROM:<bob@sender.example>\r\n", "RCPT TO:<alice@example.org>\r\n", "DATA\r\n",
		"Subject: " + subject + "\r\n\r\nhello" + seam + second + "QUIT\r\n",
	} {
		if _, _, err := demo.ReadReply(r); err != nil {
			t.Fatalf("%q: %v", seam, err)
		}
		cut := 0
		if i := strings.Index(part, "hello"+seam); i >= 0 && split >= 0 {
			cut = i + len("hello") + split
		}
		for _, piece := range []string{part[:cut], part[cut:]} {
			if _, err := io.WriteString(c, piece); err != nil {
				t.Fatalf("%q: %v", seam, err)
			}
		}
	}
	for {
		reply, _, err := demo.ReadReply(r)
		if err != nil {
			return accepted // hung up, after QUIT or before
		}
		if strings.Contains(reply.Text, "queued as") {
			accepted++
		}
	}
}

// TestSmuggling: behind us stands a Postfix that takes a bare LF for a line
// end, as it does by default. Whatever a client makes of its line ends, that
// Postfix receives one mail at the most, and just the one that we took.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	primary := newPostfix(t, "smtpd_forbid_bare_newline = no", "smtpd_forbid_unauth_pipelining = no")
	primary.start()
	if n := smuggle(t, primary.addr, "\n.\r\n", "control", -1, false); n != 2 {
		t.Fatalf("the primary itself took %d mails; it can't show anything unless two can be smuggled into it", n)
	}
	primary.settle()
	os.RemoveAll(filepath.Join(primary.dir, "mail/all"))
	for _, mode := range []string{"reject", "normalize"} {
		t.Run(mode, func(t *testing.T) {
			secondary := newSecondary(t, primary.addr, policyFor("alice@example.org"), "")
			secondary.set("smtp", fmt.Sprintf("bare_newline = %q", mode))
			secondary.certificate(t)
			secondary.start()
			want := map[string]bool{}
			cases := 0
			for _, seam := range seams() {
				bareLF := strings.Contains(strings.ReplaceAll(seam, "\r\n", ""), "\n")
				bad := strings.ContainsAny(strings.ReplaceAll(seam, "\r\n", ""), "\r\x00") || bareLF && mode == "reject"
				for split := -1; split <= len(seam); split++ {
					for _, encrypt := range []bool{false, true} {
						cases++
						subject := fmt.Sprintf("%s %d", mode, cases)
						n := smuggle(t, secondary.addr, seam, subject, split, encrypt)
						if want[subject] = n == 1; n > 1 || bad == want[subject] {
							t.Errorf("%q split at %d, TLS %v: %d mails taken", seam, split, encrypt, n)
						}
					}
				}
			}
			eventually(t, 30*time.Second, "the queue is empty", func() bool { return len(secondary.queue()) == 0 })
			secondary.stop()
			primary.settle()
			compareSubjects(t, primary, want)
			os.RemoveAll(filepath.Join(primary.dir, "mail/all"))
			taken := 0
			for _, ok := range want {
				if ok {
					taken++
				}
			}
			t.Logf("%d cases, %d mails taken and received", cases, taken)
		})
	}
}

var subjectLine = regexp.MustCompile(`(?m)^Subject: (.*)$`)

// compareSubjects checks that the primary received just the mails of want, each
// once. The first Subject is the mail's own, whatever its text holds.
func compareSubjects(t *testing.T, p *postfix, want map[string]bool) {
	t.Helper()
	got := map[string]int{}
	for _, d := range p.deliveries(hostname) {
		m := subjectLine.FindSubmatch(d.content)
		if m == nil {
			t.Errorf("the primary received a mail without subject: %q", d.content)
			continue
		}
		got[string(m[1])]++
		if bytes.ContainsAny(d.content, "\r\x00") {
			t.Errorf("the primary received a bare CR or NUL: %q", d.content)
		}
	}
	for subject, n := range got {
		if n != 1 || !want[subject] {
			t.Errorf("the primary received %q %d times, accepted: %v", subject, n, want[subject])
		}
	}
	for subject, taken := range want {
		if taken && got[subject] == 0 {
			t.Errorf("the primary never received %q", subject)
		}
	}
}

// TestGenuineEnd: where the end of data is genuine, there are two mails: the
// test above can see them.
func TestGenuineEnd(t *testing.T) {
	primary := newPostfix(t)
	primary.start()
	secondary := newSecondary(t, primary.addr, policyFor("alice@example.org"), "")
	secondary.start()
	if n := smuggle(t, secondary.addr, "\r\n.\r\n", "first", -1, false); n != 2 {
		t.Errorf("%d mails taken, want 2", n)
	}
	var books testmx.Ledger
	accept(t, secondary, &books, "alice@example.org")
	eventually(t, 20*time.Second, "the queue is empty", func() bool { return len(secondary.queue()) == 0 })
	secondary.stop()
	primary.settle()
	if n := len(primary.deliveries(hostname)); n != 3 {
		t.Errorf("the primary received %d mails, want 3", n)
	}
}
