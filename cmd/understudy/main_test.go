package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/syndtr/goleveldb/leveldb"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// patience bounds every wait; a test that meets it has failed.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"understudy": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE") != "",
		Setup: func(e *testscript.Env) error {
			e.Values["serve"] = &process{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve":      cmdServe,
			"publish":    cmdPublish,
			"stop":       cmdStop,
			"signal":     cmdSignal,
			"waitlog":    cmdWaitlog,
			"send":       cmdSend,
			"fetch":      cmdFetch,
			"occupy":     cmdOccupy,
			"newer":      cmdNewer,
			"cert":       cmdCert,
			"starttls":   cmdStarttls,
			"idfirst":    cmdIDFirst,
			"exits":      cmdExits,
			"waitend":    cmdWaitend,
			"substitute": cmdSubstitute,
			"exim":       cmdExim,
		},
	})
}

// process is a running `understudy serve` and its log.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error

	mu   sync.Mutex
	log  []string
	more chan struct{} // closed and replaced at each line
	seen int           // lines that waitlog has passed
}

func proc(ts *testscript.TestScript) *process { return ts.Value("serve").(*process) }

// cmdServe starts serve with the given arguments and waits until it is ready.
// $SMTP, $METRICS and $PUSH are its addresses.
func cmdServe(ts *testscript.TestScript, neg bool, args []string) { launch(ts, "serve", args) }

// cmdPublish does the same with publish, in place of serve.
func cmdPublish(ts *testscript.TestScript, neg bool, args []string) { launch(ts, "publish", args) }

func launch(ts *testscript.TestScript, what string, args []string) {
	p := proc(ts)
	exe, err := os.Executable()
	ts.Check(err)
	*p = process{cmd: exec.Command(exe, append([]string{what}, args...)...), done: make(chan struct{}), more: make(chan struct{})}
	p.cmd.Args[0] = "understudy"
	p.cmd.Dir = ts.MkAbs(".")
	p.cmd.Env = append(os.Environ(), "LISTEN_FDS=", "NOTIFY_SOCKET="+ts.Getenv("NOTIFY_SOCKET"), "WATCHDOG_USEC="+ts.Getenv("WATCHDOG_USEC"))
	out, err := p.cmd.StderrPipe()
	ts.Check(err)
	ts.Check(p.cmd.Start())
	go p.read(out)
	ts.Defer(func() {
		p.cmd.Process.Kill()
		<-p.done
		ts.Logf("the daemon's log:\n%s", strings.Join(p.log, "\n"))
	})
	p.wait(ts, `"msg":"ready"`)
	for name, what := range map[string]string{"SMTP": "smtp", "METRICS": "metrics", "PUSH": "push"} {
		for _, line := range p.lines() {
			var l struct{ Msg, For, Addr string }
			if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "listening" && l.For == what {
				ts.Setenv(name, l.Addr)
			}
		}
	}
}

func (p *process) read(r io.Reader) {
	for s := bufio.NewScanner(r); s.Scan(); {
		p.mu.Lock()
		p.log = append(p.log, s.Text())
		close(p.more)
		p.more = make(chan struct{})
		p.mu.Unlock()
	}
	p.err = p.cmd.Wait()
	close(p.done)
}

func (p *process) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log
}

// wait passes over lines of the log until one matches.
func (p *process) wait(ts *testscript.TestScript, pattern string) {
	re, err := regexp.Compile(pattern)
	ts.Check(err)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		p.mu.Lock()
		log, more := p.log, p.more
		p.mu.Unlock()
		for p.seen < len(log) {
			p.seen++
			if re.MatchString(log[p.seen-1]) {
				return
			}
		}
		select {
		case <-more:
		case <-p.done:
			if len(p.lines()) == p.seen {
				ts.Fatalf("the daemon ended (%v) before its log matched %q", p.err, pattern)
			}
		case <-timer.C:
			ts.Fatalf("nothing in the daemon's log matched %q", pattern)
		}
	}
}

// cmdWaitlog waits for a line of the log, behind those already waited for.
func cmdWaitlog(ts *testscript.TestScript, neg bool, args []string) { proc(ts).wait(ts, args[0]) }

func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]os.Signal{"HUP": syscall.SIGHUP, "KILL": syscall.SIGKILL}
	ts.Check(proc(ts).cmd.Process.Signal(signals[args[0]]))
}

// cmdStop ends serve by SIGTERM; it must exit with 0.
func cmdStop(ts *testscript.TestScript, neg bool, args []string) {
	p := proc(ts)
	ts.Check(p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.done:
		ts.Check(p.err)
	case <-time.After(patience):
		ts.Fatalf("serve did not end")
	}
}

