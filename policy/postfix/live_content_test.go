package postfix_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
)

// contentFiles are tables of header_checks(5).
var contentFiles = map[string]string{
	"header.pcre": "/^Subject:.*lottery/ REJECT no lottery\n/^Subject: (\\w+) wait/ REJECT 4.7.9 $1 is too early\n" +
		"/^Subject: 5/ REJECT 5.9.9 five\n/^X-Hold:/ HOLD for now\n/^X-Discard:/ DISCARD gone\n/^X-Ignore: .*again/ IGNORE\n" +
		"/^X-Warn:/ WARN look\n/^X-Odd:/ NOSUCHACTION x\n/^X-Folded: a\\n\\sb/ REJECT folded\nif /^(To|Cc):/\n/undisclosed/ REJECT\n!/@/ REJECT no address\nendif\n" +
		"/^X-Pass:/ PASS\n/^X-Prepend:/ PREPEND X-A: b\n/^X-To:/ REDIRECT x@mailbox.example\n/^X-Filter:/ FILTER smtp:x\n",
	"mime.regexp": "/^Content-Disposition:.*name=\"?[^\"]*\\.(exe|scr)/ REJECT attachment $1\n/^Content-Type: image/ REJECT\n",
	"nested.pcre": "/^Subject: inner/ REJECT 5.7.5 nested\n",
	"body.pcre":   "~^viagra~ REJECT pills\n/^begin \\d+ (\\S+)/ REJECT $1\n/^hold$/ HOLD\n/^gone$/ DISCARD\n/^x{2048}$/ REJECT a long line\n/^x{100}z$/ REJECT its end\n/^late/ REJECT 4.3.9 late\n",
	"filter.pcre": "/^EHLO +(.*)$/ EHLO [$1]\n",
}

const contentMain = "header_checks = pcre:@DIR@/header.pcre\nmime_header_checks = regexp:@DIR@/mime.regexp\n" +
	"nested_header_checks = pcre:@DIR@/nested.pcre\nbody_checks = pcre:@DIR@/body.pcre\n" +
	"smtpd_client_restrictions =\nsmtpd_helo_restrictions =\nsmtpd_sender_restrictions =\nsmtpd_recipient_restrictions =\n"

