// Package faults has a primary go wrong in live sessions, and looks that no mail
// is lost, and none is there twice but where docs/LIVE.md says that it may be: a
// sender that comes again, our door, its queue and a primary, in one process.
package faults

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/metrics"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/handwritten"
	"github.com/understudy-mx/understudy/policy/parity"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/store/storetest"
	"github.com/understudy-mx/understudy/relay"
	"github.com/understudy-mx/understudy/smtpd"
)

// chain is our door before a primary, with its queue.
type chain struct {
	dial    parity.Dialer
	queue   *queue.Queue
	relay   *relay.Client // for live sessions
	drain   *relay.Client // for the queue, with more patience
	metrics *metrics.Metrics
	stop    func() error
}

// spool is the queue as the door sees it.
type spool struct{ *queue.Queue }

func (s spool) Begin(e *envelope.Envelope) (smtpd.Draft, error) { return s.Queue.Begin(e) }

const everybody = `domains = ["example.org"]
recipients = ["alice@example.org", "bob@example.org", "carol@example.org"]
`

// newChain starts a door before the primary at way.Address. The queue relays to
// sound, where nothing goes wrong.
func newChain(ctx context.Context, snap *policy.Snapshot, way relay.Route, sound string) (*chain, error) {
	c := &chain{metrics: metrics.New(prometheus.NewRegistry())}
	way.Name, way.Live, way.TLS = "primary", true, relay.TLSOff
	client := func(way relay.Route) *relay.Client {
		return relay.New(relay.Options{Hostname: "mx2.example.org", Metrics: c.metrics, Routes: map[string]relay.Route{"": way},
			OnUp: func(dest string) { c.queue.Wake(dest) }})
	}
	c.relay = client(way)
	way.Address, way.Timeouts = sound, relay.Timeouts{Idle: time.Millisecond}
	c.drain = client(way)
	var err error
	c.queue, err = queue.Open(queue.Options{Store: storetest.New(), Route: func(string) string { return "" }, Relayer: c.drain, Metrics: c.metrics,
		ByClient: func(string) bool { return true }})
	if err != nil {
		return nil, err
	}
	through := &smtpd.Live{
		Play: func(cmd *smtpd.Command) smtpd.Player {
			return c.relay.Live(func(string) string { return "" }, cmd.Peer)
		},
		Offers: func() (smtpd.Extensions, bool) {
			o, is := c.relay.LiveOffers()
			return smtpd.Extensions(o), is
		},
	}
	srv := &smtpd.Server{Hostname: "mx2.example.org", Policy: func() *policy.Snapshot { return snap }, Metrics: c.metrics, Keep: spool{c.queue},
		Resolver: resolver.New(resolver.Options{Servers: []string{"127.0.0.1:1"}}), XClientFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Decide: through.PlayThrough}
	pipe := parity.NewPipe()
	c.dial = pipe.Dial
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var serveErr, queueErr error
	wg.Go(func() { c.relay.Run(ctx) })
	wg.Go(func() { c.drain.Run(ctx) })
	wg.Go(func() { serveErr = srv.Serve(ctx, pipe) })
	wg.Go(func() { queueErr = c.queue.Run(ctx) })
	c.stop = func() error {
		cancel()
		wg.Wait()
		if errors.Is(queueErr, context.Canceled) {
			queueErr = nil
		}
		return errors.Join(serveErr, queueErr, c.queue.Close())
	}
	return c, nil
}

