package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/understudy-mx/understudy/internal/locate"
)

// kind is a type of value: how it is read, and what to call it.
type kind struct {
	name  string // for the man page
	parse func(v any, dst any) error
	file  bool // relative names are read against the file's directory
}

// Size is a number of bytes.
type Size uint64

func (s Size) String() string {
	for _, u := range slices.Backward(sizeUnits) {
		if s > 0 && uint64(s)%u.bytes == 0 {
			return strconv.FormatUint(uint64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatUint(uint64(s), 10) + "B"
}

type sizeUnit struct {
	name  string
	bytes uint64
}

var sizeUnits = []sizeUnit{{"B", 1}, {"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}}

type durationUnit struct {
	name string
	d    time.Duration
}

var durationUnits = []durationUnit{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}}

// formatDuration spells d as it is written in the file: "14d", "1h30m".
func formatDuration(d time.Duration) string {
	var b strings.Builder
	for _, u := range durationUnits {
		if n := d / u.d; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d -= n * u.d
		}
	}
	if b.Len() == 0 {
		return "0s"
	}
	return b.String()
}

// parseDuration reads what formatDuration writes.
func parseDuration(s string) (time.Duration, error) {
	var total time.Duration
	bad := fmt.Errorf(`%q is no duration; write a number and a unit (ms, s, m, h, d), such as "10s" or "14d"`, s)
	for rest := s; ; {
		digits := strings.TrimLeft(rest, "0123456789")
		n, err := strconv.ParseInt(rest[:len(rest)-len(digits)], 10, 64)
		if err != nil {
			return 0, bad
		}
		name := digits[:len(digits)-len(strings.TrimLeft(digits, "mshd"))]
		i := slices.IndexFunc(durationUnits, func(u durationUnit) bool { return u.name == name })
		if i < 0 || n > int64(math.MaxInt64/durationUnits[i].d)/8 {
			return 0, bad
		}
		total += time.Duration(n) * durationUnits[i].d
		if rest = digits[len(name):]; rest == "" {
			return total, nil
		}
	}
}

func duration(low, high string) *kind {
	lo, _ := parseDuration(low)
	hi, _ := parseDuration(high)
	return &kind{name: fmt.Sprintf("duration, %s to %s", low, high), parse: func(v, dst any) error {
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf(`%s is no duration; write it in quotation marks with a unit, such as "10s"`, show(v))
		}
		d, err := parseDuration(s)
		if err != nil {
			return err
		}
		if d < lo || d > hi {
			return fmt.Errorf("%q is out of range; choose %s to %s", s, low, high)
		}
		*dst.(*time.Duration) = d
		return nil
	}}
}

var size = &kind{name: `size, such as "64MiB"`, parse: func(v, dst any) error {
	if n, ok := v.(int64); ok && n >= 0 {
		*dst.(*Size) = Size(n)
		return nil
	}
	s, _ := v.(string)
	for _, u := range slices.Backward(sizeUnits) {
		if digits, ok := strings.CutSuffix(s, u.name); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 64)
			if err == nil && n <= math.MaxInt64/u.bytes {
				*dst.(*Size) = Size(n * u.bytes)
				return nil
			}
			break
		}
	}
	return fmt.Errorf(`%s is no size; write a number of bytes or a number with B, KiB, MiB, GiB or TiB, such as "64MiB"`, show(v))
}}

func count(low, high int64) *kind {
	name := fmt.Sprintf("number, %d to %d", low, high)
	if high >= 1<<40 {
		name = fmt.Sprintf("number, at least %d", low)
	}
	return &kind{name: name, parse: func(v, dst any) error {
		n, ok := v.(int64)
		if !ok {
			return fmt.Errorf("%s is no whole number; write digits without quotation marks", show(v))
		}
		if n < low || n > high {
			return fmt.Errorf("%d is out of range; choose %d to %d", n, low, high)
		}
		*dst.(*int) = int(n)
		return nil
	}}
}

var boolean = &kind{name: "true or false", parse: func(v, dst any) error {
	b, ok := v.(bool)
	if !ok {
		return fmt.Errorf("%s is neither true nor false; write one of them without quotation marks", show(v))
	}
	*dst.(*bool) = b
	return nil
}}

func choice(options ...string) *kind {
	quoted := make([]string, len(options))
	for i, o := range options {
		quoted[i] = strconv.Quote(o)
	}
	name := strings.Join(quoted[:len(quoted)-1], ", ") + " or " + quoted[len(quoted)-1]
	return &kind{name: name, parse: func(v, dst any) error {
		s, ok := v.(string)
		if !ok || !slices.Contains(options, s) {
			if near := locate.Nearest(s, options); near != "" {
				return fmt.Errorf("%s is not one of its values; did you mean %q? Choose %s", show(v), near, name)
			}
			return fmt.Errorf("%s is not one of its values; choose %s", show(v), name)
		}
		*dst.(*string) = s
		return nil
	}}
}

// text makes a kind of a check on one string; "" passes only if check lets it.
// checkDSN looks at what is plain in the address of a database; the rest is for
// its reader.
func checkDSN(s string) (string, error) {
	const example = `write it like "postgres://understudy@db1.example.org,db2.example.org/understudy?sslmode=verify-full"`
	if !strings.HasPrefix(s, "postgres://") && !strings.HasPrefix(s, "postgresql://") {
		return "", errors.New("is no address of a PostgreSQL database; " + example)
	}
	_, rest, _ := strings.Cut(s, "://")
	authority, _, _ := strings.Cut(rest, "/")
	user, _, found := strings.Cut(authority, "@")
	if found && strings.Contains(user, ":") {
		return "", errors.New("has a password; write that into a file of its own, and name the file by dsn_password")
	}
	return s, nil
}

