//go:build !race

// Without the race detector: see suites_test.go.

package postfix

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/textproto"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// tried is a session of one recipient with a suite's Postfix, and the last reply.
type tried struct {
	client             envelope.Client
	helo, sender, rcpt string
	reply              string
}

func (s tried) String() string {
	return fmt.Sprintf("%s[%s] helo %s, <%s> to <%s>", s.client.Name, s.client.Addr, s.helo, s.sender, s.rcpt)
}

// records are what the DNS there and here knows.
func (c *container) records() []string {
	all := []string{
		". 60 IN NS ns.example.", "sender.test. 60 IN MX 10 mail.sender.test.", "mail.sender.test. 60 IN A 192.0.2.1",
		"listed.test. 60 IN MX 10 mail.sender.test.", "listed.test.dbl.spamhaus.org. 60 IN A 127.0.1.2",
		"forged.test. 60 IN MX 10 mail.sender.test.", "forged.test. 60 IN TXT \"v=spf1 -all\"",
		"1-2-3-4.dsl.sender.test. 60 IN A 192.0.2.1", "9.113.0.203.zen.spamhaus.org. 60 IN A 127.0.0.2", "10.113.0.203.zen.spamhaus.org. 60 IN A 127.0.0.99",
	}
	for _, d := range c.data.domains {
		all = append(all, strings.ToLower(d.name)+". 60 IN MX 10 mail.d01.example.")
	}
	return append(all, "mail.d01.example. 60 IN A 192.0.2.25", "inner.example. 60 IN A 192.0.2.26", "mx2.example.org. 60 IN A 192.0.2.77")
}

// sessions are those to play: each recipient with a client that nothing is wrong with, then a
// few with one that something is.
func (c *container) sessions(spec *policy.Spec) (all []tried) {
	good := tried{client: envelope.Client{Name: "mail.sender.test", ReverseName: "mail.sender.test"}, helo: "mail.sender.test", sender: "a@sender.test"}
	add := func(s tried, addr string) {
		if addr == "" {
			addr = fmt.Sprintf("192.0.%d.%d", 3+len(all)/200, 1+len(all)%200)
		}
		s.client.Addr = netip.MustParseAddr(addr)
		all = append(all, s)
	}
	rcpts := append([]string{"postmaster@d01.example", "nobody-there@d02.example", "x@elsewhere.example", "postmaster", "somebody", "x@nowhere.test"}, c.rcpts...)
	for n, k := range c.keys[:60] {
		if local, domain := splitAddress(k); local != "" && domain != "" && plainRcpt(k) {
			rcpts = append(rcpts, k)
		}
		if a := c.data.boxes[400+n%12]; n < 6 && plainRcpt(a.String()) {
			rcpts = append(rcpts, a.String(), a.local+"+tag@"+a.domain, strings.ToUpper(a.local)+"@"+a.domain)
		}
		if a := c.data.aliases[20+n%12]; n < 6 && plainRcpt(a.String()) {
			rcpts = append(rcpts, a.String())
		}
	}
	for _, d := range c.data.domains[40:50] { // names of other domains
		there := func(a genAddress) bool { return a.domain == d.target && plainRcpt(a.String()) }
		for _, all := range [][]genAddress{c.data.boxes[300:], c.data.aliases[20:]} {
			if n := slices.IndexFunc(all, there); n >= 0 {
				rcpts = append(rcpts, all[n].local+"@"+d.name)
			}
		}
	}
	for _, d := range slices.Concat(c.data.domains[:4], c.data.domains[40:44], c.data.domains[50:54]) {
		box := c.data.boxes[slices.IndexFunc(c.data.boxes[300:], func(a genAddress) bool { return a.domain == c.data.domains[0].name })+300]
		rcpts = append(rcpts, "somebody@"+d.name, box.local+"@"+d.name, fmt.Sprintf("in.%d@%s", d.id, d.name))
	}
	senders := c.listed(spec, &rcpts)
	for _, rcpt := range rcpts {
		s := good
		s.rcpt = rcpt
		add(s, "")
	}
	box := c.data.boxes[slices.IndexFunc(c.data.boxes[300:], func(a genAddress) bool { return plainRcpt(a.String()) && a.domain == c.data.domains[1].name })+300].String()
	for _, sender := range senders {
		s := good
		s.rcpt, s.sender = box, sender
		add(s, "")
	}
	for _, rcpt := range []string{box, "no.such.user@d01.example"} {
		for _, helo := range []string{"bad_/name", "nodot", "unknown.test", "localhost", "1-2-3-4.dsl.sender.test", "ylmf-pc", "[192.0.2.1]"} {
			s := good
			s.rcpt, s.helo = rcpt, helo
			add(s, "")
		}
		for _, sender := range []string{"", "a@nowhere.test", "nodomain", "a@nodot", "a@listed.test", "a@forged.test", "no.such.user@d01.example", box, "x@bad3.example", c.data.boxes[17*9].String()} {
			s := good
			s.rcpt, s.sender = rcpt, sender
			add(s, "")
		}
		for _, client := range [][3]string{{"", "unknown", "unknown"}, {"", "unknown", "mail.sender.test"}, {c.blocked(), "mail.sender.test", "mail.sender.test"}, {"192.0.2.2", "mail.sender.test", "mail.sender.test"}} {
			s := good
			s.rcpt, s.client.Name, s.client.ReverseName = rcpt, client[1], client[2]
			add(s, client[0])
		}
	}
	return all
}

