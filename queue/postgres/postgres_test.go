package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/queue/store"
)

func mustOpen(t testing.TB, o Opener) *Store {
	t.Helper()
	s, err := o.Open(func(kind, detail string) { t.Errorf("alarm %s: %s", kind, detail) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s.(*Store)
}

func put(key, value string) (b store.Batch) {
	b.Put([]byte(key), []byte(value))
	return b
}

// TestServer has one server after the other change under its stores.
func TestServer(t *testing.T) {
	node := listertest.Primary(t)
	n := 0
	opener := func(t *testing.T) Opener {
		n++
		o := mustParse(t, listertest.DSN(node))
		o.Spool, o.OneMachine = fmt.Sprint("member ", n), true
		return o
	}
	for name, test := range map[string]func(*testing.T, *listertest.Node, Opener){
		"lease": lease, "clock": otherClock, "fence": fence, "taken": taken, "renewal": renewal, "in between": inBetween, "return": comeBack, "body": bodies, "lost keys": lostKeys,
		"connections": connections, "pages": pages, "ahead": readAhead, "read only": lookOnly,
		"free": free, "settings": settings, "cancelled wait": cancelledWait, "quorum": quorum, "disk full": diskFull,
	} {
		t.Run(name, func(t *testing.T) { test(t, node, opener(t)) })
	}
	t.Run("schema", func(t *testing.T) { schema(t, node, opener(t)) }) // the last: it spoils the rest
}

// lease: another member gets a spool when its lease is over, by the database's
// clock, or was let go, and not before.
func lease(t *testing.T, node *listertest.Node, o Opener) {
	o.Lease = 4 * time.Second
	s := mustOpen(t, o)
	other := o
	other.Dir, other.Member = t.TempDir(), "another"
	if _, err := other.Open(nil); !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), o.Spool) {
		t.Errorf("taken while it is held: %v", err)
	}
	row := "lease_until FROM understudy.spool WHERE name = '" + o.Spool + "'"
	func() { // one renewal at least comes in time, even on a busy machine
		until := node.SQL(t, "SELECT "+row)
		deadline := time.After(30 * time.Second)
		for tick := time.Tick(20 * time.Millisecond); ; {
			switch now := node.SQL(t, "SELECT lease_until, lease_until < '"+until+"'::timestamptz + interval '4 s', "+row); {
			case strings.HasPrefix(now, until):
			case strings.Contains(now, "|t|"):
				return
			default:
				until, _, _ = strings.Cut(now, "|")
			}
			select {
			case <-deadline:
				t.Fatal("the lease isn't renewed before it is over")
			case <-tick:
			}
		}
	}()
	s.stop() // as if it had died
	s.kept.Wait()
	other.Patience = time.Minute
	taken := mustOpen(t, other)
	if _, err := s.Get([]byte("f")); !errors.Is(err, store.ErrReopening) {
		t.Errorf("who was taken for dead goes on reading: %v", err)
	}
	if err := s.Apply(put("k", "v")); !errors.Is(err, errFenced) {
		t.Errorf("who was taken for dead goes on writing: %v", err)
	}
	if err := s.Reopen(); !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), "another") {
		t.Errorf("it takes the spool back: %v", err)
	}
	if err := taken.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Reopen(); err != nil {
		t.Errorf("it was let go: %v", err)
	}
	n := s.Handovers()
	if n == 0 {
		t.Error("another had it, and that isn't noticed")
	}
	s.Reopen()
	if now := s.Handovers(); now != n {
		t.Errorf("another had it %d times, and %d after a Reopen without one", n, now)
	}
	if _, err := taken.Get([]byte("k")); err == nil {
		t.Error("a closed one goes on reading")
	}
}

// otherClock: a lease that a faster clock has written ends in time nevertheless.
func otherClock(t *testing.T, node *listertest.Node, o Opener) {
	o.Lease = time.Second
	s := mustOpen(t, o)
	s.stop() // as if it had died
	s.kept.Wait()
	ahead := "UPDATE understudy.spool SET lease_until = clock_timestamp() + interval '10 minutes' WHERE name = '" + o.Spool + "'"
	left := func(all []Member, err error) time.Duration {
		for _, m := range all {
			if m.Name == o.Spool {
				if !m.Spool || m.Ago != -1 || m.Totals.Next != 1 {
					t.Errorf("a member that never came, with a spool: %+v", m)
				}
				return m.Left
			}
		}
		t.Fatalf("the members: %v, %v", all, err)
		return 0
	}
	members, err := o.Members()
	if err != nil {
		t.Fatal(err)
	}
	defer members.Close()
	node.SQL(t, ahead)
	if l := left(members.List(t.Context())); l < 9*time.Minute {
		t.Errorf("left %v, want ten minutes", l)
	}
	all, _, err := members.Beat(t.Context(), "any", []byte("{}"))
	if l := left(all, err); l > time.Second {
		t.Errorf("after a beat of another, left %v", l)
	}
	node.SQL(t, "UPDATE understudy.member SET seen = clock_timestamp() + interval '10 minutes'") // that clock's as well
	all, err = members.List(t.Context())
	if err != nil || !slices.ContainsFunc(all, func(m Member) bool { return m.Name == "any" && !m.Spool && m.Ago == 0 && string(m.Says) == "{}" }) {
		t.Errorf("a member without a spool: %+v, %v", all, err)
	}
	if _, _, err := members.Beat(t.Context(), "any", make([]byte, maxSays+1)); err == nil {
		t.Error("a member may say any amount of itself")
	}
	node.SQL(t, ahead)
	unlock := locked(t, node, o.Spool) // its holder waits for a standby, say, and keeps nobody else from a spool
	third := o
	third.Dir, third.Spool = t.TempDir(), o.Spool+", a neighbour"
	mustOpen(t, third)
	unlock()
	other := o
	other.Dir, other.Member, other.Patience = t.TempDir(), "another", time.Minute
	mustOpen(t, other)
}

