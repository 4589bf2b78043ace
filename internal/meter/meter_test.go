package meter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// noDNS has no answers.
type noDNS struct{}

var errNoDNS = &net.DNSError{Err: "no such host", IsNotFound: true}

func (noDNS) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) { return nil, errNoDNS }
func (noDNS) LookupMX(context.Context, string) ([]*net.MX, error)               { return nil, errNoDNS }
func (noDNS) LookupAddr(context.Context, string) ([]string, error)              { return nil, errNoDNS }
func (noDNS) LookupTXT(context.Context, string) ([]string, error)               { return nil, errNoDNS }
func (noDNS) LookupNS(context.Context, string) ([]*net.NS, error)               { return nil, errNoDNS }

// snapshot knows these recipients of corp.example.
func snapshot(t *testing.T, lacks []string, recipients ...string) *policy.Snapshot {
	t.Helper()
	set, err := table.NewSet(recipients)
	if err != nil {
		t.Fatal(err)
	}
	spec := policy.NewSpec()
	spec.Addresses.Relay = policy.AddressClass{Domains: []string{"corp.example"}, Recipients: []string{"r"}}
	spec.Tables = map[string]*table.Table{"r": set}
	spec.Restrictions.Recipient = []policy.Restriction{{Kind: "reject_unauth_destination"}}
	spec.NotReplicated = lacks
	s, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func open(t *testing.T, file string, log *bytes.Buffer) (*Meter, *metrics.Metrics) {
	t.Helper()
	mx := metrics.New(prometheus.NewRegistry())
	return Open(Options{File: file, Agreement: mx.LiveAgreement, Differences: mx.Differences.MustCurryWith(prometheus.Labels{"by": "live"}),
		Log: slog.New(slog.NewTextHandler(log, nil))}, time.Now()), mx
}

func mailbox(t *testing.T, s string) envelope.Mailbox {
	t.Helper()
	m, err := envelope.ParseMailbox(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// rcpt is a decision about a recipient, ours made by the snapshot.
func rcpt(t *testing.T, s *policy.Snapshot, to string, primary envelope.Reply) Decision {
	t.Helper()
	d := Decision{At: policy.Rcpt, Client: envelope.Client{Addr: netip.MustParseAddr("192.0.2.7"), Helo: "h.example"},
		From: envelope.ReversePath{Mailbox: mailbox(t, "b@x.example")}, To: envelope.ForwardPath{Mailbox: mailbox(t, to)}, Snapshot: s, Primary: primary}
	d.Ours = Judge(context.Background(), s, noDNS{}, d)
	return d
}

var (
	yes     = envelope.NewReply(250, "2.1.5", "Ok")
	unknown = envelope.NewReply(550, "5.1.1", "<alice@corp.example>: Recipient address rejected: User unknown in relay recipient table")
)

// TestMeter: decisions are counted, exact differences wait for another policy, and
// all of it is there again after a restart.
func TestMeter(t *testing.T) {
	file := filepath.Join(t.TempDir(), "parity.json")
	var log bytes.Buffer
	m, mx := open(t, file, &log)
	old, next := snapshot(t, nil, "alice@corp.example"), snapshot(t, nil, "alice@corp.example", "new@corp.example")
	now := time.Now()
	m.Note(now, rcpt(t, old, "alice@corp.example", yes))
	m.Note(now, rcpt(t, old, "new@corp.example", yes))
	m.Note(now, rcpt(t, old, "alice@corp.example", unknown))

	ctx := context.Background()
	m.reconsider(ctx, now.Add(100*time.Millisecond), old, noDNS{})
	if got := testutil.ToFloat64(mx.Differences.WithLabelValues("live", Late)); got != 0 {
		t.Errorf("%v late ones before another policy", got)
	}
	m.reconsider(ctx, now.Add(400*time.Millisecond), next, noDNS{})
	m.reconsider(ctx, now.Add(graceFor-time.Millisecond), next, noDNS{})
	if got := testutil.ToFloat64(mx.Differences.WithLabelValues("live", Exact)); got != 0 {
		t.Errorf("%v exact ones within the grace", got)
	}
	m.reconsider(ctx, now.Add(graceFor), next, noDNS{})
	for class, want := range map[string]float64{Late: 1, Exact: 1} {
		if got := testutil.ToFloat64(mx.Differences.WithLabelValues("live", class)); got != want {
			t.Errorf("%s: %v, want %v", class, got, want)
		}
	}
	r := m.Report(true)
	if r.Same != 1 || r.Different != 2 || r.Unexplained != 1 || len(r.Differences) != 2 || len(m.fresh) != 0 {
		t.Errorf("%+v", r)
	}
	if d := r.Differences[1]; d.Class != Late || d.Cause != "recipient_new" || d.SettledAfter == nil || *d.SettledAfter != 0.4 || d.Recipient != "<new@corp.example>" || !strings.HasPrefix(d.Ours, "550 5.1.1") || d.Primary != "250 2.1.5 Ok" {
		t.Errorf("the new recipient: %+v", d)
	}
	if d := r.Differences[0]; d.Class != Exact || d.Cause != "recipient_gone" || d.Ours != "permit" || d.Client != "unknown[192.0.2.7]" {
		t.Errorf("the recipient that is gone: %+v", d)
	}
	if err := m.Save(); err != nil {
		t.Fatal(err)
	}
	again, _ := open(t, file, &log)
	if diff := cmp.Diff(r, again.Report(true)); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	for _, e := range again.ring { // two days ago
		e.At = e.At.Add(-48 * time.Hour)
	}
	if n := again.Report(false).Unexplained; n != 0 {
		t.Errorf("%d unexplained two days later", n)
	}
	again.Note(now, rcpt(t, old, "alice@corp.example", unknown))
	if k := again.Report(false).Kinds[0]; k.Count != 2 {
		t.Errorf("it doesn't go on counting: %+v", k)
	}
	if log.Len() > 0 {
		t.Errorf("log: %s", log.String())
	}
}

// TestMeterDamage: whatever is in the file, the meter begins, the file is put
// aside, and the next one is good.
func TestMeterDamage(t *testing.T) {
	for name, text := range map[string]string{"cut": `{"since":"2026-01-0`, "empty": "", "other": "[]", "null": "null", "zeros": strings.Repeat("\x00", 4096)} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "parity.json")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			m, _ := open(t, file, &log)
			if !strings.Contains(log.String(), "put aside") {
				t.Errorf("log: %q", log.String())
			}
			if got, err := os.ReadFile(file + ".damaged"); err != nil || string(got) != text {
				t.Errorf("put aside: %q, %v", got, err)
			}
			m.Note(time.Now(), rcpt(t, snapshot(t, nil, "alice@corp.example"), "new@corp.example", yes))
			if err := m.Save(); err != nil {
				t.Fatal(err)
			}
			again, _ := open(t, file, new(bytes.Buffer))
			if r := again.Report(true); len(r.Differences) != 1 {
				t.Errorf("%+v", r)
			}
		})
	}
	m, _ := open(t, filepath.Join(t.TempDir(), "no", "such", "directory"), new(bytes.Buffer))
	m.Note(time.Now(), rcpt(t, snapshot(t, nil, "alice@corp.example"), "alice@corp.example", yes))
	for range 2 {
		if m.Save() == nil {
			t.Error("a failure to save isn't told, each time")
		}
	}
}

