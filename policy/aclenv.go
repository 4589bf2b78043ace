package policy

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy/expansion"
	"github.com/understudy-mx/understudy/policy/pattern"
)

// patternCache compiles each of a snapshot's regular expressions once, within bounds.
type patternCache struct {
	mu sync.Mutex // guards m
	m  map[string]*pattern.Pattern
}

func (c *patternCache) compile(re, flags string) (*pattern.Pattern, error) {
	const most = 1000
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.m[flags+" "+re]; p != nil {
		return p, nil
	}
	p, err := pattern.Compile(pattern.PCRE, re, flags)
	if err != nil {
		return nil, err
	}
	if c.m == nil || len(c.m) >= most {
		c.m = map[string]*pattern.Pattern{}
	}
	c.m[flags+" "+re] = p
	return p, nil
}

// Lookup is expansion.Env's.
func (r *aclRun) Lookup(typ, file, key string) (string, bool, error) {
	if typ, _, _ := strings.Cut(typ, ","); typ == "dnsdb" {
		return r.dnsdb(key)
	}
	if typ == "passwd" && file == "" {
		if key != expansion.Lower(key) {
			return "", false, nil // no login name is listed with capitals
		}
		return r.search(typ, "", key)
	}
	if file == "" {
		return "", false, errors.New("a query can't be asked here")
	}
	if base, options, optioned := strings.Cut(typ, ","); base == "table" && optioned {
		return r.inTables(","+options, file, key)
	}
	return r.search(typ, file, key)
}

// Test is expansion.Env's.
func (r *aclRun) Test(cond, what, list string) (bool, error) {
	kind := listDomain
	switch cond {
	case "exists":
		return r.acl.exist[what], nil
	case "match_address":
		kind = listAddress
	case "match_local_part":
		kind = listLocal
	case "match_ip":
		if _, err := parseAddr(what); err != nil {
			return false, fmt.Errorf("%q is no address", what)
		}
		kind = listIP
	}
	switch r.match(kind, what, list, nil) {
	case aclOK:
		return true, nil
	case aclDefer:
		return false, expansion.ErrDefer
	}
	return false, nil
}

// Variable is expansion.Env's.
func (r *aclRun) Variable(name string) (string, bool) {
	if strings.HasPrefix(name, "acl_c") || strings.HasPrefix(name, "acl_m") {
		return r.aclState.vars[name], true
	}
	if n, is := strings.CutPrefix(name, "acl_arg"); is {
		if i := int(n[0] - '1'); i < len(r.args) {
			return r.args[i], true
		}
		return "", true
	}
	if kind, field, ok := strings.Cut(name, "_"); ok && (kind == "h" || kind == "rh" || kind == "bh") {
		return r.aclState.header.field(kind, field), true
	}
	if v, ok := r.recipientVariable(name); ok {
		return v, true
	}
	if v, ok := r.clientVariable(name); ok {
		return v, true
	}
	if n, ok := r.number(name); ok {
		return strconv.FormatInt(n, 10), true
	}
	switch name {
	case "sender_address":
		return r.senderNow(), true
	case "sender_address_domain":
		return domainOf(r.senderNow()), true
	case "sender_address_local_part":
		if i := strings.LastIndexByte(r.senderNow(), '@'); i >= 0 {
			return r.senderNow()[:i], true
		}
		return "", true
	case "sender_data":
		return r.senderData, true
	case "dnslist_domain":
		return r.dnslist[0], true
	case "dnslist_value":
		return r.dnslist[1], true
	case "dnslist_text":
		return r.dnslist[2], true
	case "dnslist_matched":
		return r.dnslist[3], true
	case "acl_verify_message":
		return r.verifyMessage, true
	case "smtp_active_hostname":
		if r.acl.ActiveHostname != "" {
			if name, err := r.expand(r.acl.ActiveHostname); err == nil {
				return name, true
			}
		}
		return r.acl.Hostname, true
	case "primary_hostname":
		return r.acl.Hostname, true
	case "qualify_domain":
		return r.acl.QualifyDomain, true
	case "qualify_recipient":
		return r.acl.QualifyRecipient, true
	}
	return "", expansion.KnownVariable(name)
}

// number is a variable that counts something.
func (r *aclRun) number(name string) (int64, bool) {
	s := &r.aclState
	switch name {
	case "acl_narg":
		return int64(len(r.args)), true
	case "rcpt_count":
		return int64(s.rcpts), true
	case "rcpt_fail_count":
		return int64(s.fails), true
	case "rcpt_defer_count":
		return int64(s.defers), true
	case "recipients_count":
		return int64(s.accepted), true
	case "message_size":
		switch {
		case s.header != nil:
			return s.header.octets(), true
		case s.size > 0: // as the client states it
			return s.size, true
		}
		return -1, true
	case "message_body_size":
		return s.header.bodyOctets(), true
	case "max_received_linelength":
		return int64(s.header.longest()), true
	case "received_count":
		return int64(r.message.Hops + 1), true
	}
	return 0, false
}

