package test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// engine stands in for docker. The file "now" beside it says what is wrong with the container.
const engine = `#!/bin/sh
shift 3
case $(cat "$(dirname "$0")/now") in
gone) echo "Error response from daemon: No such container: mx" >&2; exit 1 ;;
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
	docker, state := filepath.Join(p.dir, "docker"), filepath.Join(p.dir, "now")
	write(t, docker, engine)
	if err := os.Chmod(docker, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, state, "")
	metrics := p.far.addr + ":9627"
	write(t, p.conf(), strings.NewReplacer(
		"[policy]\n", fmt.Sprintf("poll = \"1s\"\n[policy]\npostfix_prefix = [%q, \"exec\", \"-i\", \"mx\"]\n", docker),
		"[metrics]\nlisten = \"\"", fmt.Sprintf("[metrics]\nlisten = %q", metrics),
	).Replace(readFile(t, p.conf())))
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
