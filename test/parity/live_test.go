package parity

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sync/errgroup"

	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/parity"
	"github.com/understudy-mx/understudy/relay"
	"github.com/understudy-mx/understudy/smtpd"
)

// liveSessions is how many sessions each profile gets by default; SESSIONS is
// another number.
const liveSessions = 60

// TestLiveProfiles has a real Postfix with every profile's configuration, and
// beside it what no snapshot has: a milter that refuses at every stage, postgrey,
// a quota service and header_checks. Sessions through our door in live mode get
// the same replies, to the last letter, as those with the Postfix itself.
func TestLiveProfiles(t *testing.T) {
	dirs, err := filepath.Glob("../../policy/postfix/testdata/profiles/*")
	if err != nil || len(dirs) < 10 {
		t.Fatalf("only %d profiles: %v", len(dirs), err)
	}
	milter, quota, grey := startMilter(t), startQuota(t), startPostgrey(t, 100_000)
	all := map[string]int{}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			l := newLivePair(t, filepath.Base(dir), milter, quota, grey)
			n := number(t, "SESSIONS", liveSessions)
			seed := uint64(number(t, "SEED", 1))
			l.compare(t, n, func(i int) parity.Session { return l.session(seed, i) })
			for kind, n := range l.replies {
				all[kind] += n
			}
		})
	}
	for _, kind := range []string{"milter", "Mailbox", "Greylisted", "header", "queued"} {
		if all[kind] == 0 {
			t.Errorf("no reply had %q: %v", kind, all)
		}
	}
	t.Logf("replies by what they hold: %v", all)
}

// livePair is a primary, and our door before it.
type livePair struct {
	primary   *twin
	primaryAs parity.Dialer
	door      parity.Dialer
	material  *parity.Material
	metrics   *metrics.Metrics
	hostname  string
	byProxy   bool // the primary's clients are told by PROXY

	mu      sync.Mutex // guards what follows
	replies map[string]int
	shown   int
	excused int // sessions that differ as docs/LIVE.md says
}

func newLivePair(t *testing.T, profile, milter, quota, grey string) *livePair {
	d := startWorld(t)
	if err := d.Add("secondary.example.org. 300 IN A 127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	p := newTwin(t, profile)
	run := filepath.Join(p.dir, "run")
	recipient := p.postconf(run, "-xh", "smtpd_recipient_restrictions")
	checks := p.postconf(run, "-xh", "header_checks")
	writeOld(t, filepath.Join(run, "live_header_checks"), "/^Subject:.*q/ REJECT header check\n/^Subject:.*w/ REJECT 4.7.1 header check later\n/^Subject:.*j/ DISCARD\n/^Subject:.*z/ HOLD\n/^X-Odd:/ REJECT\n")
	p.postconf(run, "-e", "smtpd_milters = inet:"+milter, "milter_default_action = tempfail",
		"smtpd_recipient_restrictions = check_policy_service inet:"+quota+", check_recipient_access pcre:{{/^[^@]*[a-d]/ live_grey}} "+strings.TrimSpace(recipient),
		"smtpd_restriction_classes = live_grey "+strings.TrimSpace(p.postconf(run, "-xh", "smtpd_restriction_classes")), "live_grey = check_policy_service inet:"+grey,
		"header_checks = regexp:"+filepath.Join(run, "live_header_checks")+" "+strings.TrimSpace(checks))
	p.start(d.Addr())
	l := &livePair{primary: p, primaryAs: p.dial, material: world(t, d, p.spec), replies: map[string]int{}}
	l.hostname = strings.TrimSpace(p.postconf(run, "-xh", "myhostname"))
	l.serve(t, p.spec, d.Addr(), relay.Route{Name: "primary", Address: p.addr, XClient: true, Live: true, MaxLive: 4 * parallel})
	return l
}

// serve runs our door, live, before the primary.
func (l *livePair) serve(t *testing.T, spec *policy.Spec, nameserver string, way relay.Route) {
	t.Helper()
	l.metrics = metrics.New(prometheus.NewRegistry())
	c := relay.New(relay.Options{Hostname: "secondary.example.org", Metrics: l.metrics, Routes: map[string]relay.Route{"": way}})
	snap := compiled(t, spec)
	srv := &smtpd.Server{
		Hostname: "secondary.example.org", Policy: func() *policy.Snapshot { return snap }, Metrics: l.metrics,
		Resolver: resolver.New(resolver.Options{Servers: []string{nameserver}, Timeout: 30 * time.Second}), Keep: smtpd.Nowhere{},
		XClientFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, MaxUnknownRecipients: 1 << 20,
	}
	through := &smtpd.Live{
		Play: func(cmd *smtpd.Command) smtpd.Player { return c.Live(func(string) string { return "" }, cmd.Peer) },
		Offers: func() (smtpd.Extensions, bool) {
			o, is := c.LiveOffers()
			return smtpd.Extensions(o), is
		},
	}
	srv.Decide = through.PlayThrough
	pipe := parity.NewPipe()
	l.door = pipe.Dial
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { c.Run(ctx) })
	wg.Go(func() {
		if err := srv.Serve(ctx, pipe); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); !c.Up(""); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the primary isn't up")
		}
	}
}