// senderNow is $sender_address: nobody while the sender itself is verified.
func (r *aclRun) senderNow() string {
	if r.route != nil && r.route.sender {
		return ""
	}
	return r.aclState.sender
}

func (r *aclRun) recipientVariable(name string) (string, bool) {
	local, domain := expansion.Lower(r.local), r.domain
	localData, domainData := r.localData, r.domainData
	t := r.route
	if t != nil {
		local, domain, localData, domainData = t.local, t.domain, t.localData, t.domainData
	}
	switch name {
	case "local_part":
		return local, true
	case "domain":
		return domain, true
	case "local_part_data":
		return localData, true
	case "domain_data":
		return domainData, true
	case "address_data":
		if t != nil {
			return t.addressData, true
		}
		return r.addressData, true
	}
	if t == nil {
		return "", false
	}
	switch name {
	case "local_part_prefix":
		return t.prefix, true
	case "local_part_suffix":
		return t.suffix, true
	case "home":
		return t.home, true
	case "local_user_uid":
		return t.uid, true
	case "local_user_gid":
		return t.gid, true
	case "original_local_part", "parent_local_part":
		return t.original[:max(0, strings.LastIndexByte(t.original, '@'))], true
	case "original_domain", "parent_domain":
		return domainOf(t.original), true
	case "verify_mode":
		if t.sender {
			return "S", true
		}
		return "R", true
	}
	return "", false
}

func (r *aclRun) clientVariable(name string) (string, bool) {
	switch name {
	case "sender_host_address":
		return r.client.Addr.String(), true
	case "sender_host_port":
		return strconv.Itoa(int(r.client.Port)), true
	case "interface_address", "received_ip_address":
		return r.acl.interfaceFor(r.client.Addr), true
	case "interface_port", "received_port":
		return "25", true
	case "sender_helo_name":
		return r.aclState.helo, true
	case "sender_host_name":
		n, _ := r.hostName()
		return n, true
	case "host_lookup_failed":
		_, rc := r.hostName()
		return flag(rc == aclFail), true
	case "host_lookup_deferred":
		_, rc := r.hostName()
		return flag(rc == aclDefer), true
	case "host_data":
		return r.hostData, true
	case "sender_fullhost":
		return r.fullhost(), true
	case "sender_rcvhost":
		return r.fullhost(), true
	case "tls_cipher", "tls_in_cipher":
		return r.client.TLS, true
	case "received_protocol":
		return strings.ToLower(r.client.Protocol), true
	}
	return "", false
}

// interfaceFor is the address of the primary's that a client comes to: the first of its
// family.
func (a *acl) interfaceFor(client netip.Addr) string {
	for _, own := range a.Interfaces {
		if addr, err := netip.ParseAddr(own); err == nil && addr.Is4() == client.Is4() {
			return own
		}
	}
	if len(a.Interfaces) > 0 {
		return a.Interfaces[0]
	}
	return ""
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// fullhost is the client as Exim names it in its log and its replies.
func (r *aclRun) fullhost() string {
	addr := "[" + r.client.Addr.String() + "]"
	helo := r.aclState.shown
	name := ""
	if r.acl.HostLookup != "" && r.matches(listHost, r.client.Addr.String(), r.acl.HostLookup, nil) == aclOK {
		r.hostName()
	}
	if r.aclState.nameShown {
		name, _ = r.hostName()
	}
	switch {
	case name == "" && (helo == "" || helo == addr):
		return addr
	case name == "":
		return "(" + helo + ") " + addr
	case helo == "" || helo == addr || strings.EqualFold(helo, name):
		return name + " " + addr
	}
	return name + " (" + helo + ") " + addr
}

// maxHeader bounds the header that the policy looks at.
const maxHeader = 1 << 20

// headerBox keeps a message's header, and its longest line.
type headerBox struct {
	kept   []byte
	over   bool // the body has begun
	line   int
	max    int
	size   int64
	body   int64 // of that, after the header
	parsed []headerField
	done   bool
}

// headerField is one; name is in small letters, raw is all before the colon.
type headerField struct{ name, raw, value string }

func (h *headerBox) Write(b []byte) (int, error) {
	for _, c := range b {
		if c != '\r' {
			if h.size++; h.over {
				h.body++
			}
		}
		if c == '\n' {
			if h.line == 0 {
				h.over = true
			}
			h.max, h.line = max(h.max, h.line), 0
		} else if c != '\r' {
			h.line++
		}
		if !h.over && len(h.kept) < maxHeader {
			h.kept = append(h.kept, c)
		}
	}
	return len(b), nil
}

// octets is the message's size as Exim counts it: a line's end is one.
func (h *headerBox) octets() int64 {
	if h == nil {
		return 0
	}
	return h.size
}

func (h *headerBox) bodyOctets() int64 {
	if h == nil {
		return 0
	}
	return h.body
}

func (h *headerBox) longest() int {
	if h == nil {
		return 0
	}
	return max(h.max, h.line)
}

// fields are the header's, with their folding.
func (h *headerBox) fields() []headerField {
	if h == nil || h.done {
		if h == nil {
			return nil
		}
		return h.parsed
	}
	h.done = true
	text := strings.ReplaceAll(string(h.kept), "\r\n", "\n")
	text = strings.ReplaceAll(text, "\x00", "?")
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		if n := len(h.parsed); n > 0 && line != "" && (line[0] == ' ' || line[0] == '\t') {
			h.parsed[n-1].value += "\n" + line
			continue
		}
		end := strings.IndexFunc(line, func(c rune) bool { return c <= ' ' || c == ':' || c == 127 })
		if end < 0 || !strings.HasPrefix(strings.TrimLeft(line[end:], cSpace), ":") || end == 0 && line[0] != ':' {
			break
		}
		raw, value, _ := strings.Cut(line, ":")
		h.parsed = append(h.parsed, headerField{strings.ToLower(line[:end]), raw, value})
	}
	for i := range h.parsed { // lines of white space at a field's end
		f := &h.parsed[i]
		for v := strings.TrimRight(f.value, " \t"); strings.HasSuffix(v, "\n"); v = strings.TrimRight(f.value, " \t") {
			f.value = v[:len(v)-1]
		}
	}
	return h.parsed
}