// blocked is a client on a DNS list. Where postscreen asks the list XCLIENT comes too late, and
// permit_inet_interfaces, which ISPConfig has before it, goes by who connects.
func (c *container) blocked() string {
	if strings.Contains(c.master, "postscreen") || c.suite.Name == "ispconfig" {
		return "203.0.113.11"
	}
	return "203.0.113.9"
}

// listed takes a few keys of every table: recipients, and senders.
func (c *container) listed(spec *policy.Spec, rcpts *[]string) (senders []string) {
	local := "localhost"
	if slices.Contains(spec.Addresses.Local.Domains, "mail.d01.example") {
		local = "mail.d01.example"
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Tables)) {
		t, found := spec.Tables[name], 0
		if t.Secret() != nil || strings.HasPrefix(name, "postgrey-") {
			continue
		}
		for n := 0; n < t.Len() && found < 3; n++ {
			b, _ := t.Entry(n * 7 % t.Len())
			key := string(b)
			switch {
			case strings.HasPrefix(key, "@"):
				key = "some.one" + key
			case !strings.Contains(key, "@") && strings.Contains(key, "."):
				key = "some.one@" + strings.TrimPrefix(key, ".")
			case !strings.Contains(key, "@"):
				key += "@" + local
			}
			if !plainRcpt(key) || strings.ContainsAny(key, "/^\\") {
				continue
			}
			found++
			*rcpts = append(*rcpts, key)
			if found < 3 && strings.Contains(name, "sender") {
				senders = append(senders, key)
			}
		}
	}
	return senders
}

func plainRcpt(a string) bool {
	return isASCII(a) && (!strings.ContainsAny(a, " \"<>\\()[],;:@'%") || strings.Count(a, "@") == 1 && !strings.ContainsAny(a, " \"<>\\()[],;:'%"))
}

// compareVerdicts plays sessions of one recipient each.
func (c *container) compareVerdicts(snap *policy.Snapshot) []tried {
	all := c.sessions(snap.Spec())
	var live errgroup.Group
	live.SetLimit(c.parallel)
	for n := range all {
		live.Go(func() error { return c.try(&all[n]) })
	}
	if err := live.Wait(); err != nil {
		c.Fatalf("%v\n%s", err, c.log())
	}
	refused, wrong := 0, 0
	for n := range all {
		s := &all[n]
		if s.reply[0] != '2' {
			refused++
		}
		if got := c.judge(snap, *s); !s.same(got) {
			if wrong++; wrong > 8 {
				continue
			}
			c.Errorf("%s: Postfix %s, we %s", s, s.reply, got)
		}
	}
	c.Logf("%d sessions, %d refused", len(all), refused)
	if wrong > 0 {
		c.Log(c.log())
	}
	if refused < len(all)/10 || refused > len(all)-5 {
		c.Errorf("%d of %d refused: the sessions say little", refused, len(all))
	}
	return all
}