// session is session i of a seed's; every other one brings messages, so that the
// checks of content are reached.
func (l *livePair) session(seed uint64, i int) parity.Session {
	s := l.material.Nth(seed, i)
	if i%2 == 0 {
		return s
	}
	r := rand.New(rand.NewPCG(seed, uint64(i)))
	if r.IntN(4) > 0 {
		s.Client = l.material.Clients[0]
	}
	s.Commands = []parity.Command{{Line: "EHLO " + l.material.Helos[0]}}
	for range 1 + r.IntN(3) {
		s.Commands = append(s.Commands, parity.Command{Line: fmt.Sprintf("MAIL FROM:<bob%d@%s> SIZE=%d", r.IntN(50), l.material.Senders[0], r.IntN(2000))})
		for range 1 + r.IntN(4) {
			s.Commands = append(s.Commands, parity.Command{Line: "RCPT TO:<" + l.material.Recipients[r.IntN(len(l.material.Recipients))] + ">"})
		}
		text := fmt.Sprintf("From: bob@good.example\r\nMessage-ID: <%d@x.example>\r\nSubject: ", r.Uint64())
		for range 1 + r.IntN(4) {
			text += string(rune('a' + r.IntN(26)))
		}
		if r.IntN(40) == 0 {
			text += "\r\nX-Odd: x"
		}
		text += fmt.Sprintf("\r\n\r\n.\r\n..\r\nHello %d\r\n", r.IntN(100))
		s.Commands = append(s.Commands, parity.Command{Line: "DATA", Message: text + strings.Repeat("line\r\n", r.IntN(1000))})
	}
	return s
}

// compare plays n sessions to both. Each must be played through to its end.
func (l *livePair) compare(t *testing.T, n int, session func(i int) parity.Session) {
	var all errgroup.Group
	all.SetLimit(parallel)
	var differ atomic.Int64
	began := time.Now()
	for i := range n {
		all.Go(func() error {
			s := session(i)
			began := time.Now()
			own, err := l.withPrimary(t, s)
			if err != nil {
				return fmt.Errorf("session %d with the primary: %w", i, err)
			}
			took := time.Since(began)
			ours, err := converse(t, l.door, s)
			if more := time.Since(began) - 2*took; more > 2*time.Second {
				t.Logf("session %d took %v, and %v more through the door: %q", i, took, more, ours)
			}
			if err != nil {
				return fmt.Errorf("session %d through the door: %w", i, err)
			}
			if l.differ(t, i, own, ours) {
				differ.Add(1)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := differ.Load(); n > 0 {
		t.Errorf("%d sessions differ", n)
	}
	for _, ending := range []string{"not_begun", "before_reply", "in_message", "after_dot", "late"} {
		if n := testutil.ToFloat64(l.metrics.LiveMessages.WithLabelValues(ending)); n > 0 {
			t.Errorf("%v transactions ended %s", n, ending)
		}
	}
	for _, reason := range []string{"route", "down", "full", "slow", "loop", "failed"} {
		if n := testutil.ToFloat64(l.metrics.LiveUnused.WithLabelValues(reason)); n > 0 {
			t.Errorf("%v transactions weren't begun: %s", n, reason)
		}
	}
	if l.excused > n/5 {
		t.Errorf("%d sessions of %d differ as docs/LIVE.md says: too many", l.excused, n)
	}
	t.Logf("%d sessions in %.1f s, %d of them differ as docs/LIVE.md says", n, time.Since(began).Seconds(), l.excused)
}

// spoken is a command and the whole reply to it.
type spoken struct{ line, reply string }

var foreign = regexp.MustCompile(`[^ -~\n]+|\?+`)

var queueID = regexp.MustCompile(`queued as \w+`)

// converse plays a session and returns what was said, the greeting to the client
// first.
func converse(t *testing.T, dial parity.Dialer, s parity.Session) (all []spoken, err error) {
	conn, err := dial(t.Context())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Minute))
	return talkTo(conn, s)
}

// withPrimary plays a session with the primary itself.
func (l *livePair) withPrimary(t *testing.T, s parity.Session) ([]spoken, error) {
	if !l.byProxy {
		return converse(t, l.primaryAs, s)
	}
	conn, err := l.primaryAs(t.Context())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Minute))
	fmt.Fprintf(conn, "PROXY TCP4 %s 127.0.0.1 4711 25\r\n", s.Client.Addr)
	br := bufio.NewReader(conn)
	greeting, err := wholeReply(br)
	if err != nil {
		return nil, err
	}
	all := []spoken{{"(connect)", greeting}}
	if greeting[:3] != "220" {
		return all, nil
	}
	rest, err := say(conn, br, s.Commands)
	return append(all, rest...), err
}

