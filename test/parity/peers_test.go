package parity

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// listen serves connections on a free port until the test ends.
func listen(t *testing.T, serve func(net.Conn)) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return ln.Addr().String()
}

// lot draws from 0 to n-1, the same for the same parts.
func lot(n int, parts ...string) int {
	h := fnv.New64a()
	io.WriteString(h, strings.Join(parts, "\x00"))
	return int(h.Sum64() % uint64(n))
}

// startMilter is a milter that refuses, defers, answers as it likes, discards and
// quarantines at every stage, by lot: the same client, name, path, field or
// message always draws the same. What the secondary adds draws nothing.
func startMilter(t *testing.T) (addr string) { return listen(t, milter) }

// milterAnswer is what a milter says of what it was shown. One in many isn't passed.
func milterAnswer(many int, stage byte, what string) []byte {
	text := fmt.Sprintf("milter %c drew %d", stage, lot(1000, what))
	if what == "" {
		return []byte{'c'}
	}
	switch lot(many, string(stage), what) {
	case 0:
		return []byte{'r'}
	case 1:
		return []byte{'t'}
	case 2:
		return append([]byte("y"+"550 5.7.9 "+text), 0)
	case 3:
		return append([]byte("y"+"451-4.7.8 "+text+"\r\n451-4.7.8 in three\r\n451 4.7.8 lines, see https://example.org/100%%"), 0)
	case 4:
		if stage != 'C' && stage != 'H' { // there Postfix says 250 and discards nothing
			return []byte{'d'}
		}
	case 5:
		if stage == 'E' {
			return append([]byte("h"+text), 0)
		}
	}
	return []byte{'c'}
}

var plainPath = regexp.MustCompile(`^[\w+-]+(\.[\w+-]+)*@[\w.-]+$`)

var masks = regexp.MustCompile(`\?+`)

func milter(c net.Conn) {
	br := bufio.NewReader(c)
	say := func(p []byte) {
		c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(p))), p...))
	}
	var message []string // what the last stage judges
	for {
		var size [4]byte
		if _, err := io.ReadFull(br, size[:]); err != nil {
			return
		}
		p := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(br, p); err != nil || len(p) == 0 {
			return
		}
		fields := strings.Split(strings.TrimSuffix(string(p[1:]), "\x00"), "\x00")
		switch stage := p[0]; stage {
		case 'O': // version 6, may quarantine, wants all and answers all
			say(append([]byte{'O', 0, 0, 0, 6, 0, 0, 0, 0x20}, 0, 0, 0, 0))
		case 'C':
			_, where, _ := bytes.Cut(p, []byte{0}) // family, port, address
			addr := string(bytes.TrimSuffix(where[min(3, len(where)):], []byte{0}))
			if addr == "127.0.0.1" { // the secondary is one of its clients
				say([]byte{'c'})
				break
			}
			say(milterAnswer(25, stage, addr))
		case 'H':
			// Postfix masks these for itself, the secondary for all that it tells.
			name := strings.Map(func(r rune) rune {
				if r <= ' ' || r > '~' || strings.ContainsRune("<>()\\\";@", r) {
					return '?'
				}
				return r
			}, fields[0])
			say(milterAnswer(90, stage, masks.ReplaceAllString(name, "?")))
		case 'M', 'R':
			message = nil
			path := strings.Trim(fields[0], "<>")
			if !plainPath.MatchString(path) { // other paths the secondary spells anew
				path = ""
			}
			say(milterAnswer(90, stage, path))
		case 'T', 'N':
			say([]byte{'c'})
		case 'L':
			switch fields[0] { // the secondary adds Received, Postfix at times Date
			case "From", "To", "Subject", "X-Odd":
			default:
				say([]byte{'c'})
				continue
			}
			message = append(message, fields...)
			say(milterAnswer(60, stage, strings.Join(fields, ":")))
		case 'B':
			body := bytes.TrimSpace(p[1:])
			message = append(message, string(body))
			say(milterAnswer(40, stage, string(body[max(0, len(body)-60):])))
		case 'E':
			a := milterAnswer(15, stage, strings.Join(message, ""))
			message = nil
			if say(a); a[0] == 'h' {
				say([]byte{'c'})
			}
		case 'D', 'A', 'K': // macros and the ends of things want no answer
			message = nil
		case 'Q':
			return
		default:
			say([]byte{'c'})
		}
	}
}

// startQuota is a policy service for quotas: who may have how much is a matter of
// the recipient's name.
func startQuota(t *testing.T) (addr string) {
	return listen(t, func(c net.Conn) {
		in, request := bufio.NewScanner(c), map[string]string{}
		for in.Scan() {
			if name, value, ok := strings.Cut(in.Text(), "="); ok {
				request[name] = value
				continue
			}
			action := "DUNNO"
			size, _ := strconv.Atoi(request["size"])
			to := strings.ToLower(request["recipient"])
			switch n := lot(12, to); {
			case n == 0:
				action = "552 5.2.2 Mailbox of " + to + " is full"
			case n == 1:
				action = "DEFER_IF_PERMIT 4.2.2 Mailbox is being moved"
			case n < 6 && size >= 1000:
				action = "REJECT 5.2.3 Mailbox takes nothing of that size"
			}
			fmt.Fprintf(c, "action=%s\n\n", action)
			clear(request)
		}
	})
}

// startPostgrey runs Debian's postgrey. Who comes again within delay is still
// greylisted.
func startPostgrey(t *testing.T, delay int) (addr string) {
	t.Helper()
	dir := tempDir(t)
	if out, err := exec.Command("chown", "postgrey", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s; run test/install-peers", err, out)
	}
	none := filepath.Join(dir, "none")
	writeOld(t, none, "")
	addr = testmx.FreeAddr()
	var out bytes.Buffer
	d, err := testmx.StartDaemon(addr, &out, "/usr/sbin/postgrey", "--inet="+addr, "--dbdir="+dir, "--delay="+strconv.Itoa(delay),
		"--whitelist-clients="+none, "--whitelist-recipients="+none, "--hostname=primary.example.org")
	if err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	t.Cleanup(func() {
		if err := d.Kill(); err != nil {
			t.Errorf("kill postgrey: %v", err)
		}
	})
	return addr
}
