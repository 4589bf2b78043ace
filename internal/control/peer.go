package control

import (
	"fmt"
	"net"
	"net/http"

	"golang.org/x/sys/unix"
)

// Asker says who sent a request, for the log: "uid 0, pid 1234". It is the kernel's
// word (SO_PEERCRED), and of the moment of the connection.
func Asker(r *http.Request) string { return r.RemoteAddr }

// known gives each connection its peer's identity as remote address.
type known struct{ net.Listener }

func (k known) Accept() (net.Conn, error) {
	c, err := k.Listener.Accept()
	if u, ok := c.(*net.UnixConn); ok {
		return knownConn{u, credentials(u)}, err
	}
	return c, err
}

type knownConn struct {
	*net.UnixConn
	peer peer
}

func (c knownConn) RemoteAddr() net.Addr { return c.peer }

type peer string

func (peer) Network() string  { return "unix" }
func (p peer) String() string { return string(p) }

func credentials(c *net.UnixConn) peer {
	raw, err := c.SyscallConn()
	if err != nil {
		return "unknown"
	}
	var who *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { who, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return "unknown"
	}
	return peer(fmt.Sprintf("uid %d, pid %d", who.Uid, who.Pid))
}