// talkTo plays a session with who takes XCLIENT.
func talkTo(conn net.Conn, s parity.Session) (all []spoken, err error) {
	br := bufio.NewReader(conn)
	if greeting, err := wholeReply(br); err != nil || greeting[:3] != "220" {
		return nil, fmt.Errorf("greeting: %q, %v", greeting, err)
	}
	return say(conn, br, append([]parity.Command{{Line: fmt.Sprintf("XCLIENT ADDR=%s NAME=%s REVERSE_NAME=%s", ipv6(s.Client.Addr), unavailable(s.Client.Name), unavailable(s.Client.Reverse))}}, s.Commands...))
}

// say says commands, until the server hangs up or refuses the client.
func say(conn net.Conn, br *bufio.Reader, lines []parity.Command) (all []spoken, err error) {
	ask := func(line, text string) string {
		sent := make(chan struct{})
		go func() { // a Pipe holds nothing, and a server may speak first and hang up
			defer close(sent)
			io.WriteString(conn, text+"\r\n")
		}()
		r, err := wholeReply(br)
		if err != nil {
			r = "closed"
			conn.Close()
		}
		<-sent
		all = append(all, spoken{line, queueID.ReplaceAllString(r, "queued as ID")})
		return r
	}
	for _, c := range lines {
		r := ask(c.Line, c.Line)
		if strings.HasPrefix(r, "354") {
			if c.Message == "" {
				return all, nil
			}
			r = ask("(message)", strings.ReplaceAll("\r\n"+c.Message, "\r\n.", "\r\n..")[2:]+".")
		}
		if r == "closed" || strings.HasPrefix(r, "421") || strings.HasPrefix(r, "521") || strings.HasPrefix(c.Line, "XCLIENT") && r[:3] != "220" {
			return all, nil
		}
	}
	n := len(all)
	ask("QUIT", "QUIT")
	return all[:n], nil
}

func wholeReply(br *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return "", err
		}
		b.WriteString(line)
		if len(line) < 4 || line[3] != '-' {
			return strings.ReplaceAll(strings.TrimRight(b.String(), "\r\n"), "\r\n", "\n"), nil
		}
	}
}

// levelled is a reply without what is the servers' own: their names, and the
// text of a greeting.
func (l *livePair) levelled(reply string) string {
	reply = foreign.ReplaceAllString(reply, "?") // replies are passed on in ASCII
	reply = strings.NewReplacer(l.hostname, "HOST", "secondary.example.org", "HOST").Replace(reply)
	if strings.HasPrefix(reply, "220") {
		return "220 HOST"
	}
	return reply
}

func isHello(s spoken) bool {
	verb := strings.ToUpper(s.line[:min(5, len(s.line))])
	return verb == "EHLO " || verb == "HELO "
}

// helloAlike says that both take an EHLO, and that of what a message may depend
// on ours offers nothing that the primary doesn't.
func helloAlike(a, b spoken) bool {
	if !isHello(a) || a.line != b.line || a.reply[0] != b.reply[0] {
		return false
	}
	own, ours := strings.Split(a.reply, "\n"), strings.Split(b.reply, "\n")
	offered := map[string]bool{}
	for _, line := range own[1:] {
		offered[line[4:]] = true
	}
	for _, line := range ours[1:] {
		switch name, _, _ := strings.Cut(line[4:], " "); name {
		case "SIZE", "8BITMIME", "SMTPUTF8", "DSN":
			if !offered[line[4:]] && len(own) > 2 { // less is said to who may do nothing
				return false
			}
		}
	}
	return own[0] == ours[0]
}

