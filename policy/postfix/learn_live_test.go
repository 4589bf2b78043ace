package postfix_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// server is a table that can't be listed: tcp_table(5) or socketmap_table(5).
type server struct {
	name string // of the table

	mu     sync.Mutex // guards all below
	keys   []string
	broken bool
	asked  map[string]int
}

func newServer(t *testing.T, typ string, keys ...string) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{name: "tcp:" + l.Addr().String(), keys: keys, asked: map[string]int{}}
	if typ == "socketmap" {
		s.name = "socketmap:inet:" + l.Addr().String() + ":users"
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(t.Context(), func() { c.Close() })
			wg.Go(func() {
				defer stop()
				defer c.Close()
				r := bufio.NewReader(c)
				for err := error(nil); err == nil; {
					if typ == "socketmap" {
						err = s.netstring(r, c)
					} else {
						err = s.line(r, c)
					}
				}
			})
		}
	})
	return s
}

func (s *server) line(r *bufio.Reader, w io.Writer) error {
	l, err := r.ReadString('\n')
	if err == nil {
		_, err = fmt.Fprintf(w, "%s\n", map[string]string{"": "500 nobody", "?": "400 not now", "x": "200 x"}[s.answer(strings.TrimSpace(strings.TrimPrefix(l, "get ")))])
	}
	return err
}

func (s *server) netstring(r *bufio.Reader, w io.Writer) error {
	var n int
	if _, err := fmt.Fscanf(r, "%d:", &n); err != nil {
		return err
	}
	b := make([]byte, n+1) // with the comma
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	reply := map[string]string{"": "NOTFOUND ", "?": "TEMP not now", "x": "OK x"}[s.answer(strings.TrimPrefix(string(b[:n]), "users "))]
	_, err := fmt.Fprintf(w, "%d:%s,", len(reply), reply)
	return err
}

func (s *server) answer(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[key]++
	switch {
	case s.broken:
		return "?"
	case slices.Contains(s.keys, key):
		return "x"
	}
	return ""
}

func (s *server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// TestLearnedLikePostfix plays sessions against a Postfix whose recipients are
// in tables that can't be listed, and against what an import learns of them.
func TestLearnedLikePostfix(t *testing.T) {
	for _, typ := range []string{"tcp", "socketmap"} {
		t.Run(typ, func(t *testing.T) { compareLearned(t, typ) })
	}
}

func compareLearned(t *testing.T, typ string) {
	table := newServer(t, typ, "carol", "dave", "erin", "root", "owner-list", "alice@mailbox.example", "blocked@mailbox.example", "tag@mailbox.example",
		"inner@mailbox.example", "@second.example", "defer@mailbox.example", "alice@one.example", "@two.example", "bob@sub.one.example",
		"old@mailbox.example", "carl@sub.one.example")
	name := table.name
	addr, src := startPostfix(t, "local_recipient_maps = "+name+"\nvirtual_mailbox_maps = "+name+"\nrelay_recipient_maps = inline:{x@one.example=x}, "+name+"\n")
	src.Learned = &postfix.Learned{}
	decide := func(ask ...string) []string {
		src.Ask = ask
		spec, report := load(t, src)
		for _, it := range report.Items {
			if it.Element == name && (it.Class != fidelity.Approximated || !strings.Contains(it.Why, "learned")) {
				t.Errorf("%s: %s, %s", it.ID(), it.Class, it.Why)
			}
		}
		snap, err := policy.Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		return playEngine(t, snap, "192.0.2.5", "ok.example", "x@sender.example")
	}
	live := playLive(t, addr, "192.0.2.5", "ok.example", "x@sender.example")
	before := decide()
	unsure := 0
	for i, got := range before {
		if got == "450 4.1.1" && got != live[i] {
			unsure++
		} else if got != live[i] {
			t.Errorf("<%s> before anything is known: Postfix %s, we %s", liveRecipients[i], live[i], got)
		}
	}
	if unsure < 15 {
		t.Errorf("only %d recipients were unsure: the tables say little", unsure)
	}
	if diff := cmp.Diff(live, decide(liveRecipients...)); diff != "" {
		t.Errorf("once asked (-Postfix +we):\n%s", diff)
	}
	table.change(func() { clear(table.asked) })
	if diff := cmp.Diff(live, decide(liveRecipients...)); diff != "" {
		t.Errorf("from memory (-Postfix +we):\n%s", diff)
	}
	table.change(func() {
		if delete(table.asked, "postmaster"); len(table.asked) > 0 {
			t.Errorf("asked again: %v", table.asked)
		}
	})
}

// TestListedLikePostfix lists the same tables by a command.
func TestListedLikePostfix(t *testing.T) {
	table := newServer(t, "socketmap", "carol", "alice@mailbox.example", "@second.example")
	addr, src := startPostfix(t, "local_recipient_maps = "+table.name+"\nvirtual_mailbox_maps = "+table.name+"\n")
	src.Commands = map[string][]string{table.name: append([]string{"printf", "%s\\n"}, table.keys...)}
	spec, _ := load(t, src)
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(playLive(t, addr, "192.0.2.5", "ok.example", "x@sender.example"), playEngine(t, snap, "192.0.2.5", "ok.example", "x@sender.example")); diff != "" {
		t.Errorf("(-Postfix +we):\n%s", diff)
	}
}

// TestLearnedFails lets the table fail: the import says which, and learns
// nothing from it.
func TestLearnedFails(t *testing.T) {
	table := newServer(t, "tcp", "alice@box.example")
	name := table.name
	src := install(t, map[string]string{"main.cf": base + "virtual_mailbox_domains = box.example\nvirtual_mailbox_maps = proxy:" + name + "\n"})
	src.Learned = &postfix.Learned{}
	table.change(func() { table.broken = true })
	for _, ask := range [][]string{nil, {"alice@box.example", "bob@box.example"}} {
		src.Ask = ask
		if _, _, err := postfix.Import(t.Context(), src); err == nil || !strings.HasPrefix(err.Error(), "virtual_mailbox_maps: table "+name+": postmap: ") {
			t.Errorf("with %q: %v", ask, err)
		}
	}
	if n := len(src.Learned.Tables[name]); n > 0 {
		t.Errorf("learned %d answers", n)
	}
	table.change(func() { table.broken = false })
	// What strangers write is a key, never more.
	src.Ask = []string{"alice@box.example", "bob@box.example", "a\nb@box.example", "-q@box.example", "$(id)@box.example", "`id`$id@box.example", `"a\"b c"@box.example`, strings.Repeat("x", 70000) + "@box.example"}
	spec, _ := load(t, src)
	if got := spec.Tables[name].Len(); got != 1 {
		t.Errorf("%d keys are there, want 1", got)
	}
	if got := spec.Tables[spec.Learned[name].Absent].Len(); got != 4 {
		t.Errorf("%d keys are absent, want 4: bob, `id`$id and both spellings of a\"b c; RCPT refuses the rest anyway", got)
	}
}
