package smtpd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
)

// bits are what the addresses of TestNoOpenRelay are made of.
var (
	locals = []string{
		"alice", "carol", "ALICE", "nobody", "postmaster", "x", `"alice"`, `al\ice`, "alice+x", "alice%evil.example", "evil.example!alice", `"alice@evil.example"`,
		`"x y"`, "alice(c)", "alice@corp.example", "alice.", ".alice", "аlice", "al\"i\"ce", "@evil.example:alice", "@corp.example:x", `x\@corp.example`, " alice ", "", "-alice",
	}
	domains = []string{
		"corp.example", "CORP.example", "corp.example.", "bücher.example", "evil.example", "evilcorp.example", "corp.example.evil.example", "[127.0.0.1]",
		"[IPv6:::1]", "127.0.0.1", "localhost", "mx.test", "corp.example@evil.example", "evil.example@corp.example", " corp.example ", "corp .example", "(c)corp.example", "xn--bcher-kva.example",
		"corp。example", "соrp.example", "", "mail.corp.example", "corp.example%evil.example", `corp.example\@evil.example`, `"corp.example"`, "corp.example:evil.example",
	}
	noise = []string{">", "<", `"`, `\`, " ", ",", "\t", "@", "%", "!", "(", ")", ":", ";", "\xff", "ü", ".", "NOTIFY=NEVER"}
)

// TestNoOpenRelay makes a million paths. What the policy lets through is for a
// domain of ours, and listed; and it stays that mailbox when the relay spells it.
func TestNoOpenRelay(t *testing.T) {
	total := 1_000_000
	if testing.Short() {
		total = 50_000
	}
	snap := snapshot(t, nil)
	listed := map[string]bool{"alice@corp.example": true, "carol@corp.example": true, "x@bücher.example": true}
	workers := runtime.GOMAXPROCS(0)
	accepted := make([]int, workers)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			rnd := rand.New(rand.NewPCG(6, uint64(w)))
			pick := func(list []string) string { return list[rnd.IntN(len(list))] }
			maybe := func() string {
				if rnd.IntN(8) > 0 {
					return ""
				}
				return pick(noise)
			}
			se := snap.Session(nil, envelope.Client{NameStatus: envelope.NameNotFound})
			defer se.Close()
			for i := 0; i < total/workers && !t.Failed(); i++ {
				if i%100 == 0 {
					se.Reset()
					se.Mail(t.Context(), envelope.ReversePath{}, policy.MailParams{UTF8: true})
				}
				arg := maybe() + "<" + maybe() + pick(locals) + maybe() + "@" + pick(domains) + maybe() + ">" + maybe()
				path, _, err := envelope.ParseForwardPath(arg)
				if err != nil {
					continue
				}
				if refused(se.Rcpt(t.Context(), path)) {
					continue
				}
				accepted[w]++
				name := strings.ToLower(path.Local + "@" + path.Domain)
				if path.Domain == "" { // "alice@corp.example" in quotes, which Postfix reads again
					name = strings.TrimRight(strings.ToLower(path.Local), "@") // nor does a second, empty domain matter
				}
				if route, mailbox, found := strings.Cut(name, ":"); found && route[0] == '@' {
					name = mailbox // a source route behind something else
				}
				if !path.Postmaster() && !listed[strings.TrimSuffix(name, ".")] {
					t.Errorf("%q was accepted as %q", arg, path.String())
				}
				again, params, err := envelope.ParseForwardPath("<" + path.String() + ">")
				if err != nil || again.Mailbox != path.Mailbox || params != "" {
					t.Errorf("%q is spelt %q, which reads as %+v, %q, %v", arg, path.String(), again, params, err)
				}
			}
		})
	}
	group.Wait()
	sum := 0
	for _, n := range accepted {
		sum += n
	}
	if sum < total/1000 {
		t.Errorf("only %d of %d accepted: the test shows nothing", sum, total)
	}
	t.Logf("%d of %d paths accepted", sum, total)
}

// hostile makes text that would like to be another log line, another label or
// another command.
func hostile(rnd *rand.Rand) string {
	parts := []string{
		`"`, `\`, `","msg":"accepted","x":"`, `"}{"`, "level=ERROR", "\\n", "\t", "\u2028", "\u202e", "\xff\xfe", "\x1b[31m", "\x00", "\x7f", "%s%n", "${jndi:ldap://x}", "}} 1",
		`understudy_smtp_commands_total{verb="x"} 1`, "é", "🦊", "<script>", "' OR 1=1--", "../../etc/passwd", strings.Repeat("A", 300), fmt.Sprint(rnd.Uint64()), "=", ";", ",", "(", ")", "@", "evil.example",
	}
	var b strings.Builder
	for range 1 + rnd.IntN(4) {
		b.WriteString(parts[rnd.IntN(len(parts))])
	}
	return b.String()
}

// fields of a session that a client fills in as it likes.
var hostileFields = []string{
	"%s", "%s arg", "EHLO %s", "HELO %s", "NOOP %s", "VRFY %s", "AUTH %s", "MAIL FROM:<%s@sender.example>", "MAIL FROM:<a@%s>", `MAIL FROM:<"%s"@sender.example>`,
	"MAIL FROM:<> %s", "MAIL FROM:<> ENVID=%s", "RCPT TO:<%s@corp.example>", "RCPT TO:<alice@%s>", `RCPT TO:<"%s"@corp.example>`, "RCPT TO:<alice@corp.example> ORCPT=%s", "RCPT TO:<alice@corp.example> %s",
	"XCLIENT NAME=%s", "XCLIENT HELO=%s ADDR=192.0.2.9", "XCLIENT %s", "STARTTLS %s", "GET /%s",
}

// countingLog counts records and notes what no record may hold. It is written
// to line by line.
type countingLog struct {
	t        *testing.T
	mu       sync.Mutex // guards the rest
	lines    int
	accepted int
}

func (l *countingLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines++
	var fields map[string]any
	if err := json.Unmarshal(p, &fields); err != nil || bytes.Count(p, []byte("\n")) != 1 {
		l.t.Errorf("a broken line of log: %v: %q", err, p)
	}
	for k, v := range fields {
		if s, is := v.(string); is && (len(s) > 4*256 || strings.ContainsAny(string(p[:len(p)-1]), "\x00\x1b\r\n\x7f")) {
			l.t.Errorf("%s: too long or raw: %q", k, s)
		}
	}
	if fields["msg"] == "accepted" {
		l.accepted++
	}
	return len(p), nil
}

// TestHostileFields sends 100,000 hostile strings in every field a client has.
// They add no metric series beyond those of the closed sets and no log line
// that isn't ours.
func TestHostileFields(t *testing.T) {
	total := 100_000
	if testing.Short() {
		total = 5_000
	}
	s, _ := newServer(t)
	log := &countingLog{t: t}
	s.Log = slog.New(slog.NewJSONHandler(log, nil))
	reg := prometheus.NewRegistry()
	s.Metrics = metrics.New(reg)
	s.XClientFrom = append(s.XClientFrom, group(addrOf(pipeAddr("203.0.113.1")).Addr()))
	snap := snapshot(t, func(spec *policy.Spec) {
		spec.Limits.SoftErrors, spec.Limits.HardErrors, spec.Limits.JunkCommands = 0, 0, 0
	})
	s.Policy = func() *policy.Snapshot { return snap }
	s.MaxUnknownRecipients, s.MaxTransactions = 1<<30, 1<<30
	ln := newPipeListener()
	stop := serve(t, s, ln)
	rnd := rand.New(rand.NewPCG(10, 5))
	var c *hostileClient
	first := 0
	for i := range total {
		if c == nil || c.closed() {
			c = openHostile(t, ln)
		}
		field := hostileFields[i%len(hostileFields)]
		if !c.send(fmt.Sprintf(field, hostile(rnd)) + "\r\n") {
			c = nil
			continue
		}
		if i%7 == 0 && !c.send("RSET\r\n") {
			c = nil
		}
		if i == total/10 {
			first = series(t, reg)
		}
	}
	if c != nil {
		c.Close()
	}
	stop()
	if last := series(t, reg); last > first+10 || last > 150 {
		t.Errorf("%d metric series, %d at a tenth of the strings", last, first)
	}
	if log.accepted > 0 || log.lines == 0 {
		t.Errorf("%d lines of log, %d acceptances among them", log.lines, log.accepted)
	}
	t.Logf("%d strings, %d log lines, %d metric series", total, log.lines, series(t, reg))
}

func series(t *testing.T, reg *prometheus.Registry) int {
	t.Helper()
	n, err := testutil.GatherAndCount(reg)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