// dropped are fields that Exim takes off a message.
var dropped = []string{"return-path", "envelope-to", "delivery-date"}

// field is $h_NAME: the values of all fields of a name, a line each. $rh_NAME has them as they
// came, the others have them decoded.
func (h *headerBox) field(kind, name string) string {
	var all []string
	name = strings.TrimSuffix(name, ":")
	for _, f := range h.fields() {
		if strings.EqualFold(f.raw, name) && !slices.Contains(dropped, f.name) {
			v := f.value
			if kind != "rh" {
				v = decodedWords(strings.Trim(v, cSpace))
			}
			all = append(all, v)
		}
	}
	if _, addresses := addressFields[name]; addresses {
		return strings.Join(all, ",\n")
	}
	text := strings.Join(all, "\n")
	if kind == "rh" && text != "" {
		text += "\n"
	}
	return text
}

// decodedWords decodes the encoded words in a field's value (RFC 2047): octets of charsets that
// aren't known stay as they are.
func decodedWords(v string) string {
	const longest = 16 << 10 // the decoder may look at the rest of a value for each word
	if len(v) > longest || !strings.Contains(v, "=?") {
		return v
	}
	d := mime.WordDecoder{CharsetReader: func(_ string, octets io.Reader) (io.Reader, error) { return octets, nil }}
	if decoded, err := d.DecodeHeader(v); err == nil {
		return decoded
	}
	return v
}

var _ expansion.Env = (*aclRun)(nil)

// validHelo says that a HELO name has the form that Exim wants.
func (a *acl) validHelo(name string) bool {
	if strings.HasPrefix(name, "[") {
		inner, ok := strings.CutSuffix(name[1:], "]")
		if !ok {
			return false
		}
		want6, want4 := false, false
		if len(inner) > 5 && inner[4] == ':' {
			want6, want4 = strings.EqualFold(inner[:5], "IPv6:"), strings.EqualFold(inner[:5], "IPv4:")
			if want6 || want4 {
				inner = inner[5:]
			}
		}
		addr, err := parseAddr(inner)
		return err == nil && (!want6 || addr.Is6()) && (!want4 || addr.Is4())
	}
	for i := range len(name) {
		c := name[i]
		if !(c|32 >= 'a' && c|32 <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-' || strings.IndexByte(a.HeloChars, c) >= 0) {
			return false
		}
	}
	return name != ""
}

// validDomain says that a domain has the form that Exim wants of an address.
func (a *acl) validDomain(d string) bool {
	if strings.HasPrefix(d, "[") {
		_, ok := envelope.LiteralAddr(d)
		return ok && a.DomainLiterals
	}
	for label := range strings.SplitSeq(d, ".") {
		if label == "" || label[0] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if !(c|32 >= 'a' && c|32 <= 'z' || c >= '0' && c <= '9' || c == '-' || c > 0x7f && a.UTF8Domains) {
				return false
			}
		}
	}
	return true
}
