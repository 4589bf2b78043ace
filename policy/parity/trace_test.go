package parity

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// record plays n sessions on a server and returns their trace and what they
// came to.
func record(t *testing.T, n int, primary Dialer) (string, Result) {
	t.Helper()
	var b bytes.Buffer
	rec := NewRecorder(&b, "here")
	res, err := Run(t.Context(), Options{Primary: primary, Local: primary, Material: material(), Sessions: n, Seed: 1, Parallel: 4,
		Observe: func(_ int, s Session, _ *Difference, primary Transcript) bool { rec.Add(s, primary); return false }})
	if err != nil {
		t.Fatal(err)
	}
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String(), res
}

// TestTrace records sessions of every kind, octets that are no UTF-8 among
// them, and plays them as they were.
func TestTrace(t *testing.T) {
	heard := map[string]int{}
	lines := make(chan string, 1<<20)
	listener := scripted(func(line string) string { lines <- line; return lenient(line) })
	trace, want := record(t, 500, listener)
	count := func(sign int) {
		for len(lines) > 0 {
			heard[<-lines] += sign
		}
	}
	count(1)
	got, err := Replay(t.Context(), strings.NewReader(trace), listener)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-recorded +played):\n%s", diff)
	}
	count(-2) // recording played each session twice
	if !strings.Contains(trace, `\\xff`) {
		t.Error("no octet of the trace needs an escape: it proves little")
	}
	for line, n := range heard {
		if n != 0 {
			t.Errorf("%q was heard %d times too often or too rarely", line, n)
		}
	}
	differs, err := Replay(t.Context(), strings.NewReader(trace), scripted(func(line string) string {
		if strings.HasPrefix(line, "RCPT") {
			return "550 5.1.1 no"
		}
		return lenient(line)
	}))
	if err != nil || differs.Differences == 0 || len(differs.Distinct) != 1 {
		t.Fatalf("%+v, %v", differs, err)
	}
	line, primary, local := differs.Distinct[0].Where()
	if !strings.HasPrefix(line, "RCPT") || primary.Code != 250 || local.Code != 550 {
		t.Errorf("%s: %s, %s", line, primary, local)
	}
}

// TestBrokenTrace names the line.
func TestBrokenTrace(t *testing.T) {
	trace, _ := record(t, 3, scripted(lenient))
	lines := strings.SplitAfter(trace, "\n")
	for name, tc := range map[string]struct{ text, want string }{
		"empty":     {"", "line 1: this is no trace"},
		"a policy":  {`{"version": 1}`, "line 1: this is no trace"},
		"no end":    {strings.Join(lines[:4], ""), "line 5: the trace ends here"},
		"cut":       {trace[:len(lines[0])+len(lines[1])+20], "line 3: "},
		"a line":    {lines[0] + lines[1] + lines[3] + lines[4], "line 4: 3 sessions were recorded, 2 are here"},
		"no client": {lines[0] + `{"commands":[{"line":"RSET"}],"replies":[{"code":220}]}`, "line 2: it lacks its client"},
		"escape":    {lines[0] + `{"client":{"addr":"192.0.2.1"},"commands":[{"line":"\\q"}]}`, "line 2: "},
		"unknown":   {lines[0] + `{"what":1}`, `line 2: json: unknown field "what"`},
	} {
		if _, err := Replay(t.Context(), strings.NewReader(tc.text), scripted(lenient)); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
}

func FuzzReplay(f *testing.F) {
	f.Add(`{"understudy_trace":1,"primary":"x"}` + "\n" + `{"client":{"addr":"192.0.2.1"},"commands":[{"line":"RSET\\xff"}],"replies":[{"code":220}]}` + "\n" + `{"sessions":1}`)
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return
		}
		_, _ = Replay(t.Context(), strings.NewReader(text), scripted(lenient))
	})
}
