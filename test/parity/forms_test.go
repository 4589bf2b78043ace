package parity

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/parity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// formsBase has domains of every class, with lists of recipients and without:
// what a form of an address resolves to shows in the reply.
const formsBase = `mydestination = local.example, localhost
local_recipient_maps = inline:{alice=x}
virtual_alias_domains = alias.example
virtual_alias_maps = inline:{alice@alias.example=x, {@all.alias.example=x}}
virtual_mailbox_domains = mailbox.example
virtual_mailbox_maps = inline:{alice@mailbox.example=x}
relay_domains = relay.example, open.example
relay_recipient_maps = inline:{alice@relay.example=x, bob@relay.example=x, {@open.example=x}}
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_limit = 100000
smtpd_junk_command_limit = 100000
recipient_delimiter = +
`

// formsOf are the ways to read addresses that are compared.
var formsOf = map[string]string{
	"default":  "",
	"no-hacks": "allow_percent_hack = no\nswap_bangpath = no\n",
	"percent":  "swap_bangpath = no\nresolve_dequoted_address = no\n",
	"bang":     "allow_percent_hack = no\nresolve_dequoted_address = yes\nallow_min_user = yes\n",
	"quoted":   "resolve_dequoted_address = no\nappend_at_myorigin = no\nappend_dot_mydomain = yes\n",
	"dots":     "append_dot_mydomain = yes\nmydestination = example.org, mx.example.org, local.example\n",
	"numeric":  "resolve_numeric_domain = yes\n",
	"strict":   "strict_rfc821_envelopes = yes\nallow_untrusted_routing = yes\n",
	"ascii":    "smtputf8_enable = no\nallow_untrusted_routing = yes\n",
	"origin":   "myorigin = relay.example\nallow_untrusted_routing = yes\nappend_at_myorigin = yes\n",
	"senders":  "smtpd_sender_restrictions = reject_non_fqdn_sender, reject_unlisted_sender\nsmtpd_delay_reject = no\n",
}

