package parity

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/postfix"
	"github.com/understudy-mx/understudy/smtpd"
)

// milterSetups are the primaries of TestMiltersLikePostfix.
var milterSetups = []struct {
	name, list, main string
	a, b             *testmx.Milter
}{
	{"two milters", "inet:@A@, inet:@B@", "milter_connect_macros = j {daemon_name} {daemon_addr} v _ {client_addr} {client_name} {client_ptr} {client_resolve}\n", &testmx.Milter{}, &testmx.Milter{Flags: 0x800 | 0x100000}},
	{"accept by default", "{ inet:@A@, default_action=accept, command_timeout=1s }, { inet:@B@, protocol=4 }", "milter_macro_defaults = {if_name}=eth0, { auth_type = none }\nmilter_mail_macros = i {mail_addr} {auth_type} {if_name}\nmilter_end_of_header_macros = i {client_addr} {tls_version} {mail_addr} {if_name} v\n",
		&testmx.Milter{Macros: map[uint32]string{2: "{mail_addr} i", 5: "i, j _"}}, &testmx.Milter{Version: 4}},
	{"quarantine by default", "inet:@A@ inet:@B@", "milter_default_action = quarantine\nmilter_rcpt_macros = i {rcpt_addr}\n", &testmx.Milter{Flags: 0x1000 | 0x4000 | 0x80 | 0x80000}, &testmx.Milter{Flags: 0x1 | 0x20 | 0x40}},
	{"reject by default, some clients otherwise", "inet:@A@", "milter_default_action = reject\nmilter_protocol = 3\nsmtpd_milter_maps = cidr:{{192.0.2.1 DISABLE}, {192.0.2.2 inet:@B@}, {192.0.2.3 inet:@B@, { inet:@A@, default_action=accept }}}\n", &testmx.Milter{Version: 3}, &testmx.Milter{Version: 2}},
}

// TestMiltersLikePostfix: a real Postfix with two milters, and what is imported
// of it with the same two as filters, get the same sessions, and give the same
// replies. The milters hear the same events, and refuse, defer, discard,
// quarantine, skip, hang up and break the protocol at every stage.
func TestMiltersLikePostfix(t *testing.T) {
	sessions := number(t, "MILTER_SESSIONS", 75)
	for _, tt := range milterSetups {
		t.Run(tt.name, func(t *testing.T) {
			m := newMiltered(t, tt.list, tt.main, tt.a, tt.b)
			rng := mathrand.New(mathrand.NewPCG(uint64(number(t, "SEED", 13)), 1))
			seen := map[string]bool{}
			for n := range sessions {
				script := hiddenRefusal
				if n > 0 {
					script = milterScript(rng)
				}
				want := m.play(t, m.dial, script)
				heardA, heardB := m.a.Heard(0), m.b.Heard(0)
				got := m.play(t, m.local, script)
				for _, reply := range want {
					seen[reply] = true
				}
				if diff := firstDifference(want, got); diff != "" {
					t.Errorf("session %d: replies: %s\n%s", n, diff, strings.Join(script, "\n"))
				}
				for _, heard := range []struct {
					name      string
					want, got []string
				}{{"A", heardA, m.a.Heard(0)}, {"B", heardB, m.b.Heard(0)}} {
					if diff := firstDifference(heard.want, heard.got); diff != "" {
						t.Errorf("session %d: milter %s heard: %s\n%s", n, heard.name, diff, strings.Join(script, "\n"))
					}
				}
				if t.Failed() {
					break
				}
			}
			if len(seen) < 20 {
				t.Errorf("only %d different replies: %v", len(seen), seen)
			}
			m.compareQueues(t)
		})
	}
}

// hiddenRefusal is a session in which milter A quarantines at HELO, and by that hides
// that B has refused the client: the message goes through.
var hiddenRefusal = []string{"EHLO first.test", "XCLIENT ADDR=192.0.2.1 NAME=host.test PORT=4321", "EHLO q.helo.test", "MAIL FROM:<a@there.test>", "RCPT TO:<user@here.test>",
	"DATA", "Subject: it", "", "text", ".", "QUIT"}