// cmdWaitend waits until serve has ended, however it ended.
func cmdWaitend(ts *testscript.TestScript, neg bool, args []string) { <-proc(ts).done }

// cmdExits runs a program and compares its exit code with the first argument.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// cmdSubstitute replaces $OCCUPIED in a file.
func cmdSubstitute(ts *testscript.TestScript, neg bool, args []string) {
	text := strings.ReplaceAll(ts.ReadFile(args[0]), "$OCCUPIED", ts.Getenv("OCCUPIED"))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o644))
}

// cmdSend sends a message from its first argument to each other one, and
// prints the last reply.
func cmdSend(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	o, err := demo.Send(ctx, ts.Getenv("SMTP"), demo.Mail{From: args[0], To: args[1:],
		Content: []byte("Subject: test\r\n\r\n.a line\r\n")})
	ts.Check(err)
	if positive := o.Last().Positive(); positive == neg {
		ts.Fatalf("got %s", o.Last())
	}
	fmt.Fprintln(ts.Stdout(), o.Last())
}

// cmdFetch prints a page of the metrics server.
func cmdFetch(ts *testscript.TestScript, neg bool, args []string) {
	c, err := net.DialTimeout("tcp", ts.Getenv("METRICS"), patience)
	ts.Check(err)
	defer c.Close()
	ts.Check(c.SetDeadline(time.Now().Add(patience)))
	fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", args[0])
	_, err = io.Copy(ts.Stdout(), c)
	ts.Check(err)
}

// cmdOccupy takes a port and names it in $OCCUPIED.
func cmdOccupy(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv("OCCUPIED", l.Addr().(*net.TCPAddr).String())
}

// cmdNewer makes the queue below a state directory one of a later version.
func cmdNewer(ts *testscript.TestScript, neg bool, args []string) {
	db, err := leveldb.OpenFile(filepath.Join(ts.MkAbs(args[0]), "queue", "store"), nil)
	ts.Check(err)
	ts.Check(db.Put([]byte("f"), []byte{99}, nil))
	ts.Check(db.Close())
}

// cmdIDFirst puts the ID of the first message in a JSON list into $ID.
func cmdIDFirst(ts *testscript.TestScript, neg bool, args []string) {
	var list []struct{ ID string }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &list))
	ts.Setenv("ID", list[0].ID)
}

// cmdCert writes a certificate with the given serial number, and its key.
func cmdCert(ts *testscript.TestScript, neg bool, args []string) {
	serial, ok := new(big.Int).SetString(args[0], 10)
	if !ok {
		ts.Fatalf("serial number %q", args[0])
	}
	cert, key := testmx.Certificate("mx2.example.org", func(c *x509.Certificate) {
		c.SerialNumber, c.IPAddresses = serial, []net.IP{net.IPv4(127, 0, 0, 1)}
	})
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), cert, 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), key, 0o600))
}

// cmdStarttls prints the serial number of the certificate that STARTTLS shows.
func cmdStarttls(ts *testscript.TestScript, neg bool, args []string) {
	conn, err := net.DialTimeout("tcp", ts.Getenv("SMTP"), patience)
	ts.Check(err)
	defer conn.Close()
	ts.Check(conn.SetDeadline(time.Now().Add(patience)))
	c, err := smtp.NewClient(conn, "mx2.example.org")
	ts.Check(err)
	ts.Check(c.StartTLS(&tls.Config{InsecureSkipVerify: true}))
	state, _ := c.TLSConnectionState()
	fmt.Fprintln(ts.Stdout(), state.PeerCertificates[0].SerialNumber)
}

// TestManPages: docs/man is what `go generate` makes.
func TestManPages(t *testing.T) {
	pages, err := manPages()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range pages {
		got, err := os.ReadFile(filepath.Join("../../docs/man", name))
		if err != nil {
			t.Fatalf("%v; run go generate ./cmd/understudy", err)
		}
		if diff := cmp.Diff(string(got), string(want)); diff != "" {
			t.Errorf("docs/man/%s is stale, run go generate ./cmd/understudy (-is +should be):\n%s", name, diff)
		}
	}
}

// TestManPagesFormat: groff finds nothing to complain about.
func TestManPagesFormat(t *testing.T) {
	pages, err := manPages()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range pages {
		cmd := exec.Command("groff", "-man", "-Tutf8", "-ww", "-z")
		cmd.Stdin = bytes.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
