package main

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/internal/publisher"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
)

// logged is a log that is read while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// publishing starts a publisher that polls once a day, whose mailboxes in
// box.example are in a table of the type typ.
func publishing(t *testing.T, typ, cf, more string) (*publication, *logged) {
	t.Helper()
	dir := t.TempDir()
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(text, "@DIR@", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("main.cf", `compatibility_level = 3.6
myhostname = mx.example.org
mydestination = $myhostname
inet_interfaces = 127.0.0.1
alias_maps =
local_recipient_maps = inline:{root=x}
virtual_mailbox_domains = box.example
virtual_mailbox_maps = `+typ+`:@DIR@/mailboxes.cf
smtpd_recipient_restrictions = reject_unauth_destination
`)
	put("master.cf", "smtp inet n - y - - smtpd\n")
	put("mailboxes.cf", cf)
	put("publish.toml", `state_dir = "@DIR@/state"
[publish]
listen = "127.0.0.1:0"
address = "127.0.0.1:1"
poll = "24h"
[policy]
postfix = "@DIR@"
`+more+`
[metrics]
listen = ""
`)
	return running(t, filepath.Join(dir, "publish.toml"))
}

// running starts a publisher of a configuration.
func running(t *testing.T, conf string) (*publication, *logged) {
	t.Helper()
	cfg, err := config.Load(conf)
	if err != nil {
		t.Fatal(err)
	}
	log := &logged{}
	p, err := newPublication(cfg, newLogger(config.Log{Format: "json"}, log))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("the publisher ended: %v", err)
		}
		if t.Failed() {
			t.Log(log.b.String())
		}
	})
	await(t, "it is ready", func() bool { return log.count(`"msg":"ready"`) > 0 })
	return p, log
}

// await returns how long something took.
func await(t *testing.T, what string, is func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		if time.Since(start) > time.Minute {
			t.Fatalf("%s: not within a minute", what)
		}
		<-tick.C
	}
	return time.Since(start)
}

// sqlite is a database file of mailboxes.
func sqlite(t *testing.T) (cf string, do func(sql string)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mail.db")
	do = func(sql string) {
		t.Helper()
		cmd := exec.Command("sqlite3", path)
		cmd.Stdin = strings.NewReader(sql)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sqlite3: %v (run test/install-peers)\n%s", err, out)
		}
	}
	return "dbpath = " + path + "\n", do
}

const mailboxTable = "CREATE TABLE mailbox (username varchar(190) PRIMARY KEY, active int); INSERT INTO mailbox VALUES ('alice@box.example', 1), ('bob@box.example', 1);"

// TestRowChanged: a row that changes is published within a second or so, though
// nothing polls the database.
func TestRowChanged(t *testing.T) {
	file, sqlite := sqlite(t)
	sqlite(mailboxTable)
	my, pg := listertest.MariaDB(t, mailboxTable), listertest.PostgreSQL(t, mailboxTable)
	reader := "user = reader\npassword = " + listertest.Password + "\ndbname = mail\nhosts = "
	for _, s := range []struct {
		typ, connection string
		do              func(sql string)
	}{
		{"sqlite", file, sqlite},
		{"mysql", reader + "unix:" + my.Socket + "\n", func(sql string) { my.Exec(t, sql) }},
		{"pgsql", reader + pg.Address() + "\n", func(sql string) { pg.Exec(t, sql) }},
	} {
		t.Run(s.typ, func(t *testing.T) {
			p, _ := publishing(t, s.typ, s.connection+"query = SELECT username FROM mailbox WHERE username = '%s' AND active = 1\n", "")
			recipients := func() int { return int(p.offer.Status().Recipients) }
			before := recipients()
			var took []time.Duration
			for _, step := range []struct {
				sql  string
				more int
			}{
				{"INSERT INTO mailbox VALUES ('carol@box.example', 1);", 1},
				{"UPDATE mailbox SET active = 0 WHERE username = 'alice@box.example';", 0},
				{"DELETE FROM mailbox WHERE username <> 'alice@box.example';", -2},
			} {
				s.do(step.sql)
				took = append(took, await(t, step.sql, func() bool { return recipients() == before+step.more }))
			}
			t.Logf("published after %v", took)
			// The machine may be busy; polling would take a day.
			if took[0] > 10*time.Second {
				t.Errorf("the new row was published after %v", took[0])
			}
		})
	}
}

