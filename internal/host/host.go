// Package host is the machine, or the container, on which a primary's mail server
// lives, as it is seen from here: this machine itself, one behind a command such as
// "docker exec -i NAME", or a directory that is the root of one. What a reader of the
// server's configuration runs, reads or connects to there goes through a Host.
//
// Behind a command, programs run in a small script of sh(1), which ends its output with a
// mark and the program's exit status. So an output that is cut short is never taken for a
// whole one, and a command that fails, because there is no such container, say, is never
// taken for the program's own failure. The script begins with the mark, too: a command that
// hangs, such as one into a container that is paused, is ended soon.
//
// Below a directory, symbolic links are followed as a process sees them whose root
// that is; none of them leads out of it. Programs run there by chroot(2), with this
// process's rights.
//
// Invariants: files and outputs are whole or an error; files are bounded; nothing is
// written. It watches nothing and remembers nothing.
package host

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/understudy-mx/understudy/internal/program"
)

// Host says where it is. A nil Host, like an empty one, is this machine.
type Host struct {
	// Prefix is a command that runs, there, the command that it is given.
	Prefix []string
	// Root is the directory that is its root.
	Root string
	// Servers are addresses of servers as they are called there, and how they are
	// reached from here: "host", "host:port" or "unix:/path" to "host:port" or "unix:/path".
	Servers map[string]string
	// Patience is how long the command may take until it has begun to run a program
	// there; 0 is 30 seconds.
	Patience time.Duration
}

const defaultPatience = 30 * time.Second

// Local says that the Host is this machine.
func (h *Host) Local() bool { return h == nil || len(h.Prefix) == 0 && h.Root == "" }

// String names it for errors, "" for this machine.
func (h *Host) String() string {
	switch {
	case h.Local():
		return ""
	case len(h.Prefix) > 0:
		return strings.Join(h.Prefix, " ")
	}
	return h.Root
}

// ParseServers reads "HERE-NAME=ADDRESS" for Host.Servers.
func ParseServers(list []string) map[string]string {
	m := map[string]string{}
	for _, s := range list {
		name, address, _ := strings.Cut(s, "=")
		m[name] = address
	}
	return m
}

// Program is a program to run there.
type Program struct {
	Argv   []string // the name is looked for on the path, and in /usr/sbin
	Dir    string   // "" for any
	Stdin  string
	Stderr io.Writer // of the program; "" where nil
}

// ExitError is the failure of a program that ran to its end.
type ExitError struct{ Status int }

func (e *ExitError) Error() string { return fmt.Sprintf("exit status %d", e.Status) }

// ErrStart means that a program couldn't be started.
var ErrStart = errors.New("can't be run")

// Run runs a program and calls read with its output. readErr is what read returned. err is
// an *ExitError if the program has failed by itself.
func (h *Host) Run(ctx context.Context, p Program, read func(io.Reader) error) (readErr, err error) {
	var cmd *exec.Cmd
	end := (*ending)(nil)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	switch {
	case h.Local():
		cmd = exec.CommandContext(ctx, lookPath(p.Argv[0]), p.Argv[1:]...)
		cmd.Dir = p.Dir
	case len(h.Prefix) > 0:
		end = newEnding()
		patience := cmp.Or(h.Patience, defaultPatience)
		late := time.AfterFunc(patience, func() { cancel(fmt.Errorf("%s: no answer within %v", h, patience)) })
		defer late.Stop()
		end.begun = func() { late.Stop() }
		argv := h.behind(p, end.mark)
		cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	default:
		if cmd, err = h.below(ctx, p); err != nil {
			return nil, err
		}
	}
	if p.Stdin != "" {
		cmd.Stdin = strings.NewReader(p.Stdin)
	}
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	said := &beginning{}
	cmd.Stderr = said
	if p.Stderr != nil {
		cmd.Stderr = io.MultiWriter(p.Stderr, said)
	}
	readErr, err = program.Read(ctx, cmd, func(r io.Reader) error {
		if end == nil {
			return read(r)
		}
		end.r = r
		return read(end)
	})
	var exit *exec.ExitError
	switch {
	case cmd.Process == nil && err != nil:
		return nil, fmt.Errorf("%w: %w", ErrStart, err)
	case ctx.Err() != nil && err != nil:
		return readErr, cmp.Or(context.Cause(ctx), err)
	case end != nil:
		return h.ended(end, readErr, err, said.String())
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		err = &ExitError{exit.ExitCode()}
	}
	return readErr, err
}

// lookPath finds a program where an administrator does.
func lookPath(name string) string {
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	if p := "/usr/sbin/" + name; !strings.Contains(name, "/") {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return name
}

// beginning keeps the beginning of a program's error output.
type beginning struct{ bytes.Buffer }

func (b *beginning) Write(p []byte) (int, error) {
	const most = 1024
	b.Buffer.Write(p[:min(len(p), most-b.Len())])
	return len(p), nil
}

// ReadFile reads a file of at most max octets. A file that isn't there is fs.ErrNotExist.
func (h *Host) ReadFile(ctx context.Context, name string, max int64) (b []byte, err error) {
	switch {
	case !h.Local() && len(h.Prefix) > 0:
		b, err = h.cat(ctx, name, max)
	default:
		var f *os.File
		if f, err = h.open(name, os.O_RDONLY); err != nil {
			return nil, err
		}
		defer f.Close()
		if st, err := f.Stat(); err == nil && st.IsDir() {
			return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("is a directory")}
		}
		b, err = io.ReadAll(io.LimitReader(f, max+1))
	}
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("%s is larger than %d octets", name, max)
	}
	return b, err
}

