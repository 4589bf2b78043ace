package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	triesPerServer = 2
	udpSize        = 1232     // what fits in one packet on every path, RFC 9715
	tcpSize        = 16 << 10 // longest response that we read over TCP
)

var (
	errTruncated = errors.New("truncated")
	errNonsense  = errors.New("malformed response")
	errMismatch  = errors.New("not the response to our query")
)

// exchange asks the servers in turn until one gives a usable response, whose
// Rcode is success or NXDOMAIN. A server that answers SERVFAIL, REFUSED or
// what it can't know isn't asked again; one that is silent is, once. Otherwise
// the status tells why there is none, with the server asked last.
func (r *Resolver) exchange(ctx context.Context, q question) (m *dns.Msg, server string, st status) {
	first := int(r.first.Load())
	failed := make([]bool, len(r.servers))
	st = timeout
	for try := range triesPerServer * len(r.servers) {
		i := (first + try) % len(r.servers)
		if failed[i] {
			continue
		}
		if ctx.Err() != nil {
			return nil, server, timeout
		}
		server = r.servers[i]
		m, err := r.try(ctx, server, q)
		switch {
		case err != nil && isTimeout(err):
			continue
		case err != nil:
			// Not final: a connection refused or reset may be a restart.
			if st == timeout {
				st = failure
			}
			continue
		case (m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError) && !lame(m):
			r.first.Store(uint32(i))
			return m, server, ok
		}
		failed[i] = true
		st = servfail
	}
	return nil, server, st
}

// lame says that m denies something, or advises to ask elsewhere, and comes from
// a server that neither recurses nor is authoritative: it knows nothing, least
// of all that there is nothing.
func lame(m *dns.Msg) bool {
	denies := len(m.Answer) == 0 || m.Rcode == dns.RcodeNameError
	return denies && !m.Authoritative && !m.RecursionAvailable
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// try asks one server once: over UDP, then over TCP if the response was truncated.
func (r *Resolver) try(ctx context.Context, server string, q question) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	query := new(dns.Msg)
	query.SetQuestion(q.name, q.qtype) // with a random ID
	query.SetEdns0(udpSize, false)
	wire, err := query.Pack()
	if err != nil {
		return nil, err
	}
	m, err := roundTrip(ctx, "udp", server, func(c net.Conn) (*dns.Msg, error) {
		return overUDP(c, wire, query)
	})
	if err != errTruncated {
		return m, err
	}
	return roundTrip(ctx, "tcp", server, func(c net.Conn) (*dns.Msg, error) {
		return overTCP(c, wire, query)
	})
}

// roundTrip connects and runs talk, which ends when ctx does.
func roundTrip(ctx context.Context, network, server string, talk func(net.Conn) (*dns.Msg, error)) (*dns.Msg, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		c.SetDeadline(deadline)
	}
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	return talk(c)
}

// overUDP reads until a response to query comes. What is anything else may
// be forged, so it proves nothing and is passed over.
func overUDP(c net.Conn, wire []byte, query *dns.Msg) (*dns.Msg, error) {
	if _, err := c.Write(wire); err != nil {
		return nil, err
	}
	buf := make([]byte, udpSize)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		m, err := response(buf[:n], query)
		if err == errMismatch {
			continue
		}
		if m != nil && m.Truncated {
			return nil, errTruncated
		}
		return m, err
	}
}

func overTCP(c net.Conn, wire []byte, query *dns.Msg) (*dns.Msg, error) {
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)); err != nil {
		return nil, err
	}
	var head [2]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(head[:])
	if n > tcpSize {
		return nil, errNonsense
	}
	buf := make([]byte, n)
	if _, err := io.ReadFull(c, buf); err != nil {
		return nil, err
	}
	m, err := response(buf, query)
	if err == nil && m.Truncated {
		return nil, errNonsense
	}
	return m, err
}

// response unpacks p. It returns errMismatch unless p is a response with
// query's ID and question, and then errNonsense if the rest is malformed;
// the message comes along, for its header.
func response(p []byte, query *dns.Msg) (*dns.Msg, error) {
	m := new(dns.Msg)
	err := m.Unpack(p)
	if m.Id != query.Id || !m.Response || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 {
		return nil, errMismatch
	}
	got, want := m.Question[0], query.Question[0]
	if got.Qtype != want.Qtype || got.Qclass != want.Qclass || !strings.EqualFold(got.Name, want.Name) {
		return nil, errMismatch
	}
	if err != nil {
		return m, errNonsense
	}
	return m, nil
}