// until waits for something that needs no event of its own.
func until(within time.Duration, is func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(within); ; <-tick.C {
		if is() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// fate is what became of a recipient, as its sender knows.
type fate int

const (
	open fate = iota
	accepted
	bounced
)

// everyone is whom the primary takes; the policy knows all but the last.
var everyone = []string{"alice@example.org", "bob@example.org", "carol@example.org", foreigner}

const foreigner = "dave@elsewhere.example"

// mail is a message, and what became of it.
type mail struct {
	content string
	fates   map[string]fate
}

func (m *mail) open() (to []string) {
	for _, one := range everyone {
		if f, is := m.fates[one]; is && f == open {
			to = append(to, one)
		}
	}
	return to
}

// settle notes a reply.
func (m *mail) settle(code int, to ...string) {
	for _, one := range to {
		switch code / 100 {
		case 2:
			m.fates[one] = accepted
		case 5:
			m.fates[one] = bounced
		}
	}
}

// sender sends messages as RFC 5321 has it: who is refused for good bounces, who
// isn't answered or is put off is tried again.
type sender struct {
	dial  parity.Dialer
	mails []*mail
}

func (s *sender) send(ctx context.Context) (err error) {
	for range 5 {
		err = s.try(ctx)
		left := 0
		for _, m := range s.mails {
			left += len(m.open())
		}
		if left == 0 {
			return nil
		}
	}
	return fmt.Errorf("not everybody is settled: %w", err)
}

// try is one session, for what is open.
func (s *sender) try(ctx context.Context) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Minute))
	t := &talk{conn, bufio.NewReader(conn)}
	for _, step := range []string{"", "XCLIENT ADDR=192.0.2.9 NAME=mail.sender.example\r\n", "EHLO mail.sender.example\r\n"} {
		if code, err := t.say(step); err != nil || code/100 != 2 {
			return fmt.Errorf("%q: %d, %w", step, code, err)
		}
	}
	for _, m := range s.mails {
		if err := t.transaction(m); err != nil {
			return err
		}
	}
	_, err = t.say("QUIT\r\n")
	return err
}

type talk struct {
	net.Conn
	br *bufio.Reader
}

// say sends and reads the reply, at once: a pipe holds nothing.
func (t *talk) say(what string) (code int, err error) {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if what != "" {
			io.WriteString(t.Conn, what)
		}
	}()
	defer func() { <-sent }()
	for {
		line, err := t.br.ReadString('\n')
		if err != nil || len(line) < 4 {
			t.Close()
			return 0, fmt.Errorf("%.40q: %.40q, %w", what, line, err)
		}
		if line[3] == ' ' {
			return strconv.Atoi(line[:3])
		}
	}
}

// transaction sends a message to those who haven't got it.
func (t *talk) transaction(m *mail) error {
	to := m.open()
	if len(to) == 0 {
		return nil
	}
	code, err := t.say("MAIL FROM:<b@sender.example> BODY=8BITMIME\r\n")
	if err != nil || code != 250 {
		m.settle(code, to...)
		return err
	}
	var taken []string
	for _, one := range to {
		code, err := t.say("RCPT TO:<" + one + ">\r\n")
		switch {
		case err != nil:
			return err
		case code/100 == 2:
			taken = append(taken, one)
		default:
			m.settle(code, one)
		}
	}
	if len(taken) == 0 {
		_, err := t.say("RSET\r\n")
		return err
	}
	if code, err = t.say("DATA\r\n"); err == nil && code == 354 {
		code, err = t.say(strings.ReplaceAll("\r\n"+m.content, "\r\n.", "\r\n..")[2:] + ".\r\n")
	}
	m.settle(code, taken...)
	if err == nil && code/100 != 2 {
		_, err = t.say("RSET\r\n")
	}
	return err
}

// fault is where a primary goes wrong, and how.
type fault struct {
	step   string // "connect", a command, "message 0" to "message 9" or "dot"
	behind bool   // after the reply to it, else in its place
	kind   string // "die", "reset", "hang", or what it says
	goOn   bool   // and then it goes on as if nothing had been
	size   int    // of a message, in KiB
	nth    int    // in the client's nth transaction
	proxy  bool   // the client is told by PROXY
}

func (f fault) String() string {
	return fmt.Sprintf("%s, behind it: %v, %q, goes on: %v, %d KiB, transaction %d, PROXY: %v", f.step, f.behind, f.kind, f.goOn, f.size, f.nth, f.proxy)
}

// refuses says that what is wrong is a refusal like any other.
func (f fault) refuses() bool { return f.kind[0] == '4' || f.kind[0] == '5' }