// same says that Postfix's reply comes to another. A probe of a recipient elsewhere is refused
// before relaying is; one that can't be finished here says nothing.
func (s tried) same(reply string) bool {
	if strings.Contains(s.reply, "undeliverable address") {
		return s.reply[0] == reply[0]
	}
	return strings.Contains(s.reply, "unverified address") || codes(s.reply) == codes(reply)
}

// codes are a reply's, of a refusal the enhanced one, too.
func codes(reply string) string {
	code, rest, _ := strings.Cut(reply, " ")
	enhanced, _, _ := strings.Cut(rest, " ")
	if code[0] == '2' {
		return code
	}
	return code + " " + enhanced
}

var lookupFailed = regexp.MustCompile(`warning: (.*lookup (error|problem)|.*query failed|connect to \w+ server)`)

// try plays a session, and again as long as Postfix logs that a table failed it: for a minute
// it doesn't ask a database that was slow.
func (c *container) try(s *tried) error {
	const most = 20
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for range most {
		logged, err := os.ReadFile(c.maillog())
		if err != nil {
			return err
		}
		if s.reply, err = c.live(*s); err != nil || !strings.Contains(s.reply, " 4.3.") {
			return err
		}
		<-tick.C
		now, err := os.ReadFile(c.maillog())
		if err != nil {
			return err
		}
		failed := lookupFailed.Find(now[len(logged):])
		if failed == nil {
			return nil
		}
		c.Logf("again: %s: %s (%s)", s, s.reply, failed)
	}
	return fmt.Errorf("%s: Postfix has %s, %d times", s, s.reply, most)
}

// live is what Postfix says to a recipient.
func (c *container) live(s tried) (got string, err error) {
	conn, err := c.dial()
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Minute))
	text := textproto.NewConn(conn)
	name := func(n string) string { return strings.ReplaceAll(n, "unknown", "[UNAVAILABLE]") }
	for _, line := range []string{"", "EHLO mail.sender.test", fmt.Sprintf("XCLIENT ADDR=%s NAME=%s REVERSE_NAME=%s", s.client.Addr, name(s.client.Name), name(s.client.ReverseName)), "EHLO " + s.helo, "MAIL FROM:<" + s.sender + ">", "RCPT TO:<" + s.rcpt + ">"} {
		if line != "" {
			if err := text.PrintfLine("%s", line); err != nil {
				return "", fmt.Errorf("%s, at %q: %w", s, line, err)
			}
		}
		code, said, err := text.ReadResponse(0)
		var refused *textproto.Error
		if err != nil && !errors.As(err, &refused) {
			return "", fmt.Errorf("%s, after %q: %w", s, line, err)
		}
		if got = fmt.Sprint(code, " ", said[strings.LastIndexByte(said, '\n')+1:]); code >= 400 {
			break
		}
	}
	return got, nil
}

