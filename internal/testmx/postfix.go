package testmx

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
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
// conf and whose data are in DIR/data. It needs root.
func CheckPostfix(dir, conf string) error {
	for _, command := range [][]string{
		{"chown", "postfix", filepath.Join(dir, "data")},
		{"postfix", "-c", conf, "check"},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w\n%s", command, err, out)
		}
	}
	return nil
}

// PostfixCommand runs the Postfix whose configuration is in conf. Its master
// needs root.
func PostfixCommand(conf string) []string {
	return []string{"/usr/lib/postfix/sbin/master", "-c", conf, "-d"}
}

var (
	addrMu sync.Mutex
	given  = map[int]struct{}{} // guarded by addrMu
)

// FreeAddr returns a loopback address that nobody listens on. None is returned
// twice, and its port is below those that the kernel takes for port 0 and for
// connections: so it stays free until the test's own daemon listens there.
func FreeAddr() string {
	addrMu.Lock()
	defer addrMu.Unlock()
	for {
		port := 10_000 + rand.IntN(22_000)
		if _, ok := given[port]; ok {
			continue
		}
		given[port] = struct{}{}
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			if len(given) == 10_000 {
				panic(err) // no loopback: nothing can be tested here
			}
			continue
		}
		ln.Close()
		return ln.Addr().String()
	}
}