// fence: what an earlier connection has under way is done or refused once Reopen
// has returned.
func fence(t *testing.T, _ *listertest.Node, o Opener) {
	s := mustOpen(t, o)
	if err := s.Apply(put("a", "1")); err != nil {
		t.Fatal(err)
	}
	late, was := s.writer, s.epoch.Load()
	s.writer = nil // a connection that was cut, and whose server doesn't know it yet
	if err := s.Reopen(); err != nil {
		t.Fatal(err)
	}
	if n := s.Handovers(); n != 0 {
		t.Errorf("another had it %d times", n)
	}
	fresh, is := s.writer, s.epoch.Load()
	s.writer = late
	s.epoch.Store(was)
	for _, b := range []store.Batch{put("a", "2"), func() (b store.Batch) {
		for i := range 2 * copyAbove {
			b.Put([]byte(fmt.Sprint("z", i)), []byte("v"))
		}
		return b
	}()} {
		s.ready.Store(true)
		if err := s.Apply(b); !errors.Is(err, errFenced) {
			t.Errorf("%d changes of an earlier epoch: %v", len(b), err)
		}
	}
	late.close()
	s.writer = fresh
	s.epoch.Store(is)
	s.ready.Store(true)
	if v, err := s.Get([]byte("a")); err != nil || string(v) != "1" {
		t.Errorf("%q, %v", v, err)
	}
	if ok, err := store.Has(s, []byte("z1")); ok || err != nil {
		t.Errorf("part of a refused batch: %v, %v", ok, err)
	}
	// A transaction that is past its fence is waited for.
	under, err := s.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer under.close()
	if _, err := under.conn.Exec(t.Context(), "BEGIN").ReadAll(); err != nil {
		t.Fatal(err)
	}
	if err := under.rows(t.Context(), query{fenceSQL, [][]byte{int4(s.id.Load()), int8b(is)}}, func([][]byte) {}); err != nil {
		t.Fatal(err)
	}
	if err := s.Reopen(); err == nil || !strings.Contains(err.Error(), "an earlier commit still waits") {
		t.Errorf("beside a transaction that is past its fence: %v", err)
	}
	if _, err := under.conn.Exec(t.Context(), "COMMIT").ReadAll(); err != nil {
		t.Error(err)
	}
	if err := s.Reopen(); err != nil {
		t.Error(err)
	}
}

// taken: a process that was taken for dead, and doesn't know it, does nothing to the spool.
func taken(t *testing.T, node *listertest.Node, o Opener) {
	o.Lease = time.Hour // by its own clock it holds the spool
	s := mustOpen(t, o)
	kept, err := s.Create("kept")
	if err == nil {
		_, err = kept.Write([]byte("text"))
	}
	if err = errors.Join(err, kept.Commit()); err != nil {
		t.Fatal(err)
	}
	late, err := s.Create("late")
	if err != nil {
		t.Fatal(err)
	}
	node.SQL(t, "UPDATE understudy.spool SET epoch = epoch + 1, holder = 'another', token = 'another' WHERE name = '"+o.Spool+"'")
	look := func() string {
		return node.SQL(t, "SELECT s.*, (SELECT string_agg(id || piece, ' ') FROM understudy.body b WHERE b.spool = s.id) FROM understudy.spool s WHERE name = '"+o.Spool+"'")
	}
	before := look()
	if _, err := late.Write(make([]byte, pieceSize+1)); !errors.Is(err, errFenced) {
		t.Errorf("a piece: %v", err)
	}
	if late, err = s.Create("later"); err != nil {
		t.Fatal(err)
	}
	if err := late.Commit(); !errors.Is(err, errFenced) {
		t.Errorf("a last piece: %v", err)
	}
	if err := s.Remove("kept"); !errors.Is(err, errFenced) {
		t.Errorf("a removal: %v", err)
	}
	if err := s.letGo(); err != nil {
		t.Errorf("letting go: %v", err)
	}
	if err := s.Held(); err != nil {
		t.Errorf("it knows too early: %v", err)
	}
	if err := s.renew(t.Context()); !errors.Is(err, errFenced) {
		t.Errorf("a renewal: %v", err)
	}
	if err := s.Held(); !errors.Is(err, errFenced) || !errors.Is(err, store.ErrReopening) {
		t.Errorf("it was told, and goes on: %v", err)
	}
	if after := look(); after != before {
		t.Errorf("the spool was\n%s\nand is\n%s", before, after)
	}
	node.SQL(t, "UPDATE understudy.spool SET lease_until = '-infinity' WHERE name = '"+o.Spool+"'")
	if err := errors.Join(s.Reopen(), s.Held()); err != nil || s.Handovers() == 0 {
		t.Errorf("it has the spool again: %v, %d handovers", err, s.Handovers())
	}
}