func (c *container) judge(snap *policy.Snapshot, s tried) string {
	c.Helper()
	ctx := context.Background()
	status := func(name string) envelope.NameStatus {
		if name == "unknown" {
			return envelope.NameNotFound
		}
		return envelope.NameOK
	}
	s.client.NameStatus, s.client.ReverseStatus = status(s.client.Name), status(s.client.ReverseName)
	session := snap.Session(c.resolver, s.client)
	defer session.Close()
	from, _, err := envelope.ParseReversePath("<" + s.sender + ">")
	if err != nil {
		c.Fatal(err)
	}
	to, _, err := envelope.ParseForwardPath("<" + s.rcpt + ">")
	if err != nil {
		c.Fatalf("%s: %v", s.rcpt, err)
	}
	v := session.Connect(ctx)
	for _, next := range []func() policy.Verdict{
		func() policy.Verdict { return session.Helo(ctx, s.helo) },
		func() policy.Verdict { return session.Mail(ctx, from, policy.MailParams{}) },
		func() policy.Verdict { return session.Rcpt(ctx, to) },
	} {
		if v.Action == policy.Permit {
			v = next()
		}
	}
	if v.Reply.Code == 0 { // DISCARD, too
		return "250"
	}
	return fmt.Sprintf("%d %s %s", v.Reply.Code, v.Reply.Enhanced, v.Reply.Text)
}

// sameMutants match the elements and tables without which no session of a stranger ends
// differently at RCPT.
var sameMutants = regexp.MustCompile(`without (permit_mynetworks|permit_sasl_authenticated|permit_inet_interfaces|check_client_access inet_interfaces|permit|` + // no stranger is meant
	`reject_unauth_pipelining|reject_multi_recipient_bounce|` + // not at RCPT
	`reject_authenticated_sender_login_mismatch|` +
	`(reject|defer)_unauth_destination|` + // smtpd_relay_restrictions has the like
	`ask_primary_else_ignore .*|` + // ignored during an outage
	`reject_unlisted_recipient)$` + // so has smtpd_reject_unlisted_recipient
	`|^table (.*transport.*|.*relay_ne.*|.*#postscreen|.*postscreen_dnsbl_reply|.*header_checks.*|.*command_filter.*|postgrey-.*|inet_interfaces) emptied$`) // not at RCPT, or XCLIENT comes too late

// mutate takes every element of a list of restrictions out of the policy in turn, and empties
// every table: a session must tell.
func (c *container) mutate(snap *policy.Snapshot, sessions []tried) {
	var tree map[string]any
	if err := json.Unmarshal(snap.Encode(), &tree); err != nil {
		c.Fatal(err)
	}
	seen := 0
	try := func(what string) {
		b, err := json.Marshal(tree)
		if err != nil {
			c.Fatal(err)
		}
		mutant, err := policy.Decode(what, bytes.NewReader(b), nil)
		if err != nil { // what others need
			return
		}
		if slices.ContainsFunc(sessions, func(s tried) bool { return !s.same(c.judge(mutant, s)) }) {
			seen++
			return
		}
		if sameMutants.MatchString(what) || slices.ContainsFunc(c.same, func(same string) bool {
			return strings.Contains(what+" ", "/"+same+" ") || strings.HasSuffix(what, same)
		}) {
			return
		}
		c.Errorf("mutant %s: no session of %d tells", what, len(sessions))
	}
	lists, _ := tree["restrictions"].(map[string]any)
	for _, stage := range slices.Sorted(maps.Keys(lists)) {
		list, _ := lists[stage].([]any)
		for n, e := range list {
			text, _ := e.(string)
			_, arg, _ := strings.Cut(text, " ")
			if t := snap.Spec().Tables[arg]; t != nil && t.Len() == 0 {
				continue
			}
			lists[stage] = slices.Concat(list[:n:n], list[n+1:])
			try(fmt.Sprintf("%s without %v", stage, e))
		}
		lists[stage] = list
	}
	tables, _ := tree["tables"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		t := tables[name].(map[string]any)
		if spec := snap.Spec().Tables[name]; spec.Len() == 0 {
			continue
		}
		whole := maps.Clone(t)
		for _, part := range []string{"entries", "keys", "rules"} {
			switch t[part].(type) {
			case map[string]any:
				t[part] = map[string]any{}
			case []any:
				t[part] = []any{}
			}
		}
		try("table " + name + " emptied")
		tables[name] = whole
	}
	c.Logf("%d mutants seen", seen)
}
