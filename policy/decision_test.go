package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/handwritten"
)

// TestDecisions plays the sessions of testdata/decisions. A file is a txtar
// archive: "policy.toml", or "spec.json" whose fields replace NewSpec's; "dns",
// lines "type name value..." with "fail" for a name that doesn't answer, an MX
// host perhaps behind "preference:"; and
// "on_failure", when it is "defer" (Session.DeferUnanswered);
// "sessions", lines "command argument => verdict // rule"; the commands "say"
// and "teaser" are for servers, test/parity says them to two.
func TestDecisions(t *testing.T) {
	files, err := filepath.Glob("testdata/decisions/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no decision tables: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { playFile(t, file) })
	}
}

// playerOf reads an archive. Its parts are the player's bodies.
func playerOf(t *testing.T, file string) *player {
	t.Helper()
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string][]byte{}
	for _, f := range ar.Files {
		parts[f.Name] = f.Data
	}
	return &player{t: t, snap: loadParts(t, parts), r: parseDNS(t, string(parts["dns"])), bodies: parts, deferUnanswered: strings.TrimSpace(string(parts["on_failure"])) == "defer"}
}

func playFile(t *testing.T, file string) {
	p := playerOf(t, file)
	offset := strings.Count(fileBefore(t, file), "\n") + 1
	for i, line := range strings.Split(string(p.bodies["sessions"]), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		p.where = fmt.Sprintf("%s:%d", file, offset+i)
		p.line(line)
	}
	p.end()
}

// fileBefore is the text of an archive up to its sessions.
func fileBefore(t *testing.T, file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, _, found := strings.Cut(string(b), "-- sessions --\n")
	if !found {
		t.Fatalf("%s has no sessions", file)
	}
	return before + "\n"
}