// renewal: a lease begins, by our clock, no later than by the database's, and an answer that
// comes after a Reopen says nothing of the lease that this took.
func renewal(t *testing.T, node *listertest.Node, o Opener) {
	o.Lease = time.Hour
	s := mustOpen(t, o)
	for name, begin := range map[string]func() error{"renew": func() error { return s.renew(t.Context()) }, "take": s.Reopen} {
		under := await(t, node, o.Spool, begin)
		asked := now()
		if err := under(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if ends := s.until.Load() - int64(o.Lease); ends >= asked {
			t.Errorf("%s: the lease begins %v after it was asked for", name, time.Duration(ends-asked))
		}
	}
	was := s.until.Load()
	under := await(t, node, o.Spool, func() error { return s.renew(t.Context()) })
	s.epoch.Add(1) // as Reopen does
	if err := under(); err != nil || s.lost.Load() || s.until.Load() != was {
		t.Errorf("an answer that came late: %v, lost %v", err, s.lost.Load())
	}
	s.epoch.Add(-1)
}

// await begins what changes a spool's row while another has that locked, and returns what
// unlocks it and waits for the end.
func await(t *testing.T, node *listertest.Node, spool string, begin func() error) (end func() error) {
	t.Helper()
	for {
		unlock := locked(t, node, spool)
		result := make(chan error, 1)
		go func() { result <- begin() }()
		for len(result) == 0 {
			if node.Admin(t, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'understudy'") == "t" {
				return func() error {
					unlock()
					return <-result
				}
			}
		}
		unlock()
		t.Logf("on a busy machine: %v", <-result)
	}
}

// locked locks a spool's row.
func locked(t *testing.T, node *listertest.Node, spool string) (unlock func()) {
	t.Helper()
	o := mustParse(t, listertest.DSN(node))
	o.OneMachine, o.Dir = true, ""
	s, err := o.store(nil)
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.conn.Exec(t.Context(), "BEGIN; SELECT FROM understudy.spool WHERE name = '"+spool+"' FOR UPDATE").ReadAll(); err != nil {
		t.Fatal(err)
	}
	return n.close
}

// inBetween: who takes a spool right after us has it, not we.
func inBetween(t *testing.T, node *listertest.Node, o Opener) {
	wire := listertest.NewWire(t, node.Address())
	c, err := ParseDSN(wire.DSN())
	if err != nil {
		t.Fatal(err)
	}
	o.Config = c
	looked := false
	wire.Watch(func(toServer bool, message []byte) int {
		if toServer && !looked && message[0] == 'P' && strings.Contains(string(message), spoolSQL) { // after the commit
			looked = true
			node.SQL(t, "UPDATE understudy.spool SET epoch = epoch + 1, holder = 'another', token = 'another' WHERE name = '"+o.Spool+"'")
		}
		return len(message)
	})
	if _, err := o.Open(nil); !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), "another") {
		t.Errorf("opened: %v", err)
	}
	if !looked {
		t.Error("nobody came in between")
	}
}

// bodies: the last piece says whether all of them are there. A server that was replaced
// meanwhile may have lost some.
func bodies(t *testing.T, node *listertest.Node, o Opener) {
	s := mustOpen(t, o)
	for what, sql := range map[string]string{
		"a piece is lost": "DELETE FROM understudy.body WHERE id = 'b' AND piece = 0",
		"octets are lost": "UPDATE understudy.body SET data = substr(data, 2) WHERE id = 'b' AND piece = 1",
		"a piece is another's": "UPDATE understudy.body SET piece = 7 WHERE id = 'b' AND piece = 2; " +
			"INSERT INTO understudy.body SELECT spool, id, 8, '' FROM understudy.body WHERE id = 'b' AND piece = 7",
		"": "SELECT",
	} {
		b, err := s.Create("b")
		if err == nil {
			_, err = b.Write(make([]byte, 3*pieceSize+10))
		}
		if err != nil {
			t.Fatal(err)
		}
		node.SQL(t, sql)
		if err := b.Commit(); (err == nil) != (what == "") {
			t.Errorf("%s: %v", cmp.Or(what, "nothing is lost"), err)
		}
		if r, _, err := s.Open("b"); what == "" && err == nil {
			node.SQL(t, "DELETE FROM understudy.body WHERE id = 'b' AND piece = 2")
			if got, err := io.ReadAll(r); !errors.Is(err, store.ErrBody) || len(got) != 2*pieceSize {
				t.Errorf("a piece is lost while it is read: %d octets, %v", len(got), err)
			}
		}
		if err := s.Remove("b"); err != nil {
			t.Fatal(err)
		}
	}
}

