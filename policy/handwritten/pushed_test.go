package handwritten

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/pushed"
)

// TestPushed reads lists that were pushed: a recipient who isn't listed is refused
// for good only where the list can be believed.
func TestPushed(t *testing.T) {
	dir := t.TempDir()
	at := time.Unix(1e9, 0)
	s, err := pushed.Open(pushed.Options{Dir: filepath.Join(dir, "push"), Limits: pushed.Limits{Domains: []string{"list.example", "none.example", "stale.example", "hand.example"}, MaxEntries: 10, StaleAfter: time.Hour}, Now: func() time.Time { return at }})
	if err != nil {
		t.Fatal(err)
	}
	push := func(domain string) {
		if _, err := s.Replace(domain, "", func(add func(string) error) error { return add("alice@" + domain) }); err != nil {
			t.Fatal(err)
		}
	}
	push("stale.example")
	at = at.Add(2 * time.Hour)
	push("list.example")
	if err := s.Tick(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "policy.toml")
	text := `domains = ["list.example", "none.example", "stale.example", "hand.example"]
recipients = ["bob@hand.example", "carol@list.example"]
recipients_pushed = "push"
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	snap, files, err := Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"list.example.list", "none.example.list", "stale.example.unsure"} {
		if !strings.Contains(strings.Join(files, "\n"), filepath.Join(dir, "push", name)) {
			t.Errorf("%s isn't watched: %q", name, files)
		}
	}
	for to, want := range map[string]int{
		"alice@list.example": 0, "Carol@list.example": 0, "bob@list.example": 550, "alice@none.example": 450, "alice@stale.example": 0, "bob@stale.example": 450,
		"bob@hand.example": 0, "alice@hand.example": 550, "alice@other.example": 554,
	} {
		m, err := envelope.ParseMailbox(to)
		if err != nil {
			t.Fatal(err)
		}
		if v := snap.Session(nil, envelope.Client{NameStatus: envelope.NameNotFound}).Rcpt(t.Context(), envelope.ForwardPath{Mailbox: m}); v.Reply.Code != want {
			t.Errorf("%s: %s, want %d", to, v.Reply, want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "push/list.example.list"), []byte("alice@list.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(file, nil); err == nil || !strings.Contains(err.Error(), "policy.toml:3:") || !strings.Contains(err.Error(), "push it again") {
		t.Errorf("a list that nobody pushed: %v", err)
	}
}
