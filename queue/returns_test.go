package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// returnable is mail whose sender SPF vouched for.
func returnable(to ...string) *envelope.Envelope {
	env := mailTo(to...)
	for i := range env.To {
		env.To[i].Notify = ""
	}
	env.Auth = envelope.Auth{Checked: true, SPF: "pass", Vouched: "spf", DKIM: []envelope.Signature{{Domain: "example.org", Result: "fail"}}}
	return env
}

// refuser takes DSNs of ours into reports, and mail unless its recipient says
// otherwise.
type refuser struct {
	reports *letters
	deny    bool // DSNs too
}

// letters are what several lanes bring.
type letters struct {
	mu  sync.Mutex
	all []string
}

func (l *letters) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, s)
}

// take returns what has come since the last call.
func (l *letters) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.all
	l.all = nil
	return all
}

func (refuser) Up(string) bool { return true }

func (k refuser) Relay(_ context.Context, dest string, next func(time.Duration) *envelope.Transfer) error {
	for t := next(0); t != nil; t = next(0) {
		if t.Envelope.Report {
			f, err := t.Open()
			if err != nil {
				return err
			}
			body, err := io.ReadAll(f)
			if err != nil {
				return err
			}
			k.reports.add(fmt.Sprintf("%s <%s> %s %s\r\n%s", dest, t.Envelope.From, t.Envelope.To[0].Path, t.Envelope.To[0].Notify, body))
		}
		var replies []envelope.Reply
		for _, to := range t.Envelope.To {
			r := envelope.NewReply(250, "2.0.0", "ok")
			switch {
			case t.Envelope.Report && k.deny, to.Path.Local == "refused":
				r = envelope.NewReply(550, "5.7.1", "no, and\nnever")
			case to.Path.Local == "later":
				r = envelope.NewReply(450, "4.2.0", "later")
			}
			replies = append(replies, r)
		}
		t.Settle(replies, nil)
	}
	return nil
}

// runFor drains for d.
func runFor(t *testing.T, q *Queue, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := q.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := q.Healthy(); err != nil {
		t.Fatal(err)
	}
}

const mail = "Subject: it\r\nX-Secret: in the header\r\n\r\nthe body\r\n"

