package test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/fleet"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// newMember is a secondary whose queue is in a database.
func newMember(t *testing.T, name, primary, policy, extra string, nodes ...*listertest.Node) *secondary {
	t.Helper()
	s := newSecondary(t, primary, policy, fmt.Sprintf("[queue]\nstore = \"postgres\"\ndsn = %q\ndsn_password = \"password\"\nadopt_after = \"20s\"\nmin_free = \"1B\"\n%s", listertest.DSN(nodes...), extra))
	s.binary = plainBinary(t)
	config := strings.Replace(readFile(t, s.path("understudy.toml")), fmt.Sprintf("hostname = %q", hostname), fmt.Sprintf("hostname = %q", name), 1)
	write(t, s.path("understudy.toml"), config)
	write(t, s.path("password"), listertest.Password+"\n")
	return s
}

// crowd sends to several secondaries until it is told to stop, one message after the
// other for each of its senders.
type crowd struct {
	books testmx.Ledger
	stop  context.CancelFunc
	wait  sync.WaitGroup
}

func newCrowd(recipients []string, senders int, to ...*secondary) *crowd {
	ctx, stop := context.WithCancel(context.Background())
	c := &crowd{stop: stop}
	for w := range senders {
		c.wait.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				soakSend(ctx, &c.books, to[(n+w)%len(to)].addr, recipients[(n+w)%len(recipients)], fmt.Sprintf("fleet %d of %d", n, w), n)
			}
		})
	}
	return c
}

func (c *crowd) end() {
	c.stop()
	c.wait.Wait()
}

// accepted waits until so many more messages were answered 250.
func (c *crowd) accepted(t *testing.T, n int) {
	t.Helper()
	from := c.books.Totals().Accepted
	eventually(t, 60*time.Second, "mail is accepted", func() bool { return c.books.Totals().Accepted >= from+n })
}

// TestFleet: three secondaries with a database of three servers, a quorum of which
// has each message. One secondary is killed and its disk wiped right after its 250s;
// the database is killed and comes back; its leader is killed and a standby takes over. In the
// end the primary has every message that was answered 250.
func TestFleet(t *testing.T) {
	leader := listertest.Primary(t)
	standbys := []*listertest.Node{leader.Standby(t, "db2"), leader.Standby(t, "db3")}
	leader.Quorum(t, "db2", "db3")
	primary := &demo.Primary{}
	startAgain(t, primary)
	defer primary.Stop()
	recipients := numbered("fleet%d@example.org", 50)
	var all []*secondary
	for _, name := range []string{"mx2.example.org", "mx3.example.org", "mx4.example.org"} {
		s := newMember(t, name, primary.Addr(), policyFor(recipients...), "", leader, standbys[0], standbys[1])
		s.start()
		all = append(all, s)
	}
	primary.Stop()
	mail := newCrowd(recipients, 6, all...)
	mail.accepted(t, 100)

	lost := all[2]
	lost.kill()
	if err := os.RemoveAll(lost.path("state")); err != nil {
		t.Fatal(err)
	}
	wiped := time.Now()
	mail.accepted(t, 50)

	leader.Kill() // and nobody takes over
	leader.Start(t)
	mail.accepted(t, 50)

	leader.Kill()
	next, other := standbys[0], standbys[1]
	if behind(t, next) < behind(t, other) {
		next, other = other, next
	}
	next.Promote(t)
	name := "db2"
	if other == standbys[1] {
		name = "db3"
	}
	other.Admin(t, fmt.Sprintf("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=%d user=admin application_name=%s'", next.Port, name))
	other.Admin(t, "SELECT pg_reload_conf()")
	next.Quorum(t, name)
	mail.accepted(t, 50)
	all[1].kill()
	all[1].start()
	mail.accepted(t, 20)

	eventually(t, 60*time.Second, "the lost one's mail is adopted", func() bool {
		return all[0].metric("understudy_fleet_adopted_messages_total")+all[1].metric("understudy_fleet_adopted_messages_total") >= 30
	})
	t.Logf("adopted %v after the loss", time.Since(wiped))
	mail.end()
	var view fleet.View
	if err := json.Unmarshal([]byte(all[0].cli("fleet", "--json")), &view); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range view.Members {
		if m.Alive {
			names = append(names, m.Name)
		}
	}
	if !slices.Equal(names, []string{"mx2.example.org", "mx3.example.org"}) || len(view.Members) != 3 {
		t.Errorf("the fleet is %+v", view)
	}
	startAgain(t, primary)
	for _, s := range all[:2] {
		eventually(t, 60*time.Second, "the queue is empty", func() bool { return s.metric("understudy_queue_messages") == 0 })
	}
	for _, s := range all[:2] {
		s.stop()
	}
	mail.books.RelayedTo(primary)
	mail.books.Close(t)
	t.Logf("%+v", mail.books.Totals())
}