// primary takes mail, and goes wrong once.
type primary struct {
	fault
	net.Listener
	sound net.Listener  // the same, without the fault
	over  chan struct{} // closed at the end: then who hangs goes
	wg    sync.WaitGroup

	mu    sync.Mutex // guards what follows
	armed bool
	books *testmx.Ledger
	got   map[string]int // "recipient sum": how often
}

func newPrimary(f fault, books *testmx.Ledger) (*primary, error) {
	p := &primary{fault: f, over: make(chan struct{}), books: books, got: map[string]int{}}
	for _, ln := range []*net.Listener{&p.Listener, &p.sound} {
		var err error
		if *ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
		p.wg.Go(func() { p.listen(*ln, ln == &p.sound) })
	}
	return p, nil
}

func (p *primary) listen(ln net.Listener, sound bool) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() {
			defer c.Close()
			tcp := c.(*net.TCPConn)
			tcp.SetReadBuffer(64 << 10)
			(&served{primary: p, c: tcp, br: bufio.NewReaderSize(tcp, 1<<10), sound: sound, nth: 1}).serve()
		})
	}
}

func (p *primary) close() {
	p.Close()
	p.sound.Close()
	close(p.over)
	p.wg.Wait()
}

// served is a session of the primary's.
type served struct {
	*primary
	c      *net.TCPConn
	br     *bufio.Reader
	sound  bool
	nth    int
	hellos int
	to     []string
}

// due says that the fault is here and now.
func (s *served) due(step string, behind bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sound || !s.armed || step != s.step || behind != s.behind || s.nth != s.fault.nth && s.hellos > 1 {
		return false
	}
	s.armed = false
	return true
}

// wrong does what is wrong, after the reply or in its place, and says whether the
// session goes on.
func (s *served) wrong(reply string) bool {
	switch s.kind {
	case "die":
		io.WriteString(s.c, reply)
		return false
	case "reset":
		io.WriteString(s.c, reply)
		s.c.SetLinger(0)
		return false
	case "hang":
		io.WriteString(s.c, reply)
		<-s.over
		return false
	}
	io.WriteString(s.c, reply+s.kind)
	return s.goOn
}

// answer sends a reply, with the fault where that is due, and says whether the
// session goes on, and the reply was the right one.
func (s *served) answer(step, reply string) (on, right bool) {
	switch {
	case s.due(step, false):
		return s.wrong(""), s.kind[:1] == reply[:1]
	case s.due(step, true):
		return s.wrong(reply), true
	}
	_, err := io.WriteString(s.c, reply)
	return err == nil, true
}

const hello = "250-primary.example.org\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-XCLIENT NAME ADDR PORT PROTO REVERSE_NAME HELO\r\n250 SIZE 10000000\r\n"

func (s *served) serve() {
	if s.proxy {
		header := make([]byte, 16)
		if _, err := io.ReadFull(s.br, header); err != nil {
			return
		}
		s.br.Discard(int(header[14])<<8 | int(header[15]))
	}
	if on, _ := s.answer("connect", "220 primary.example.org ESMTP\r\n"); !on {
		return
	}
	for {
		line, err := s.br.ReadString('\n')
		if err != nil {
			return
		}
		step, reply := strings.ToUpper(line[:min(4, len(line))]), "250 2.0.0 Ok\r\n"
		switch step {
		case "EHLO":
			if reply = hello; s.hellos > 0 {
				step = "EHLO again"
			}
			s.hellos++
		case "XCLI":
			s.hellos, reply = 1, "220 primary.example.org ESMTP\r\n"
		case "MAIL", "RSET":
			s.to = nil
		case "RCPT":
			if len(s.to) > 0 {
				step = "RCPT again"
			}
		case "DATA":
			reply = "354 go\r\n"
		case "QUIT":
			reply = "221 2.0.0 Bye\r\n"
		}
		on, right := s.answer(step, reply)
		switch {
		case !on:
			return
		case right && strings.HasPrefix(step, "RCPT"):
			s.to = append(s.to, strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(line), "RCPT TO:<"), ">"))
		case right && step == "DATA":
			if !s.message() {
				return
			}
			s.nth++
		case step == "QUIT":
			return
		}
	}
}

