package relay

import (
	"errors"
	"net"
	"net/netip"

	"github.com/pires/go-proxyproto"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// proxy says by a PROXY header whom the connection is for; without a client it is
// for ourselves. Such a next hop reads the header before all else.
func (s *session) proxy(client *envelope.Client) error {
	header := &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	if client != nil && client.Addr.IsValid() {
		from := netip.AddrPortFrom(client.Addr.Unmap().WithZone(""), client.Port)
		to, _ := s.conn.RemoteAddr().(*net.TCPAddr)
		header.Command, header.TransportProtocol = proxyproto.PROXY, proxyproto.TCPv4
		at := netip.AddrPortFrom(netip.IPv4Unspecified(), 25)
		if from.Addr().Is6() {
			header.TransportProtocol, at = proxyproto.TCPv6, netip.AddrPortFrom(netip.IPv6Unspecified(), 25)
		}
		if to != nil {
			if ap := to.AddrPort(); ap.Addr().Unmap().Is4() == from.Addr().Is4() {
				at = netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
			}
		}
		header.SourceAddr, header.DestinationAddr = net.TCPAddrFromAddrPort(from), net.TCPAddrFromAddrPort(at)
		s.identity = s.r.identityOf(client, "")
		if client.Helo != "" { // our own name must not be judged
			s.name = heloName(client.Helo)
		}
	}
	b, err := header.Format()
	if err == nil {
		_, err = s.conn.Write(b)
	}
	return err
}

// identityOf is the XCLIENT command, or whom the PROXY header names, that is to
// be in force for client; xclientAttrs are what the next hop takes. "" is
// ourselves. A client's port makes no difference.
func (r *route) identityOf(client *envelope.Client, xclientAttrs string) string {
	switch {
	case !client.Addr.IsValid(): // a DSN of our own
		return ""
	case r.Proxy:
		return "PROXY " + client.Addr.String() + " " + heloName(client.Helo)
	case r.XClient && xclientAttrs != "":
		return xclient(*client, xclientAttrs)
	}
	return ""
}

// refusal returns what a next hop by PROXY says to a client whose session it
// won't have: it is about the client, as an answer to XCLIENT would be. So may a
// 421 be, if nothing judges: a Postfix without IPv6 says that to a client that has
// such an address. nil where err is something else.
func (r *route) refusal(err error) *refusal {
	var no *refusal
	if r.Proxy && errors.As(err, &no) && (no.step == stepGreeting || no.step == stepEhlo) {
		return no
	}
	return nil
}
