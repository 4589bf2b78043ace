// Package program runs a program for its output, and ends all of its processes. A
// program that has ended may have left processes that hold its output open, in its
// process group or, by setsid(2), in one of their own, such as
//
//	setsid sleep 1000 & echo alice@example.org
//
// Reading to the end of that output could take for ever, and such processes would
// pile up, one for each listing. So Read waits only briefly for the output's end
// after the program's end, and then kills every process whose environment has the
// mark that the program was given.
package program

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrLeft means that the program has ended, and its output hasn't.
var ErrLeft = errors.New("has ended, but a process that it left running holds its output open")

// patience is how long output may go on after the program's end.
const patience = 3 * time.Second

// Read runs cmd, made by exec.CommandContext with the same context, and calls
// read for its output. When Read returns, the program and its descendants have
// ended, but for those that have changed their user or their environment.
// readErr is what read returned.
func Read(ctx context.Context, cmd *exec.Cmd, read func(io.Reader) error) (readErr, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	mark := "UNDERSTUDY_RUN=" + rand.Text()
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, mark)
	cmd.Stdout = w
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		if ctx.Err() != nil {
			r.SetReadDeadline(time.Now())
		} else {
			r.SetReadDeadline(time.Now().Add(patience))
		}
		ended <- err
	}()
	readErr = read(r)
	if readErr != nil {
		cmd.Cancel()
	}
	err = <-ended
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	sweep(mark)
	left := errors.Is(readErr, os.ErrDeadlineExceeded)
	if left {
		readErr = nil
	}
	if left && err == nil || errors.Is(err, exec.ErrWaitDelay) {
		err = ErrLeft
	}
	return readErr, err
}

// sweep kills the processes whose environment has the mark. One that forks
// meanwhile is met the next time round.
func sweep(mark string) {
	const rounds, pause = 50, 10 * time.Millisecond
	blank := 0 // rounds that found nothing but blanks
	for range rounds {
		names, _ := filepath.Glob("/proc/[0-9]*/environ")
		found, blanks := false, false
		for _, name := range names {
			is, isBlank := marked(name, mark)
			blanks = blanks || isBlank
			if !is {
				continue
			}
			found = true
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			p, err := os.FindProcess(pid) // holds on to the process, not the number
			if err == nil {
				if is, _ := marked(name, mark); is {
					p.Kill()
				}
				p.Release()
			}
		}
		if found {
			continue
		}
		if blank++; !blanks || blank > 10 {
			return
		}
		time.Sleep(pause)
	}
}

// marked looks for the mark. A process has a blank environment during execve(2),
// for a moment; some never have one.
func marked(environ, mark string) (is, blank bool) {
	b, err := os.ReadFile(environ)
	if err == nil && len(b) == 0 {
		_, err := os.Readlink(filepath.Join(filepath.Dir(environ), "exe")) // the kernel's own and the dead have none
		return false, err == nil
	}
	return err == nil && strings.Contains("\x00"+string(b), "\x00"+mark+"\x00"), false
}
