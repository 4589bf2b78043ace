package relay

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/metrics"
)

// BenchmarkDrain relays over a link of 50 ms. One round trip a message is the
// limit, 20 a second and connection.
func BenchmarkDrain(b *testing.B) {
	for _, bench := range []struct {
		rtt         time.Duration
		connections int
		size        int
	}{
		{50 * time.Millisecond, 10, 4 << 10},
		{0, 1, 4 << 10},
		{0, 1, 1 << 20},
	} {
		b.Run(fmt.Sprintf("rtt=%v/connections=%d/size=%d", bench.rtt, bench.connections, bench.size), func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			p := &primary{forget: true}
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					wg.Go(func() {
						defer conn.Close()
						p.serve(conn)
					})
				}
			})
			address := l.Addr().String()
			if bench.rtt > 0 {
				link, err := testmx.NewLink("127.0.0.1:0", address, bench.rtt)
				if err != nil {
					b.Fatal(err)
				}
				defer link.Close()
				address = link.Addr().String()
			}
			c := New(Options{
				Routes:   map[string]Route{dest: {Name: "far", Address: address, TLS: TLSOff}},
				Hostname: "mx2.example",
				Metrics:  metrics.New(prometheus.NewRegistry()),
			})
			var box outbox
			content := strings.Repeat("an average line of a message is this long, or a little longer\r\n", bench.size/63)
			for range b.N {
				box.add(content, mail("a@x.example", "b@y.example"))
			}
			b.SetBytes(int64(len(content)))
			b.ResetTimer()
			var sessions sync.WaitGroup
			for range bench.connections {
				sessions.Go(func() {
					if err := c.Relay(context.Background(), dest, box.next); err != nil {
						b.Error(err)
					}
				})
			}
			sessions.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
			l.Close()
			wg.Wait()
			for _, m := range box.all {
				if m.settled != 1 || !m.replies[0].Positive() {
					b.Fatalf("%s: %v, %v", m.name, m.replies, m.err)
				}
			}
		})
	}
}
