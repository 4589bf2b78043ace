package parity

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/greylist"
	"github.com/understudy-mx/understudy/policy/postfix"
	"github.com/understudy-mx/understudy/policy/table"
	"github.com/understudy-mx/understudy/smtpd"
)

// greylisted is a primary with a postgrey whose clock stands until it is set.
type greylisted struct {
	*twin
	clock  string // the file that libfaketime reads
	now    time.Time
	daemon *testmx.Daemon
	argv   []string
	grey   string // where postgrey listens

	nameserver string
}

const greyMain = `compatibility_level = 3.6
myhostname = mx.here.test
mydestination =
local_recipient_maps =
relay_domains = here.test
relay_recipient_maps = inline:{user@here.test=x,Other@here.test=x,abuse@here.test=x,box@here.test=x}
recipient_delimiter = +
smtpd_delay_reject = %s
smtpd_%s_restrictions = %s
smtpd_recipient_restrictions = %s
`

// newGreylisted starts both. where is the list that postgrey stands in.
func newGreylisted(t *testing.T, where, options string) *greylisted {
	t.Helper()
	dir := tempDir(t)
	p := &greylisted{twin: &twin{t: t, dir: dir, addr: testmx.FreeAddr()}, clock: filepath.Join(dir, "clock"), now: time.Unix(1_790_000_000, 0).UTC(), grey: testmx.FreeAddr()}
	for _, name := range []string{"run", "queue", "data", "db"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("chown", "postgrey:postgrey", filepath.Join(dir, "db")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s; run test/install-peers", err, out)
	}
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		writeOld(t, name, text)
		return name
	}
	clients := write("clients", "white.example # a domain\n/^mx\\d+\\.pattern\\.example$/\n203.0.113.9\n127.0.0.1\n198.51.100\n203.0.113.128/26\n2001:db8:9::/48\nnot a host\n")
	local := write("clients.local", "300.1.1.1\nMAIL.upper.example\n\n")
	rcpts := write("rcpts", "abuse@\nbox@here.test\n/^user\\+vip/\n")
	options = fmt.Sprintf("--inet=%s --dbdir=%s/db --whitelist-clients=%s --whitelist-clients=%s --whitelist-recipients=%s %s", p.grey, dir, clients, local, rcpts, options)
	environment := write("postgrey", "POSTGREY_OPTS=\""+options+"\"\nPOSTGREY_TEXT=\"Later, %s s for %r\"\n")
	service := "check_policy_service inet:" + p.grey
	first, second := service, "reject_unauth_destination"
	if where == "recipient" {
		first, second = "", "reject_unauth_destination, "+service+", reject_unlisted_recipient"
	}
	list, delay := where, "yes"
	if where == "recipient" {
		list = "sender"
	}
	if where == "client" {
		delay = "no"
	}
	write("run/main.cf", fmt.Sprintf(greyMain, delay, list, first, second)+fmt.Sprintf(testOnly, dir))
	write("run/master.cf", fmt.Sprintf(testmx.MasterCF, p.addr))
	p.src = postfix.Source{ConfigDir: filepath.Join(dir, "run"), Service: p.addr, Filters: []string{"inet:" + p.grey + "=postgrey:" + environment}}
	p.set(p.now)
	p.argv = append([]string{"env", "LD_PRELOAD=" + faketime(t), "FAKETIME_TIMESTAMP_FILE=" + p.clock, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "TZ=UTC",
		"/usr/sbin/postgrey"}, strings.Fields(options)...)
	p.argv = append(p.argv, "--greylist-text=Later, %s s for %r")
	p.startGrey()
	t.Cleanup(func() { p.daemon.Kill() })
	p.nameserver = startDNS(t).Addr()
	p.start(p.nameserver)
	return p
}

func (p *greylisted) startGrey() {
	p.t.Helper()
	var out bytes.Buffer
	var err error
	if p.daemon, err = testmx.StartDaemon(p.grey, &out, p.argv...); err != nil {
		p.t.Fatalf("%v: %s; run test/install-peers", err, &out)
	}
}

