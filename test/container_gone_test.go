package test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

// engine stands in for docker. The file "now" beside it says what is wrong with the container,
// which may have another name than "mx" now.
const engine = `#!/bin/sh
[ "$1" != ps ] || { printf 'cow\tghcr.io/mailcow/postfix:3.10\tpostfix-mailcow\n'; exit; }
name=$3
shift 3
case $(cat "$(dirname "$0")/now") in
gone) echo "Error response from daemon: No such container: mx" >&2; exit 1 ;;
renamed) [ "$name" = cow ] && exec "$@"; echo "Error response from daemon: No such container: $name" >&2; exit 1 ;;
cut) "$@" | head -c 60 ;;
ended) "$@" >/dev/null; exit 137 ;;
hangs) exec sleep 600 ;;
*) exec "$@" ;;
esac
`

// TestContainerGone: the container of the primary's Postfix goes away while it is published,
// comes back, is stopped amid an answer, or hangs. The last good policy stays, the operator is
// told, and what changed meanwhile comes when it is back. HANGS=1 waits for what hangs, half a minute.
func TestContainerGone(t *testing.T) {
	p := newPublisher(t, newFarAway(t))
	state, metrics := p.contained("")
	p.start()
	s := newFollowing(t, p.postfix.addr)
	pair(t, p, s)
	s.start()
	s.wantReply("alice@example.org", 250)
	s.wantReply("nobody@example.org", 550)

	faults := map[string]string{"gone": "No such container: mx", "cut": "ends in the middle", "ended": "exit status 137"}
	if os.Getenv("HANGS") != "" {
		faults["hangs"] = "no answer within 30s"
	}
	boxes := []string{"alice@example.org"}
	for fault, says := range faults {
		later := fault + "@example.org"
		write(t, state, fault)
		boxes = append(boxes, later)
		p.mailboxes(boxes...)
		eventually(t, 90*time.Second, fault+": the secondary is told", func() bool { return strings.Contains(s.sync().Notice, says) })
		if n := failing(t, metrics); n != "1" {
			t.Errorf("%s: understudy_publish_failing is %s", fault, n)
		}
		for to, code := range map[string]int{"alice@example.org": 250, "nobody@example.org": 550, later: 550} {
			if got := s.ask(to); got != code {
				t.Errorf("%s: %s is answered %d, want %d", fault, to, got, code)
			}
		}
		write(t, state, "")
		s.wantReply(later, 250)
		eventually(t, 30*time.Second, fault+": it is well again", func() bool { return s.sync().Notice == "" && failing(t, metrics) == "0" })
	}
	s.stop()
}

// failing is the publisher's understudy_publish_failing.
func failing(t *testing.T, addr string) string {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nunderstudy_publish_failing ")
	value, _, _ := strings.Cut(rest, "\n")
	return value
}

// contained puts the publisher's Postfix into a container, more under [policy], and returns the file
// that says what is wrong with it, and where the metrics are.
func (p *publisher) contained(more string) (state, metrics string) {
	p.t.Helper()
	docker, state := filepath.Join(p.dir, "docker"), filepath.Join(p.dir, "now")
	write(p.t, docker, engine)
	if err := os.Chmod(docker, 0o755); err != nil {
		p.t.Fatal(err)
	}
	write(p.t, state, "")
	metrics = p.far.addr + ":9627"
	write(p.t, p.conf(), strings.NewReplacer(
		"[policy]\n", fmt.Sprintf("poll = \"1s\"\n[policy]\npostfix_prefix = [%q, \"exec\", \"-i\", \"mx\"]\n%s", docker, more),
		"[metrics]\nlisten = \"\"", fmt.Sprintf("[metrics]\nlisten = %q", metrics),
	).Replace(readFile(p.t, p.conf())))
	return state, metrics
}

// TestContainerMoved: the database of the primary's tables is reached at another port than before, as
// after a change of a compose file, and the container has another name, as by another version of compose.
// The last good policy stays, the operator is told what to write, and that makes it well.
func TestContainerMoved(t *testing.T) {
	db := listertest.MariaDB(t, "CREATE TABLE box (a VARCHAR(80)); INSERT INTO box VALUES ('alice@example.org');")
	p := newPublisher(t, newFarAway(t))
	first, second := listen(t, p.far.peer), listen(t, p.far.peer)
	end := forward(t, first, "tcp", db.Address())
	_, metrics := p.contained(fmt.Sprintf("suite = \"mailcow\"\npostfix_hosts = [\"db:3306=%s\"]\n", first.Addr()))
	t.Setenv("PATH", p.dir+":"+os.Getenv("PATH")) // for docker ps
	write(t, filepath.Join(p.postfix.dir, "conf/box.cf"), fmt.Sprintf("hosts = db:3306\nuser = reader\npassword = %s\ndbname = mail\nquery = SELECT a FROM box WHERE a = '%%s'\n", listertest.Password))
	sh(t, `postconf -c "$1" -e 'virtual_mailbox_maps = mysql:$config_directory/box.cf'`, filepath.Join(p.postfix.dir, "conf"))
	p.start()
	s := newFollowing(t, p.postfix.addr)
	pair(t, p, s)
	s.start()
	s.wantReply("alice@example.org", 250)

	moved := func(what, says, from, to string) {
		later := what + "@example.org"
		db.Exec(t, "INSERT INTO box VALUES ('"+later+"')")
		eventually(t, 90*time.Second, what+": the secondary is told", func() bool { return strings.Contains(s.sync().Notice, says) })
		if n := failing(t, metrics); n != "1" {
			t.Errorf("%s: understudy_publish_failing is %s", what, n)
		}
		for to, code := range map[string]int{"alice@example.org": 250, "nobody@example.org": 550, later: 550} {
			if got := s.ask(to); got != code {
				t.Errorf("%s: %s is answered %d, want %d", what, to, got, code)
			}
		}
		conf := strings.Replace(readFile(t, p.conf()), from, to, 1)
		write(t, p.conf(), conf)
		p.kill()
		p.start()
		s.wantReply(later, 250)
		eventually(t, 30*time.Second, what+": it is well again", func() bool { return s.sync().Notice == "" && failing(t, metrics) == "0" })
	}
	end()
	forward(t, second, "tcp", db.Address())
	moved("port", `if db:3306 is reached in another way now, say so: postfix_hosts = ["db:3306=127.0.0.1:PORT"]`, first.Addr().String(), second.Addr().String())
	write(t, filepath.Join(p.dir, "now"), "renamed")
	moved("name", `docker ps shows the container cow: name it under [policy]: postfix_prefix = ["docker", "exec", "-i", "cow"]`, `"mx"]`, `"cow"]`)
	s.stop()
}

// forward passes on what connects at l, until the end of the test or until end is called.
func forward(t *testing.T, l net.Listener, network, to string) (end func()) {
	var conns sync.Map
	end = func() {
		l.Close()
		conns.Range(func(near, far any) bool { near.(net.Conn).Close(); far.(net.Conn).Close(); return true })
	}
	t.Cleanup(end)
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial(network, to)
			if err != nil {
				near.Close()
				continue
			}
			conns.Store(near, far)
			for a, b := range map[net.Conn]net.Conn{near: far, far: near} {
				go func() {
					_, _ = io.Copy(a, b)
					a.Close()
					b.Close()
				}()
			}
		}
	}()
	return end
}

// listen has a port of an address.
func listen(t *testing.T, host string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}