// TestMeterFlood: a flood of one kind is bounded, in memory and on disk, and hides
// no other kind.
func TestMeterFlood(t *testing.T) {
	file := filepath.Join(t.TempDir(), "parity.json")
	m, mx := open(t, file, new(bytes.Buffer))
	s, now := snapshot(t, nil, "alice@corp.example"), time.Now()
	m.Note(now, rcpt(t, s, "alice@corp.example", unknown))
	long := envelope.NewReply(250, "2.1.5", "%s", strings.Repeat("é\x1b", 5000))
	d := rcpt(t, s, "nobody@corp.example", long)
	d.Client.Helo = strings.Repeat("h", 5000)
	for range 3 * maxDifferences {
		m.Note(now, d)
	}
	if err := m.Save(); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(file); err != nil || fi.Size() > 4<<20 {
		t.Errorf("%v, %v", fi.Size(), err)
	}
	r := m.Report(true)
	if len(r.Differences) != maxDifferences || len(m.fresh) != maxDifferences || len(r.Kinds) != 2 || r.Kinds[0].Count != 3*maxDifferences || r.Kinds[1].Last.Recipient != "<alice@corp.example>" {
		t.Errorf("%d differences, %d fresh, kinds %+v", len(r.Differences), len(m.fresh), r.Kinds)
	}
	for _, text := range []string{r.Differences[0].Primary, r.Differences[0].Helo} {
		if len(text) > maxText+2 || strings.ContainsRune(text, 0x1b) {
			t.Errorf("%d octets of a peer: %q", len(text), text[:20])
		}
	}
	m.reconsider(context.Background(), now.Add(graceFor), s, noDNS{})
	if got := testutil.ToFloat64(mx.Differences.WithLabelValues("live", Exact)); got != 3*maxDifferences+1 {
		t.Errorf("%v counted", got)
	}
}