func faketime(t *testing.T) string {
	t.Helper()
	all, _ := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if len(all) != 1 {
		t.Fatalf("libfaketime: %q; run test/install-peers", all)
	}
	return all[0]
}

// set has the clock stand at a time.
func (p *greylisted) set(now time.Time) {
	p.t.Helper()
	p.now = now
	if err := os.WriteFile(p.clock, []byte(now.UTC().Format("2006-01-02 15:04:05")+"\n"), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// importNow imports, and expects all to be followed.
func (p *greylisted) importNow() *policy.Spec {
	p.t.Helper()
	p.src.Now = func() time.Time { return p.now }
	spec, report, err := postfix.Import(p.t.Context(), p.src)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, it := range report.Items {
		if it.Class == fidelity.NotReplicated {
			p.t.Errorf("%s: %s", it.ID(), it.Why)
		}
	}
	if n := len(spec.Filters.Greylists); n != 1 {
		p.t.Fatalf("%d greylists", n)
	}
	return spec
}

// secondary serves a policy with a store whose clock is the primary's.
func (p *greylisted) secondary(spec *policy.Spec) (dial func(context.Context) (net.Conn, error), stop func()) {
	store := p.store()
	dial, end := serve(p.t, spec, p.nameserver, false, func(s *smtpd.Server) { s.Greylist = store })
	return dial, func() {
		end()
		if err := store.Close(); err != nil {
			p.t.Error(err)
		}
	}
}

// store is a secondary's, with the primary's clock.
func (p *greylisted) store() *greylist.Store {
	return greylist.Open(greylist.Options{Dir: filepath.Join(tempDir(p.t), "greylist"), Now: func() time.Time { return p.now }, Log: slog.New(slog.DiscardHandler),
		Metrics: metrics.New(prometheus.NewRegistry())})
}

// attempt is a session that comes no further than DATA.
type attempt struct {
	client, name, sender string
	rcpts                []string
}

// play returns the replies to MAIL, each RCPT and DATA.
func (a attempt) play(t *testing.T, dial func(context.Context) (net.Conn, error)) string {
	t.Helper()
	c, err := dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(c)
	addr := a.client
	if strings.Contains(addr, ":") {
		addr = "IPV6:" + addr
	}
	lines := []string{"", "EHLO test\r\n", "XCLIENT ADDR=" + addr + " NAME=" + a.name + "\r\n", "EHLO test\r\n", "MAIL FROM:<" + a.sender + ">\r\n"}
	for _, to := range a.rcpts {
		lines = append(lines, "RCPT TO:<"+to+">\r\n")
	}
	lines = append(lines, "DATA\r\n")
	var said []string
	for i, line := range lines {
		if line != "" {
			io.WriteString(c, line)
		}
		for {
			l, err := r.ReadString('\n')
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if len(l) > 3 && l[3] == '-' {
				continue
			}
			if i == 2 && l[0] != '2' { // in place of a greeting
				return strings.TrimSpace(l)
			}
			if i > 1 {
				said = append(said, strings.TrimSpace(l))
			}
			if strings.HasPrefix(l, "421") || strings.HasPrefix(l, "521") {
				return strings.Join(said, "\n")
			}
			break
		}
	}
	for i, s := range said[2:] { // what is accepted is worded otherwise
		if s[0] < '4' {
			said[i+2] = s[:3]
		}
	}
	return strings.Join(said[2:], "\n")
}

// next makes an attempt, often one that came before.
func next(rng *mathrand.Rand) attempt {
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	a := attempt{
		client: pick("192.0.2.1", "192.0.2.2", "192.0.2.130", "192.0.3.1", "203.0.113.9", "203.0.113.10", "203.0.113.130", "198.51.100.77", "198.51.101.1",
			"2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "2001:db8:9:1::5", "2001:db8:a::ffff:1"),
		name:   pick("[UNAVAILABLE]", "[UNAVAILABLE]", "[UNAVAILABLE]", "mail.example.net", "a.white.example", "notwhite.example", "mx12.pattern.example", "mail.UPPER.example"),
		sender: pick("", "a@x.example", "A@X.example", "list-12-34@l.example", "list-99-7@l.example", "b+tag@x.example", "b@x.example", "prvs=0123456789=c@x.example", "prvs=c=abcdefghij@x.example", "c@x.example", "prvs=c@x.example", "12x@x.example", `"q 5"@x.example`),
	}
	for range 1 + rng.IntN(3) {
		a.rcpts = append(a.rcpts, pick("user@here.test", "USER@here.test", "user+vip@here.test", "user+x@here.test", "Other@here.test", "abuse@here.test", "abuse+1@here.test", "box@here.test", "box+a@HERE.test", "gone@here.test", "user@elsewhere.test", "postmaster"))
	}
	return a
}

// step is how much later the next attempt comes.
func step(rng *mathrand.Rand) time.Duration {
	s := []int{0, 0, 0, 1, 1, 7, 60, 100, 299, 300, 301, 3599, 3600, 3601, 7200, 20000}
	if rng.IntN(60) == 0 {
		s = []int{86400, 2 * 86400, 2*86400 + 1, 3 * 86400, 35 * 86400, 36 * 86400}
	}
	return time.Duration(s[rng.IntN(len(s))]) * time.Second
}

// TestGreylistLikePostgrey: a real postgrey behind a real Postfix, and what is
// imported of it, get the same sessions over simulated time, and every reply is
// the same to the letter. GREYLIST sets how many; `make greylist` plays 20,000.
func TestGreylistLikePostgrey(t *testing.T) {
	t.Setenv("TZ", "UTC")
	total := number(t, "GREYLIST", 600)
	for i, tt := range []struct{ name, where, options string }{
		{"defaults at RCPT", "recipient", ""},
		{"sender", "sender", "--delay=60 --retry-window=6h --max-age=7 --auto-whitelist-clients=2 --lookup-by-host"},
		{"private", "data", "--privacy --auto-whitelist-clients=0 --ipv4cidr=16 --ipv6cidr=32 --greylist-action=451"},
		{"client", "client", "--delay=400 --auto-whitelist-clients=1 --greylist-action=DEFER"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newGreylisted(t, tt.where, tt.options)
			local, stop := p.secondary(p.importNow())
			defer stop()
			rng := mathrand.New(mathrand.NewPCG(uint64(number(t, "SEED", 1)), uint64(i)))
			seen := map[string]int{}
			for n := range total / 4 {
				a := next(rng)
				want, got := a.play(t, p.dial), a.play(t, local)
				if want != got {
					t.Fatalf("attempt %d at %s:\n%+v\nPostfix:\n%s\nwe:\n%s", n, p.now, a, want, got)
				}
				for line := range strings.SplitSeq(got, "\n") {
					seen[line[:3]]++
				}
				p.set(p.now.Add(step(rng)))
			}
			if seen["250"] == 0 || seen["450"]+seen["451"] == 0 {
				t.Errorf("only %v", seen)
			}
			t.Logf("replies: %v", seen)
		})
	}
}

// ask puts a triplet to postgrey itself.
func (p *greylisted) ask(rw *bufio.ReadWriter, client, sender, rcpt string) (action string) {
	p.t.Helper()
	fmt.Fprintf(rw, "request=smtpd_access_policy\nclient_address=%s\nclient_name=unknown\nsender=%s\nrecipient=%s\netrn_domain=\n\n", client, sender, rcpt)
	if err := rw.Flush(); err != nil {
		p.t.Fatal(err)
	}
	action, err := rw.ReadString('\n')
	if err == nil {
		_, err = rw.ReadString('\n')
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(strings.TrimPrefix(action, "action="))
}

func (p *greylisted) connect() *bufio.ReadWriter {
	p.t.Helper()
	c, err := net.Dial("tcp", p.grey)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Minute))
	return bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c))
}

