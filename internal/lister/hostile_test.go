package lister_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/understudy-mx/understudy/internal/lister"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// greetings begin as each server would, and then announce too much.
var greetings = map[string][]byte{
	"mysql": append([]byte{0xff, 0xff, 0xff, 0}, bytes.Repeat([]byte("x"), 1<<16)...),
	"pgsql": append([]byte("NR\x00\x00\x00\x08\x00\x00\x00\x00D\x7f\xff\xff\xff"), bytes.Repeat([]byte("x"), 1<<16)...),
	"ldap":  append([]byte{0x30, 0x84, 0x7f, 0xff, 0xff, 0xff}, bytes.Repeat([]byte("x"), 1<<16)...),
}

// TestHostileServers connects to servers that speak no sense. A listing must
// end in an error, in time and without eating the memory.
func TestHostileServers(t *testing.T) {
	for _, typ := range []string{"mysql", "pgsql", "ldap"} {
		for name, serve := range map[string]func(net.Conn){
			"hangs up": func(net.Conn) {},
			"is silent": func(c net.Conn) {
				io.Copy(io.Discard, c)
			},
			"talks without end": func(c net.Conn) {
				for b := bytes.Repeat([]byte{0}, 1<<16); ; {
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			},
			"announces too much": func(c net.Conn) {
				for {
					if _, err := c.Write(greetings[typ]); err != nil {
						return
					}
				}
			},
			"echoes": func(c net.Conn) { io.Copy(c, c) },
		} {
			t.Run(typ+" "+name, func(t *testing.T) {
				address := listen(t, serve)
				s := &lister.Source{Type: typ, Name: "x", Query: "SELECT 1",
					Settings: map[string]string{"hosts": address, "server_host": address, "user": "u", "password": "p", "dbname": "d"},
					Search:   lister.Search{Filter: "(mail=*)", Attributes: []string{"mail"}},
					Limits:   lister.Limits{Bytes: 1 << 20, Time: 500 * time.Millisecond},
				}
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				start := time.Now()
				err := s.List(context.Background(), func(_, _ string) error { return nil })
				runtime.ReadMemStats(&after)
				if err == nil || time.Since(start) > 10*time.Second {
					t.Errorf("after %v: %v", time.Since(start), err)
				}
				if mib := (after.TotalAlloc - before.TotalAlloc) >> 20; mib > 64 {
					t.Errorf("took %d MiB", mib)
				}
				t.Log(err)
			})
		}
	}
}

// listen serves connections until the test ends.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}
