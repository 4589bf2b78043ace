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

	"github.com/understudy-mx/understudy/metrics"
)

// delay copies from src to dst what was read a while ago, as a long link does.
func delay(dst, src net.Conn, d time.Duration) {
	type packet struct {
		data []byte
		due  time.Time
	}
	link := make(chan packet, 1024)
	go func() {
		defer close(link)
		for {
			buf := make([]byte, 16<<10)
			n, err := src.Read(buf)
			if err != nil {
				return
			}
			link <- packet{buf[:n], time.Now().Add(d)}
		}
	}()
	for p := range link {
		time.Sleep(time.Until(p.due))
		if _, err := dst.Write(p.data); err != nil {
			src.Close()
		}
	}
	dst.Close()
}

// dialFar dials address over a link with the given round-trip time.
func dialFar(rtt time.Duration, address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		far, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		near, ours := net.Pipe()
		go delay(far, near, rtt/2)
		go delay(near, far, rtt/2)
		return ours, nil
	}
}

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
			c := New(Options{
				Routes:   map[string]Route{dest: {Name: "far", Address: l.Addr().String(), TLS: TLSOff}},
				Hostname: "mx2.example",
				Metrics:  metrics.New(prometheus.NewRegistry()),
			})
			if bench.rtt > 0 {
				c.dial = dialFar(bench.rtt, l.Addr().String())
			}
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