// contentMessages are what is sent; the lines end in LF here.
func contentMessages() map[string]string {
	multi := func(inside string) string {
		return "Subject: m\nMIME-Version: 1.0\nContent-Type: multipart/mixed;\n boundary=\"b\"\n\npreamble\n--b\n" + inside + "\n--b--\nepilogue\n"
	}
	m := map[string]string{
		"plain": "Subject: hello\n\nbody\n", "empty": "", "no header": "\nbody\n", "body only": "just text\nviagra\n",
		"lottery": "Subject: Lottery\n\nx\n", "lottery folded": "From: a@b\nSubject: win the\n LOTTERY\n\nx\n", "lottery in the body": "Subject: x\n\nSubject: lottery\n",
		"early": "Subject: monday wait\n\nx\n", "five": "Subject: 5\n\nx\n", "hold": "X-Hold: x\n\nx\n", "hold, then lottery": "X-Hold: x\nSubject: lottery\n\nx\n",
		"discard, then lottery": "X-Discard: x\nSubject: lottery\n\nx\n", "lottery, then discard": "Subject: lottery\nX-Discard: x\n\nx\n",
		"ignore": "X-Ignore: again\nSubject: x\n\nx\n", "warn": "X-Warn: x\nSubject: lottery\n\nx\n", "odd": "X-Odd: x\n\nviagra\n",
		"folded": "X-Folded: a\n b\n\nx\n", "folded with a tab": "X-Folded: a\n\tb\n\nx\n", "cc": "To: a@b\nCc: nobody\n\nx\n", "to": "To: undisclosed-recipients:;\n\nx\n",
		"pass": "X-Pass: x\nSubject: lottery\n\nviagra\n", "prepend": "X-Prepend: x\n\nviagra\n", "redirect": "X-To: x\nSubject: lottery\n\nviagra\n", "filter": "X-Filter: x\n\nviagra\n",
		"attachment":            multi("Content-Type: application/octet-stream\nContent-Disposition: attachment; filename=\"a.exe\"\n\nMZ"),
		"attachment folded":     multi("Content-Disposition: attachment;\n filename=a.scr\n\nMZ"),
		"body in a part":        multi("Content-Type: text/plain\n\nviagra"),
		"preamble":              strings.Replace(multi("\nx"), "preamble", "viagra", 1),
		"epilogue":              strings.Replace(multi("\nx"), "epilogue", "viagra", 1),
		"image at the top":      "Content-Type: image/png\n\nx\n",
		"nested":                multi("Content-Type: message/rfc822\n\nSubject: inner\n\nx"),
		"nested lottery":        multi("Content-Type: message/rfc822\n\nSubject: lottery\n\nx"),
		"nested image":          multi("Content-Type: message/rfc822\n\nContent-Type: image/png\n\nx"),
		"multipart in a part":   multi("Content-Type: multipart/mixed; boundary=c\n\n--c\nContent-Type: image/png\n\nx\n--c--"),
		"digest":                "Content-Type: multipart/digest; boundary=b\n\n--b\n\nSubject: inner\n\nx\n--b--\n",
		"wrong boundary":        "Content-Type: multipart/mixed; boundary=c\n\n--b\nContent-Type: image/png\n\nx\n--b--\n",
		"uuencoded":             "Subject: x\n\nbegin 644 a.exe\nM\n",
		"hold in the body":      "Subject: x\n\nhold\nviagra\n",
		"discard in the body":   "Subject: x\n\ngone\nviagra\n",
		"long line":             "Subject: x\n\n" + strings.Repeat("x", 2048) + "\n",
		"longer line":           "Subject: x\n\n" + strings.Repeat("x", 2148) + "z\n",
		"shorter line":          "Subject: x\n\n" + strings.Repeat("x", 2047) + "\n",
		"late":                  "Subject: x\n\n" + strings.Repeat(strings.Repeat("y", 79)+"\n", 600) + "late\n",
		"too late":              "Subject: x\n\n" + strings.Repeat(strings.Repeat("y", 79)+"\n", 700) + "late\n",
		"at the limit":          "Subject: x\n\n" + strings.Repeat(strings.Repeat("y", 98)+"\n", 517) + "0123456789abcde\nlate\n",
		"before the limit":      "Subject: x\n\n" + strings.Repeat(strings.Repeat("y", 98)+"\n", 517) + "0123456789abcd\nlate\n",
		"late in a second part": multi("\n" + strings.Repeat(strings.Repeat("y", 79)+"\n", 700) + "--b\n\nlate"),
		"long header":           "Subject: " + strings.Repeat("y", 200) + " lottery\n\nx\n",
		"long folded header":    "Subject: " + strings.Repeat("y", 120) + "\n more\n lottery\n\nx\n",
		"huge header":           "Subject: x\n" + strings.Repeat(" "+strings.Repeat("y", 998)+"\n", 62) + " lottery\n\nx\n",
		"boundary's beginning":  "Content-Type: multipart/mixed; boundary=bc\n\n--bd\nContent-Type: image/png\n\nx\n",
		"multiparts in parts":   multi("Content-Type: multipart/mixed; boundary=c\n\n--c\nContent-Type: multipart/mixed; boundary=d\n\n--d\nContent-Type: multipart/mixed; boundary=e\n\n--e\n\nx\n--e--\n--d--\n--c--"),
		"49 hops":               strings.Repeat("Received: from a by b\n", 48) + "Subject: x\n\nx\n",
		"50 hops":               strings.Repeat("Received: from a by b\n", 50) + "Subject: x\n\nx\n",
		"hops and lottery":      "Subject: lottery\n" + strings.Repeat("Received: from a by b\n", 50) + "\nx\n",
		"From line":             "From someone Mon\nSubject: lottery\n\nx\n", "space first": " Subject: lottery\n\nviagra\n", "odd header": "no colon\nSubject: lottery\n\nx\n",
		"space before the colon": "Subject : lottery\n\nx\n", "8 bit": "Subject: \xe9t\xe9 lottery\n\nx\n", "dots": "Subject: x\n\n.\n..viagra\n.viagra\n",
	}
	return m
}