// Glob returns the names that match a pattern, sorted, without those that nobody may see.
func (h *Host) Glob(ctx context.Context, pattern string) (names []string, err error) {
	switch {
	case h.Local():
		return filepath.Glob(pattern)
	case len(h.Prefix) > 0:
		return h.globBehind(ctx, pattern)
	}
	dir, last := filepath.Split(pattern)
	all, err := h.readDir(dir)
	for _, name := range all {
		if ok, _ := filepath.Match(last, name); ok {
			names = append(names, filepath.Join(dir, name))
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		err = nil
	}
	slices.Sort(names)
	return names, err
}

// Hostname is its name, "" if that can't be known.
func (h *Host) Hostname(ctx context.Context) string {
	if h.Local() {
		name, _ := os.Hostname()
		return name
	}
	file := "/proc/sys/kernel/hostname"
	if h.Root != "" {
		file = "/etc/hostname"
	}
	b, _ := h.ReadFile(ctx, file, 4096)
	name := strings.TrimSpace(string(b))
	if name == "" && h.Root != "" {
		name, _ = os.Hostname()
	}
	return name
}

// Addresses are those of its interfaces, as far as they can be known.
func (h *Host) Addresses(ctx context.Context) (all []netip.Addr) {
	if h.Local() {
		own, _ := net.InterfaceAddrs()
		for _, a := range own {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				all = append(all, p.Addr().Unmap().WithZone(""))
			}
		}
		return all
	}
	if h.Root != "" {
		return nil // its network isn't to be seen in its files
	}
	const most = 1 << 20
	four, _ := h.ReadFile(ctx, "/proc/net/fib_trie", most)
	six, _ := h.ReadFile(ctx, "/proc/net/if_inet6", most)
	all = append(localAddresses(string(four)), inet6(string(six))...)
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// localAddresses reads /proc/net/fib_trie: a line "|-- 192.0.2.1" before one that
// says "/32 host LOCAL" is an address of the machine's own.
func localAddresses(trie string) (all []netip.Addr) {
	last := ""
	for line := range strings.Lines(trie) {
		line = strings.TrimSpace(line)
		if a, is := strings.CutPrefix(line, "|-- "); is {
			last = a
		} else if strings.HasPrefix(line, "/32 host LOCAL") {
			if a, err := netip.ParseAddr(last); err == nil {
				all = append(all, a)
			}
		}
	}
	return all
}

// inet6 reads /proc/net/if_inet6, whose lines begin with 32 hexadecimal digits.
func inet6(text string) (all []netip.Addr) {
	for line := range strings.Lines(text) {
		if len(line) < 32 {
			continue
		}
		var groups []string
		for i := 0; i < 32; i += 4 {
			groups = append(groups, line[i:i+4])
		}
		if a, err := netip.ParseAddr(strings.Join(groups, ":")); err == nil {
			all = append(all, a)
		}
	}
	return all
}

// Stamps are what tells one state of files from another, without reading them; "" for
// one that isn't there. What changes within a moment may have the same stamp.
func (h *Host) Stamps(ctx context.Context, names []string) (map[string]string, error) {
	if !h.Local() && len(h.Prefix) > 0 {
		return h.stampsBehind(ctx, names)
	}
	all := map[string]string{}
	for _, name := range names {
		var st fs.FileInfo
		f, err := h.open(name, oPath)
		if err == nil {
			st, err = f.Stat()
			f.Close()
		}
		if err != nil {
			all[name] = ""
			continue
		}
		all[name] = fmt.Sprint(st.Size(), " ", st.ModTime().UnixNano())
	}
	return all, nil
}

// Dial connects to a server that programs there know by an address: network is "tcp"
// or "unix".
func (h *Host) Dial(ctx context.Context, network, address string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	if h.Local() {
		return d.DialContext(ctx, network, address)
	}
	spelt := address
	if network == "unix" {
		spelt = "unix:" + address
	}
	if to, named := h.server(network, address); named {
		network := "tcp"
		if path, is := strings.CutPrefix(to, "unix:"); is {
			network, to = "unix", path
		}
		c, err := d.DialContext(ctx, network, to)
		if err != nil { // it may have moved
			err = fmt.Errorf("%w; if %s is reached in another way now, say so: postfix_hosts = [%q]", err, spelt, spelt+"=127.0.0.1:PORT")
		}
		return c, err
	}
	inside := fmt.Errorf("%s is inside of %s; say how it is reached from here: postfix_hosts = [%q]", spelt, h, spelt+"=127.0.0.1:PORT")
	if network == "unix" {
		if h.Root == "" {
			return nil, inside
		}
		return h.dialBelow(ctx, address, timeout)
	}
	if name, _, err := net.SplitHostPort(address); err == nil && isLoopback(name) {
		return nil, inside
	}
	c, err := d.DialContext(ctx, network, address)
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return nil, fmt.Errorf("%w (%w)", inside, err)
	}
	return c, err
}

// server finds what Servers say of an address.
func (h *Host) server(network, address string) (to string, named bool) {
	if network == "unix" {
		to, named = h.Servers["unix:"+address]
		return to, named
	}
	if to, named = h.Servers[address]; named {
		return to, true
	}
	name, _, _ := net.SplitHostPort(address)
	to, named = h.Servers[name]
	return to, named
}

func isLoopback(name string) bool {
	a, err := netip.ParseAddr(name)
	return err == nil && (a.IsLoopback() || a.IsUnspecified()) || strings.EqualFold(name, "localhost")
}