// lostKeys: keys that every store has aren't made again in one that has lost them.
func lostKeys(t *testing.T, node *listertest.Node, o Opener) {
	s := mustOpen(t, o)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	node.SQL(t, "DELETE FROM understudy.kv WHERE key = 'f' AND spool = (SELECT id FROM understudy.spool WHERE name = '"+o.Spool+"')")
	if _, err := o.Open(nil); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("opened: %v", err)
	}
	other := o
	other.Dir, other.Spool = t.TempDir(), o.Spool+", a neighbour"
	s = mustOpen(t, other)
	node.SQL(t, "DELETE FROM understudy.spool WHERE name = '"+other.Spool+"'")
	if err := s.Reopen(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty spool in place of the one that is gone: %v", err)
	}
}

// pages: a connection that is lost on a page is an error, and no key comes twice.
func pages(t *testing.T, node *listertest.Node, o Opener) {
	wire := listertest.NewWire(t, node.Address())
	c, err := ParseDSN(wire.DSN())
	if err != nil {
		t.Fatal(err)
	}
	o.Config, o.Lease = c, time.Hour // nothing else goes over the wire
	s := mustOpen(t, o)
	var b store.Batch
	for i := range uint64(100) {
		b.Put(store.SeqKey('m', i), []byte("v"))
	}
	if err := s.Apply(b); err != nil {
		t.Fatal(err)
	}
	for cut := range 3 {
		seen, fetches := map[string]bool{}, 0
		wire.Watch(func(toServer bool, message []byte) int {
			if toServer && message[0] == 'P' && strings.Contains(string(message), "FETCH ") {
				if fetches++; fetches == cut {
					return 0
				}
			}
			return len(message)
		})
		err := s.Page(store.From([]byte{'m'}, nil), func(key, _ []byte) bool {
			if seen[string(key)] {
				t.Errorf("%x comes twice", key)
			}
			seen[string(key)] = true
			return true
		})
		// Before the first key comes, another connection does as well.
		if wantErr := cut > 1; (err != nil) != wantErr || err == nil && len(seen) != 100 {
			t.Errorf("cut at %d of %d: %d keys, %v", cut, fetches, len(seen), err)
		}
	}
}

// connections: what was kept and turns out to be dead is replaced, once; a new one isn't.
func connections(t *testing.T, _ *listertest.Node, o Opener) {
	s, err := o.store(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	broken := errors.New("broken")
	calls := 0
	use := func(breaks int) error {
		calls = 0
		return s.pool.with(t.Context(), func(n *session) error {
			if calls++; calls <= breaks {
				n.close()
				return broken
			}
			return nil
		})
	}
	if err := use(1); err != broken || calls != 1 {
		t.Errorf("a new connection: %v, tried %d times", err, calls)
	}
	if err := use(0); err != nil || len(s.pool.idle) != 1 {
		t.Fatalf("%v, %d are kept", err, len(s.pool.idle))
	}
	if err := use(1); err != nil || calls != 2 {
		t.Errorf("a kept connection: %v, tried %d times", err, calls)
	}
	if err := use(9); err != broken || calls != 2 {
		t.Errorf("a kept connection, and a new one: %v, tried %d times", err, calls)
	}
	if len(s.pool.idle) != 0 {
		t.Error("a dead one is kept")
	}
	if err := use(0); err != nil {
		t.Error(err)
	}
	s.pool.renew()
	if err := use(0); err != nil || len(s.pool.idle) != 1 {
		t.Errorf("%v, %d are kept", err, len(s.pool.idle))
	}
	s.pool.close()
	if err := use(0); err != errClosed {
		t.Errorf("closed: %v", err)
	}
}

// comeBack: after a kill -9 the same directory needn't wait for the lease.
func comeBack(t *testing.T, _ *listertest.Node, o Opener) {
	o.Lease = time.Hour
	mustOpen(t, o)
	again := o
	again.Dir = filepath.Join(t.TempDir(), "as it was")
	if err := os.CopyFS(again.Dir, os.DirFS(o.Dir)); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, again)
	s.writer.close() // as its server has, which was replaced meanwhile
	s.writer.used = time.Now().Add(-time.Minute)
	if err := s.Apply(put("k", "v")); err != nil {
		t.Errorf("a batch after a quiet time: %v", err)
	}
}

