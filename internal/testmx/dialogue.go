package testmx

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
)

// dialogueTimeout bounds a whole dialogue.
const dialogueTimeout = 30 * time.Second

// Dialogue plays script, the client's side of an SMTP session, on c and fails
// the test at the first reply that is not as expected. A script's lines:
//
//	C: text      send text and CRLF
//	C! "text"    send exactly the octets of this Go string
//	S: prefix    one reply, all its lines, joined by LF, begins with prefix
//	S: /regexp/  … or the regexp matches; . doesn't match LF
//	S: CLOSED    the server ends the connection, saying nothing more
//	# text       a comment; empty lines are skipped, too
//
// replace has pairs of old and new text as for strings.NewReplacer.
func Dialogue(t testing.TB, c net.Conn, script string, replace ...string) {
	t.Helper()
	if err := play(c, strings.NewReplacer(replace...).Replace(script)); err != nil {
		t.Errorf("dialogue: %v", err)
	}
}

// DialogueFile plays the script in file on c.
func DialogueFile(t testing.TB, c net.Conn, file string, replace ...string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := play(c, strings.NewReplacer(replace...).Replace(string(b))); err != nil {
		t.Errorf("%s:%v", file, err)
	}
}

// play returns an error that begins with the number of the script's line.
func play(c net.Conn, script string) error {
	c.SetDeadline(time.Now().Add(dialogueTimeout))
	r := bufio.NewReader(c)
	for i, line := range strings.Split(script, "\n") {
		line = strings.TrimRight(line, "\r")
		kind, arg, _ := strings.Cut(line, " ")
		var err error
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case kind == "C:":
			_, err = io.WriteString(c, arg+"\r\n")
		case kind == "C!":
			var raw string
			if raw, err = strconv.Unquote(arg); err == nil {
				_, err = io.WriteString(c, raw)
			}
		case kind == "S:":
			err = expect(r, arg)
		default:
			err = fmt.Errorf("neither C:, C!, S: nor #")
		}
		if err != nil {
			return fmt.Errorf("%d: %s: %w", i+1, line, err)
		}
	}
	return nil
}

func expect(r *bufio.Reader, want string) error {
	_, lines, err := demo.ReadReply(r)
	got := strings.Join(lines, "\n")
	if want == "CLOSED" {
		if got != "" || err == nil {
			return fmt.Errorf("got %q", got)
		}
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			return err // still open; a reset is a close
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w after %q", err, got)
	}
	if n := len(want); n > 2 && want[0] == '/' && want[n-1] == '/' {
		re, err := regexp.Compile(want[1 : n-1])
		if err != nil {
			return err
		}
		if !re.MatchString(got) {
			return fmt.Errorf("got %q", got)
		}
		return nil
	}
	if !strings.HasPrefix(got, want) {
		return fmt.Errorf("got %q", got)
	}
	return nil
}

// Send presents m to the server at addr and returns its replies; a connection
// that breaks is fatal. Where it may, use demo.Send.
func Send(t testing.TB, addr string, m demo.Mail) demo.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), dialogueTimeout)
	defer cancel()
	o, err := demo.Send(ctx, addr, m)
	if err != nil {
		t.Fatalf("send to %s: %v (so far %+v)", addr, err, o)
	}
	return o
}