var (
	plainLine  = regexp.MustCompile(`(?i)^(MAIL FROM|RCPT TO):<[\w+-]+(\.[\w+-]+)*@[\w.-]+>( |$)`)
	milterSays = regexp.MustCompile(`milter [MR]|Service unavailable|Command rejected`)
)

// isOurs says that the primary doesn't hear of the command (VRFY, ETRN, NOOP, what
// isn't known): where it refuses it, that may be for what no snapshot has.
func isOurs(a, b spoken) bool {
	verb := strings.ToUpper(a.line[:min(4, len(a.line))])
	switch {
	case a.line != b.line:
		return false
	case (verb == "MAIL" || verb == "RCPT") && !plainLine.MatchString(a.line): // which a milter sees spelled otherwise
		return milterSays.MatchString(a.reply + b.reply)
	case verb == "(MES":
		return strings.Contains(b.reply, "too many hops") // one more, since we are one
	}
	return !strings.Contains("MAIL RCPT DATA EHLO HELO", verb) && strings.ContainsAny(a.reply[:1], "45")
}

// unheard says that a HELO was followed by another one before any MAIL that could
// be judged: the primary doesn't hear of it, and a milter of its can't refuse the
// rest of the connection for it.
func unheard(ours []spoken) bool {
	idle := false
	for _, b := range ours {
		switch mail := strings.EqualFold(b.line[:min(4, len(b.line))], "MAIL"); {
		case isHello(b) && idle:
			return true
		case isHello(b):
			idle = true
		case mail && !strings.HasPrefix(b.reply, "50") && !strings.HasPrefix(b.reply, "555"):
			idle = false
		}
	}
	return false
}

// deviates says that our reader of paths is known not to take this one.
func deviates(a, b spoken) bool {
	return a.line == b.line && strings.HasPrefix(b.reply, "501 5.1.") && slices.ContainsFunc(deviations, func(d deviation) bool { return d.refused && d.form.MatchString(a.line) })
}

// delayed says that the first MAIL that the primary judges is answered with its
// word on the client, or on its HELO.
func (l *livePair) delayed(word string, ours []spoken) bool {
	for _, b := range ours {
		if !strings.EqualFold(b.line[:min(4, len(b.line))], "MAIL") {
			continue
		}
		switch reply := l.levelled(b.reply); {
		case reply == word:
			return true
		case reply[0] == '2':
			return false
		}
	}
	return true // nothing came that far
}

// differ says that the two conversations differ by more than docs/LIVE.md says,
// and shows how.
func (l *livePair) differ(t *testing.T, n int, own, ours []spoken) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if word := l.levelled(own[0].reply); word[0] > '3' && ours[0].reply[0] == '2' {
		if l.delayed(word, ours) {
			l.excused++
			return false
		}
	}
	for i := range max(len(own), len(ours)) {
		var a, b spoken
		if i < len(own) {
			a = own[i]
			for _, kind := range []string{"milter", "Mailbox", "Greylisted", "header", "queued", "Gtube", "blocked using"} {
				if strings.Contains(a.reply, kind) {
					l.replies[kind]++
				}
			}
		}
		if i < len(ours) {
			b = ours[i]
		}
		if isHello(a) && a.line == b.line && a.reply[0] > '3' && b.reply[0] == '2' && l.delayed(l.levelled(a.reply), ours[i:]) {
			l.excused++
			return false
		}
		if i == 0 { // XCLIENT, or by PROXY nothing
			a.line = b.line
		}
		if a.reply, b.reply = l.levelled(a.reply), l.levelled(b.reply); a == b || helloAlike(a, b) {
			continue
		}
		if isOurs(a, b) || deviates(a, b) { // from here on they count different errors
			l.excused++
			return false
		}
		if a.line == b.line && strings.HasPrefix(b.reply, "2") && strings.ContainsAny(a.reply[:1], "45") && unheard(ours[:i]) {
			l.excused++
			return false
		}
		if l.shown++; l.shown <= 15 {
			var told strings.Builder
			for _, s := range own[:min(i, len(own))] {
				fmt.Fprintf(&told, "  %.200q\n    %.200q\n", s.line, s.reply)
			}
			t.Errorf("session %d:\n%s  %.300q\n    primary %.300q\n    door    %.300q (to %.100q)", n, &told, a.line, a.reply, b.reply, b.line)
		}
		return true
	}
	return false
}
