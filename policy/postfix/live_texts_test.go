package postfix_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
)

// liveTexts are values of an access table, each with what could spoil a reply.
var liveTexts = []string{
	"REJECT für dich nicht <hier> \"nie\"", "REJECT latin1 \xfc\xe9 ends", "REJECT run \xff\xfe\xff.", "REJECT \xe2\x82 cut short \xe2\x82\xac", "REJECT tab\there",
	"REJECT c1 \xc2\x85 and \xc0\x80 too long", "REJECT del \x7f bell \x07.", "550 <not> a %s %n\\format $name ${name}", "450 4.7.8  two  spaces  ",
	"REJECT 5.7.9 own code", "REJECT 4.7.9 wrong class", "550 5.1.1 one", "550 5.2.2 two", "554 5.5.5.5 no code", "REJECT " + strings.Repeat("long ", 110), "REJECT " + strings.Repeat("é", 300),
	"DEFER ünder", "DEFER_IF_PERMIT  spät <er>", "421 4.7.0 go <away>", "521 no", "REJECT\tafter a tab", "reject lower", "Reject, comma", "554,5.7.1 comma", "599 5.9.9 top", "REJECT :colon: x", "550", "450\t4.1.1\ttabs",
	"550-dash", "5500 x",
}

// TestTextsLikePostfix compares whole replies, octet by octet.
func TestTextsLikePostfix(t *testing.T) {
	for name, extra := range map[string]string{"utf8": "", "octets": "smtputf8_enable = no\n", "soft": "soft_bounce = yes\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table := ""
			for n, text := range liveTexts {
				table += fmt.Sprintf("u%d@mailbox.example %s\n", n, text)
			}
			addr, src := startPostfix(t, "smtpd_client_restrictions =\nsmtpd_sender_restrictions =\n"+
				"smtpd_recipient_restrictions = check_recipient_access hash:@DIR@/texts.map, reject_unauth_destination\n"+extra, map[string]string{"texts.map": table})
			spec, _ := load(t, src)
			snap, err := policy.Compile(spec)
			if err != nil {
				t.Fatal(err)
			}
			for n, text := range liveTexts {
				rcpt := fmt.Sprintf("u%d@mailbox.example", n)
				const line = 510 // beyond it, Postfix goes on
				got, want := textOf(t, snap, rcpt), liveText(t, addr, rcpt)
				if got != want && !(len(want) > line && len(got) > line-4 && strings.HasPrefix(want, got)) {
					t.Errorf("%q:\n  Postfix %q\n       we %q", text, want, got)
				}
			}
		})
	}
}

func liveText(t *testing.T, addr, rcpt string) string {
	t.Helper()
	c := dialLive(t, addr)
	defer c.Close()
	c.greet(t, "10.200.1.1", "ok.example")
	c.say("MAIL FROM:<x@sender.example>")
	fmt.Fprintf(c, "RCPT TO:<%s>\r\n", rcpt)
	reply, err := c.r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(reply, "\r\n")
}

func textOf(t *testing.T, snap *policy.Snapshot, rcpt string) string {
	t.Helper()
	ctx := context.Background()
	s := snap.Session(&testmx.MapResolver{}, envelope.Client{Addr: netip.MustParseAddr("10.200.1.1"), Name: "unknown", ReverseName: "unknown"})
	defer s.Close()
	s.Connect(ctx)
	s.Helo(ctx, "ok.example")
	from, _, _ := envelope.ParseReversePath("<x@sender.example>")
	s.Mail(ctx, from, policy.MailParams{})
	to, _, err := envelope.ParseForwardPath("<" + rcpt + ">")
	if err != nil {
		t.Fatal(err)
	}
	r := s.Rcpt(ctx, to).Reply
	return fmt.Sprintf("%d %s %s", r.Code, r.Enhanced, r.Text)
}
