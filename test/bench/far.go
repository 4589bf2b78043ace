package main

import (
	"net"
	"sync"
	"time"
)

// far is a proxy that makes the way to address rtt long.
type far struct {
	net.Listener
	wg sync.WaitGroup
}

// newFar listens on addr and passes on to the server at to.
func newFar(addr, to string, rtt time.Duration) (*far, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	f := &far{Listener: l}
	f.wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			remote, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			f.wg.Go(func() { delay(near, remote, rtt/2) })
			f.wg.Go(func() { delay(remote, near, rtt/2) })
		}
	})
	return f, nil
}

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