// pieces are lines of messages that have a meaning to one configuration or
// another, or nearly have.
var pieces = []string{
	"", "", "", "fine", "\xfc", "--b", "--b--", "--bc", "--c", "--c--", "--\xfc", "\a", "x\x01y", "--\x01b",
	"Content-Type: multipart/mixed; boundary=b", "Content-Type: multipart/mixed;\n boundary=\"b\"; boundary=c", "Content-Type: multipart/digest; boundary=c",
	"Content-Type: message/rfc822", "Content-Type: message/global", "Content-Type: message/partial", "Content-Type: text/plain", "Content-Type: image/png",
	"Content-Type: (x) message / rfc822", "Content-Type:", "Content-Type: multi\x01part/mixed; boundary=b", "Content-Type : multipart/mixed; boundary=\"\\b\"",
	"Content-Transfer-Encoding: 8bit", "Content-Transfer-Encoding: 7bit", "Content-Transfer-Encoding: binary", "Content-Transfer-Encoding:\n base64",
	"Content-Transfer-Encoding: quoted-printable", "Content-Transfer-Encoding: \"8bit\"", "Content-Transfer-Encoding: 8bit; 7bit", "content-transfer-encoding : 8BIT",
	"Subject: fine", "Subject: lottery", "Subject: \xfc", "Subject: inner", "Subject:\n\tfolded", "Subject: \a", "X-Hold: x", "X-Pass: x", "X-Discard: x",
	"X-Ignore: again", "X-To: x", " folded", "\t\xfc", "From x", ">From \xfc", "viagra", "vi\x01agra", "gone", "no header", "Received: from a by b",
	"Subject: " + strings.Repeat("y", 90), " " + strings.Repeat("y", 2100) + "\xfc", strings.Repeat("-", 2048) + "\xfc",
}

// randomMessage joins pieces, most often such as begin a header first.
func randomMessage(r *rand.Rand) string {
	var b strings.Builder
	for n := range 2 + r.IntN(14) {
		piece := pieces[r.IntN(len(pieces))]
		for range 2 {
			if n < 3 && !strings.Contains(piece, ":") {
				piece = pieces[r.IntN(len(pieces))]
			}
		}
		b.WriteString(piece + "\n")
	}
	return b.String()
}

// TestContentLikePostfix sends messages to a real Postfix, and writes them to
// what was imported from its configuration.
func TestContentLikePostfix(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("Postfix's master needs root: run the tests as root, as .ci/run does")
	}
	for name, extra := range map[string]string{
		"all":         contentMain + "smtpd_command_filter = pcre:@DIR@/filter.pcre\n",
		"header only": contentMain + "mime_header_checks = $header_checks\nnested_header_checks = $header_checks\nbody_checks =\n",
		"body only":   contentMain + "header_checks =\nmime_header_checks =\nnested_header_checks =\nbody_checks_size_limit = 1000\n",
		"no limit":    contentMain + "body_checks_size_limit = 0\ndisable_mime_input_processing = yes\n",
		"constant":    contentMain + "body_checks = static:{WARN all}, pcre:@DIR@/body.pcre\n",
		"narrow":      contentMain + "mime_nesting_limit = 1\nmime_boundary_length_limit = 1\nheader_size_limit = 100\nhopcount_limit = 10\nline_length_limit = 2000\n",
		"milters":     contentMain + "non_smtpd_milters = inet:127.0.0.1:9\nmilter_default_action = accept\n",
		"octets":      contentMain + "message_reject_characters = \\a\\001\n",
		"stripped":    contentMain + "message_reject_characters = \\a\nmessage_strip_characters = \\001y\n",
		"strict":      contentMain + "strict_7bit_headers = yes\nstrict_8bitmime_body = yes\nstrict_mime_encoding_domain = yes\nmime_nesting_limit = 2\nheader_size_limit = 100\n",
		"8bit":        contentMain + "strict_8bitmime = yes\nheader_checks =\nmime_header_checks =\nnested_header_checks =\nbody_checks =\n",
		"encoding":    contentMain + "strict_mime_encoding_domain = yes\nmessage_strip_characters = \\001\n",
		"switched off": contentMain + "strict_8bitmime = yes\nstrict_mime_encoding_domain = yes\nmessage_reject_characters = \\a\nreceive_override_options = no_header_body_checks, no_unknown_recipient_checks\n" +
			"smtpd_recipient_restrictions = reject_unlisted_recipient\nsmtpd_sender_restrictions = reject_unlisted_sender\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			compareContent(t, extra)
		})
	}
}

