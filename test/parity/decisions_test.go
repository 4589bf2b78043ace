package parity

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sync/errgroup"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/parity"
)

// decisionsBase is what the main.cf of a decision table begins with.
const decisionsBase = `compatibility_level = 2
append_dot_mydomain = no
myhostname = mx.example.org
mydomain = example.org
myorigin = example.org
inet_interfaces = 127.0.0.1
alias_maps =
virtual_alias_maps =
smtpd_hard_error_limit = 10000
smtpd_soft_error_limit = 10000
`

// TestDecisionTables plays the decision tables of package policy to a real
// Postfix: those that have a main.cf, whose @{NAME} is a table of spec.json.
// Behind XCLIENT or, where main.cf has it, PROXY the client is whom
// the table says, and the DNS is the table's.
func TestDecisionTables(t *testing.T) {
	files, err := filepath.Glob("../../policy/testdata/decisions/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	confirmed := 0
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		d := &decisions{parts: map[string]string{}, file: filepath.Base(file)}
		for _, f := range ar.Files {
			d.parts[f.Name] = string(f.Data)
		}
		if d.parts["main.cf"] != "" {
			confirmed++
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), d.confirm)
		}
	}
	if confirmed < 13 {
		t.Errorf("only %d decision tables have a main.cf", confirmed)
	}
}

type decisions struct {
	parts  map[string]string
	server *demo.DNS
	names  map[string][]string // "ptr 192.0.2.1" and "a name": as in the table
	proxy  bool                // the client is told by PROXY
	file   string
}

func (d *decisions) confirm(t *testing.T) {
	screen := strings.Contains(d.parts["main.cf"], "postscreen_")
	d.proxy = screen || strings.Contains(d.parts["main.cf"], "smtpd_upstream_proxy_protocol")
	d.server = startDNS(t)
	d.zone(t)
	p := &twin{t: t, dir: tempDir(t), addr: testmx.FreeAddr()}
	run := filepath.Join(p.dir, "run")
	for _, dir := range []string{"run", "queue", "data"} {
		if err := os.Mkdir(filepath.Join(p.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(d.parts["main.cf"], "smtpd_sasl_path") {
		d.parts["main.cf"] = regexp.MustCompile(`(smtpd_sasl_path = inet:)\S+`).ReplaceAllString(d.parts["main.cf"], "${1}"+dovecot(t))
	}
	main := testmx.Override(decisionsBase+fmt.Sprintf(testOnly, p.dir), d.tables(t, run))
	master := fmt.Sprintf(testmx.MasterCF, p.addr)
	if screen {
		main += "postscreen_upstream_proxy_protocol = haproxy\n"
		master = strings.Replace(master, "- - smtpd\n", "- 1 postscreen\nsmtpd pass - - n - - smtpd\ndnsblog unix - - n - 0 dnsblog\n", 1)
	}
	writeOld(t, filepath.Join(run, "main.cf"), main)
	writeOld(t, filepath.Join(run, "master.cf"), master)
	p.start(d.server.Addr())
	compared := len(d.play(t, p.dial, 1, func(command, verdict string, got reply) {
		if !got.is(verdict) {
			t.Errorf("%s: Postfix %s, the table %q", command, got, verdict)
		}
	}))
	t.Logf("%d replies confirmed", compared)
	d.matter(t, d.file, run, p.addr)
}

// said is a line of a table: what the client said and what the server is to
// answer.
type said struct {
	command, verb, arg, want string
	got                      *reply // nil where it wasn't said
}

// play plays the table's sessions, so many at once, and returns the replies, all
// but those over TLS.
func (d *decisions) play(t *testing.T, dial parity.Dialer, atOnce int, judge func(command, verdict string, got reply)) []string {
	t.Helper()
	var sessions [][]*said
	for line := range strings.Lines(d.parts["sessions"]) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		command, want, _ := strings.Cut(line, "=>")
		want, _, _ = strings.Cut(want, " // ")
		verb, arg, _ := strings.Cut(strings.TrimSpace(command), " ")
		if verb == "connect" {
			sessions = append(sessions, nil)
		}
		s := &sessions[len(sessions)-1]
		*s = append(*s, &said{command: command, verb: verb, arg: strings.TrimSpace(arg), want: strings.TrimSuffix(strings.TrimSpace(want), " (close)")})
	}
	var all errgroup.Group
	all.SetLimit(atOnce)
	for _, s := range sessions {
		all.Go(func() error { return d.session(t, dial, s) })
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	var replies []string
	for _, s := range slices.Concat(sessions...) {
		if s.got != nil {
			judge(s.command, s.want, *s.got)
			replies = append(replies, s.got.text)
		}
	}
	return replies
}

// session says what stands in a table from one connect to the next.
func (d *decisions) session(t *testing.T, dial parity.Dialer, lines []*said) error {
	if strings.Contains(lines[0].arg, "tls=") {
		return nil
	}
	c, err := d.connect(t, dial, lines[0].arg)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, s := range lines {
		got, err := c.say(s.verb, s.arg, d.parts["body "+s.arg])
		if err != nil {
			return err
		}
		s.got = &got
	}
	return nil
}

// dovecot is an authentication server that knows nobody; without one smtpd
// doesn't greet when it is to offer AUTH.
func dovecot(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "VERSION\t1\t1\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t0\nDONE\n")
			t.Cleanup(func() { c.Close() })
		}
	}()
	return ln.Addr().String()
}