// TestMeterHashed: where recipients are hashed, nothing that is written or shown has
// an address; and what was written before is cleaned.
func TestMeterHashed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "parity.json")
	m, _ := open(t, file, new(bytes.Buffer))
	plain := snapshot(t, nil, "alice@corp.example")
	m.Note(time.Now(), rcpt(t, plain, "new@corp.example", yes))
	secret := table.Secret{1}
	hashed, err := plain.Spec().Tables["r"].Hashed(&secret, false, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	spec := *plain.Spec()
	spec.Tables = map[string]*table.Table{"r": hashed}
	s, err := policy.Compile(&spec)
	if err != nil {
		t.Fatal(err)
	}
	m.Note(time.Now(), rcpt(t, s, "alice@corp.example", unknown))
	m.Note(time.Now(), rcpt(t, s, "other@corp.example", envelope.NewReply(250, "", "x <\"a>b\"@corp.example> and alice@corp.example for host[192.0.2.7], ok")))
	if err := m.Save(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"alice", "new@", "other", "@", "192.0.2.7", "h.example", "x.example"} {
		if bytes.Contains(text, []byte(s)) {
			t.Errorf("the file has %q:\n%s", s, text)
		}
	}
	r := m.Report(true)
	if d := r.Differences[1]; d.Cause != "recipient_gone" || !strings.Contains(d.Primary, "User unknown in relay recipient table") {
		t.Errorf("too much is taken out: %+v", d)
	}
	next := snapshot(t, nil, "alice@corp.example", "other@corp.example") // judged anew all the same
	m.reconsider(context.Background(), time.Now(), next, noDNS{})
	if r := m.Report(false); r.Unexplained != 2 {
		t.Errorf("%+v", r)
	}
}