func compareContent(t *testing.T, extra string) {
	addr, src := startPostfix(t, extra)
	spec, _ := load(t, src)
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	messages := contentMessages()
	r := rand.New(rand.NewPCG(4711, 0))
	for range 300 {
		text := randomMessage(r)
		messages[strconv.Quote(text)] = text
	}
	refused := 0
	for name, text := range messages {
		who := "alice@mailbox.example"
		if strings.Contains(extra, "no_unknown_recipient_checks") {
			who = "nobody@mailbox.example"
		}
		want, got := sendLive(t, addr, who, text), sendEngine(t, snap, who, text)
		if want[0] != '2' {
			refused++
		}
		if got != want {
			t.Errorf("%s: Postfix %s, we %s", name, want, got)
		}
	}
	matter(t, src, extra, func(snap *policy.Snapshot) (all []string) {
		for _, name := range slices.Sorted(maps.Keys(contentMessages())) {
			all = append(all, sendEngine(t, snap, "alice@mailbox.example", contentMessages()[name]), sendEngine(t, snap, "nobody@mailbox.example", "x"))
		}
		return all
	})
	t.Logf("%d messages, %d of them refused", len(messages), refused)
	if refused == 0 || refused > len(messages)-5 {
		t.Errorf("%d refused: the messages say little", refused)
	}
}

// sendLive sends from an address to itself. It returns the reply to the message, or what kept it from being sent.
func sendLive(t *testing.T, addr, who, text string) string {
	t.Helper()
	c := dialLive(t, addr)
	defer c.Close()
	c.greet(t, "192.0.2.77", "client.example")
	for _, command := range []string{"MAIL FROM:<" + who + ">", "RCPT TO:<" + who + ">", "DATA"} {
		if got := c.say(command); got[0] != '2' && got[0] != '3' {
			return got
		}
	}
	text = strings.ReplaceAll("\n"+text, "\n.", "\n..")[1:]
	fmt.Fprint(c, strings.ReplaceAll(text, "\n", "\r\n"))
	return c.say(".")
}

func sendEngine(t *testing.T, snap *policy.Snapshot, who, text string) string {
	t.Helper()
	ctx := context.Background()
	s := snap.Session(&testmx.MapResolver{}, envelope.Client{Addr: netip.MustParseAddr("192.0.2.77"), Name: "unknown", ReverseName: "unknown"})
	defer s.Close()
	from, _, err := envelope.ParseReversePath("<" + who + ">")
	if err != nil {
		t.Fatal(err)
	}
	to, _, err := envelope.ParseForwardPath("<" + who + ">")
	if err != nil {
		t.Fatal(err)
	}
	_, helo, _ := strings.Cut(s.Command("EHLO client.example"), " ")
	for _, judge := range []func() policy.Verdict{
		func() policy.Verdict { return s.Connect(ctx) },
		func() policy.Verdict { return s.Helo(ctx, helo) },
		func() policy.Verdict { return s.Mail(ctx, from, policy.MailParams{}) },
		func() policy.Verdict { return s.Rcpt(ctx, to) },
		func() policy.Verdict { return s.Data(ctx) },
		func() policy.Verdict {
			b := []byte(strings.ReplaceAll(text, "\n", "\r\n"))
			if w := s.Content(); w != nil {
				w.Write(b)
			}
			header, _, _ := strings.Cut("\n"+text, "\n\n")
			return s.Message(ctx, policy.Message{Size: int64(len(b)), Hops: strings.Count(header, "\nReceived:")})
		},
	} {
		if v := judge(); v.Action == policy.Reject || v.Action == policy.Defer {
			return fmt.Sprintf("%d %s", v.Reply.Code, v.Reply.Enhanced)
		}
	}
	return "250 2.0.0"
}
