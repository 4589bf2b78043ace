package test

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// spoolStage is a daemon whose queue is in a database with a standby.
type spoolStage struct {
	*secondary
	t       *testing.T
	primary *demo.Primary
	books   testmx.Ledger
	n       int
}

// send sends a message, and returns the reply's code.
func (s *spoolStage) send(size int) int {
	s.t.Helper()
	s.n++
	content := message(fmt.Sprintf("number %d", s.n), size)
	mail := demo.Mail{Helo: "client.sender.example", From: "sender@sender.example", To: []string{"a@example.org"}, Content: []byte(content)}
	o, err := demo.Send(s.t.Context(), s.addr, mail)
	if err != nil && o.Banner.Zero() {
		s.t.Fatal(err)
	}
	if o.Final.Positive() {
		s.books.Accepted("", "a@example.org", testmx.Sum([]byte(content)))
	}
	return o.Last().Code
}

// away breaks the database in some way, wants mail to be put off, mends it and
// wants mail to be accepted again.
func (s *spoolStage) away(what, logged string, harm, mend func()) {
	s.t.Helper()
	harm()
	if code := s.send(1000); code != 451 {
		s.t.Errorf("%s: mail is answered %d", what, code)
	}
	if s.metric("understudy_queue_store_away") != 1 {
		s.t.Errorf("%s: no alarm", what)
	}
	eventually(s.t, 20*time.Second, what+": the log says why", func() bool {
		return strings.Contains(readFile(s.t, s.path("log")), logged)
	})
	mend()
	eventually(s.t, 30*time.Second, what+": mail is accepted again", func() bool { return s.send(1000) == 250 })
	if s.metric("understudy_queue_store_away") != 0 {
		s.t.Errorf("%s: the alarm goes on", what)
	}
}

// TestSpoolInDatabase: mail in a database with a standby survives the daemon's
// death and the loss of the database's machine; whatever else is wrong with the
// database, mail is answered 451 until that is over.
func TestSpoolInDatabase(t *testing.T) {
	db := listertest.Primary(t)
	standby := db.Standby(t, "db2")
	db.Quorum(t, "db2")
	s := &spoolStage{t: t, primary: &demo.Primary{}}
	if err := s.primary.Start(); err != nil {
		t.Fatal(err)
	}
	defer s.primary.Stop()
	secret := filepath.Join(tempDir(t), "password")
	write(t, secret, listertest.Password+"\n")
	s.secondary = newSecondary(t, s.primary.Addr(), policyFor("a@example.org"),
		fmt.Sprintf("[queue]\nstore = \"postgres\"\ndsn = %q\ndsn_password = %q\n", listertest.DSN(db, standby), secret))
	s.primary.Stop()
	s.start()
	for i := range 20 {
		if code := s.send(200 + 10_000*i); code != 250 {
			t.Fatalf("message %d: %d", i, code)
		}
	}
	s.kill()
	s.start()
	if n := len(s.queue()); n != 20 {
		t.Errorf("%d messages after a kill", n)
	}
	s.commands()
	cancelled := make(chan error, 1)
	for _, c := range []struct {
		what, logged string
		harm, mend   func()
	}{
		{"the schema is newer", "schema 1000", func() {
			db.SQL(t, "UPDATE understudy.meta SET version = version + 998")
			s.hangUp(db)
		}, func() { db.SQL(t, "UPDATE understudy.meta SET version = version - 998") }},
		{"the schema is garbage", "meta has 0 rows", func() {
			db.SQL(t, "ALTER TABLE understudy.kv RENAME TO gone; DELETE FROM understudy.meta")
			s.hangUp(db)
		}, func() {
			db.SQL(t, "ALTER TABLE understudy.gone RENAME TO kv; INSERT INTO understudy.meta (version) VALUES (2)")
		}},
		{"the database is down", "connect", db.Kill, func() { db.Start(t) }},
		{"the password is bad", "28P01", func() {
			setPassword(t, db, "another")
			s.hangUp(db)
		}, func() { setPassword(t, db, listertest.Password) }},
		{"the server takes no writes", "read only", func() {
			db.Admin(t, "ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()")
			s.hangUp(db)
		}, func() {
			db.Admin(t, "SET default_transaction_read_only = off; ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf()")
		}},
		{"nobody waits for a standby", "without waiting for a standby", func() { db.Quorum(t) }, func() { db.Quorum(t, "db2") }},
		{"the standby is gone", "commit a batch", standby.Kill, func() { standby.Start(t) }},
		{"the wait for a standby is cancelled", "the wait for a standby is cancelled", func() {
			standby.Kill()
			go func() { cancelled <- cancelWait(t.Context(), db) }()
		}, func() {
			if err := <-cancelled; err != nil {
				t.Error(err)
			}
			standby.Start(t)
		}},
	} {
		s.away(c.what, c.logged, c.harm, c.mend)
	}
	s.stop()
	setPassword(t, db, "another")
	s.refused("28P01")
	setPassword(t, db, listertest.Password)
	s.start()
	s.away("the database's machine is lost", "connect", db.Kill, func() {
		standby.Promote(t)
		standby.Standby(t, "db3")
		standby.Quorum(t, "db3")
	})
	startAgain(t, s.primary)
	eventually(t, time.Minute, "the queue is empty", func() bool { return s.metric("understudy_queue_messages") == 0 })
	s.stop()
	s.books.RelayedTo(s.primary)
	s.books.Close(t)
}

