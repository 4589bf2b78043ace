package queue

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/queue/leveldb"
	"github.com/understudy-mx/understudy/queue/postgres"
	"github.com/understudy-mx/understudy/queue/store"
)

// BenchmarkCommit accepts 4 KiB messages (random: real bodies don't compress)
// on the file system, from 1, 20 and 100 sessions.
func BenchmarkCommit(b *testing.B) {
	body := make([]byte, 4096)
	rand.Read(body)
	for _, sessions := range []int{1, 20, 100} {
		b.Run(fmt.Sprintf("sessions=%d", sessions), func(b *testing.B) {
			o := inDir(options(nil), filepath.Join(b.TempDir(), "q"))
			q := mustOpen(b, o)
			defer mustClose(b, q)
			before := testutil.ToFloat64(q.m.Commits)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			b.ResetTimer()
			acceptMany(b, q, body, b.N, sessions)
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
			b.ReportMetric((testutil.ToFloat64(q.m.Commits)-before)/float64(b.N), "syncs/msg")
		})
	}
}

// acceptMany accepts n messages from so many sessions.
func acceptMany(b testing.TB, q *Queue, body []byte, n, sessions int) {
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range sessions {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				d, err := q.Begin(mailTo("a@example.com"))
				if err == nil {
					d.Write(body)
					err = d.Commit(b.Context())
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// sinkHop takes all mail at once.
type sinkHop struct{ left atomic.Int64 }

func (h *sinkHop) Up(string) bool { return true }

func (h *sinkHop) Relay(_ context.Context, _ string, next func(time.Duration) *envelope.Transfer) error {
	for t := next(0); t != nil; t = next(100 * time.Millisecond) {
		f, err := t.Open()
		if err == nil {
			_, err = io.Copy(io.Discard, f)
			f.Close()
		}
		if err != nil {
			t.Settle(nil, err)
			return err
		}
		t.Settle([]envelope.Reply{envelope.NewReply(250, "2.0.0", "ok")}, nil)
		h.left.Add(-1)
	}
	return nil
}

// BenchmarkStores accepts 4 KiB messages from 20 and 100 sessions and drains them,
// in a directory and in a PostgreSQL with a standby, next to it and 1 ms away.
func BenchmarkStores(b *testing.B) {
	node := listertest.Primary(b)
	node.Standby(b, "db2")
	node.Quorum(b, "db2")
	link, err := testmx.NewLink("127.0.0.1:0", node.Address(), time.Millisecond)
	if err != nil {
		b.Fatal(err)
	}
	defer link.Close()
	body := make([]byte, 4096)
	rand.Read(body)
	n := 0
	stores := []struct {
		name string
		open func() store.Opener
	}{
		{"leveldb", func() store.Opener { return leveldb.Dir{Path: filepath.Join(b.TempDir(), fmt.Sprint(n))} }},
		{"postgres", func() store.Opener { return inDatabase(b, listertest.DSN(node), fmt.Sprint(n)) }},
		{"postgres-1ms", func() store.Opener {
			return inDatabase(b, "postgres://understudy@"+link.Addr().String()+"/understudy?sslmode=disable", fmt.Sprint(n))
		}},
	}
	for _, s := range stores {
		for _, sessions := range []int{20, 100} {
			b.Run(fmt.Sprintf("%s/sessions=%d", s.name, sessions), func(b *testing.B) {
				n++
				hop := &sinkHop{}
				o := options(nil)
				o.Store, o.Relayer = s.open(), hop
				q := mustOpen(b, o)
				before := testutil.ToFloat64(q.m.Commits)
				b.ResetTimer()
				acceptMany(b, q, body, b.N, sessions)
				accepted := b.Elapsed()
				b.ReportMetric(float64(b.N)/accepted.Seconds(), "accepted/s")
				b.ReportMetric((testutil.ToFloat64(q.m.Commits)-before)/float64(b.N), "commits/msg")
				hop.left.Store(int64(b.N))
				stop := run(b, q)
				for q.Stats().Messages > 0 {
					time.Sleep(time.Millisecond)
				}
				b.StopTimer()
				stop()
				b.ReportMetric(float64(b.N)/(b.Elapsed()-accepted).Seconds(), "drained/s")
			})
		}
	}
}

// inDatabase is a spool with a directory of its own.
func inDatabase(t testing.TB, dsn, spool string) postgres.Opener {
	t.Helper()
	c, err := postgres.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return postgres.Opener{Config: c, Spool: spool, Dir: filepath.Join(t.TempDir(), "spool"), Lease: 5 * time.Second,
		Password: func() (string, error) { return listertest.Password, nil }}
}