// TestReturned: what the next hop refuses is returned to who was vouched for, once,
// and to nobody else.
func TestReturned(t *testing.T) {
	for _, tt := range []struct {
		name     string
		change   func(*envelope.Envelope)
		body     string
		to       []string
		returned int
		held     int
		why      string // of Return, where it is held
	}{
		{name: "SPF", returned: 1},
		{name: "DKIM", change: func(e *envelope.Envelope) { e.Auth.Vouched = "dkim" }, returned: 1},
		{name: "nobody", change: func(e *envelope.Envelope) { e.Auth.Vouched, e.Auth.SPF = "", "softfail" }, held: 1, why: "neither SPF (softfail) nor DKIM (1 signatures, fail for example.org)"},
		{name: "unchecked", change: func(e *envelope.Envelope) { e.Auth = envelope.Auth{} }, held: 1, why: "weren't checked"},
		{name: "null", change: func(e *envelope.Envelope) { e.From = envelope.ReversePath{} }, held: 1, why: "takes no reports"},
		{name: "no local part", change: func(e *envelope.Envelope) { e.From.Local = "" }, held: 1, why: "takes no reports"},
		{name: "mailer-daemon", change: func(e *envelope.Envelope) { e.From.Local = "Mailer-Daemon" }, held: 1, why: "takes no reports"},
		{name: "NEVER", change: func(e *envelope.Envelope) { e.To[0].Notify = "NEVER" }, held: 1, why: "NOTIFY"},
		{name: "only others", change: func(e *envelope.Envelope) { e.To[0].Notify = "SUCCESS,DELAY" }, held: 1, why: "NOTIFY"},
		{name: "FAILURE", change: func(e *envelope.Envelope) { e.To[0].Notify = "DELAY,failure" }, returned: 1},
		{name: "a report", body: "Content-Type: multipart/REPORT; report-type=delivery-status;\r\n\tboundary=x\r\n\r\n--x\r\n", held: 1, why: "automatic answer"},
		{name: "a machine's answer", body: "auto-submitted : Auto-Replied (vacation)\r\n\r\ngone\r\n", held: 1, why: "automatic answer"},
		{name: "partly", to: []string{"refused@example.com", "b@example.com"}, returned: 1},
		{name: "one without", to: []string{"refused@example.com", "refused@example.net"}, change: func(e *envelope.Envelope) { e.To[1].Notify = "NEVER" }, returned: 1, held: 1, why: "NOTIFY"},
		{name: "too old", to: []string{"later@example.com"}, returned: 1},
		{name: "held by the policy", change: func(e *envelope.Envelope) { e.Hold = true }, held: 1},
		{name: "large", body: mail + bodyOf(200_000, 1), change: func(e *envelope.Envelope) { e.Ret = "FULL" }, returned: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer leaveBubble()
				reports := new(letters)
				o := options(newMemDisk())
				o.Return, o.Hostname, o.MaxAge = true, "mx2.example.net", time.Hour
				o.Relayer = refuser{reports: reports}
				q := mustOpen(t, o)
				if tt.to == nil {
					tt.to = []string{"refused@example.com"}
				}
				if tt.body == "" {
					tt.body = mail
				}
				env := returnable(tt.to...)
				if tt.change != nil {
					tt.change(env)
				}
				id, err := commit(q, env, tt.body)
				if err != nil {
					t.Fatal(err)
				}
				runFor(t, q, 5*time.Hour)
				left, got := walk(t, q), reports.take()
				if len(got) != tt.returned || len(left) != tt.held {
					t.Fatalf("%d reports, %d left: %+v", len(got), len(left), left)
				}
				if n := testutil.ToFloat64(o.Metrics.Returned.WithLabelValues("queue")); n != float64(tt.returned) {
					t.Errorf("%v counted as returned", n)
				}
				if s := q.Status(); s.Accepted != 1 || s.Messages != tt.held {
					t.Errorf("a DSN counts as accepted: %+v", s)
				}
				if tt.held > 0 && tt.why != "" {
					if err := q.Return(id); err == nil || !errors.As(err, new(NotReturned)) || !strings.Contains(err.Error(), tt.why) {
						t.Errorf("Return: %v, want %q", err, tt.why)
					}
				}
				if tt.returned > 0 {
					for _, want := range []string{"mx.. <> sender@example.org NEVER\r\nFrom: Mail Delivery System <MAILER-DAEMON@mx2.example.net>\r\n",
						"Original-Envelope-Id: abc\r\n", "Final-Recipient: rfc822; " + tt.to[0] + "\r\n"} {
						if !strings.Contains(got[0], want) {
							t.Errorf("the report lacks %q:\n%s", want, got[0])
						}
					}
					if strings.Contains(got[0], "the body") != (env.Ret == "FULL") {
						t.Errorf("RET=%s:\n%s", env.Ret, got[0])
					}
				}
				mustClose(t, q)
				q = mustOpen(t, o) // the counts agree, and nothing is returned again
				runFor(t, q, 3*time.Hour)
				if got := reports.take(); len(got) != 0 || testutil.ToFloat64(o.Metrics.StoreAlarms.WithLabelValues("missing")) != 0 {
					t.Errorf("after a restart: %d reports", len(got))
				}
				mustClose(t, q)
			})
		})
	}
}