// formPieces are what odd paths are made of.
var formPieces = []string{
	"alice", "alice", "bob", "@", "@", "@", "%", "!", ":", ";", ",", ".", "..", `"`, `"`, `\`, "(", ")", "[", "]", "<", ">", " ", "-", "+", "|", "#", "'",
	"relay.example", "relay.example", "open.example", "local.example", "alias.example", "mailbox.example", "far.example", "localhost", "mx.example.org", "example.org", "host",
	"[127.0.0.1]", "127.0.0.1", "[192.0.2.1]", "[IPv6:::1]", "[IPv6:1:2:3]", "[0.1.2.3]", "[010.000.000.001]", "::1", `""`, `"a b"`, `"alice"`, `"alice@relay.example"`, `"alice%relay.example"`, `"relay.example!alice"`,
	"(c)", "@far.example:", "@far.example,@host:", "friends:", "\xc3\xbc", "\xff", "\x01", "\x7f", "\t", "\v", "x" + "-", "postmaster", "double-bounce", "owner-", "to:", "from:",
}

func oddPath(r *rand.Rand) string {
	const known = "relay.example open.example local.example alias.example mailbox.example far.example"
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	var b strings.Builder
	for range 1 + r.IntN(6) {
		b.WriteString(pick(formPieces))
	}
	odd := b.String()
	domain := pick(strings.Fields(known))
	switch r.IntN(8) {
	case 0:
		return odd
	case 1:
		return "<" + odd + ">"
	case 2, 3:
		return "<" + odd + "@" + domain + ">"
	case 4:
		return "<alice@" + odd + ">"
	case 5:
		return "<" + odd + "alice@" + domain + ">"
	case 6:
		return "<alice" + odd + domain + ">"
	}
	forms := parity.AddressForms()
	return strings.NewReplacer("{l}", pick([]string{"alice", "nobody"}), "{d}", domain, "{L}", "ALICE", "{D}", strings.ToUpper(domain), "{+}", "+",
		"{o}", pick(strings.Fields(known)), "{s}", "far.example").Replace(pick(forms))
}

// TestAddressForms plays odd paths to a real Postfix and to us, under every way
// to read addresses. FORMS sets how many each.
func TestAddressForms(t *testing.T) {
	for name, extra := range formsOf {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dns := startWorld(t)
			p := &twin{t: t, dir: tempDir(t), addr: testmx.FreeAddr()}
			run := filepath.Join(p.dir, "run")
			for _, dir := range []string{"run", "queue", "data"} {
				if err := os.Mkdir(filepath.Join(p.dir, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			writeOld(t, filepath.Join(run, "main.cf"), testmx.Override(testmx.Override(decisionsBase, formsBase)+fmt.Sprintf(testOnly, p.dir), extra))
			writeOld(t, filepath.Join(run, "master.cf"), fmt.Sprintf(testmx.MasterCF, p.addr))
			p.start(dns.Addr())
			spec, _, err := postfix.Import(t.Context(), postfix.Source{ConfigDir: run, Service: p.addr})
			if err != nil {
				t.Fatal(err)
			}
			local, stop := serve(t, spec, dns.Addr(), false)
			defer stop()
			r := rand.New(rand.NewPCG(uint64(number(t, "SEED", 1)), uint64(len(name))))
			total := number(t, "FORMS", 300)
			ours, theirs := dialForms(t, local), dialForms(t, p.dial)
			taken := 0
			for i := 0; i < total; i++ {
				line := formLine(r, i)
				want, got := theirs.say(line), ours.say(line)
				if want.code < 300 {
					taken++
				}
				if got.codes() != want.codes() {
					if why := formDeviation(line, want, got); why == "" {
						t.Errorf("%q: Postfix %s, we %s", line, want, got)
					}
				}
			}
			if taken < total/20 {
				t.Errorf("only %d of %d were taken", taken, total)
			}
		})
	}
}

func formLine(r *rand.Rand, i int) string {
	utf8 := ""
	if r.IntN(6) == 0 {
		utf8 = " SMTPUTF8"
	}
	switch {
	case i%50 == 0:
		return "RSET\nMAIL FROM:<>" + utf8
	case i%10 == 5:
		return "VRFY " + oddPath(r)
	case i%10 == 6:
		return "RSET\nMAIL FROM:" + oddPath(r) + utf8 + "\nRSET\nMAIL FROM:<>" + utf8
	}
	return "RCPT TO:" + oddPath(r)
}

// oddDomain is a domain that only Postfix can make something of.
var oddDomain = regexp.MustCompile(`@[^@]*[]:"\\() |,;<][^@]*>?$`)

// formsClient plays one line after the other.
type formsClient struct {
	t    *testing.T
	dial parity.Dialer
	net.Conn
	r *bufio.Reader
}

func dialForms(t *testing.T, dial parity.Dialer) *formsClient {
	c := &formsClient{t: t, dial: dial}
	c.again()
	t.Cleanup(func() { c.Close() })
	return c
}

func (c *formsClient) again() {
	conn, err := c.dial(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(5 * time.Minute))
	c.Conn, c.r = conn, bufio.NewReader(conn)
	c.read()
	for _, line := range []string{"XCLIENT ADDR=198.18.0.1 NAME=mail.good.example", "EHLO x.example", "MAIL FROM:<>"} {
		fmt.Fprintf(c, "%s\r\n", line)
		c.read()
	}
}

// say returns the reply to a line; of several to the one that isn't RSET's or
// sets up the next.
func (c *formsClient) say(lines string) reply {
	var got reply
	for i, line := range strings.Split(lines, "\n") {
		fmt.Fprintf(c, "%s\r\n", line)
		if r := c.read(); i < 2 {
			got = r
		}
	}
	if got.code == 999 || got.code == 421 {
		c.Close()
		c.again()
	}
	return got
}

func (c *formsClient) read() reply {
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			if err == io.EOF {
				return reply{999, "closed"}
			}
			return reply{999, err.Error()}
		}
		if line = strings.TrimRight(line, "\r\n"); len(line) < 4 || line[3] != '-' {
			code, _ := strconv.Atoi(line[:min(3, len(line))])
			return reply{code, line}
		}
	}
}

// formDeviation says why the replies to a form may differ.
func formDeviation(line string, want, got reply) string {
	switch {
	case got.codes() == "501 5.1.3 " && want.code < 300 && strings.ContainsAny(line, "\x01\x7f\v"):
		return "control characters are never let in"
	case !strings.HasPrefix(got.codes(), "501 5.1."):
	case strings.Contains(line, "\xff"):
		return "an address must be UTF-8"
	case want.code != 501 && oddDomain.MatchString(line):
		return "a domain must be one that can stand in a command"
	}
	return ""
}
