package postgres

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/queue/store"
	"github.com/understudy-mx/understudy/queue/store/storetest"
)

func password() (string, error) { return listertest.Password, nil }

func mustParse(t testing.TB, dsn string) Opener {
	t.Helper()
	c, err := ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return Opener{Config: c, Password: password, Spool: "mx2.example.org", Dir: filepath.Join(t.TempDir(), "spool"), Lease: 2 * time.Second}
}

// TestConform holds spools to what every store is held to. A power cut is one of
// the whole server, and of the process that held the spool; a write fails as its
// connection is cut at the commit.
func TestConform(t *testing.T) {
	node := listertest.Primary(t)
	links := map[string]*link{}
	n := 0
	storetest.Conform(t, storetest.Subject{
		New: func(t *testing.T) store.Opener {
			n++
			l := newLink(t, node.Address())
			o := mustParse(t, "postgres://understudy@"+l.address()+"/understudy?sslmode=disable")
			o.Spool, o.OneMachine = fmt.Sprintf("mx%d.example.org", n), true
			links[o.Spool] = l
			return o
		},
		Crash: func(sub *testing.T, o store.Opener) store.Opener {
			node.Kill()
			node.Start(t)
			left := o.(Opener)
			left.Dir = filepath.Join(sub.TempDir(), "left")
			if err := os.CopyFS(left.Dir, os.DirFS(o.(Opener).Dir)); err != nil {
				t.Fatal(err)
			}
			return left
		},
		Fail: func(o store.Opener, fails bool) { links[o.(Opener).Spool].cut(fails) },
	})
}

// link is the network between a store and its server. It may be cut, at once or
// after so many pieces.
type link struct {
	listener net.Listener
	to       string

	mu    sync.Mutex // guards the rest
	down  bool
	conns map[net.Conn]bool
	watch func(toServer bool, piece []byte) (pass bool)
}

func newLink(t testing.TB, to string) *link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{listener: l, to: to, conns: map[net.Conn]bool{}}
	t.Cleanup(func() {
		l.Close()
		k.cut(true)
	})
	go k.serve()
	return k
}

func (k *link) address() string { return k.listener.Addr().String() }

func (k *link) serve() {
	for {
		c, err := k.listener.Accept()
		if err != nil {
			return
		}
		go k.carry(c)
	}
}

func (k *link) carry(c net.Conn) {
	s, err := net.Dial("tcp", k.to)
	k.mu.Lock()
	if err != nil || k.down {
		k.mu.Unlock()
		c.Close()
		if s != nil {
			s.Close()
		}
		return
	}
	k.conns[c], k.conns[s] = true, true
	k.mu.Unlock()
	both := func() {
		c.Close()
		s.Close()
		k.mu.Lock()
		delete(k.conns, c)
		delete(k.conns, s)
		k.mu.Unlock()
	}
	go func() { defer both(); k.pump(s, c, true) }()
	defer both()
	k.pump(c, s, false)
}

func (k *link) pump(to, from net.Conn, toServer bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		k.mu.Lock()
		watch := k.watch
		k.mu.Unlock()
		if watch != nil && !watch(toServer, buf[:n]) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// cut ends all connections, and refuses others until it is over.
func (k *link) cut(down bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down = down
	for c := range k.conns {
		if down {
			c.Close()
		}
	}
}