// triplet is the number-th of those that are replayed. Each client has few, lest
// it become known by itself.
func triplet(n int) (client, sender string) {
	return fmt.Sprintf("10.%d.%d.7", n/4/250, n/4%250), fmt.Sprintf("s%c@x%d.example", 'a'+n%4, n)
}

// TestGreylistReplay: the primary knows half of many triplets when it goes away.
// Here nobody is put off whom it knows, and every other exactly once, also where
// the policy travels hashed. What has passed here, exported and loaded into
// postgrey, has passed there. TRIPLETS sets how many; `make greylist` plays 10,000.
func TestGreylistReplay(t *testing.T) {
	n := number(t, "TRIPLETS", 400)
	p := newGreylisted(t, "recipient", "")
	grey := p.connect()
	for range 2 {
		for i := 0; i < n; i += 2 {
			client, sender := triplet(i)
			p.ask(grey, client, sender, "user@here.test")
		}
		p.set(p.now.Add(10 * time.Minute))
	}
	spec := p.importNow() // while postgrey runs, with all of it in its log
	for _, how := range []string{"plain", "hashed"} {
		if how == "hashed" {
			for name, tab := range spec.Tables {
				if !tab.Keyed() {
					continue
				}
				var err error
				if spec.Tables[name], err = tab.Hashed(&table.Secret{1}, true, nil, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
		snap, err := policy.Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		store := p.store()
		putOff := make([]int, n)
		for range 3 {
			for i := range n {
				client, sender := triplet(i)
				if greylistDefers(t, snap, store, client, sender) {
					putOff[i]++
				}
			}
			p.set(p.now.Add(10 * time.Minute))
		}
		for i, times := range putOff {
			if times != i%2 {
				t.Fatalf("%s: triplet %d was put off %d times", how, i, times)
			}
		}
		if how == "plain" {
			p.restore(store)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	grey = p.connect()
	for i := range n {
		client, sender := triplet(i)
		if got := p.ask(grey, client, sender, "user@here.test"); strings.HasPrefix(got, "DEFER") {
			t.Fatalf("postgrey doesn't know triplet %d: %s", i, got)
		}
	}
	if got := p.ask(grey, "10.200.1.1", "new@x.example", "user@here.test"); !strings.HasPrefix(got, "DEFER_IF_PERMIT") {
		t.Errorf("postgrey knows somebody new: %s", got)
	}
}

// restore loads an export into postgrey, as the command's help says.
func (p *greylisted) restore(s *greylist.Store) {
	t := p.t
	t.Helper()
	if err := p.daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	script := "cd \"$0/db\" && db5.3_recover"
	for kind, db := range map[string]string{greylist.Triplet: "postgrey.db", greylist.Client: "postgrey_clients.db"} {
		var b bytes.Buffer
		if err := greylist.WriteDump(&b, kind, s.Walk); err != nil {
			t.Fatal(err)
		}
		writeOld(t, filepath.Join(p.dir, kind), b.String())
		script += " && { db5.3_load -n " + db + " < ../" + kind + " || [ $? -eq 1 ]; }"
	}
	if out, err := exec.Command("setpriv", "--reuid=postgrey", "--regid=postgrey", "--clear-groups", "sh", "-c", script, p.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p.startGrey()
}

// greylistDefers plays a session up to RCPT to a snapshot.
func greylistDefers(t *testing.T, snap *policy.Snapshot, store *greylist.Store, client, sender string) bool {
	t.Helper()
	s := snap.Session(nobody{}, envelope.Client{Addr: netip.MustParseAddr(client), Name: "unknown", NameStatus: envelope.NameOK, Helo: "x"})
	defer s.Close()
	s.Remember(store)
	from, err := envelope.ParseMailbox(sender)
	if err != nil {
		t.Fatal(err)
	}
	to, err := envelope.ParseMailbox("user@here.test")
	if err != nil {
		t.Fatal(err)
	}
	s.Mail(t.Context(), envelope.ReversePath{Mailbox: from}, policy.MailParams{})
	v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: to})
	if v.Action != policy.Permit && v.Rule.Kind != "check_greylist" {
		t.Fatalf("refused by %s: %s", v.Rule, v.Reply)
	}
	return v.Action != policy.Permit
}

// nobody is a DNS that isn't asked.
type nobody struct{ policy.Resolver }