// message takes a message, and says whether the session goes on.
func (s *served) message() bool {
	var content bytes.Buffer
	refused := false
	for i := 0; ; {
		if i < 10 && content.Len() >= i*s.size<<10/10 {
			if s.due(fmt.Sprint("message ", i), false) {
				if !s.wrong("") {
					return false
				}
				refused = s.refuses()
			}
			i++
			continue
		}
		line, err := s.br.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return false
		}
		if string(line) == ".\r\n" && bytes.HasSuffix(content.Bytes(), []byte("\n")) {
			break
		}
		content.Write(bytes.TrimPrefix(line, []byte("."))) // no line of ours is longer than the buffer
	}
	instead := s.due("dot", false)
	if !refused && !(instead && s.refuses()) {
		sum := testmx.Sum(content.Bytes())
		s.mu.Lock()
		for _, to := range s.to {
			s.books.Relayed(to, sum)
			s.got[fmt.Sprintf("%s %x", to, sum)]++
		}
		s.mu.Unlock()
	}
	if instead {
		return s.wrong("")
	}
	on, _ := s.answer("dot", "250 2.0.0 Ok: queued as X\r\n")
	return on && !refused
}

// play has the fault happen, and closes the books. It returns how the live
// transactions ended, and how many recipients have a message twice.
func (f fault) play(ctx context.Context, snap *policy.Snapshot, seed int) (endings map[string]int, twice int, err error) {
	var books testmx.Ledger
	p, err := newPrimary(f, &books)
	if err != nil {
		return nil, 0, err
	}
	defer p.close()
	wait := 700 * time.Millisecond
	c, err := newChain(ctx, snap, relay.Route{Address: p.Addr().String(), XClient: !f.proxy, Proxy: f.proxy, ProbeInterval: time.Minute,
		Timeouts: relay.Timeouts{Connect: 5 * time.Second, Greeting: wait, Command: wait, DataInit: wait, Block: wait, DataEnd: wait, LiveEnd: wait, Quit: wait}}, p.sound.Addr().String())
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	if !until(time.Minute, func() bool { return c.relay.Up("") && c.drain.Up("") }) {
		return nil, 0, errors.New("the primary isn't up")
	}
	p.mu.Lock()
	p.armed = true
	p.mu.Unlock()
	s := &sender{dial: c.dial}
	for i := range f.nth {
		line := fmt.Sprintf(".%d.%d %s\r\n", seed, i, strings.Repeat("x", 990))
		s.mails = append(s.mails, &mail{fmt.Sprintf("Subject: %d\r\n\r\n", seed) + strings.Repeat(line, f.size), map[string]fate{everyone[0]: open, everyone[1+(i+seed)%3]: open}})
	}
	if err := s.send(ctx); err != nil {
		return nil, 0, err
	}
	if !until(time.Minute, func() bool { return c.queue.Stats().Messages == 0 }) {
		return nil, 0, errors.New("the queue isn't empty")
	}
	endings = map[string]int{}
	for _, ending := range []string{"accepted", "refused", "deferred", "before_reply", "in_message", "after_dot", "late"} {
		endings[ending] = int(testutil.ToFloat64(c.metrics.LiveMessages.WithLabelValues(ending)))
	}
	endings["not_begun"] = int(testutil.ToFloat64(c.metrics.LiveUnused.WithLabelValues("failed")))
	for _, m := range s.mails {
		sum := testmx.Sum([]byte(m.content))
		for to, fate := range m.fates {
			p.mu.Lock()
			got := p.got[fmt.Sprintf("%s %x", to, sum)]
			p.mu.Unlock()
			switch {
			case fate == accepted:
				books.Accepted("", to, sum)
			case got > 0:
				err = errors.Join(err, fmt.Errorf("%s bounced and has it", to))
			case to != foreigner && (!f.refuses() || f.kind[0] != '5'):
				err = errors.Join(err, fmt.Errorf("%s bounced", to))
			}
			if got > 1 {
				twice++
			}
		}
	}
	if twice > 0 && endings["after_dot"]+endings["late"] == 0 {
		err = errors.Join(err, fmt.Errorf("%d have it twice", twice))
	}
	for _, m := range books.Missing() {
		err = errors.Join(err, errors.New(m))
	}
	return endings, twice, err
}