func loadParts(t *testing.T, parts map[string][]byte) *policy.Snapshot {
	t.Helper()
	if b, found := parts["policy.toml"]; found {
		s, err := handwritten.Parse("policy.toml", b, func(name string) ([]byte, error) {
			b, found := parts[name]
			if !found {
				return nil, os.ErrNotExist
			}
			return b, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	spec := policy.NewSpec()
	if err := policy.StrictJSON(parts["spec.json"], spec); err != nil {
		t.Fatal(err)
	}
	s, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func parseDNS(t *testing.T, text string) *testmx.MapResolver {
	r := &testmx.MapResolver{
		IP: map[string][]string{}, MX: map[string][]net.MX{}, PTR: map[string][]string{},
		TXT: map[string][]string{}, NS: map[string][]string{},
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0][0] == '#' {
			continue
		}
		switch f[0] {
		case "a":
			r.IP[f[1]] = f[2:]
		case "ptr":
			r.PTR[f[1]] = f[2:]
		case "ns":
			r.NS[f[1]] = f[2:]
		case "mx":
			for _, host := range f[2:] {
				pref := 10
				if number, after, found := strings.Cut(host, ":"); found {
					pref, _ = strconv.Atoi(number)
					host = after
				}
				r.MX[f[1]] = append(r.MX[f[1]], net.MX{Host: host, Pref: uint16(pref)})
			}
		case "txt":
			r.TXT[f[1]] = append(r.TXT[f[1]], strings.Join(f[2:], " "))
		case "fail":
			r.Fail = append(r.Fail, strings.Join(f[1:], " "))
		default:
			t.Fatalf("dns: %s", line)
		}
	}
	return r
}

type player struct {
	t     *testing.T
	snap  *policy.Snapshot
	r     policy.Resolver
	s     *policy.Session
	where string

	bodies map[string][]byte // "body NAME"

	deferUnanswered bool
}

func (p *player) end() {
	if p.s != nil {
		p.s.Close()
	}
}

func (p *player) line(line string) {
	cmd, want, _ := strings.Cut(line, "=>")
	want, rule, ruled := strings.Cut(want, " // ")
	verb, arg, _ := strings.Cut(strings.TrimSpace(cmd), " ")
	if verb == "say" || verb == "teaser" {
		return
	}
	want, rule = strings.TrimSpace(want), strings.TrimSpace(rule)
	v := p.command(verb, strings.TrimSpace(arg))
	got := v.Reply.String()
	if v.Reply.Zero() {
		got = v.Action.String()
	} else if v.Action.String() != "defer" && v.Action.String() != "reject" {
		p.t.Errorf("%s: action %s with reply %s", p.where, v.Action, v.Reply)
	}
	if v.Close {
		got += " (close)"
	}
	if v.MustAsk() {
		got += " (ask)"
	}
	if want == "" {
		want = "permit"
	}
	if got != want {
		p.t.Errorf("%s: %s\n got %s\nwant %s", p.where, cmd, got, want)
	}
	gotRule := v.Rule.String()
	for _, w := range v.Warnings {
		gotRule += "; warn " + w.String()
	}
	if ruled && gotRule != rule {
		p.t.Errorf("%s: %s\n got rule %s\nwant rule %s", p.where, cmd, gotRule, rule)
	}
}

func (p *player) command(verb, arg string) policy.Verdict {
	ctx := context.Background()
	switch verb { // smtpd_command_filter sees the whole command
	case "mail":
		arg = p.s.Command("MAIL FROM:" + arg)[len("MAIL FROM:"):]
	case "rcpt":
		arg = p.s.Command("RCPT TO:" + arg)[len("RCPT TO:"):]
	}
	switch verb {
	case "connect":
		p.end()
		arg, early := strings.CutSuffix(arg, " early")
		p.s = p.snap.Session(p.r, parseClient(p.t, arg))
		if p.deferUnanswered {
			p.s.DeferUnanswered()
		}
		if early && p.snap.MindsPipelining() && p.snap.Spec().Postscreen == nil {
			p.s.Pipelined()
		}
		if v := p.s.Connect(ctx); v.Action != policy.Permit || p.snap.Spec().Postscreen == nil {
			return v
		}
		return p.s.Screen(ctx, early)
	case "helo":
		return p.s.Helo(ctx, arg)
	case "mail":
		var params policy.MailParams
		path, rest, err := envelope.ParseReversePath(arg)
		if err != nil {
			return policy.Verdict{Action: policy.Reject, Reply: envelope.NewReply(501, "5.1.7", "Bad sender address syntax")}
		}
		for o := range strings.FieldsSeq(rest) {
			if o == "SMTPUTF8" {
				params.UTF8 = true
			} else if n, found := strings.CutPrefix(o, "SIZE="); found {
				params.Size, _ = strconv.ParseInt(n, 10, 64)
			}
		}
		return p.s.Mail(ctx, path, params)
	case "rcpt":
		path, _, err := envelope.ParseForwardPath(arg)
		if err != nil {
			return policy.Verdict{Action: policy.Reject, Reply: envelope.NewReply(501, "5.1.3", "Bad recipient address syntax")}
		}
		return p.s.Rcpt(ctx, path)
	case "data":
		return p.s.Data(ctx)
	case "message":
		hops, size, _ := strings.Cut(arg, " ")
		n, _ := strconv.Atoi(hops)
		m := policy.Message{Hops: n}
		m.Size, _ = strconv.ParseInt(size, 10, 64)
		return p.s.Message(ctx, m)
	case "content":
		text := bytes.ReplaceAll(p.bodies["body "+arg], []byte("\n"), []byte("\r\n"))
		text = bytes.ReplaceAll(text, []byte("\\0"), []byte{0})
		m := policy.Message{Size: int64(len(text))}
		for line := range bytes.SplitSeq(text, []byte("\r\n")) {
			m.Long += policy.LongLine(len(line), p.snap.Spec().Limits.LineLength)
		}
		if w := p.s.Content(); w != nil {
			for len(text) > 0 { // in pieces, as they come from a network
				n := min(len(text), 7)
				w.Write(text[:n])
				text = text[n:]
			}
		}
		return p.s.Message(ctx, m)
	case "reset":
		p.s.Reset()
		return policy.Verdict{}
	}
	p.t.Fatalf("%s: unknown command %q", p.where, verb)
	return policy.Verdict{}
}

func parseClient(t *testing.T, arg string) envelope.Client {
	f := strings.Fields(arg)
	c := envelope.Client{Addr: netip.MustParseAddr(f[0])}
	for _, o := range f[1:] {
		k, v, _ := strings.Cut(o, "=")
		switch k {
		case "name": // as XCLIENT gives it
			c.Name, c.NameStatus = v, envelope.NameOK
			c.ReverseName, c.ReverseStatus = v, envelope.NameOK
		case "tls":
			c.TLS = v
		default:
			t.Fatalf("client: %s", o)
		}
	}
	return c
}

func TestSpecRoundTrip(t *testing.T) {
	spec := policy.NewSpec()
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	back := new(policy.Spec)
	if err := policy.StrictJSON(b, back); err != nil {
		t.Fatal(err)
	}
}

// TestMXBackupInDoubt: where the primary's names aren't all known, nobody is
// permitted on the ground that it isn't among the best exchangers.
func TestMXBackupInDoubt(t *testing.T) {
	for doubt, want := range map[bool]int{false: 250, true: 454} {
		spec := policy.NewSpec()
		spec.DomainsIncomplete = doubt
		spec.MXBackup.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.77")}
		spec.Restrictions.Relay = []policy.Restriction{{Kind: "permit_mx_backup"}, {Kind: "reject_unauth_destination"}}
		snap, err := policy.Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		r := parseDNS(t, "mx backup.example 10:best.example 20:own.example\na own.example 192.0.2.77\na best.example 192.0.2.1\n")
		s := snap.Session(r, parseClient(t, "192.0.2.9"))
		s.Mail(t.Context(), envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "a", Domain: "b.example"}}, policy.MailParams{})
		if v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "a", Domain: "backup.example"}}); max(v.Reply.Code, 250) != want {
			t.Errorf("doubt %t: %s", doubt, v.Reply)
		}
		s.Close()
	}
}

func TestEncodeIsCanonical(t *testing.T) {
	files, err := filepath.Glob("testdata/decisions/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		parts := map[string][]byte{}
		for _, f := range ar.Files {
			parts[f.Name] = f.Data
		}
		s := loadParts(t, parts)
		back, err := policy.Decode("s.json", bytes.NewReader(s.Encode()), nil)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if !bytes.Equal(s.Encode(), back.Encode()) {
			t.Errorf("%s: encoding again differs\n%s", file, cmp.Diff(string(s.Encode()), string(back.Encode())))
		}
		streamed, err := policy.Streamed(string(s.Encode()))
		if err != nil || !bytes.Equal(s.Encode(), streamed.Encode()) || s.Digest() != streamed.Digest() {
			t.Errorf("%s: read token by token it differs: %v", file, err)
		}
	}
}
