package testmx

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// MasterCF is the master.cf of a Postfix with smtpd at an address (%s), and the
// services that it needs as a primary or as a backup MX.
const MasterCF = `%s inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
`

// CheckPostfix makes a Postfix ready to be started whose configuration is in
// conf and whose data are in DIR/data. It needs root. A line of main.cf that
// overrides another is refused, see Override. Its configuration becomes old:
// what has just changed Postfix's commands wait for.
func CheckPostfix(dir, conf string) error {
	hourAgo := time.Now().Add(-time.Hour)
	for _, name := range []string{"main.cf", "master.cf"} {
		if err := os.Chtimes(filepath.Join(conf, name), hourAgo, hourAgo); err != nil {
			return err
		}
	}
	for _, command := range [][]string{
		{"chown", "postfix", filepath.Join(dir, "data")},
		{"postfix", "-c", conf, "check"},
	} {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err == nil && bytes.Contains(out, []byte("overriding earlier entry")) {
			err = errors.New("such a Postfix hangs in its own log")
		}
		if err != nil {
			return fmt.Errorf("%q: %w\n%s", command, err, out[:min(len(out), 1000)])
		}
	}
	return nil
}

// PostfixCommand runs the Postfix whose configuration is in conf. Its master
// needs root.
func PostfixCommand(conf string) []string {
	return []string{"/usr/lib/postfix/sbin/master", "-c", conf, "-d"}
}

// FreeAddr returns a loopback address that nobody listens on. Its port is below
// those that the kernel takes for port 0 and for connections, and an abstract
// socket reserves it until the process ends: tests of other packages run at the
// same time. So it stays free until the test's own daemon listens there.
func FreeAddr() string {
	var err error
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(22_000))
		if err = reserve(addr); err != nil {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	panic(err) // no loopback: nothing can be tested here
}

// reserve makes an address this process's own. The file descriptor is never
// closed, and no child inherits it.
func reserve(addr string) error {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: "@understudy-test " + addr}); err != nil {
		syscall.Close(fd)
	}
	return err
}
