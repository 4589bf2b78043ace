package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/envelope"
)

// The demo as a whole: it ends well, tells each part of its story, and leaves
// nothing behind.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 15 s")
	}
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	if err := (&demoCmd{Messages: 120}).Run(ctx, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{
		"The primary goes down",
		"550 5.1.1 ",
		"bl.example.net; " + demoReason,
		"Relay access denied",
		"rule: ",
		"The queue keeps",
		"100 %  80 of 80",
		"550 5.2.1 Mailbox closed this morning",
		"81 accepted, for ",
		"40 refused",
		"0 lost, 0 altered, 0 relayed twice",
		"It closes:",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, out.String())
		}
	}
	if strings.ContainsAny(out.String(), "\r\x1b") {
		t.Errorf("control characters where there is no terminal:\n%q", out.String())
	}
	for i, line := range strings.Split(out.String(), "\n") {
		if n := len([]rune(line)); n > 160 {
			t.Errorf("line %d has %d characters: %s", i+1, n, line)
		}
	}
	left, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "*"))
	if err != nil || left != nil {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestDemoRefuses(t *testing.T) {
	for _, n := range []int{-1, 0, 19, 5001} {
		if err := (&demoCmd{Messages: n}).Run(t.Context(), &bytes.Buffer{}); err == nil {
			t.Errorf("%d messages: no error", n)
		}
	}
}

func TestDemoInterrupted(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	w := writerFunc(func(b []byte) (int, error) {
		if bytes.Contains(b, []byte("messages arrive")) {
			cancel()
		}
		return out.Write(b)
	})
	if err := (&demoCmd{Messages: 100}).Run(ctx, w); err == nil {
		t.Errorf("no error:\n%s", out.String())
	}
	if left, _ := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "*")); left != nil {
		t.Errorf("left behind: %q", left)
	}
}

// A reader who has gone ends the demo.
func TestDemoUnread(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	w := writerFunc(func(b []byte) (int, error) { return 0, syscall.EPIPE })
	if err := (&demoCmd{Messages: 100}).Run(t.Context(), w); err == nil || errors.Is(err, syscall.EPIPE) {
		t.Errorf("got %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "*")); left != nil {
		t.Errorf("left behind: %q", left)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// The books notice each way in which a message can go wrong.
func TestDemoBooks(t *testing.T) {
	good, _ := demoKinds()
	ok := envelope.NewReply(250, "2.0.0", "Ok: queued as ABC1")
	content := []byte("\r\nx\r\n")
	m := demoMail{demo.Mail{To: []string{"a@x", "b@x"}, Content: content}, good}
	accepted := demo.Outcome{Rcpt: []envelope.Reply{ok, ok}, Final: ok}
	at := func(sum [32]byte, to ...string) demo.Received { return demo.Received{To: to, BodySum: sum} }
	sum, other := demo.BodySum(content), demo.BodySum([]byte("y"))
	for name, tt := range map[string]struct {
		received []demo.Received
		held     []demoPair
		want     account
	}{
		"relayed":        {[]demo.Received{at(sum, "a@x", "b@x")}, nil, account{accepted: 2, relayed: 2}},
		"one held":       {[]demo.Received{at(sum, "a@x")}, []demoPair{{sum, "b@x"}}, account{accepted: 2, relayed: 1, held: 1}},
		"one lost":       {[]demo.Received{at(sum, "a@x")}, nil, account{accepted: 2, relayed: 1, lost: 1}},
		"altered":        {[]demo.Received{at(other, "a@x"), at(sum, "b@x")}, nil, account{accepted: 2, relayed: 1, lost: 1, altered: 1}},
		"twice":          {[]demo.Received{at(sum, "a@x", "b@x"), at(sum, "a@x")}, nil, account{accepted: 2, relayed: 2, twice: 1}},
		"stranger held":  {[]demo.Received{at(sum, "a@x")}, []demoPair{{other, "b@x"}}, account{accepted: 2, relayed: 1, lost: 1}},
		"relayed + held": {[]demo.Received{at(sum, "a@x", "b@x")}, []demoPair{{sum, "a@x"}}, account{accepted: 2, relayed: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newDemoBooks()
			b.enter(m, accepted, nil)
			got := b.close(tt.received, tt.held)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(account{})); diff != "" {
				t.Error(diff)
			}
			if got.even() != (got.lost+got.altered+got.twice == 0) {
				t.Error("even is wrong")
			}
			if b.ids["ABC1"] != sum || b.wrong != nil {
				t.Errorf("ids %v, complaints %q", b.ids, b.wrong)
			}
		})
	}
	b := newDemoBooks()
	b.enter(m, demo.Outcome{Banner: envelope.NewReply(421, "4.3.2", "No")}, nil)
	b.enter(m, demo.Outcome{}, context.Canceled)
	if len(b.wrong) != 2 || b.messages != 0 || b.sent != 2 || b.refused[good.name] != 2 {
		t.Errorf("%+v", b)
	}
}

// What was accepted and is nowhere makes the demo fail.
func TestDemoNoticesLoss(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var out bytes.Buffer
	s := &show{screen: newScreen(&out, func(error) {}), books: newDemoBooks(), log: newDemoLog()}
	if err := s.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.playUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.books.accepted[demoPair{rcpt: "alice@example.org"}] = 0
	if err := s.playSummary(t.Context()); err == nil || !strings.Contains(err.Error(), "does not close") {
		t.Errorf("got %v\n%s", err, out.String())
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
}

// On a terminal the bar is redrawn; the story stays readable without one.
func TestScreen(t *testing.T) {
	var out bytes.Buffer
	s := &screen{w: &out, tty: true, colour: true}
	s.bar(1, 2, "half")
	s.bar(2, 2, "all")
	s.say("end")
	if got := strings.Count(out.String(), "\r"); got != 2 || !strings.HasSuffix(out.String(), "all\x1b[K\n       end\n") {
		t.Errorf("%q", out.String())
	}
	out.Reset()
	s = newScreen(&out, func(error) {})
	for i := range 101 {
		s.bar(i, 100, "%d", i)
	}
	s.say("%s", s.paint(red, "end"))
	want := "        25 %  25\n        50 %  50\n        75 %  75\n       100 %  100\n       end\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}