// readAhead: keys are got in order while they change; nobody sees what isn't true
// any more.
func readAhead(t *testing.T, node *listertest.Node, o Opener) {
	s := mustOpen(t, o)
	const n = 600
	var b store.Batch
	for i := range uint64(n) {
		b.Put(store.SeqKey('m', i), []byte(fmt.Sprint(i)))
	}
	if err := s.Apply(b); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(n) {
		got, err := s.Get(store.SeqKey('m', i))
		switch {
		case i%7 == 3:
			if !errors.Is(err, store.ErrNotFound) {
				t.Fatalf("%d was deleted, and is %q, %v", i, got, err)
			}
		case i%7 == 5:
			if string(got) != "changed" {
				t.Fatalf("%d was changed, and is %q, %v", i, got, err)
			}
		case err != nil || string(got) != fmt.Sprint(i):
			t.Fatalf("%d is %q, %v", i, got, err)
		}
		if i%7 == 0 {
			var b store.Batch
			b.Delete(store.SeqKey('m', i+3))
			b.Put(store.SeqKey('m', i+5), []byte("changed"))
			if err := s.Apply(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(s.ahead.values) == 0 {
		t.Error("nothing was read ahead")
	}
	// Another had the spool meanwhile.
	s.Get(store.SeqKey('m', 100))
	s.Get(store.SeqKey('m', 101))
	if s.ahead.values[string(store.SeqKey('m', 102))] == nil {
		t.Error("the next isn't read ahead")
	}
	node.SQL(t, "UPDATE understudy.kv SET value = 'other' WHERE spool = (SELECT id FROM understudy.spool WHERE name = '"+o.Spool+"') AND value = '102'")
	kept := s.pool.idle[0]
	if err := s.Reopen(); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(store.SeqKey('m', 102)); string(got) != "other" {
		t.Errorf("it was changed by another, and is %q, %v", got, err)
	}
	if !kept.conn.IsClosed() { // it may lead to a server that isn't in charge any more
		t.Error("a connection outlives a Reopen")
	}
	// A change that comes while keys are being read, or before they are kept.
	s.ahead.take(store.SeqKey('y', 1))
	_, second := s.ahead.take(store.SeqKey('y', 2)) // in order: read ahead
	s.ahead.change(map[string]int{"y1": 0})
	s.ahead.change(nil)
	s.ahead.keep(second, true, [][]byte{[]byte("y1"), []byte("y2")}, [][]byte{[]byte("old"), []byte("good")})
	if s.ahead.values["y1"] != nil || s.ahead.values["y2"] == nil {
		t.Errorf("kept %q and %q", s.ahead.values["y1"], s.ahead.values["y2"])
	}
}

// lookOnly: who only looks finds what is there, and changes nothing.
func lookOnly(t *testing.T, node *listertest.Node, o Opener) {
	if _, err := o.OpenReadOnly(nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a spool that isn't there: %v", err)
	}
	s := mustOpen(t, o)
	if err := s.Apply(put("k", "v")); err != nil {
		t.Fatal(err)
	}
	if _, err := o.OpenReadOnly(nil); !errors.Is(err, store.ErrLocked) {
		t.Errorf("beside the holder: %v", err)
	}
	s.Close()
	before := node.SQL(t, "SELECT sum(epoch) FROM understudy.spool")
	v, err := o.OpenReadOnly(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if got, err := v.Get([]byte("k")); err != nil || string(got) != "v" {
		t.Errorf("%q, %v", got, err)
	}
	if after := node.SQL(t, "SELECT sum(epoch) FROM understudy.spool"); after != before {
		t.Error("it took the spool")
	}
}

// settings: a session commits as we need it, whatever the role's default is. A server that
// doesn't sync is refused.
func settings(t *testing.T, node *listertest.Node, o Opener) {
	for role, want := range map[string]string{"off": "on", "local": "on", "remote_write": "on", "on": "on", "remote_apply": "remote_apply"} {
		node.Admin(t, "ALTER ROLE understudy SET synchronous_commit = "+role)
		s := mustOpen(t, o)
		got := ""
		if err := s.writer.rows(t.Context(), query{"SHOW synchronous_commit", nil}, func(c [][]byte) { got = string(c[0]) }); err != nil || got != want {
			t.Errorf("synchronous_commit is %q for the role: %q, %v; want %q", role, got, err, want)
		}
		s.Close()
	}
	node.Admin(t, "ALTER ROLE understudy RESET synchronous_commit; ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf()")
	defer func() {
		node.Admin(t, "ALTER SYSTEM RESET fsync; SELECT pg_reload_conf()")
		node.Await(t, "SELECT current_setting('fsync') = 'on'")
	}()
	node.Await(t, "SELECT current_setting('fsync') = 'off'")
	if _, err := o.Open(nil); err == nil || !strings.Contains(err.Error(), "fsync = off") {
		t.Errorf("a server without fsync: %v", err)
	}
}

// cancelledWait: PostgreSQL has committed, and says so, when the wait for a standby
// is cancelled. That isn't known to be durable.
func cancelledWait(t *testing.T, node *listertest.Node, o Opener) {
	node.Admin(t, "SET synchronous_commit = off; ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf()")
	s := mustOpen(t, o)
	node.Admin(t, "SET synchronous_commit = off; ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (nobody)'; SELECT pg_reload_conf()")
	defer node.Admin(t, "SET synchronous_commit = off; ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf()")
	node.Await(t, "SELECT current_setting('synchronous_standby_names') <> ''")
	node.Admin(t, "CHECKPOINT") // only the checkpointer has commits wait, and sees the names last
	for _, n := range []int{1, 2 * copyAbove} {
		s.ready.Store(true)
		result := make(chan error, 1)
		var b store.Batch
		for i := range n {
			b.Put([]byte(fmt.Sprint("k", i)), []byte("v"))
		}
		go func() { result <- s.Apply(b) }()
		node.Await(t, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = 'understudy'")
		node.Admin(t, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
		if err := <-result; !errors.Is(err, errWarned) {
			t.Errorf("%d changes, wait cancelled: %v", n, err)
		}
	}
	s.ready.Store(true)
	b, err := s.Create("b")
	if err == nil {
		_, err = b.Write(make([]byte, pieceSize+1))
	}
	if err = errors.Join(err, s.Remove("another")); err != nil {
		t.Fatalf("this waits for a standby: %v", err)
	}
	result := make(chan error, 1)
	go func() { result <- b.Commit() }()
	node.Await(t, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = 'understudy' AND query LIKE '%body%'")
	node.Admin(t, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
	if err := <-result; !errors.Is(err, errWarned) {
		t.Errorf("a body, wait cancelled: %v", err)
	}
}

// quorum: it is demanded, by default, at the start and at each commit.
func quorum(t *testing.T, node *listertest.Node, o Opener) {
	o.OneMachine = false
	if _, err := o.Open(nil); !errors.Is(err, errNoQuorum) {
		t.Errorf("opened without: %v", err)
	}
	standby := node.Standby(t, "db2")
	node.Quorum(t, "db2")
	s := mustOpen(t, o)
	if after := node.Admin(t, "SELECT clock_timestamp() - pg_conf_load_time()"); after < "00:00:02" {
		t.Errorf("opened %s after the quorum was named: commits may not wait for it yet", after)
	}
	if err := s.Apply(put("k", "v")); err != nil {
		t.Fatal(err)
	}
	for role, super := range map[string]bool{"SUPERUSER": true, "NOSUPERUSER": false} {
		node.Admin(t, "ALTER ROLE understudy "+role)
		if got, err := o.Examine(context.Background()); err != nil || got != (Server{Standbys: 1, Superuser: super}) {
			t.Errorf("examined: %+v, %v", got, err)
		}
	}
	node.Quorum(t)
	if _, err := o.Examine(context.Background()); !errors.Is(err, errNoQuorum) {
		t.Errorf("examined without: %v", err)
	}
	var many store.Batch
	for i := range 2 * copyAbove {
		many.Put([]byte(fmt.Sprint("k", i)), []byte("v"))
	}
	for _, b := range []store.Batch{put("k", "2"), many} {
		s.ready.Store(true)
		if err := s.Apply(b); !errors.Is(err, errNoQuorum) {
			t.Errorf("%d changes, nobody waits for a standby any more: %v", len(b), err)
		}
		if _, err := s.Get([]byte("k")); !errors.Is(err, store.ErrReopening) {
			t.Errorf("read on after that: %v", err)
		}
		if err := s.Apply(put("k", "3")); !errors.Is(err, store.ErrReopening) {
			t.Errorf("written on after that: %v", err)
		}
	}
	s.ready.Store(true)
	if b, err := s.Create("b"); err != nil {
		t.Error(err)
	} else if err := b.Commit(); !errors.Is(err, errNoQuorum) {
		t.Errorf("a body, nobody waits for a standby any more: %v", err)
	}
	s.ready.Store(false)
	if err := s.Reopen(); !errors.Is(err, errNoQuorum) {
		t.Errorf("reopened: %v", err)
	}
	if got := standby.SQL(t, "SELECT count(*) FROM understudy.kv JOIN understudy.spool ON id = spool WHERE key = 'k' AND name = '"+o.Spool+"'"); got != "1" {
		t.Errorf("the standby has %s", got)
	}
}

// free: the space is what the database's own function says, or the disk of a server
// on this machine; else it isn't known.
func free(t *testing.T, node *listertest.Node, o Opener) {
	look := func(o Opener) uint64 {
		t.Helper()
		s := mustOpen(t, o)
		defer s.Close()
		octets, files, err := s.Free()
		if err != nil || files == 0 {
			t.Errorf("%d files, %v", files, err)
		}
		return octets
	}
	if got := look(o); got != math.MaxInt64 {
		t.Errorf("of a server far away: %d", got)
	}
	here := mustParse(t, fmt.Sprintf("postgres://understudy@/understudy?host=%s&port=%d", node.Dir, node.Port))
	here.Spool, here.OneMachine = o.Spool, true
	if got := look(here); got != math.MaxInt64 {
		t.Errorf("of a server that keeps its directory to itself: %d", got)
	}
	node.Admin(t, "GRANT pg_read_all_settings TO understudy")
	if got := look(here); got == 0 || got == math.MaxInt64 {
		t.Errorf("of a server on this machine: %d", got)
	}
	node.SQL(t, "CREATE FUNCTION understudy.free_octets() RETURNS bigint LANGUAGE sql AS 'SELECT 12345::bigint'")
	defer node.SQL(t, "DROP FUNCTION understudy.free_octets()")
	if got := look(o); got != 12345 {
		t.Errorf("the database said 12345, and it is %d", got)
	}
}

// diskFull: a full disk of the server is one to the queue, which then answers 452.
func diskFull(t *testing.T, node *listertest.Node, o Opener) {
	s := mustOpen(t, o)
	dir := filepath.Join(node.Dir, "small")
	if out, err := exec.Command("sh", "-c", "mkdir "+dir+" && mount -t tmpfs -o size=8m tmpfs "+dir+" && chown postgres: "+dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer exec.Command("umount", "-l", dir).Run()
	node.SQL(t, "CREATE TABLESPACE small LOCATION '"+dir+"'")
	node.SQL(t, "ALTER TABLE understudy.kv SET TABLESPACE small")
	defer node.SQL(t, "ALTER TABLE understudy.kv SET TABLESPACE pg_default; DROP TABLESPACE small")
	err := error(nil)
	for i := 0; i < 100 && err == nil; i++ {
		err = s.Apply(put(fmt.Sprint("k", i), strings.Repeat("v", 1<<20)))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("full: %v", err)
	}
	if err := s.Reopen(); err != nil {
		t.Errorf("reopened: %v", err)
	}
	if err := s.Apply(store.Batch{{Key: []byte("k0"), Delete: true}}); err != nil {
		t.Errorf("mail can't leave: %v", err)
	}
}

// schema: one that is newer, or spoilt, is refused.
func schema(t *testing.T, node *listertest.Node, o Opener) {
	s := mustOpen(t, o)
	refused := func(what string, want error) {
		t.Helper()
		if err := s.Reopen(); !errors.Is(err, want) {
			t.Errorf("%s: reopened: %v", what, err)
		}
		if _, err := o.OpenReadOnly(nil); !errors.Is(err, store.ErrLocked) { // s has the directory
			t.Errorf("%s: %v", what, err)
		}
		other := o
		other.Dir = t.TempDir()
		if _, err := other.Open(nil); !errors.Is(err, want) {
			t.Errorf("%s: opened: %v", what, err)
		}
		if _, err := other.OpenReadOnly(nil); !errors.Is(err, want) {
			t.Errorf("%s: looked at: %v", what, err)
		}
	}
	node.SQL(t, "UPDATE understudy.meta SET version = 1")
	if err := s.Reopen(); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("an older one than there was: %v", err)
	}
	node.SQL(t, fmt.Sprintf("UPDATE understudy.meta SET version = %d", SchemaVersion+1))
	refused("newer", store.ErrNewerVersion)
	node.SQL(t, "DELETE FROM understudy.meta")
	refused("without a version", store.ErrDamaged)
	node.SQL(t, "DROP TABLE understudy.meta")
	refused("without its table", store.ErrDamaged)
	node.SQL(t, "DROP SCHEMA understudy CASCADE")
	if err := s.Reopen(); !errors.Is(err, store.ErrDamaged) {
		t.Errorf("a schema that is gone: %v", err)
	}
}

// TestParseDSN: no password, and only the server that takes writes.
func TestParseDSN(t *testing.T) {
	for _, bad := range []string{"postgres://u:secret@db/understudy", "nonsense", "postgres://u@db:port/understudy"} {
		if _, err := ParseDSN(bad); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	c, err := ParseDSN("postgres://u@db1,db2:5433/understudy?sslmode=disable")
	if err != nil || hosts(c) != "db1:5432,db2:5433" || c.ValidateConnect == nil || c.MaxProtocolMessageBodyLen != maxMessage {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestUnproven: a certificate must be verified, but for a server on this machine.
func TestUnproven(t *testing.T) {
	for dsn, want := range map[string]bool{
		"postgres://u@db1/d":                                  true, // sslmode=prefer
		"postgres://u@db1/d?sslmode=disable":                  true,
		"postgres://u@db1/d?sslmode=require":                  true,
		"postgres://u@db1,db2/d?sslmode=verify-full":          false,
		"postgres://u@db1/d?sslmode=verify-ca":                false,
		"postgres://u@127.0.0.1,localhost/d?sslmode=disable":  false,
		"postgres://u@127.0.0.1,192.0.2.1/d?sslmode=disable":  true,
		"postgres://u@/d?host=/run/postgresql&sslmode=prefer": false,
	} {
		c, err := ParseDSN(dsn)
		if err != nil || unproven(c) != want {
			t.Errorf("%s: %v, want %v", dsn, err, want)
		}
	}
}

// TestAway: a server that can't be reached is away. One that refuses us isn't, and is for
// the operator to look at.
func TestAway(t *testing.T) {
	node := listertest.Primary(t)
	open := func(password string) error {
		c, err := ParseDSN(listertest.DSN(node))
		if err != nil {
			t.Fatal(err)
		}
		s, err := Opener{Config: c, Password: func() (string, error) { return password, nil }, Spool: "away", Dir: t.TempDir(), OneMachine: true}.Open(nil)
		if err == nil {
			err = s.Close()
		}
		_, err2 := Opener{Config: c, Password: func() (string, error) { return password, nil }, Spool: "none", OneMachine: true}.OpenReadOnly(nil)
		if Away(err) != Away(err2) || err2 == nil {
			t.Errorf("who looks is told another thing: %v, %v", err, err2)
		}
		return err
	}
	if err := open(listertest.Password); err != nil {
		t.Fatal(err)
	}
	if err := open("another"); err == nil || Away(err) {
		t.Errorf("a wrong password: %v, away %v", err, Away(err))
	}
	node.Kill()
	if err := open(listertest.Password); !Away(err) {
		t.Errorf("a server that was killed isn't away: %v", err)
	}
}

// TestFailed: what a server's error means to the queue, and to who looks for the database.
func TestFailed(t *testing.T) {
	for code, tt := range map[string]struct {
		is   error // nil: none of them
		away bool
	}{
		"22012": {errFenced, false},
		"53100": {syscall.ENOSPC, false},
		"XX001": {store.ErrDamaged, false},
		"XX002": {store.ErrDamaged, false},
		"42P01": {store.ErrDamaged, false},
		"42703": {store.ErrDamaged, false},
		"3F000": {store.ErrDamaged, false},
		"25006": {nil, false},
		"55P03": {nil, false},
		"57P01": {errAway, true}, // it stops
		"57P03": {errAway, true}, // it starts
		"57014": {errAway, true}, // cancelled
		"28P01": {nil, false},    // a wrong password
		"40001": {nil, false},
	} {
		err := failed("do it", &pgconn.PgError{Code: code, Message: strings.Repeat("secret", 1000), Detail: "a row"})
		for _, is := range []error{errFenced, syscall.ENOSPC, store.ErrDamaged, errAway, errWarned} {
			if errors.Is(err, is) != (is == tt.is) {
				t.Errorf("%s is %v: %v", code, is, errors.Is(err, is))
			}
		}
		if Away(err) != tt.away || len(err.Error()) > 1000 || strings.Contains(err.Error(), "a row") {
			t.Errorf("%s: away %v, %d octets", code, Away(err), len(err.Error()))
		}
	}
	for _, err := range []error{errWarned, context.DeadlineExceeded, errors.Join(errWarned, &pgconn.PgError{Code: stateDivision})} {
		if err := failed("do it", err); !Away(err) || errors.Is(err, errFenced) {
			t.Errorf("%v: away %v", err, Away(err))
		}
	}
	for severity, want := range map[string]bool{"ERROR": true, "FATAL": false, "PANIC": false} {
		if got := answered(failed("do it", &pgconn.PgError{Severity: severity})); got {
			t.Errorf("a %s that was made one of ours is an answer", severity)
		}
		if got := answered(fmt.Errorf("do it: %w", &pgconn.PgError{Severity: severity})); got != want {
			t.Errorf("a %s is an answer: %v", severity, got)
		}
	}
}

// TestToken: a directory names its processes; one whose file says nothing, or too much, gets
// another name: no two may have the same.
func TestToken(t *testing.T) {
	dir := t.TempDir()
	first, err := tokenOf(dir)
	if again, err2 := tokenOf(dir); err != nil || err2 != nil || again != first {
		t.Errorf("%q and %q, %v, %v", first, again, err, err2)
	}
	seen := map[string]bool{"": true, first: true}
	for _, damaged := range []string{"", strings.Repeat("x", 100)} {
		if err := os.WriteFile(filepath.Join(dir, "token"), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		token, err := tokenOf(dir)
		if again, _ := tokenOf(dir); err != nil || seen[token] || token == damaged || again != token {
			t.Errorf("of a file with %q: %q, then %q, %v", damaged, token, again, err)
		}
		seen[token] = true
	}
	if _, err := tokenOf(filepath.Join(dir, "token")); err == nil {
		t.Error("of a directory that can't be read")
	}
}
