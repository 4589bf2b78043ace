package test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// socketmap answers socketmap_table(5) look-ups at a socket: "users KEY" by
// whether the key is in users.
func socketmap(t *testing.T, path string, users ...string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	serve := func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReader(c)
		for {
			var n int
			if _, err := fmt.Fscanf(r, "%d:", &n); err != nil || n > 1000 {
				return
			}
			b := make([]byte, n+1)
			if _, err := io.ReadFull(r, b); err != nil {
				return
			}
			reply := "NOTFOUND "
			for _, u := range users {
				if string(b[:n]) == "users "+u {
					reply = "OK x"
				}
			}
			fmt.Fprintf(c, "%d:%s,", len(reply), reply)
		}
	}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(c) }) // postmap hangs up
		}
	})
}

// TestLearned has recipients in a table that can't be listed: a secondary
// knows those that a source named, puts others off, and has the primary asked.
func TestLearned(t *testing.T) {
	far := newFarAway(t)
	p := newPublisher(t, far)
	path := filepath.Join(p.dir, "users.sock")
	socketmap(t, path, "bob@example.org", "carol@example.org")
	p.postfix.writeMain("virtual_mailbox_maps = hash:$config_directory/vmailbox socketmap:unix:"+path+":users", "mynetworks = 192.0.2.0/28")
	write(t, filepath.Join(p.dir, "seen"), "bob@example.org\nspam@example.org\n")
	conf := strings.Replace(readFile(t, p.conf()), "[policy]", "poll = \"1s\"\n[policy]", 1)
	write(t, p.conf(), conf+"[[source]]\nname = \"seen\"\ntype = \"file\"\npath = \"seen\"\nask = true\n")
	p.start()
	s := newFollowing(t, p.postfix.addr)
	pair(t, p, s)
	s.start()
	s.wantReply("alice@example.org", 250)
	for to, code := range map[string]int{"bob@example.org": 250, "spam@example.org": 550, "carol@example.org": 450, "dave@example.org": 450} {
		if got := s.ask(to); got != code {
			t.Errorf("%s is answered %d, want %d", to, got, code)
		}
	}
	p.bulk([]string{"erin@example.org"}) // a change: the secondary reports now, not within a minute
	s.wantReply("carol@example.org", 250)
	s.wantReply("dave@example.org", 550)

	// The publisher remembers, the secondary needs nobody.
	p.kill()
	p.start()
	p.bulk([]string{"erin@example.org", "frank@example.org"})
	s.wantReply("frank@example.org", 250)
	p.kill()
	s.kill()
	s.start()
	for to, code := range map[string]int{"bob@example.org": 250, "spam@example.org": 550, "carol@example.org": 250, "dave@example.org": 550, "new@example.org": 450} {
		if got := s.ask(to); got != code {
			t.Errorf("without the primary %s is answered %d, want %d", to, got, code)
		}
	}
	s.stop()
}