func text(name string, check func(string) (string, error)) *kind {
	return &kind{name: name, parse: func(v, dst any) error {
		s, err := one(v, check)
		if err == nil {
			*dst.(*string) = s
		}
		return err
	}}
}

func one(v any, check func(string) (string, error)) (string, error) {
	s, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("%s is no string; write it in quotation marks", show(v))
	}
	return check(s)
}

// list makes a kind of a check on each string of a list.
func list(name string, check func(string) (string, error)) *kind {
	return &kind{name: "list of " + name, parse: func(v, dst any) error {
		items, err := each(v, check)
		if err == nil {
			*dst.(*[]string) = items
		}
		return err
	}}
}

func each(v any, check func(string) (string, error)) ([]string, error) {
	raw, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("%s is no list; write %s", show(v), "["+show(v)+"]")
	}
	var items []string
	var errs []string
	for _, item := range raw {
		s, err := one(item, check)
		if err != nil {
			errs = append(errs, err.Error())
			continue
		}
		items = append(items, s)
	}
	if len(errs) > 0 {
		return nil, errors.New(strings.Join(errs, "; "))
	}
	return items, nil
}

var prefixes = &kind{name: "list of networks", parse: func(v, dst any) error {
	items, err := each(v, func(s string) (string, error) {
		_, err := parsePrefix(s)
		return s, err
	})
	if err != nil {
		return err
	}
	list := make([]netip.Prefix, len(items))
	for i, s := range items {
		list[i], _ = parsePrefix(s)
	}
	*dst.(*[]netip.Prefix) = list
	return nil
}}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf(`%q is no network; write an address or a prefix, such as "192.0.2.1" or "2001:db8::/32"`, s)
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%q has bits beyond its length; did you mean %q?", s, p.Masked())
	}
	return p, nil
}

var (
	file       = &kind{name: "file name", file: true, parse: text("", checkFile).parse}
	hostname   = text("host name", checkHostname)
	label      = text("name", checkLabel)
	hostport   = text("host:port", func(s string) (string, error) { return checkHostport(s, false) })
	domainList = list("domains", checkDomain)
	serverList = list("ip:port", checkServer)
	listenList = &kind{name: "list of host:port", parse: func(v, dst any) error {
		if err := list("", checkListen).parse(v, dst); err != nil {
			return err
		}
		if len(*dst.(*[]string)) == 0 {
			return errors.New(`is empty, nobody could connect; write [":25"]`)
		}
		return nil
	}}
	listen         = text("host:port", checkListen)
	optionalListen = text(`host:port or ""`, func(s string) (string, error) {
		if s == "" {
			return s, nil
		}
		return checkListen(s)
	})
)

func checkFile(s string) (string, error) {
	if s == "" || strings.ContainsRune(s, 0) {
		return "", fmt.Errorf("%q is no file name; remove the key, or name a file", s)
	}
	return s, nil
}

func checkHostname(s string) (string, error) {
	h := strings.ToLower(strings.TrimSuffix(s, "."))
	if h == "" || len(h) > 253 {
		return "", fmt.Errorf(`%q is no host name; write one such as "mx2.example.org"`, s)
	}
	for part := range strings.SplitSeq(h, ".") {
		if part == "" || len(part) > 63 || part[0] == '-' || part[len(part)-1] == '-' ||
			strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "", fmt.Errorf(`%q is no host name: %q can't be a part of one; write one such as "mx2.example.org"`, s, part)
		}
	}
	return h, nil
}

func checkDomain(s string) (string, error) {
	below := strings.HasPrefix(s, ".")
	d, err := checkHostname(strings.TrimPrefix(s, "."))
	if err != nil {
		return "", fmt.Errorf(`%q is no domain; write "example.org", or ".example.org" for all below it, and the xn-- form of a name with other letters`, s)
	}
	if below {
		d = "." + d
	}
	return d, nil
}

func checkLabel(s string) (string, error) {
	if s == "" || len(s) > 64 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
		return "", fmt.Errorf("%q is no name; take 1 to 64 letters, digits, \".\", \"-\" and \"_\"", s)
	}
	return s, nil
}

func checkListen(s string) (string, error) { return checkHostport(s, true) }

// checkHostport checks a host:port; to listen, the host may be missing and the
// port 0.
func checkHostport(s string, listen bool) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil {
			return "", fmt.Errorf("%q lacks a port; write %q", s, netip.AddrPortFrom(a, 25))
		}
		if h, err := checkHostname(s); err == nil {
			return "", fmt.Errorf("%q lacks a port; write %q", s, h+":25")
		}
		return "", fmt.Errorf(`%q is no host:port; write one such as "mx1.example.org:25" or "[2001:db8::1]:25"`, s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 && !listen {
		return "", fmt.Errorf("%q: %q is no port; take 1 to 65535", s, port)
	}
	if host == "" && listen {
		return s, nil
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return net.JoinHostPort(a.String(), port), nil
	}
	if host, err = checkHostname(host); err != nil {
		return "", err
	}
	return net.JoinHostPort(host, port), nil
}

func checkServer(s string) (string, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53).String(), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return "", fmt.Errorf(`%q is no ip:port; write one such as "127.0.0.1:53"`, s)
	}
	return ap.String(), nil
}

// show spells a decoded value as a reader of the file would.
func show(v any) string {
	b, err := toml.Marshal(map[string]any{"v": v})
	if err != nil {
		return fmt.Sprint(v)
	}
	s := strings.TrimSpace(strings.TrimPrefix(string(b), "v = "))
	if strings.ContainsRune(s, '\n') {
		return "a table"
	}
	if len(s) > 80 {
		s = s[:77] + "..."
	}
	return s
}