// unbounded has no equation on the key, so that it is asked about candidates.
const unbounded = "SELECT username FROM mailbox WHERE active = 1 AND instr(username, '%s') = 1 AND length(username) = length('%s')"

// TestUnlisted: with postfix_unlisted = "reject", who was no candidate is
// refused for good, unless the check of the listing finds a hole.
func TestUnlisted(t *testing.T) {
	for _, tt := range []struct {
		name, more, query string
		nobody            int
		wrong             float64
	}{
		{"as it is", "", unbounded, 450, 0},
		{"reject", `postfix_unlisted = "reject"`, unbounded, 550, 0},
		{"reject with a hole", `postfix_unlisted = "reject"`, unbounded + " OR '%s' LIKE 'x%%x@box.example' OR '%s' LIKE '%%1@box.example'", 450, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cf, do := sqlite(t)
			do(mailboxTable)
			p, log := publishing(t, "sqlite", cf+"query = "+tt.query+"\n", tt.more)
			snap := read(t, p)
			if got := rcpt(t, snap, "alice@box.example"); got != 250 {
				t.Errorf("alice is answered %d", got)
			}
			if got := rcpt(t, snap, "nobody@box.example"); got != tt.nobody {
				t.Errorf("who was no candidate is answered %d, want %d", got, tt.nobody)
			}
			const metric, begins, ends = "understudy_publish_tables_wrong", "a listing is contradicted by its database", "isn't contradicted any more"
			wantMetric(t, p, metric, tt.wrong)
			p.publisher.Read(t.Context())
			if got := log.count(begins); got != int(tt.wrong) {
				t.Errorf("logged %d times", got)
			}
			if tt.wrong == 0 {
				return
			}
			var out bytes.Buffer
			s := p.offer.Status()
			if err := printPublisher(&out, &s); err != nil || !strings.Contains(out.String(), "Listing contradicted") || !strings.Contains(out.String(), "mailboxes.cf: it has ") {
				t.Errorf("%v, the status says\n%s", err, &out)
			}
			out.Reset()
			if err := checkSources(t.Context(), p.cfg, false, &out); err != nil || !strings.Contains(out.String(), "Listings that the database contradicts (1)") {
				t.Errorf("%v, --check says\n%s", err, &out)
			}
			write := "query = " + unbounded + "\n"
			if err := os.WriteFile(filepath.Join(p.cfg.Policy.Postfix, "mailboxes.cf"), []byte(cf+write), 0o600); err != nil {
				t.Fatal(err)
			}
			await(t, "it is well again", func() bool { return log.count(ends) == 1 })
			wantMetric(t, p, metric, 0)
		})
	}
}

// read returns the policy as the publisher's configuration makes it.
func read(t *testing.T, p *publication) *policy.Snapshot {
	t.Helper()
	r, err := publisher.Check(t.Context(), p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r.Snapshot
}

// rcpt is the reply's code to a recipient.
func rcpt(t *testing.T, snap *policy.Snapshot, to string) int {
	t.Helper()
	s := snap.Session(&testmx.MapResolver{}, envelope.Client{Addr: netip.MustParseAddr("192.0.2.5"), Name: "unknown", ReverseName: "unknown"})
	defer s.Close()
	path, _, err := envelope.ParseForwardPath("<" + to + ">")
	if err != nil {
		t.Fatal(err)
	}
	s.Connect(t.Context())
	s.Helo(t.Context(), "client.example")
	s.Mail(t.Context(), envelope.ReversePath{}, policy.MailParams{})
	v := s.Rcpt(t.Context(), path)
	if v.Action == policy.Permit {
		return 250
	}
	return v.Reply.Code
}

func wantMetric(t *testing.T, p *publication, name string, want float64) {
	t.Helper()
	families, err := p.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			if got := f.GetMetric()[0].GetGauge().GetValue(); got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
			return
		}
	}
	t.Errorf("there is no metric %s", name)
}
