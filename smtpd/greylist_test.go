package smtpd

import (
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy"
)

// memory is a GreyMemory that puts everybody off, and notes what it is told.
type memory struct{ told []string }

func (m *memory) Try(t *policy.GreyTry) int64 {
	m.told = append(m.told, "try "+t.Triplet)
	return 60
}
func (m *memory) Passed(t *policy.GreyTry) { m.told = append(m.told, "passed "+t.Triplet) }
func (m *memory) Exempt()                  { m.told = append(m.told, "exempt") }

// TestGreylist: whom the snapshot's greylisting puts off is put off while it
// decides; in a live session the primary decides, an attempt is noted in any
// case, and whom the primary lets in has passed.
func TestGreylist(t *testing.T) {
	const hello = "S: 220\nC: EHLO a\nS: 250\nC: MAIL FROM:<b@x.example>\nS: 250\n"
	for _, tt := range []struct {
		name    string
		answers map[string]string // of the primary; nil: there is none
		script  string
		told    string
	}{
		{"no primary", nil, "C: RCPT TO:<alice@corp.example>\nS: 450 4.2.0 <alice@corp.example>: Recipient address rejected: Later, 60 s for corp.example\n", "try alice"},
		{"the primary lets in", map[string]string{}, "C: RCPT TO:<alice@corp.example>\nS: 250 2.1.5 Recipient ok\nC: RCPT TO:<carol@corp.example>\nS: 250 2.1.5 Recipient ok\n", "try alice|passed alice|try carol|passed carol"},
		{"the primary greylists, too", map[string]string{"alice@corp.example": "450 4.2.0 Greylisted"}, "C: RCPT TO:<alice@corp.example>\nS: 450 4.2.0 Greylisted\n", "try alice"},
		{"the primary refuses", map[string]string{"alice@corp.example": "550 5.1.1 no"}, "C: RCPT TO:<alice@corp.example>\nS: 550\n", "try alice"},
		{"the primary dies", map[string]string{"alice@corp.example": "gone"}, "C: RCPT TO:<alice@corp.example>\nS: 450 4.2.0\n", "try alice"},
		{"exempt", map[string]string{}, "C: RCPT TO:<abuse@corp.example>\nS: 250\n", "exempt"},
	} {
		s, _ := newServer(t)
		if tt.answers != nil {
			s, _ = liveServer(t, &actor{answers: tt.answers})
		}
		m := &memory{}
		s.Greylist = m
		snap := snapshot(t, func(p *policy.Spec) {
			p.Restrictions.Recipient = []policy.Restriction{{Kind: "check_greylist", Arg: "g"}}
			p.Filters.Greylists = map[string]policy.Greylist{"g": {Delay: 300, MaxAge: 86400, IPv4: 24, IPv6: 64, Action: "DEFER_IF_PERMIT", Text: "Later, %s s for %r", Recipients: []string{"abuse@"}}}
		})
		s.Policy = func() *policy.Snapshot { return snap }
		talk(t, s, hello+tt.script)
		var told []string
		for _, line := range m.told {
			what, triplet, _ := strings.Cut(line, " ")
			rcpt := triplet[strings.LastIndexByte(triplet, '/')+1:]
			rcpt, _, _ = strings.Cut(rcpt, "@")
			told = append(told, strings.TrimSpace(what+" "+rcpt))
		}
		if diff := gocmp.Diff(tt.told, strings.Join(told, "|")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
