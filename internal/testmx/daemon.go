package testmx

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"syscall"
	"time"
)

// Daemon is a server under test with all the processes that it started.
type Daemon struct {
	Ended <-chan struct{} // closed when it has ended
	addr  string
	cmd   *exec.Cmd
}

// StartDaemon runs a command whose output goes to out. Unless addr is empty it
// returns once something listens there.
func StartDaemon(addr string, out io.Writer, argv ...string) (*Daemon, error) {
	ended := make(chan struct{})
	d := &Daemon{Ended: ended, addr: addr, cmd: exec.Command(argv[0], argv[1:]...)}
	d.cmd.Stdout, d.cmd.Stderr = out, out
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = d.cmd.Wait() // its output says what there is to say
		close(ended)
	}()
	if err := d.await(true); err != nil {
		return nil, errors.Join(err, d.Kill())
	}
	return d, nil
}

// Pid is the process group's, too.
func (d *Daemon) Pid() int { return d.cmd.Process.Pid }

// Kill ends all processes at once, as a power cut would. Children that share
// the listening socket take a moment longer to die: it waits for that, too.
func (d *Daemon) Kill() error {
	if err := syscall.Kill(-d.Pid(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	<-d.Ended
	return d.await(false)
}

// await waits for a listener at the daemon's address, or for none.
func (d *Daemon) await(listens bool) error {
	if d.addr == "" {
		return nil
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", d.addr, time.Second)
		if err == nil {
			c.Close()
		}
		if (err == nil) == listens {
			return nil
		}
		select {
		case <-d.Ended:
			if listens {
				return fmt.Errorf("%s ended, and nobody listens on %s", d.cmd.Path, d.addr)
			}
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after a minute, a listener on %s: %v, want %v", d.addr, err == nil, listens)
		}
	}
}