// behind is how much of the leader's log a standby has.
func behind(t *testing.T, n *listertest.Node) (octets int64) {
	t.Helper()
	if _, err := fmt.Sscan(n.Admin(t, "SELECT (pg_last_wal_receive_lsn() - '0/0'::pg_lsn)::bigint"), &octets); err != nil {
		t.Fatal(err)
	}
	return octets
}

// TestFallback: the database goes and comes back, again and again under load. Meanwhile
// mail is kept on the machine, and moved. Then the queue goes into the directory by
// hand, and back.
func TestFallback(t *testing.T) {
	node := listertest.Primary(t)
	primary := &demo.Primary{}
	startAgain(t, primary)
	defer primary.Stop()
	recipients := numbered("fall%d@example.org", 50)
	s := newMember(t, "mx2.example.org", primary.Addr(), policyFor(recipients...), "durability = \"one-machine\"\nfallback = \"leveldb\"\n", node)
	s.start()
	primary.Stop()
	mail := newCrowd(recipients, 4, s)
	for range 5 {
		mail.accepted(t, 20)
		node.Kill()
		eventually(t, 30*time.Second, "mail is kept here", func() bool { return s.metric("understudy_queue_fallback") == 1 })
		mail.accepted(t, 40)
		node.Start(t)
		eventually(t, 60*time.Second, "it is moved", func() bool { return s.metric("understudy_queue_fallback") == 0 })
	}
	s.kill()
	mail.end()
	s.start()
	s.stop()
	waiting := mail.books.Totals().Accepted
	for _, to := range []string{"leveldb", "postgres"} {
		var moved struct{ Messages int }
		if err := json.Unmarshal([]byte(s.cli("queue", "migrate", "--to", to, "--json")), &moved); err != nil || moved.Messages < waiting {
			t.Errorf("to %s: %+v of %d, %v", to, moved, waiting, err)
		}
	}
	startAgain(t, primary)
	s.start()
	eventually(t, 60*time.Second, "the queue is empty", func() bool { return s.metric("understudy_queue_messages") == 0 })
	s.stop()
	mail.books.RelayedTo(primary)
	mail.books.Close(t)
	t.Logf("%+v", mail.books.Totals())
}

// TestStartAlone: a secondary starts while the database is away. It takes mail, and begins
// anew with the database when that is there; what it took goes along.
func TestStartAlone(t *testing.T) {
	node := listertest.Primary(t)
	primary := &demo.Primary{}
	startAgain(t, primary)
	defer primary.Stop()
	s := newMember(t, "mx2.example.org", primary.Addr(), policyFor("a@example.org"), "durability = \"one-machine\"\nfallback = \"leveldb\"\n", node)
	s.start()
	primary.Stop()
	var books testmx.Ledger
	send := func(text string, n int) { soakSend(t.Context(), &books, s.addr, "a@example.org", text, n) }
	send("waits in the database", 0)
	s.stop()
	node.Kill()
	s.start()
	if n := s.metric("understudy_queue_fallback"); n != 1 {
		t.Errorf("fallback is %v", n)
	}
	for n := range 3 {
		send("waits here", n)
	}
	if n := books.Totals().Accepted; n != 4 {
		t.Fatalf("%d of 4 accepted", n)
	}
	if out := s.cli("fleet"); !strings.Contains(out, "The database can't be asked") {
		t.Errorf("the fleet: %s", out)
	}
	node.Start(t)
	eventually(t, 60*time.Second, "all mail is in the database", func() bool {
		return strings.Count(readFile(t, s.path("log")), `"msg":"ready"`) == 3 && s.metric("understudy_queue_fallback") == 0 && s.metric("understudy_queue_messages") == 4
	})
	startAgain(t, primary)
	eventually(t, 60*time.Second, "the queue is empty", func() bool { return s.metric("understudy_queue_messages") == 0 })
	s.stop()
	books.RelayedTo(primary)
	books.Close(t)
}
