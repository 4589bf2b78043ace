package queue

import (
	"crypto/rand"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
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
			var left atomic.Int64
			left.Store(int64(b.N))
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
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
			b.ReportMetric((testutil.ToFloat64(q.m.Commits)-before)/float64(b.N), "syncs/msg")
		})
	}
}
