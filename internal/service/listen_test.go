package service

import (
	"context"
	"net"
	"testing"
	"time"
)

// TestKnock: a knock is heard by a loop that accepts, is not passed on as a
// connection, and finds out a loop that has stopped.
func TestKnock(t *testing.T) {
	for addr, host := range map[string]string{"127.0.0.1": "127.0.0.1", "": "127.0.0.1", "::1": "::1"} {
		t.Run(addr, func(t *testing.T) {
			l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
			if err != nil {
				t.Fatal(err)
			}
			d := newDoor(l)
			accepted := make(chan net.Conn)
			go func() {
				defer close(accepted)
				for {
					c, err := d.Accept()
					if err != nil {
						return
					}
					accepted <- c
				}
			}()
			if err := d.Knock(context.Background(), 30*time.Second); err != nil {
				t.Errorf("knock: %v", err)
			}
			_, port, _ := net.SplitHostPort(l.Addr().String())
			c, err := net.Dial("tcp", net.JoinHostPort(host, port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			got := <-accepted
			if got.RemoteAddr().String() != c.LocalAddr().String() {
				t.Errorf("accepted %v, want the real client %v", got.RemoteAddr(), c.LocalAddr())
			}
			got.Close()

			// A second client now blocks the loop above in its hand-over.
			c2, err := net.Dial("tcp", net.JoinHostPort(host, port))
			if err != nil {
				t.Fatal(err)
			}
			defer c2.Close()
			if err := d.Knock(context.Background(), 100*time.Millisecond); err == nil {
				t.Error("knock was heard by a loop that hangs")
			}
			d.Close()
			for c := range accepted {
				c.Close()
			}
			if len(d.knocks) > 0 {
				t.Errorf("knocks left: %v", d.knocks)
			}
		})
	}
}
