package testmx

import (
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// Link is a proxy that imitates a line to a server: it counts octets, and may add
// latency. Open connections outlive its Close.
type Link struct {
	net.Listener
	Octets atomic.Int64 // both ways
	half   time.Duration
}

// NewLink listens on addr and passes on to the server at to, over a round trip
// of rtt.
func NewLink(addr, to string, rtt time.Duration) (*Link, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	link := &Link{Listener: l, half: rtt / 2}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			go link.carry(near, far)
			go link.carry(far, near)
		}
	}()
	return link, nil
}

// carry copies from src to dst what was read a while ago, as a long line does.
// At its end it closes both.
func (l *Link) carry(dst, src net.Conn) {
	type packet struct {
		data []byte
		due  time.Time
	}
	line := make(chan packet, 1024)
	go func() {
		defer close(line)
		for {
			buf := make([]byte, 16<<10)
			n, err := src.Read(buf)
			if err != nil {
				return
			}
			l.Octets.Add(int64(n))
			line <- packet{buf[:n], time.Now().Add(l.half)}
		}
	}()
	for p := range line {
		rest(time.Until(p.due))
		if _, err := dst.Write(p.data); err != nil {
			src.Close() // ends the reader; what it still has is let go
		}
	}
	dst.Close()
	src.Close()
}

// rest sleeps as long as it is told to. A timer of Go's would be up to a
// millisecond late, and a session crosses the line a dozen times.
func rest(d time.Duration) {
	for d > 0 {
		left := syscall.NsecToTimespec(int64(d))
		if syscall.Nanosleep(&left, &left) == nil {
			return
		}
		d = time.Duration(left.Nano()) // a signal came
	}
}