// is says that a reply is the verdict of a decision table.
func (r reply) is(verdict string) bool {
	switch verdict {
	case "", "permit", "discard", "hold":
		return r.code < 400
	}
	return strings.TrimSpace(r.text) == verdict
}

// zone serves the table's DNS.
func (d *decisions) zone(t *testing.T) {
	d.names = map[string][]string{}
	add := func(format string, args ...any) {
		if err := d.server.Add(fmt.Sprintf(format, args...)); err != nil {
			t.Fatal(err)
		}
	}
	for line := range strings.Lines(d.parts["dns"]) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0][0] == '#' {
			continue
		}
		typ, name := f[0], f[1]
		d.names[typ+" "+name] = f[2:]
		switch typ {
		case "fail":
			name := f[len(f)-1]
			d.server.Behave(name, demo.Behaviour{Rcode: dns.RcodeServerFailure, Type: dns.StringToType[strings.ToUpper(f[1])]})
			continue
		case "ptr":
			continue // XCLIENT states it
		}
		for i, value := range f[2:] {
			switch {
			case typ == "txt":
				if i == 0 {
					add("%s. 300 IN TXT %q", name, strings.Join(f[2:], " "))
				}
			case typ == "mx" && value == ".":
				add("%s. 300 IN MX 0 .", name)
			case typ == "mx" && strings.Contains(value, ":"):
				add("%s. 300 IN MX %s.", name, strings.Replace(value, ":", " ", 1))
			case typ == "mx":
				add("%s. 300 IN MX 10 %s.", name, value)
			case typ == "ns":
				add("%s. 300 IN NS %s.", name, value)
			case strings.Contains(value, ":"):
				add("%s. 300 IN AAAA %s", name, value)
			default:
				add("%s. 300 IN A %s", name, value)
			}
		}
	}
}

// client is whom a table's connect line means, by its DNS.
func (d *decisions) client(arg string) parity.Client {
	f := strings.Fields(arg)
	c := parity.Client{Addr: netip.MustParseAddr(f[0])}
	if d.names["fail ptr"] != nil && slices.Contains(d.names["fail ptr"], f[0]) {
		c.Name, c.Reverse = parity.Temporary, parity.Temporary
	}
	if ptr := d.names["ptr "+f[0]]; len(ptr) > 0 {
		c.Reverse = strings.TrimSuffix(ptr[0], ".")
		if slices.Contains(d.names["a "+c.Reverse], f[0]) {
			c.Name = c.Reverse
		} else if _, fails := d.names["fail "+c.Reverse]; fails {
			c.Name = parity.Temporary
		}
	}
	for _, o := range f[1:] {
		if name, ok := strings.CutPrefix(o, "name="); ok {
			c.Name, c.Reverse = name, name
		}
	}
	return c
}

// tables writes the tables of spec.json and returns main.cf.
func (d *decisions) tables(t *testing.T, dir string) string {
	type table struct {
		Type, Value  string
		Keys, Tables []string
		Entries      map[string]string
		Rules        [][2]string
	}
	var spec struct{ Tables map[string]table }
	if err := json.Unmarshal([]byte(d.parts["spec.json"]), &spec); err != nil {
		t.Fatal(err)
	}
	var spell func(name string) string
	spell = func(name string) string {
		var all []string
		switch tb := spec.Tables[name]; tb.Type {
		case "set", "hash":
			return "texthash:" + filepath.Join(dir, name)
		case "static":
			return "static:{" + tb.Value + "}"
		case "union", "pipe":
			for _, m := range tb.Tables {
				all = append(all, spell(m))
			}
			return tb.Type + "map:{" + strings.Join(all, ", ") + "}"
		default:
			return tb.Type + ":" + filepath.Join(dir, name)
		}
	}
	value := func(v string) string {
		return regexp.MustCompile(`(check_\w+_access) (\w+)`).ReplaceAllStringFunc(v, func(s string) string {
			kind, name, _ := strings.Cut(s, " ")
			if spec.Tables[name].Type == "" {
				return s
			}
			return kind + " " + spell(name)
		})
	}
	main := d.parts["main.cf"]
	for name, tb := range spec.Tables {
		var b strings.Builder
		for _, k := range tb.Keys {
			fmt.Fprintf(&b, "%s x\n", k)
		}
		for k, v := range tb.Entries {
			fmt.Fprintf(&b, "%s %s\n", k, value(v))
		}
		for _, r := range tb.Rules {
			fmt.Fprintf(&b, "%s %s\n", toggled(tb.Type, r[0]), value(r[1]))
		}
		writeOld(t, filepath.Join(dir, name), b.String())
		main = strings.ReplaceAll(main, "@{"+name+"}", spell(name))
	}
	return main
}

