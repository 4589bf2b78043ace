package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// oPath opens a name without reading or following it, O_PATH of open(2).
const oPath = 0x200000

// below is the command that runs a program below the root.
func (h *Host) below(ctx context.Context, p Program) (*exec.Cmd, error) {
	name := p.Argv[0]
	if !strings.Contains(name, "/") {
		for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
			if f, err := h.open(dir+"/"+name, oPath); err == nil {
				f.Close()
				name = dir + "/" + name
				break
			}
		}
	}
	if !path.IsAbs(name) {
		return nil, fmt.Errorf("%w: there is no %s below %s", ErrStart, p.Argv[0], h.Root)
	}
	cmd := exec.CommandContext(ctx, name, p.Argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: h.Root}
	cmd.Dir = "/"
	if p.Dir != "" {
		cmd.Dir = p.Dir
	}
	return cmd, nil
}

// open opens a file of this machine, or below the root.
func (h *Host) open(name string, flag int) (*os.File, error) {
	if h.Local() {
		return os.OpenFile(name, flag, 0)
	}
	root, err := os.OpenRoot(h.Root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	real, err := resolve(root, name)
	if err == nil {
		var f *os.File
		if f, err = root.OpenFile(real, flag, 0); err == nil {
			return f, nil
		}
	}
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: err}
}

// maxLinks bounds symbolic links on the way to a file, as Linux does.
const maxLinks = 40

// resolve follows the symbolic links of a name as chroot(2) would have it: absolute ones
// begin at the root, and nothing is above it. The result has none, unless a link has been
// made since; such a one leads nowhere out either, by os.Root.
func resolve(root *os.Root, name string) (string, error) {
	todo := strings.Split(name, "/")
	done, links := ".", 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, part)
		st, err := root.Lstat(next)
		if err != nil {
			return "", err
		}
		if st.Mode()&fs.ModeSymlink == 0 {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", syscall.ELOOP
		}
		target, err := root.Readlink(next)
		if err != nil {
			return "", err
		}
		if path.IsAbs(target) {
			done = "."
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return done, nil
}

func (h *Host) readDir(dir string) ([]string, error) {
	f, err := h.open(dir, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// dialBelow connects to a socket below the root, by its open file: so no link that is
// made meanwhile leads elsewhere.
func (h *Host) dialBelow(ctx context.Context, name string, timeout time.Duration) (net.Conn, error) {
	f, err := h.open(name, oPath)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d := net.Dialer{Timeout: timeout}
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// Path is where a file there is for programs of this machine. Behind a command it is
// nowhere.
func (h *Host) Path(name string) (string, error) {
	switch {
	case h.Local():
		return name, nil
	case len(h.Prefix) > 0:
		return "", fmt.Errorf("%s is inside of %s", name, h)
	}
	root, err := os.OpenRoot(h.Root)
	if err != nil {
		return "", err
	}
	defer root.Close()
	real, err := resolve(root, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		real = path.Clean("/" + name) // its user says so
	case err != nil:
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return filepath.Join(h.Root, real), nil
}
