package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// ListenDoors opens doors: the sockets that systemd passes, or else those
// that the configuration names.
func ListenDoors(addrs []string) ([]*Door, error) {
	inherited, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take sockets from systemd: %w", err)
	}
	var doors []*Door
	for i, l := range inherited {
		if l == nil {
			return nil, fmt.Errorf("socket %d from systemd does not accept connections: use ListenStream= in understudy.socket", i)
		}
		doors = append(doors, newDoor(l))
	}
	if len(doors) > 0 {
		return doors, nil
	}
	for _, addr := range addrs {
		l, err := Listen(addr)
		if err != nil {
			for _, d := range doors {
				d.Close()
			}
			return nil, err
		}
		doors = append(doors, newDoor(l))
	}
	return doors, nil
}

// Listen says what is in the way, and of which port.
func Listen(addr string) (net.Listener, error) {
	// No keep-alive: time-outs of our own end dead sessions, and it costs four system
	// calls a connection. No Multipath TCP: mail servers don't speak it.
	c := net.ListenConfig{KeepAlive: -1}
	c.SetMultipathTCP(false)
	l, err := c.Listen(context.Background(), "tcp", addr)
	_, port, _ := net.SplitHostPort(addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: port %s is in use by another program; `ss -ltnp sport = :%s` shows which", addr, port, port)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("listen on %s: port %s is for privileged programs; use systemd's understudy.socket, or give this one CAP_NET_BIND_SERVICE", addr, port)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen on %s: this machine has no such address; `ip address` shows those it has", addr)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// Door is a listener that can be asked whether anybody still accepts at it. A
// connection of Knock's is seen by Accept and goes no further: it costs no
// session, no log line and no place under a limit.
type Door struct {
	net.Listener

	mu     sync.Mutex
	knocks map[string]chan struct{} // by the knocking connection's address; closed by Accept
}

func newDoor(l net.Listener) *Door {
	return &Door{Listener: l, knocks: map[string]chan struct{}{}}
}

func (d *Door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil || !d.knocked(c) {
			return c, err
		}
		c.Close()
	}
}

func (d *Door) knocked(c net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.knocks) == 0 {
		return false
	}
	heard, ok := d.knocks[c.RemoteAddr().String()]
	if ok {
		close(heard)
		delete(d.knocks, c.RemoteAddr().String())
	}
	return ok
}

// Knock connects to the door and returns nil once its Accept has seen that.
func (d *Door) Knock(ctx context.Context, timeout time.Duration) error {
	target, ok := d.Addr().(*net.TCPAddr)
	if !ok {
		return nil // a socket of another family has no address to come back to
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	to := target.AddrPort()
	if a := to.Addr().Unmap(); !a.IsUnspecified() {
		return d.knockAt(ctx, netip.AddrPortFrom(a, to.Port()))
	} else if a.Is6() && d.knockAt(ctx, netip.AddrPortFrom(netip.IPv6Loopback(), to.Port())) == nil {
		return nil
	}
	return d.knockAt(ctx, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port()))
}

// knockAt binds its end first, so that Accept knows who knocks, whenever it
// comes to see the connection.
func (d *Door) knockAt(ctx context.Context, to netip.AddrPort) error {
	heard := make(chan struct{})
	var name string
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		if err := raw.Control(func(fd uintptr) { name, failed = bind(int(fd), to.Addr()) }); err != nil {
			return err
		}
		if failed == nil {
			d.mu.Lock()
			d.knocks[name] = heard
			d.mu.Unlock()
		}
		return failed
	}}
	defer func() {
		d.mu.Lock()
		delete(d.knocks, name)
		d.mu.Unlock()
	}()
	c, err := dialer.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return fmt.Errorf("connect to our own %s: %w", to, err)
	}
	defer c.Close()
	select {
	case <-heard:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("nobody accepts connections at our own %s", to)
	}
}

// bind gives fd an own port of addr and returns both as net.Addr spells them.
func bind(fd int, addr netip.Addr) (string, error) {
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: addr.As16()}
	if addr.Is4() {
		sa = &unix.SockaddrInet4{Addr: addr.As4()}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return "", err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return "", err
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(addr, uint16(sa.Port)).String(), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(addr, uint16(sa.Port)).String(), nil
	}
	return "", errors.New("socket has no port")
}