// toggled spells a pattern for Postfix, where a flag turns around what is the
// default: i and x of regexp, i and s of pcre.
func toggled(typ, pattern string) string {
	def := map[string]string{"regexp": "ix", "pcre": "is"}[typ]
	end := strings.LastIndexAny(pattern, "/~")
	if def == "" || end < 0 || pattern == "endif" {
		return pattern
	}
	flags := pattern[end+1:]
	out := pattern[:end+1]
	for _, f := range def + flags {
		if strings.ContainsRune(def, f) != strings.ContainsRune(flags, f) {
			out += string(f)
		}
	}
	return out
}

// reply is a whole reply, its last line.
type reply struct {
	code int
	text string
}

func (r reply) String() string { return r.text }

// conversation is a session with Postfix.
type conversation struct {
	net.Conn
	r      *bufio.Reader
	first  *reply // to the connection
	teaser string // the line of the greeting that came before it
	early  bool   // EHLO is said
	begun  []string
	open   bool // in a transaction, as far as the table goes
}

// connect begins a session of a table's client.
func (d *decisions) connect(t *testing.T, dial parity.Dialer, arg string) (*conversation, error) {
	conn, err := dial(t.Context())
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	c := &conversation{Conn: conn, r: bufio.NewReader(conn)}
	client := d.client(strings.TrimSuffix(arg, " early"))
	if d.proxy {
		c.early = strings.HasSuffix(arg, " early")
		hello := ""
		if c.early {
			hello = "EHLO early.example\r\n"
		}
		proto := "TCP4"
		if client.Addr.Is6() {
			proto = "TCP6"
		}
		fmt.Fprintf(c, "PROXY %s %s 127.0.0.1 4711 25\r\n%s", proto, client.Addr, hello)
		r := c.read()
		c.first = &r
		if c.early && r.code == 220 {
			c.read()
		}
		return c, nil
	}
	c.read()
	r := c.ask(fmt.Sprintf("XCLIENT ADDR=%s NAME=%s REVERSE_NAME=%s", ipv6(client.Addr), unavailable(client.Name), unavailable(client.Reverse)))
	c.first = &r
	return c, nil
}

func unavailable(name string) string {
	return cmp.Or(name, "[UNAVAILABLE]")
}

func ipv6(a netip.Addr) string {
	if a.Is6() {
		return "IPV6:" + a.String()
	}
	return a.String()
}

func (c *conversation) ask(line string) reply {
	fmt.Fprintf(c, "%s\r\n", line)
	return c.read()
}

func (c *conversation) read() reply {
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
				return reply{999, "closed"}
			}
			return reply{999, err.Error()}
		}
		if line = strings.TrimRight(line, "\r\n"); len(line) < 4 || line[3] != '-' {
			code, _ := strconv.Atoi(line[:min(3, len(line))])
			return reply{code, line}
		}
		if strings.HasPrefix(line, "220-") {
			c.teaser = line
		}
	}
}

// say says what a line of a decision table means.
func (c *conversation) say(verb, arg, body string) (reply, error) {
	switch verb {
	case "connect":
		return *c.first, nil
	case "helo":
		r := c.ask("EHLO " + arg)
		if c.open { // the table's transaction goes on
			c.ask(c.begun[0])
		}
		return r, nil
	case "mail":
		if c.open {
			c.ask("RSET")
		}
		c.open, c.begun = true, []string{"MAIL FROM:" + arg}
		return c.ask(c.begun[0]), nil
	case "rcpt":
		r := c.ask("RCPT TO:" + arg)
		if r.code == 250 {
			c.begun = append(c.begun, "RCPT TO:"+arg)
		}
		return r, nil
	case "data":
		r := c.ask("DATA")
		if r.code == 354 { // a new transaction goes on
			io.WriteString(c, "\r\n.\r\n")
			c.read()
			c.again()
		}
		return r, nil
	case "message":
		hops, size, _ := strings.Cut(arg, " ")
		n, _ := strconv.Atoi(hops)
		length, _ := strconv.Atoi(size)
		text := strings.Repeat("Received: from a\r\n by b\r\n", n) + "Subject: x\r\n\r\n"
		return c.send(text + strings.Repeat("x", max(0, length-len(text)-2)) + "\r\n"), nil
	case "content":
		text := strings.ReplaceAll(strings.ReplaceAll(body, "\n", "\r\n"), `\0`, "\x00")
		return c.send(strings.ReplaceAll("\r\n"+text, "\r\n.", "\r\n..")[2:]), nil
	case "reset":
		c.open = false
		return c.ask("RSET"), nil
	case "teaser":
		return reply{220, c.teaser}, nil
	case "say":
		return c.ask(strings.NewReplacer(`\n`, "\r\n", `\l`, "\n").Replace(arg)), nil
	}
	return reply{}, fmt.Errorf("unknown command %q", verb)
}

// send sends a message, and begins the same transaction once more.
func (c *conversation) send(text string) reply {
	if r := c.ask("DATA"); r.code != 354 {
		return r
	}
	r := c.ask(text + ".")
	c.again()
	return r
}

func (c *conversation) again() {
	for _, line := range c.begun {
		c.ask(line)
	}
}