// TestReturnByHand: with return = "never" nothing is returned but what the
// operator returns.
func TestReturnByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer leaveBubble()
		reports := new(letters)
		o := options(newMemDisk())
		o.Relayer = refuser{reports: reports, deny: true}
		q := mustOpen(t, o)
		defer mustClose(t, q)
		id, err := commit(q, returnable("refused@example.com", "b@example.com"), mail)
		if err != nil {
			t.Fatal(err)
		}
		if err := q.Return(id); !errors.As(err, new(NotReturned)) || !strings.Contains(err.Error(), "none of its recipients is held") {
			t.Errorf("what waits: %v", err)
		}
		if err := q.Return("0000000000000000"); !errors.Is(err, ErrNotFound) {
			t.Errorf("what isn't there: %v", err)
		}
		runFor(t, q, time.Minute)
		if left, got := walk(t, q), reports.take(); len(left) != 1 || len(got) != 0 {
			t.Fatalf("%d reports, %+v", len(got), left)
		}
		if err := q.Return(id); err != nil {
			t.Fatal(err)
		}
		left := walk(t, q)
		if len(left) != 1 || !left[0].Report || left[0].Recipients[0].Destination != "mx.." {
			t.Fatalf("%+v", left)
		}
		runFor(t, q, 2*time.Hour) // it is refused, and that is the end of it
		left = walk(t, q)
		if got := reports.take(); len(left) != 1 || left[0].Recipients[0].Reason != "refused" || len(got) != 1 {
			t.Fatalf("%d reports, %+v", len(got), left)
		}
		if err := q.Return(left[0].ID); !errors.As(err, new(NotReturned)) || !strings.Contains(err.Error(), "report of our own") {
			t.Errorf("a report: %v", err)
		}
		if n := testutil.ToFloat64(o.Metrics.RelayReplies.WithLabelValues("held")); n != 1 {
			t.Errorf("%v recipients held, and one of them was a DSN's", n)
		}
	})
}

// TestReturnsPerHour: a sender whose signed mail is sent again and again gets no
// more than so many reports an hour; the rest is held until then.
func TestReturnsPerHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer leaveBubble()
		reports := new(letters)
		o := options(newMemDisk())
		o.Return, o.Relayer = true, refuser{reports: reports}
		q := mustOpen(t, o)
		defer mustClose(t, q)
		const n = 3*returnsPerHour - 5
		for range n {
			if _, err := commit(q, returnable("refused@example.com"), mail); err != nil {
				t.Fatal(err)
			}
		}
		other := returnable("refused@example.com")
		other.From.Local = "another"
		if _, err := commit(q, other, mail); err != nil {
			t.Fatal(err)
		}
		for hour, want := range []int{returnsPerHour + 1, returnsPerHour, returnsPerHour - 5} {
			runFor(t, q, 50*time.Minute)
			if got := reports.take(); len(got) != want {
				t.Errorf("hour %d: %d reports, want %d", hour, len(got), want)
			}
		}
		if left := walk(t, q); len(left) != 0 {
			t.Errorf("%d are left", len(left))
		}
	})
}

// TestForged: nobody gets a report for a forged sender. FORGED=100000 is make
// forged.
func TestForged(t *testing.T) {
	n := numberFrom(t, "FORGED", 2000)
	reports := new(letters)
	o := inDir(options(nil), t.TempDir()+"/q")
	o.Return, o.Relayer = true, refuser{reports: reports}
	q := mustOpen(t, o)
	defer mustClose(t, q)
	spf := []string{"fail", "softfail", "neutral", "none", "permerror", "temperror", "pass"} // pass: of a record that passes everybody
	dkim := []string{"fail", "none", "pass", "permerror", "temperror", "neutral"}            // pass: of somebody else's
	for i := range n {
		env := returnable("refused@example.com")
		env.From.Local, env.From.Domain = fmt.Sprint("victim", i), fmt.Sprintf("victim%d.example", i%1000)
		env.Auth = envelope.Auth{Checked: true, SPF: spf[i%len(spf)], DKIM: []envelope.Signature{{Domain: "attacker.example", Result: dkim[i%len(dkim)]}}}
		if _, err := commit(q, env, mail); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- q.Run(ctx) }()
	for deadline := time.After(10 * time.Minute); q.Stats().Held < n; {
		select {
		case <-deadline:
			t.Fatalf("%+v", q.Stats())
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s, got := q.Status(), reports.take(); len(got) != 0 || s.Messages != n || s.Held != n || s.Accepted != uint64(n) {
		t.Errorf("%d reports, %+v", len(got), s)
	}
	if got := testutil.ToFloat64(o.Metrics.Returned.WithLabelValues("queue")); got != 0 {
		t.Errorf("%v returned", got)
	}
}