func setPassword(t *testing.T, db *listertest.Node, password string) {
	t.Helper()
	db.Admin(t, "ALTER ROLE understudy PASSWORD '"+strings.ReplaceAll(password, "'", "''")+"'")
}

// cancelWait is an administrator who ends the first wait for a standby.
func cancelWait(ctx context.Context, db *listertest.Node) error {
	out, err := exec.CommandContext(ctx, "psql", "-h", db.Dir, "-p", strconv.Itoa(db.Port), "-U", "admin", "-d", "postgres", "-qAtc", `DO $$ BEGIN
		FOR i IN 1..500 LOOP
			PERFORM pg_stat_clear_snapshot();
			PERFORM pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = 'understudy';
			IF FOUND THEN RETURN; END IF;
			PERFORM pg_sleep(0.02);
		END LOOP;
		RAISE 'nobody waits'; END $$`).CombinedOutput()
	if err != nil {
		return fmt.Errorf("psql: %w: %s", err, out)
	}
	return nil
}

// refused wants a start to fail, and to say why.
func (s *spoolStage) refused(why string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, s.binary, "serve", "-c", s.path("understudy.toml")).CombinedOutput()
	if err == nil || ctx.Err() != nil || !strings.Contains(string(out), why) {
		s.t.Errorf("it starts, though %s: %v\n%s", why, err, out)
	}
}

// TestSpoolFull: a full disk of the database's is answered 452, and mail leaves all the same.
func TestSpoolFull(t *testing.T) {
	db := listertest.Primary(t)
	s := &spoolStage{t: t, primary: &demo.Primary{MaxMessages: 1000, Keep: 1}}
	startAgain(t, s.primary)
	defer s.primary.Stop()
	s.secondary = newMember(t, hostname, s.primary.Addr(), policyFor("a@example.org"), "durability = \"one-machine\"\n", db)
	s.start()
	s.primary.Stop()
	if code := s.send(1000); code != 250 {
		t.Fatalf("at first: %d", code)
	}
	dir := filepath.Join(db.Dir, "small")
	if out, err := exec.Command("sh", "-c", "mkdir "+dir+" && mount -t tmpfs -o size=4m tmpfs "+dir+" && chown postgres: "+dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer exec.Command("umount", "-l", dir).Run()
	db.SQL(t, "CREATE TABLESPACE small LOCATION '"+dir+"'")
	db.SQL(t, "ALTER TABLE understudy.kv SET TABLESPACE small; ALTER TABLE understudy.body SET TABLESPACE small")
	code := 250
	for i := 0; i < 100 && code == 250; i++ {
		code = s.send(100_000)
	}
	if code != 452 {
		t.Errorf("full: %d", code)
	}
	startAgain(t, s.primary)
	eventually(t, time.Minute, "the queue is empty", func() bool { return s.metric("understudy_queue_messages") == 0 })
	db.SQL(t, "ALTER TABLE understudy.kv SET TABLESPACE pg_default; ALTER TABLE understudy.body SET TABLESPACE pg_default; DROP TABLESPACE small")
	eventually(t, 30*time.Second, "mail is accepted again", func() bool { return s.send(1000) == 250 })
	eventually(t, time.Minute, "the queue is empty", func() bool { return s.metric("understudy_queue_messages") == 0 })
	s.stop()
	s.books.RelayedTo(s.primary)
	s.books.Close(t)
}

// hangUp ends the daemon's connections, as a restart of the server does.
func (s *spoolStage) hangUp(db *listertest.Node) {
	s.t.Helper()
	db.Admin(s.t, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'understudy'")
}

// commands: the operator's commands work as with a directory.
func (s *spoolStage) commands() {
	s.t.Helper()
	id := s.queue()[0].ID
	s.cli("queue", "hold", id)
	s.cli("queue", "release", id)
	maildir := filepath.Join(tempDir(s.t), "maildir")
	s.cli("queue", "export", "--maildir", maildir)
	s.stop()
	if out := s.cli("queue", "verify"); !strings.Contains(out, "20 messages") {
		s.t.Errorf("queue verify: %s", out)
	}
	if out := s.cli("queue", "export", "--maildir", maildir+"2"); !strings.Contains(out, "20") {
		s.t.Errorf("queue export: %s", out)
	}
	s.start()
}
