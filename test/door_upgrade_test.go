package test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// keeper is what systemd-socket-activate starts: it keeps the listening socket
// and starts Understudy again whenever it ends, as systemd does. Its first
// argument is the file for Understudy's pid, the rest is the command.
const keeper = `pid=$1; shift
export pid
while [ ! -e "$pid.stop" ]; do
	sh -c 'echo $$ >"$pid.new"; mv "$pid.new" "$pid"; LISTEN_PID=$$ exec "$@"' sh "$@"
done`

// activated is a secondary that inherits its socket.
type activated struct {
	*secondary
	process *exec.Cmd
	ended   chan error
}

// activate starts s under systemd-socket-activate.
func activate(t *testing.T, s *secondary) *activated {
	t.Helper()
	log, err := os.OpenFile(s.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	a := &activated{secondary: s, ended: make(chan error, 1)}
	a.process = exec.Command("systemd-socket-activate", "-l", s.addr, "sh", "-c", keeper, "sh", s.path("pid"),
		binary, "serve", "-c", s.path("understudy.toml"))
	a.process.Stdout, a.process.Stderr = log, log
	if err := a.process.Start(); err != nil {
		t.Fatalf("%v (test/install-peers installs systemd)", err)
	}
	go func() { a.ended <- a.process.Wait() }()
	eventually(t, 10*time.Second, "systemd listens", func() bool {
		c, err := net.Dial("tcp", s.addr) // which is what starts Understudy
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	t.Cleanup(a.shut)
	return a
}

// pid waits for an Understudy that isn't old, and returns its process ID.
func (a *activated) pid(old int) (pid int) {
	a.t.Helper()
	eventually(a.t, 20*time.Second, "a new understudy", func() bool {
		b, err := os.ReadFile(a.path("pid"))
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		return err == nil && pid != old
	})
	return pid
}

func (a *activated) signal(pid int) {
	a.t.Helper()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		a.t.Fatal(err)
	}
}

// shut ends the keeper and its Understudy.
func (a *activated) shut() {
	if a.process == nil {
		return
	}
	write(a.t, a.path("pid.stop"), "")
	_ = syscall.Kill(a.pid(0), syscall.SIGTERM) // it may have ended by itself
	select {
	case err := <-a.ended:
		if err != nil {
			a.t.Errorf("the last understudy: %v", err)
		}
	case <-time.After(40 * time.Second):
		a.t.Error("understudy did not end within 40 s of SIGTERM")
		_ = a.process.Process.Kill()
	}
	a.process = nil
}

// TestRestartRefusesNobody restarts Understudy three times under
// systemd-socket-activate while senders come.
func TestRestartRefusesNobody(t *testing.T) {
	s := newSecondary(t, testmx.FreeAddr(), policyFor("alice@example.org"), "")
	a := activate(t, s)
	pid := a.pid(0)
	senders := send(t, s.addr)
	for range 3 {
		senders.flow()
		a.signal(pid)
		pid = a.pid(pid)
	}
	senders.flow()
	mails, told := senders.end()
	eventually(t, 20*time.Second, "the queue can be read", func() bool { return len(s.queue()) > 0 })
	if n := len(s.queue()); n != mails {
		t.Errorf("%d mails queued, %d were answered 250", n, mails)
	}
	t.Logf("%d mails, %d senders told to come again, over 3 restarts", mails, told)
	a.shut()
}

// senders come to a door without a break. Each is to be let in; who meets the
// end of a process gets 421 and comes again.
type senders struct {
	t                    *testing.T
	mails, told, refused atomic.Int32
	stop                 chan struct{}
	done                 sync.WaitGroup
}

func send(t *testing.T, addr string) *senders {
	s := &senders{t: t, stop: make(chan struct{})}
	for range 4 {
		s.done.Go(func() {
			for {
				select {
				case <-s.stop:
					return
				default:
				}
				switch err := deliverOnce(addr); {
				case err == nil:
					s.mails.Add(1)
				case strings.Contains(err.Error(), "421 4.3.2"):
					s.told.Add(1)
				default:
					s.refused.Add(1)
					t.Errorf("a sender was turned away: %v", err)
				}
			}
		})
	}
	return s
}

// flow waits until more mail has come.
func (s *senders) flow() {
	s.t.Helper()
	before := s.mails.Load()
	eventually(s.t, 30*time.Second, "mail flows", func() bool { return s.mails.Load() > before+20 || s.refused.Load() > 0 })
}

// end stops them, and says how many mails were answered 250, and how many
// senders 421.
func (s *senders) end() (mails, told int) {
	close(s.stop)
	s.done.Wait()
	return int(s.mails.Load()), int(s.told.Load())
}

// deliverOnce sends one mail. An error tells the reply, or how the connection
// broke.
func deliverOnce(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 20*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	for _, line := range []string{"", "EHLO c.example\r\n", "MAIL FROM:<bob@sender.example>\r\n", "RCPT TO:<alice@example.org>\r\n", "DATA\r\n", "Subject: x\r\n\r\nx\r\n.\r\n"} {
		// A 421 may have come before we wrote: then the write may fail, the
		// reply is there all the same.
		_, writeErr := io.WriteString(c, line)
		reply, _, err := demo.ReadReply(r)
		if err != nil {
			return fmt.Errorf("%q: %w, %v", line, err, writeErr)
		}
		if reply.Code >= 400 {
			return fmt.Errorf("%q: %s", line, reply)
		}
	}
	return nil
}

// TestSigtermInData: a message whose data is on its way at SIGTERM is taken;
// then the client hears 421, and the mail is there after the restart.
func TestSigtermInData(t *testing.T) {
	s := newSecondary(t, testmx.FreeAddr(), policyFor("alice@example.org"), "")
	a := activate(t, s)
	pid := a.pid(0)
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	testmx.Dialogue(t, c, "S: 220\nC: EHLO c.example\nS: 250\nC: MAIL FROM:<bob@sender.example>\nS: 250\nC: RCPT TO:<alice@example.org>\nS: 250\nC: DATA\nS: 354\nC: Subject: half\nC: \nC: one half\n")
	idle, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	testmx.Dialogue(t, idle, "S: 220\n")
	a.signal(pid)
	testmx.Dialogue(t, idle, "S: 421 4.3.2\nS: CLOSED\n") // so it is shutting down
	testmx.Dialogue(t, c, "C: the other half\nC: .\nS: 250 2.0.0 Ok: queued as\nS: 421 4.3.2\nS: CLOSED\n")
	a.pid(pid)
	eventually(t, 20*time.Second, "the mail is there after the restart", func() bool { return deliverOnce(s.addr) == nil && len(s.queue()) == 2 })
	a.shut()
}
