package policy

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/crypto/blake2b"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/table"
)

// RspamdGreylist is the greylisting of an rspamd, which puts off by the score of a
// message. Whom it puts off isn't known here, but who has passed is.
type RspamdGreylist struct {
	Prefix string `json:"key_prefix"`
	IPv4   int    `json:"ipv4_mask"` // prefix lengths
	IPv6   int    `json:"ipv6_mask"`
	// Message is what it says to whom it puts off, "" where that isn't known; if Timed,
	// it goes on with a colon and the time.
	Message string `json:"message,omitempty"`
	Timed   bool   `json:"report_time,omitempty"`
	// Known is a table of Keys: the envelopes of which a message has passed.
	Known string `json:"known"`
}

// Key is what rspamd keeps of an envelope: a hash of the sender, the recipients in order,
// and the client's network.
func (g *RspamdGreylist) Key(client netip.Addr, sender string, rcpts []string) string {
	h, _ := blake2b.New512(nil) // it fails with a key alone
	h.Write([]byte(sender))
	for _, r := range slices.Sorted(slices.Values(rcpts)) {
		h.Write([]byte(r))
	}
	bits := g.IPv6
	if client = client.Unmap(); client.Is4() {
		bits = g.IPv4
	}
	if network, err := client.WithZone("").Prefix(bits); err == nil {
		h.Write([]byte(network.Addr().String()))
	}
	return g.Prefix + "m" + base32Reversed(h.Sum(nil), 20)
}

// base32Reversed is rspamd's base32: z-base-32 that takes the lowest bits first.
func base32Reversed(sum []byte, digits int) string {
	const alphabet = "ybndrfg8ejkmcpqxot1uwisza345h769"
	var b strings.Builder
	for bit := 0; bit < 5*digits; bit += 5 {
		b.WriteByte(alphabet[binary.LittleEndian.Uint16(sum[bit/8:])>>(bit%8)&31])
	}
	return b.String()
}

// rspamdGreylist is one compiled.
type rspamdGreylist struct {
	*RspamdGreylist
	known *dict
}

func (c *compiler) rspamdGreylist(g *RspamdGreylist) *rspamdGreylist {
	const where = "filters.milters: greylist"
	if g == nil {
		return nil
	}
	if g.IPv4 < 0 || g.IPv4 > 32 || g.IPv6 < 0 || g.IPv6 > 128 {
		c.errorf("%s: %d or %d is no prefix length", where, g.IPv4, g.IPv6)
	}
	d := c.tables[g.Known]
	if d == nil || !d.Is(table.TypeSet) {
		c.errorf("%s.known: no set is called %q", where, g.Known)
		return nil
	}
	c.s.needsRcpts = true
	return &rspamdGreylist{RspamdGreylist: g, known: d}
}

// passed says that a message with this envelope has passed at the primary.
func (g *rspamdGreylist) passed(s *Session) bool {
	if g == nil || len(s.rcpts) == 0 {
		return false
	}
	s.find.buf = append(s.find.buf[:0], table.Fold(g.Key(s.client.Addr, s.sender.raw, s.rcpts))...)
	return s.find.entry(g.known, s.find.buf, netip.Addr{}).ok()
}

// putsOff says that a reply of a filter that stands for the rspamd means that it greylists.
func (g *rspamdGreylist) putsOff(r envelope.Reply) bool {
	if g == nil || g.Message == "" || r.Code != 451 || r.Enhanced != "4.7.1" {
		return false
	}
	return r.Text == g.Message || g.Timed && strings.HasPrefix(r.Text, g.Message+": ")
}
