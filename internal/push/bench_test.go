package push

import (
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMillion pushes a million recipients in no order, as `make bench-push` does on
// its own: at most ten seconds, and 64 MiB of memory at any time for the server.
// The gate pushes a tenth.
func TestMillion(t *testing.T) {
	n, most := 100_000, 10*time.Second
	if os.Getenv("MILLION") != "" {
		n = 1_000_000
	}
	s := start(t, 2_000_000)
	list := users(n)
	rand.New(rand.NewPCG(1, 2)).Shuffle(n, func(i, j int) { list[i], list[j] = list[j], list[i] })
	packed := zst([]byte(strings.Join(list, "\n")))
	list = nil
	runtime.GC()
	var before, peak runtime.MemStats
	runtime.ReadMemStats(&before)
	done, looked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(looked)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			if now.HeapInuse+now.StackInuse > peak.HeapInuse+peak.StackInuse {
				peak = now
			}
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	}()
	began := time.Now()
	got := s.raw(t, s.request("PUT", prefix+domain, packed, "Content-Encoding: zstd", sum(packed)), false)
	took := time.Since(began)
	close(done)
	<-looked
	used := int64(peak.HeapInuse+peak.StackInuse) - int64(before.HeapInuse+before.StackInuse)
	t.Logf("%d recipients, %.1f MiB compressed: %.1f s, %.1f MiB of memory", n, float64(len(packed))/(1<<20), took.Seconds(), float64(used)/(1<<20))
	st, err := s.store.One(domain)
	if got != http.StatusOK || err != nil || st.Count != n {
		t.Fatalf("answered %d, %+v, %v", got, st, err)
	}
	if took > most || used > 64<<20 {
		t.Errorf("took %v and %d octets", took, used)
	}
}
