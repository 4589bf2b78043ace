package offline

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/leveldb"
	"github.com/understudy-mx/understudy/queue/store"
)

// large is the size of a body that doesn't lie among the keys.
const large = 70 << 10

func newMemDisk() *testmx.Disk {
	d := testmx.NewDisk()
	d.Locked = queue.ErrLocked
	return d
}

func routeByDomain(domain string) string { return "mx." + domain }

// dirOn is the queue on a disk.
func dirOn(disk leveldb.Disk) leveldb.Dir {
	return leveldb.Dir{Path: "/q", Disk: disk, WriteBuffer: 32 << 10}
}

// small is dirOn with journals that rotate, and tables that are merged.
func small(disk leveldb.Disk) leveldb.Dir {
	return leveldb.Dir{Path: "/q", Disk: disk, WriteBuffer: 8 << 10}
}

func openDir(dir leveldb.Dir) (*queue.Queue, error) {
	return queue.Open(queue.Options{Store: dir, Route: routeByDomain})
}

func mustOpen(t testing.TB, dir leveldb.Dir) *queue.Queue {
	t.Helper()
	q, err := openDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func mustClose(t testing.TB, q *queue.Queue) {
	t.Helper()
	if err := q.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

func mustAccept(t testing.TB, q *queue.Queue, body string) string {
	t.Helper()
	d, err := q.Begin(&envelope.Envelope{
		From: envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "sender", Domain: "example.org"}},
		Client: envelope.Client{Addr: netip.MustParseAddr("192.0.2.1"), Port: 4711, Name: "client.example.org",
			Helo: "client.example.org", Protocol: "ESMTP"},
		EightBit: true, EnvID: "abc", Ret: "HDRS",
		To: []envelope.Recipient{{Path: envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "a", Domain: "example.com"}},
			Rule: "permit_listed", Notify: "NEVER"}},
	})
	if err == nil {
		io.WriteString(d, body)
		err = d.Commit(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return d.ID()
}

// source is a Queue, or a View.
type source interface {
	Body(id string) (io.ReadCloser, error)
}

func readBody(s source, id string) (string, error) {
	f, err := s.Body(id)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

func walk(t testing.TB, q *queue.Queue) (infos []queue.Info) {
	t.Helper()
	err := q.Walk(t.Context(), func(i queue.Info) error { infos = append(infos, i); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return infos
}

func bodyOf(size, seed int) string {
	return strings.Repeat(fmt.Sprintf("line %08d of a message\r\n", seed), size/28+1)[:size]
}

func bodyFile(id string) string { return "/q/body/" + id[len(id)-1:] + "/" + id }

// meddle changes what is stored, in the queue's absence.
func meddle(t testing.TB, dir leveldb.Dir, change func(store.Store, *store.Batch)) {
	t.Helper()
	s, err := dir.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	var b store.Batch
	change(s, &b)
	if err := s.Apply(b); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// damageRecord changes an octet of a message's record.
func damageRecord(t testing.TB, dir leveldb.Dir, seq uint64) {
	t.Helper()
	meddle(t, dir, func(s store.Store, b *store.Batch) {
		key := store.SeqKey(store.SpaceRecord, seq)
		raw, err := s.Get(key)
		if err != nil {
			t.Fatal(err)
		}
		raw[len(raw)-1] ^= 1
		b.Put(key, raw)
	})
}