// allFaults is every place and every way to go wrong, in messages small and large,
// in the first and the second of a session.
func allFaults() (all []fault) {
	var places []fault
	for _, step := range []string{"connect", "EHLO", "XCLI", "EHLO again", "MAIL", "RCPT", "RCPT again", "DATA", "dot"} {
		places = append(places, fault{step: step}, fault{step: step, behind: true})
	}
	for i := range 10 {
		places = append(places, fault{step: fmt.Sprint("message ", i)})
	}
	for _, f := range places {
		for _, kind := range []string{"die", "reset", "hang", "HTTP/1.1 400 Bad Request\r\n", "250 2.0.0 Ok: queued as Y\r\n", "421 4.3.2 bye\r\n", "354 go\r\n", "250-2.0.0 O", "\x00\xff\r\n", "450 4.2.0 later\r\n", "550 5.7.1 no\r\n"} {
			for _, goOn := range []bool{false, true} {
				for _, size := range []int{2, 200} {
					for nth := 1; nth <= 2; nth++ {
						for _, proxy := range []bool{false, true} {
							f.kind, f.goOn, f.size, f.nth, f.proxy = kind, goOn, size, nth, proxy
							if f.possible() {
								all = append(all, f)
							}
						}
					}
				}
			}
		}
	}
	return all
}

// possible says that there is such a fault, and that it is one.
func (f fault) possible() bool {
	session := f.step == "connect" || f.step == "EHLO" || f.step == "XCLI" || f.step == "EHLO again"
	switch {
	case f.goOn && len(f.kind) <= 5: // who has died doesn't
		return false
	case f.nth > 1 && session: // there is one a session
		return false
	case f.proxy && (f.step == "XCLI" || f.step == "EHLO again"):
		return false
	case f.size > 2 && f.step != "dot" && !strings.HasPrefix(f.step, "message"):
		return false
	case strings.HasPrefix(f.kind, "250 ") && strings.HasPrefix(f.step, "message"):
		// Once the dot is on its way, nobody can know that it hasn't the message
		// that it says it has. What comes before the dot, relay:TestLiveFaults has.
		return false
	}
	return true
}

// TestFaults closes the books after every fault.
func TestFaults(t *testing.T) {
	snap := everybodyIn(t)
	all := allFaults()
	if len(all) < 2000 {
		t.Errorf("only %d faults", len(all))
	}
	var mu sync.Mutex // guards the sums
	sums, twice := map[string]int{}, 0
	var wg sync.WaitGroup
	places := make(chan struct{}, 64) // those who hang need time, not work
	for i, f := range all {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			endings, n, err := f.play(t.Context(), snap, i)
			if err != nil {
				t.Errorf("%v: %v (%v)", f, err, endings)
			}
			mu.Lock()
			defer mu.Unlock()
			for ending, n := range endings {
				sums[ending] += n
			}
			twice += n
		})
	}
	wg.Wait()
	for ending, n := range sums {
		if n == 0 {
			t.Errorf("no transaction ended %s", ending)
		}
	}
	t.Logf("%d faults; transactions by ending: %v; recipients that have a message twice: %d", len(all), sums, twice)
}

func everybodyIn(t *testing.T) *policy.Snapshot {
	t.Helper()
	file := filepath.Join(t.TempDir(), "policy.toml")
	if err := os.WriteFile(file, []byte(everybody), 0o600); err != nil {
		t.Fatal(err)
	}
	snap, _, err := handwritten.Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}