// miltered is a primary with two milters, and we with the same two.
type miltered struct {
	*twin
	a, b  *testmx.Milter
	local func(context.Context) (net.Conn, error)
	keep  *memory
}

func newMiltered(t *testing.T, list, main string, a, b *testmx.Milter) *miltered {
	t.Helper()
	m := &miltered{twin: &twin{t: t, dir: tempDir(t), addr: testmx.FreeAddr()}, a: a, b: b, keep: &memory{}}
	nameserver := startDNS(t, "host.test. 60 A 192.0.2.9").Addr()
	addrA, addrB := testmx.FreeAddr(), testmx.FreeAddr()
	a.Name, b.Name = "A", "B"
	a.Actions = milterActions
	b.Actions = milterActions[3:]
	for addr, x := range map[string]*testmx.Milter{addrA: a, addrB: b} {
		if err := x.Start(addr); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(x.Close)
	}
	for _, name := range []string{"run", "queue", "data"} {
		if err := os.Mkdir(filepath.Join(m.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	place := strings.NewReplacer("@A@", addrA, "@B@", addrB)
	writeOld(t, filepath.Join(m.dir, "run/main.cf"), place.Replace("compatibility_level = 3.6\nmyhostname = mx.here.test\nmydestination =\nlocal_recipient_maps =\nrelay_domains = here.test\n"+
		"relay_recipient_maps = pcre:{{/^(?!nobody)/ x}}\nlocal_header_rewrite_clients =\nsmtpd_hard_error_limit = 1000\nsmtpd_forbid_bare_newline = normalize\nsmtpd_discard_ehlo_keywords = chunking\n"+
		"smtpd_sender_restrictions = check_sender_access inline:{{held@there.test = HOLD}, {gone@there.test = DISCARD}}\n"+
		"smtpd_milters = "+list+"\n"+main)+fmt.Sprintf(testOnly, m.dir))
	writeOld(t, filepath.Join(m.dir, "run/master.cf"), fmt.Sprintf(testmx.MasterCF, m.addr))
	m.src = postfix.Source{ConfigDir: filepath.Join(m.dir, "run"), Service: m.addr}
	var err error
	if m.spec, m.report, err = postfix.Import(t.Context(), m.src); err != nil {
		t.Fatal(err)
	}
	m.start(nameserver)
	m.a.Heard(1) // StartDaemon has knocked
	m.b.Heard(strings.Count(list, "@B@"))
	m.serve(nameserver, addrA, addrB)
	return m
}

// serve runs our server with the milters as filters.
func (m *miltered) serve(nameserver, addrA, addrB string) {
	t := m.t
	m.spec.Limits.SoftErrors = 0
	m.spec.Limits.Client.Connections, m.spec.Limits.Client.ConnectionRate = 0, 0
	snap, err := policy.Compile(m.spec)
	if err != nil {
		t.Fatal(err)
	}
	filter := func(name, addr string) *smtpd.Filter {
		endpoint, err := envelope.MilterName("inet:" + addr)
		if err != nil {
			t.Fatal(err)
		}
		return &smtpd.Filter{Name: name, For: endpoint, Dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}}
	}
	srv := &smtpd.Server{
		Hostname: "mx.here.test", Policy: func() *policy.Snapshot { return snap }, Keep: m.keep,
		Resolver:    resolver.New(resolver.Options{Servers: []string{nameserver}, Timeout: 30 * time.Second}),
		XClientFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, MaxUnknownRecipients: 1 << 20,
		Filters: []*smtpd.Filter{filter("a", addrA), filter("b", addrB)},
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	m.local = func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", ln.Addr().String())
	}
}

// compareQueues compares how many messages are held.
func (m *miltered) compareQueues(t *testing.T) {
	t.Helper()
	held := 0
	err := filepath.WalkDir(filepath.Join(m.dir, "queue/hold"), func(_ string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			held++
		}
		return err
	})
	if m.keep.mu.Lock(); err != nil || held != m.keep.held || held == 0 {
		t.Errorf("Postfix holds %d messages, we %d, %v", held, m.keep.held, err)
	}
	m.keep.mu.Unlock()
}

// milterActions are what a milter may be told; see testmx.Milter. The first few
// go into addresses of clients, too. Only the last milter edits: on Postfix a
// later one sees what an earlier one has changed.
var milterActions = []string{
	"c", "a", "r", "t", "d", "550 5.7.1 Not you", "451 4.3.2 Later", "421 4.7.0 Out of here", "554 no status", "550-5.7.1 First/550 5.7.1 second line", "q", "close",
	"B:r", "A:t", "s", "550 5.7.1 100%% of %s", "zero", "odd", "data", "progress", "550-5.7.1 mixed/550 second", "452 4.2.2", "590 4.1.1 wrong class", "600 5.0.0 no code", "qr", "B:550 5.1.1 B says", "B:edit", "B:d", "short",
}

// milterScript is one session: lines to send. A line that begins with a "." is
// the end of a message.
func milterScript(rng *mathrand.Rand) (lines []string) {
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	act := func(odds int) string {
		if rng.IntN(odds) > 0 {
			return "c"
		}
		return milterActions[rng.IntN(len(milterActions))]
	}
	local := func(action string) string {
		if strings.ContainsAny(action, " ():%") {
			return `"` + action + `"`
		}
		return action
	}
	client := "192.0.2.200"
	if rng.IntN(3) == 0 {
		client = fmt.Sprintf("192.0.2.%d", 1+rng.IntN(14))
	}
	if rng.IntN(10) == 0 {
		client = "IPV6:2001:db8::9"
	}
	add := func(line string) { lines = append(lines, line) }
	add("EHLO first.test")
	add("XCLIENT ADDR=" + client + " NAME=" + pick("[UNAVAILABLE]", "host.test", "[TEMPUNAVAIL]") + " PORT=4321")
	add(pick("EHLO ", "EHLO ", "HELO ") + pick(strings.ReplaceAll(act(3), " ", "_")+".helo.test", "mail.there.test"))
	for range 1 + rng.IntN(3) {
		for rng.IntN(6) == 0 {
			add(pick("RSET", "NOOP", "VRFY user@here.test", "ETRN there.test", unknownCommand(act(2)), "BOGUS word", "EHLO again.test", "HELO "+strings.ReplaceAll(act(2), " ", "_")+".helo.test"))
		}
		add("MAIL FROM:" + pick("<"+local(act(3))+"@there.test>", "<"+local("data-"+act(2))+"@there.test>", "<>", "<held@there.test>", "<gone@there.test>") + pick("", " SIZE=1000", " BODY=8BITMIME"))
		for range 1 + rng.IntN(3) {
			add("RCPT TO:" + pick("<"+local(act(3))+"@here.test>", "<user@here.test>", "<nobody@here.test>", "<x@elsewhere.test>"))
		}
		if rng.IntN(8) == 0 {
			add(pick("RSET", unknownCommand(act(2)), "EHLO within.test", "VRFY user@here.test"))
		}
		add("DATA")
		lines = append(lines, milterMessage(rng, act)...)
	}
	add("QUIT")
	return lines
}

// unknownCommand is a command for an action, but none that makes Postfix 3.7's
// smtpd panic at the next MAIL (accept and discard), and no reply cut short.
func unknownCommand(action string) string {
	if action == "a" || strings.HasSuffix(action, "d") || strings.Contains(action, "/") {
		action = "c"
	}
	return "XX-" + strings.Fields(action)[0]
}

func milterMessage(rng *mathrand.Rand, act func(int) string) (lines []string) {
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	add := func(line ...string) { lines = append(lines, line...) }
	if rng.IntN(12) == 0 {
		add("From somebody Mon Nov 2 10:00:00 2026")
	}
	add("From: a@there.test", "Subject:"+pick(" it", "it", "\ttab", "  two spaces", ""))
	if rng.IntN(2) == 0 {
		add("X-" + pick("eom", "eom", "eom", "eoh", "body", "header") + ": " + act(1))
	}
	if rng.IntN(3) == 0 {
		add("X-Long: one", "\ttwo", "  three", "Bcc: b@there.test", "Spaced : x")
	}
	switch rng.IntN(6) {
	case 0: // no empty line
	case 1:
		add("no field at all", "")
	default:
		add("")
	}
	for range rng.IntN(4) {
		add(pick("text", "", "..dot", strings.Repeat("long ", 700)))
	}
	if rng.IntN(15) == 0 {
		for range 3000 {
			add("a line to fill more than one piece of the body")
		}
	}
	add(".")
	return lines
}

var (
	queuedAs = regexp.MustCompile(`queued as \S+`)
	banner   = regexp.MustCompile(`^220 .*`)
)

// play returns the replies to a session, "" for none.
func (m *miltered) play(t *testing.T, dial func(context.Context) (net.Conn, error), script []string) (replies []string) {
	t.Helper()
	c, err := dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(c)
	read := func() string {
		var all []string
		for {
			l, err := r.ReadString('\n')
			if err != nil {
				return strings.Join(append(all, "closed"), "")
			}
			l = queuedAs.ReplaceAllString(strings.TrimRight(l, "\r\n"), "queued as ID")
			all = append(all, l)
			if len(l) < 4 || l[3] != '-' {
				return strings.Join(all, "\n")
			}
		}
	}
	keep := func(line string) {
		reply := banner.ReplaceAllString(read(), "220")
		if strings.HasPrefix(line, "EHLO") && strings.HasPrefix(reply, "250") { // what is offered differs, but for nothing
			reply = fmt.Sprintf("250 offers much: %v", strings.Contains(reply, "PIPELINING"))
		}
		replies = append(replies, reply)
	}
	keep("")
	inMessage := false
	var message bytes.Buffer
	for _, line := range script {
		if inMessage {
			message.WriteString(line + "\r\n")
			if line != "." {
				continue
			}
			inMessage = false
			if !strings.HasPrefix(replies[len(replies)-1], "354") {
				continue
			}
			line = strings.TrimSuffix(message.String(), "\r\n")
		}
		if line == "DATA" {
			inMessage = true
			message.Reset()
		}
		if _, err := io.WriteString(c, line+"\r\n"); err != nil && !errors.Is(err, net.ErrClosed) {
			break // after a 421
		}
		keep(line)
		if strings.HasSuffix(replies[len(replies)-1], "closed") {
			break
		}
	}
	return replies
}

func firstDifference(want, got []string) string {
	for i := range max(len(want), len(got)) {
		w, g := "nothing", "nothing"
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			if a, b := strings.Split(w, "\n"), strings.Split(g, "\n"); len(a) > 2 && len(b) > 2 {
				return fmt.Sprintf("number %d: %s", i, firstDifference(a, b))
			}
			return fmt.Sprintf("number %d: Postfix\n%s\nwe\n%s", i, w, g)
		}
	}
	return ""
}

// memory keeps messages as long as they are received.
type memory struct {
	mu         sync.Mutex
	kept, held int
}

func (m *memory) Ready(int64) error { return nil }

func (m *memory) Begin(env *envelope.Envelope) (smtpd.Draft, error) {
	env.ID = "memory"
	return &memoryDraft{m: m, env: env}, nil
}

type memoryDraft struct {
	bytes.Buffer
	m   *memory
	env *envelope.Envelope
}

func (d *memoryDraft) Open() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(d.Bytes())), nil
}

func (d *memoryDraft) Commit(context.Context) error {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.m.kept++; d.env.Hold {
		d.m.held++
	}
	return nil
}

func (d *memoryDraft) Spare() {}
func (d *memoryDraft) Abort() {}
