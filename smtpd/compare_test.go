package smtpd

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
)

// TestCompare: what the primary says against the lists is counted, and logged
// once for each table. What it refuses for another reason says nothing of them.
func TestCompare(t *testing.T) {
	const open = "S: 220\nC: EHLO a.example\nS: 250\nC: MAIL FROM:<b@x.example>\nS: 250\n"
	rcpt := func(who, want string) string { return "C: RCPT TO:<" + who + "@corp.example>\nS: " + want + "\n" }
	for _, tt := range []struct {
		name, alice, carol string // the primary's replies
		live               string // live: listed, unlisted
		ask                string // asked: listed
		lines              [2]int // logged live, asked
	}{
		{"both known", "250 2.1.5 Ok", "250 2.1.5 Ok", "0 1", "0", [2]int{1, 0}},
		{"one unknown", "550 5.1.1 User unknown", "250 2.1.5 Ok", "1 1", "1", [2]int{2, 1}},
		{"two of a table", "550 5.1.1 no", "550 User unknown in table", "2 1", "2", [2]int{2, 1}},
		{"other refusals", "550 5.7.1 User unknown to the spam filter", "450 4.1.1 User unknown", "0 1", "0", [2]int{1, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			script := open + rcpt("alice", tt.alice[:3]) + rcpt("carol", tt.carol[:3])
			a := &actor{answers: map[string]string{"alice@corp.example": tt.alice, "carol@corp.example": tt.carol, "noone@corp.example": "550 5.1.1 no"}}
			live, _ := liveServer(t, a)
			var log bytes.Buffer
			live.Log = slog.New(slog.NewJSONHandler(&log, nil))
			talk(t, live, script+rcpt("nobody", "250")+rcpt("noone", "550"))
			check(t, live, &log, tt.live, tt.lines[0], "live", "listed", "unlisted")

			var replies []envelope.Reply
			for _, text := range []string{tt.alice, tt.carol} {
				r, _ := (&actor{answers: map[string]string{"": text}}).say("", "")
				replies = append(replies, r)
			}
			asked, _ := newServer(t)
			snap := snapshot(t, func(s *policy.Spec) { s.Restrictions.Recipient = []policy.Restriction{{Kind: "ask_primary"}} })
			asked.Policy = func() *policy.Snapshot { return snap }
			asked.Inquire = func(*envelope.Envelope, int64) Asker { return &oracle{replies: replies} }
			log.Reset()
			asked.Log = slog.New(slog.NewJSONHandler(&log, nil))
			talk(t, asked, script+rcpt("nobody", "550"))
			check(t, asked, &log, tt.ask, tt.lines[1], "ask", "listed")
		})
	}
}

// check wants the counts of how the primary said so, for each kind of list, and
// so many lines in the log.
func check(t *testing.T, s *Server, log *bytes.Buffer, counts string, lines int, by string, lists ...string) {
	t.Helper()
	var got []string
	for _, l := range lists {
		got = append(got, fmt.Sprint(testutil.ToFloat64(s.Metrics.Contradicted.WithLabelValues(by, l))))
	}
	if diff := cmp.Diff(counts, strings.Join(got, " ")); diff != "" {
		t.Errorf("%s counted (-want +got):\n%s", by, diff)
	}
	if n := strings.Count(log.String(), "primary contradicts the policy's lists"); n != lines {
		t.Errorf("%s: logged %d times, want %d:\n%s", by, n, lines, log)
	}
}