// TestExplain has the class, the cause and the item for what either side says.
func TestExplain(t *testing.T) {
	all := []string{"smtpd_recipient_restrictions: check_policy_service inet:127.0.0.1:10023", "smtpd_milters: inet:localhost:11332", "content_filter: smtp:[127.0.0.1]:10025"}
	const policyd, milter, filter = "smtpd_recipient_restrictions: check_policy_service inet:127.0.0.1:10023", "smtpd_milters: inet:localhost:11332", "content_filter: smtp:[127.0.0.1]:10025"
	permit := policy.Verdict{Rule: policy.Rule{Kind: "listed_recipient"}}
	no := func(kind string, a policy.Action) policy.Verdict {
		return policy.Verdict{Action: a, Rule: policy.Rule{Kind: kind}, Reply: envelope.NewReply(550, "5.7.1", "no")}
	}
	unsure := no("unlisted_recipient", policy.Defer)
	unsure.Unsure = "a@corp.example"
	reply := envelope.NewReply
	for _, tt := range []struct {
		name    string
		at      policy.Stage
		ours    policy.Verdict
		primary envelope.Reply
		lacks   []string
		want    string
	}{
		{"new", policy.Rcpt, no("unlisted_recipient", policy.Reject), yes, all, "exact recipient_new"},
		{"new, by a restriction", policy.Rcpt, no("reject_unlisted_recipient", policy.Reject), yes, nil, "exact recipient_new"},
		{"put off", policy.Rcpt, no("unlisted_recipient", policy.Defer), yes, nil, "approximated recipient_unsure"},
		{"unsure", policy.Rcpt, unsure, yes, nil, "approximated recipient_unsure"},
		{"unsure, and gone", policy.Rcpt, unsure, unknown, nil, "approximated recipient_unsure"},
		{"gone", policy.Rcpt, permit, unknown, all, "exact recipient_gone"},
		{"a domain too few", policy.Rcpt, no("foreign_domain", policy.Defer), yes, nil, "approximated domain_not_allowed"},
		{"listed here", policy.Rcpt, no("reject_rbl_client", policy.Reject), yes, nil, "given_dns dns"},
		{"listed there", policy.Rcpt, permit, reply(554, "5.7.1", "Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org"), all, "given_dns dns"},
		{"no such domain", policy.Rcpt, no("reject_unknown_sender_domain", policy.Defer), reply(550, "5.1.8", "<a@b.example>: Sender address rejected: Domain not found"), all, "given_dns dns"},
		{"greylisted", policy.Rcpt, permit, reply(450, "4.2.0", "<a@corp.example>: Recipient address rejected: Greylisted, see http://x"), all, "not_replicated greylisting " + policyd},
		{"greylisted, no report", policy.Rcpt, permit, reply(450, "4.7.1", "greylisting in action"), nil, "not_replicated greylisting"},
		{"greylisted here", policy.Rcpt, no("check_greylist", policy.Defer), yes, nil, "approximated greylisting"},
		{"greylisted here, refused there", policy.Rcpt, no("check_greylist", policy.Defer), unknown, nil, "approximated greylisting"},
		{"quota", policy.Rcpt, permit, reply(552, "5.2.2", "<a@corp.example>: Recipient address rejected: Mailbox is full"), all, "not_replicated policy_service " + policyd},
		{"a text, no service", policy.Rcpt, permit, reply(552, "5.2.2", "<a@corp.example>: Recipient address rejected: Mailbox is full"), nil, "exact rule"},
		{"a milter at MAIL", policy.Mail, permit, reply(550, "5.7.1", "Go away"), all[1:], "not_replicated milter " + milter},
		{"a milter at the end", policy.EndOfData, permit, reply(554, "5.7.1", "Gtube pattern"), all, "not_replicated milter " + milter},
		{"a filter", policy.EndOfData, permit, reply(554, "5.7.0", "Virus"), all[2:], "not_replicated content_filter " + filter},
		{"header_checks", policy.EndOfData, permit, reply(554, "5.7.1", "no such subjects"), all[:1], "exact content"},
		{"our header_checks", policy.EndOfData, no("header_checks", policy.Reject), reply(250, "2.0.0", "Ok"), all, "exact content"},
		{"access table", policy.Rcpt, permit, reply(554, "5.7.1", "<x>: Client host rejected: Access denied"), all, "exact rule"},
		{"our access table", policy.Rcpt, no("check_client_access", policy.Reject), yes, all, "exact rule"},
		{"in place of", policy.Rcpt, no("defer_if_permit", policy.Defer), yes, all, "not_replicated substitute"},
		{"of our own", policy.Rcpt, no("defer_if_permit", policy.Defer), yes, nil, "exact rule"},
		{"rates", policy.Rcpt, permit, reply(450, "4.7.1", "Error: too many recipients from 192.0.2.1"), nil, "not_replicated rate_limit"},
		{"trouble", policy.EndOfData, permit, reply(451, "4.3.0", "Error: queue file write error"), nil, "not_replicated trouble"},
		{"an unknown client", policy.Mail, no("reject_unknown_client_hostname", policy.Reject), reply(250, "2.1.0", "Ok"), nil, "given_dns dns"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			class, cause, item := explain(&Decision{At: tt.at, Ours: tt.ours, Primary: tt.primary}, tt.lacks)
			if got := strings.TrimSpace(fmt.Sprint(class, " ", cause, " ", item)); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
			if advice[cause] == "" {
				t.Errorf("nothing is said of what to do about %s", cause)
			}
		})
	}
}

// TestAgree: classes, not codes.
func TestAgree(t *testing.T) {
	actions := []policy.Action{policy.Permit, policy.Defer, policy.Reject, policy.Discard, policy.Hold}
	for code, want := range map[int]string{250: "[true false false true true]", 354: "[true false false true true]", 450: "[false true false false false]", 550: "[false false true false false]"} {
		var got []bool
		for _, a := range actions {
			got = append(got, Agree(policy.Verdict{Action: a}, envelope.Reply{Code: code}))
		}
		if fmt.Sprint(got) != want {
			t.Errorf("%d: %v, want %s", code, got, want)
		}
	}
}

// FuzzLoad: no file breaks the meter, and what it took it can write.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"since":"2026-01-02T03:04:05Z","stages":[{"stage":"rcpt","same":1}],"kinds":[{"stage":"rcpt"}],"differences":[{"stage":"x"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		file := filepath.Join(t.TempDir(), "parity.json")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		m, _ := open(t, file, new(bytes.Buffer))
		m.dirty = true
		if err := m.Save(); err != nil {
			t.Fatal(err)
		}
		if _, err := load(file); err != nil {
			var syntax *json.SyntaxError
			t.Fatal(errors.As(err, &syntax), err)
		}
	})
}
