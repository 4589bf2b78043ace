package test

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

const xclientHosts = "smtpd_authorized_xclient_hosts = 127.0.0.0/8"

// isLive waits until the secondary plays sessions through.
func (s *secondary) isLive() {
	s.t.Helper()
	eventually(s.t, 20*time.Second, "the secondary knows that the primary is up", func() bool { return s.metric(`understudy_primary_up{route="primary"}`) == 1 })
}

// TestLiveParity: while the primary is up, its own words go back, to the last
// one, also those that no snapshot has: a policy service's at RCPT and at the
// end of the data, a header check's.
func TestLiveParity(t *testing.T) {
	service, atEnd := newPolicyService(t), newPolicyService(t)
	primary := newPostfix(t)
	rules := filepath.Join(primary.dir, "header_checks")
	write(t, rules, "/^Subject: spam/ REJECT spam is not for us\n/^Subject: later/ REJECT 4.7.1 come back\n")
	primary.writeMain(xclientHosts, "smtpd_error_sleep_time = 0", "smtpd_peername_lookup = no", "smtpd_client_restrictions = check_client_access inline:{ {192.0.2.99 = 554 5.7.1 never} }",
		"virtual_mailbox_maps = inline:{ {alice@example.org = all/} {carol@example.org = all/} }",
		"smtpd_recipient_restrictions = check_sender_access inline:{ {bad@sender.example = REJECT not you} } check_policy_service inet:"+service.addr,
		"smtpd_end_of_data_restrictions = check_policy_service inet:"+atEnd.addr, "header_checks = regexp:"+rules)
	primary.start()
	s := newSecondary(t, primary.addr, policyFor("alice@example.org", "nobody@example.org"), "")
	s.start()
	s.isLive()
	var books testmx.Ledger
	queueID := regexp.MustCompile(`queued as \w+`)
	play := func(addr, client, from, subject string, to ...string) []string {
		content := message(subject, 2000)
		o := testmx.Send(t, addr, demo.Mail{XClient: "ADDR=" + client + " NAME=mail.sender.example REVERSE_NAME=mail.sender.example", Helo: "helo.sender.example",
			From: from, To: to, Content: []byte(content)})
		got := []string{o.Mail.String()}
		for i, r := range o.Rcpt {
			got = append(got, r.String())
			if r.Positive() && o.Final.Positive() && addr == s.addr {
				books.Accepted("", to[i], sum(content))
			}
		}
		return append(got, queueID.ReplaceAllString(o.Final.String(), "queued"))
	}
	for i, tt := range []struct{ from, subject, to, last string }{
		{"bob@sender.example", "hello", "alice@example.org", "250 2.0.0 Ok: queued"},
		{"bad@sender.example", "hello", "alice@example.org", ""},
		{"bob@sender.example", "hello", "nobody@example.org", ""},
		{"", "spam", "carol@example.org", "550 5.7.1 spam is not for us"},
		{"", "later", "carol@example.org", "451 4.7.1 come back"},
		{"", "fine", "carol@example.org nobody@example.org alice@example.org", "250 2.0.0 Ok: queued"},
	} {
		for n := range 3 { // greylists: by the service at RCPT, then by the one at the end
			own := play(primary.addr, fmt.Sprintf("192.0.2.%d", 10+i), tt.from, tt.subject, strings.Fields(tt.to)...)
			ours := play(s.addr, fmt.Sprintf("192.0.2.%d", 40+i), tt.from, tt.subject, strings.Fields(tt.to)...)
			if diff := cmp.Diff(own, ours); diff != "" {
				t.Errorf("%+v, try %d (-primary +through the secondary):\n%s", tt, n, diff)
			}
			if n == 2 && !strings.HasPrefix(ours[len(ours)-1], tt.last) {
				t.Errorf("%+v: the last reply is %s", tt, ours[len(ours)-1])
			}
		}
	}
	for i := range 2 { // a client that the primary refuses
		got := play([]string{primary.addr, s.addr}[i], "192.0.2.99", "bob@sender.example", "hello", "alice@example.org")
		if !strings.HasPrefix(got[1], "554 5.7.1 <mail.sender.example[192.0.2.99]>: Client host rejected: never") {
			t.Errorf("%d: %q", i, got)
		}
	}
	if n := len(s.queue()); n != 0 {
		t.Errorf("%d messages are in the queue", n)
	}
	if n := s.metric("understudy_accepted_messages_total"); n != 0 {
		t.Errorf("%v messages were kept", n)
	}
	log := readFile(t, filepath.Join(primary.dir, "mail.log"))
	if !strings.Contains(log, "client=mail.sender.example[192.0.2.45]") {
		t.Errorf("the primary's log doesn't name the client")
	}
	s.stop()
	primary.settle()
	files, err := filepath.Glob(filepath.Join(primary.dir, "mail/all/new/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b := []byte(readFile(t, f)); bytes.Contains(b, []byte("by "+hostname+" with")) { // the others came directly
			d := parseDelivery(t, b, hostname)
			books.Relayed(d.to, testmx.Sum(d.content))
		}
	}
	books.Close(t)
	if n := books.Totals(); n.Accepted != 3 || n.Duplicates != 0 {
		t.Errorf("the books have %+v", n)
	}
}

// dialogue is a client that speaks by hand.
type dialogue struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func (d *dialogue) do(say, want string) string {
	d.t.Helper()
	if say != "" {
		fmt.Fprintf(d.conn, "%s\r\n", say)
	}
	d.conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
	for {
		line, err := d.in.ReadString('\n')
		if err != nil || line[3] != '-' {
			if !strings.HasPrefix(line, want) {
				d.t.Errorf("%.60q: got %q, %v, want %s", say, line, err, want)
			}
			return line
		}
	}
}

// TestLivePrimaryDies kills the primary after each step of a session. The
// sender hears 250 all the same; nothing is lost, and nothing is there twice but
// where the primary died with the whole message in its hands.
func TestLivePrimaryDies(t *testing.T) {
	t.Parallel()
	primary := newPostfix(t)
	s := newSecondary(t, primary.addr, policyFor("alice@example.org", "carol@example.org"), "")
	s.start()
	var books testmx.Ledger
	for _, at := range []string{"220", "EHLO", "MAIL", "RCPT", "RCPT again", "DATA", "a tenth", "half", "dot"} {
		t.Run(at, func(t *testing.T) {
			primary.writeMain(xclientHosts, "smtpd_end_of_data_restrictions = sleep 3")
			primary.start()
			s.isLive()
			marked := s.metric(`understudy_live_transactions_total{ending="after_dot"}`)
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			d := &dialogue{t, conn, bufio.NewReader(conn)}
			after := func(step string) {
				if step == at {
					primary.kill()
				}
			}
			content := message("killed after "+at, 300_000)
			d.do("", "220")
			after("220")
			d.do("EHLO sender.example", "250")
			after("EHLO")
			d.do("MAIL FROM:<bob@sender.example> BODY=8BITMIME", "250")
			after("MAIL")
			d.do("RCPT TO:<alice@example.org>", "250")
			after("RCPT")
			d.do("RCPT TO:<carol@example.org>", "250")
			after("RCPT again")
			d.do("DATA", "354")
			after("DATA")
			stuffed := strings.ReplaceAll("\r\n"+content, "\r\n.", "\r\n..")[2:]
			for i := range 10 {
				fmt.Fprint(conn, stuffed[i*len(stuffed)/10:(i+1)*len(stuffed)/10])
				after(map[int]string{0: "a tenth", 4: "half"}[i])
			}
			if at == "dot" {
				fmt.Fprint(conn, ".\r\n")
				eventually(t, 20*time.Second, "the primary has the message", func() bool {
					files, err := filepath.Glob(filepath.Join(primary.dir, "queue/incoming/*"))
					return err == nil && len(files) > 0
				})
				killed := make(chan struct{})
				time.AfterFunc(500*time.Millisecond, func() {
					defer close(killed)
					primary.kill()
				})
				d.do("", "250 2.0.0 Ok: queued as")
				<-killed
			} else {
				d.do(".", "250 2.0.0 Ok: queued as")
			}
			d.do("QUIT", "221")
			for _, to := range []string{"alice@example.org", "carol@example.org"} {
				books.Accepted("", to, sum(content))
			}
			if all := s.queue(); len(all) != 1 {
				t.Errorf("%d messages are in the queue, want 1", len(all))
			} else if show := s.cli("queue", "show", all[0].ID); strings.Contains(show, "May arrive twice") != (at == "dot") {
				t.Errorf("queue show:\n%s", show)
			}
			if n := s.metric(`understudy_live_transactions_total{ending="after_dot"}`) - marked; (n == 1) != (at == "dot") {
				t.Errorf("%v are counted as lost after the dot", n)
			}
			primary.kill()
			primary.writeMain(xclientHosts)
			primary.start()
			eventually(t, time.Minute, "the queue is empty", func() bool { return len(s.queue()) == 0 })
			primary.settle()
			primary.kill()
			eventually(t, time.Minute, "the secondary knows", func() bool { return s.metric(`understudy_primary_up{route="primary"}`) == 0 })
		})
	}
	primary.start()
	if log := readFile(t, s.path("log")); strings.Count(log, "may arrive twice") != 1 || strings.Count(log, "may have had before") != 1 {
		t.Error("the log doesn't name the message that may arrive twice, when it is kept and when it is relayed")
	}
	s.stop()
	closeBooks(t, &books, primary, 2) // of the last, to either recipient
}

// TestLivePrimaryStops: a primary that is stopped, so that the kernel alone
// answers, costs one client a quarter of a minute, and no mail.
func TestLivePrimaryStops(t *testing.T) {
	t.Parallel()
	primary := newPostfix(t, xclientHosts)
	primary.start()
	s := newSecondary(t, primary.addr, policyFor("alice@example.org"), "")
	s.start()
	s.isLive()
	var books testmx.Ledger
	accept(t, s, &books, "alice@example.org")
	if n := s.metric("understudy_accepted_messages_total"); n != 0 {
		t.Fatalf("%v messages were kept while the primary was up", n)
	}
	if err := syscall.Kill(-primary.run.Pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	accept(t, s, &books, "alice@example.org")
	if took := time.Since(start); took > 40*time.Second {
		t.Errorf("the sender waited for %v", took)
	}
	start = time.Now()
	accept(t, s, &books, "alice@example.org")
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("the next one waited for %v", took)
	}
	if n := s.metric("understudy_accepted_messages_total"); n != 2 {
		t.Errorf("%v messages were kept, want 2", n)
	}
	if err := syscall.Kill(-primary.run.Pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the queue is empty", func() bool { return len(s.queue()) == 0 })
	s.stop()
	closeBooks(t, &books, primary, 0)
}

// TestProxyIdentity: a Postfix that reads PROXY headers hears of each client by
// them: of one that is played through, asked about, or whose mail waited.
func TestProxyIdentity(t *testing.T) {
	service := newPolicyService(t)
	lines := []string{"inet_protocols = all", "smtpd_upstream_proxy_protocol = haproxy", "smtpd_peername_lookup = no", "smtpd_recipient_restrictions = check_policy_service inet:" + service.addr}
	primary := newPostfix(t, lines...)
	primary.start()
	s := newSecondary(t, primary.addr, "", "identity = \"proxy\"\n")
	write(t, s.path("understudy.toml"), strings.Replace(readFile(t, s.path("understudy.toml")), "policy.toml", "policy.json", 1))
	s.importFrom(primary, service, "ask-else-ignore")
	s.start()
	s.isLive()
	var books testmx.Ledger
	sees := func(how, client string) {
		t.Helper()
		for name, want := range map[string]string{"client_address": client, "helo_name": "helo.sender.example", "sender": "bob@sender.example"} {
			if got, _ := service.request(name); got != want {
				t.Errorf("%s: the policy service saw %s=%s, want %s", how, name, got, want)
			}
		}
	}
	if got := sendAs(t, s.addr, "192.0.2.7", &books); !strings.HasPrefix(got, "450 4.7.1 <alice@example.org>: Recipient address rejected: Greylisted") {
		t.Errorf("live, greylisted: %s", got)
	}
	sees("live", "192.0.2.7")
	if got := sendAs(t, s.addr, "192.0.2.7", &books); !strings.HasPrefix(got, "250 2.1.5") || len(s.queue()) != 0 {
		t.Errorf("live, the second try: %s", got)
	}
	if got := sendAs(t, s.addr, "2001:db8::7", &books); !strings.HasPrefix(got, "450 4.7.1") {
		t.Errorf("live, IPv6: %s", got)
	}
	sees("live, IPv6", "2001:db8::7")

	primary.kill()
	eventually(t, 20*time.Second, "the secondary knows", func() bool { return s.metric(`understudy_primary_up{route="primary"}`) == 0 })
	for i := range 3 {
		if got := sendAs(t, s.addr, fmt.Sprintf("192.0.2.%d", 8+i), &books); !strings.HasPrefix(got, "250 2.1.5") {
			t.Errorf("while it is down: %s", got)
		}
		service.decide(map[string]string{"client_address": fmt.Sprintf("192.0.2.%d", 8+i), "sender": "bob@sender.example", "recipient": "alice@example.org"}) // no greylisting now
	}
	primary.start()
	eventually(t, 20*time.Second, "the queue is empty", func() bool { return len(s.queue()) == 0 })
	log := readFile(t, filepath.Join(primary.dir, "mail.log"))
	for i := range 3 {
		if want := fmt.Sprintf("client=unknown[192.0.2.%d]", 8+i); !strings.Contains(log, want) {
			t.Errorf("the primary's log lacks %s", want)
		}
	}
	s.stop()

	write(t, s.path("understudy.toml"), readFile(t, s.path("understudy.toml"))+"while_up = \"accept\"\n")
	s.start()
	s.isLive()
	if got := sendAs(t, s.addr, "192.0.2.20", &books); !strings.HasPrefix(got, "450 4.7.1") {
		t.Errorf("asked: %s", got)
	}
	sees("asked", "192.0.2.20")
	// It finds other things wrong with a set-up on loopback addresses.
	out, _ := exec.Command(s.binary, "doctor", "--json", "-c", s.path("understudy.toml")).CombinedOutput()
	if !bytes.Contains(out, []byte(`"check"`)) || bytes.Contains(out, []byte("primary-away")) || bytes.Contains(out, []byte("no-client-identity")) {
		t.Errorf("doctor:\n%s", out)
	}
	s.stop()
	closeBooks(t, &books, primary, 0)
}

// TestPutOff: with while_up = "defer" senders are sent to the primary while it is
// up, and taken once it is down.
func TestPutOff(t *testing.T) {
	primary := newPostfix(t)
	primary.start()
	s := newSecondary(t, primary.addr, policyFor("alice@example.org"), "while_up = \"defer\"\n")
	s.start()
	s.isLive()
	var books testmx.Ledger
	if got := sendAs(t, s.addr, "192.0.2.7", &books); !strings.HasPrefix(got, "451 4.7.1 <alice@example.org>: Recipient address rejected: the primary is up") {
		t.Errorf("while it is up: %s", got)
	}
	primary.kill()
	eventually(t, 20*time.Second, "the secondary knows", func() bool { return s.metric(`understudy_primary_up{route="primary"}`) == 0 })
	if got := sendAs(t, s.addr, "192.0.2.7", &books); !strings.HasPrefix(got, "250 2.1.5") {
		t.Errorf("while it is down: %s", got)
	}
	if n := s.metric(`understudy_put_off_recipients_total{result="deferred"}`); n != 1 {
		t.Errorf("%v are counted as deferred, want 1", n)
	}
	primary.start()
	eventually(t, 20*time.Second, "the queue is empty", func() bool { return len(s.queue()) == 0 })
	s.isLive()
	if got := sendAs(t, s.addr, "198.51.100.7", &books); !strings.HasPrefix(got, "250 2.1.5") {
		t.Errorf("a moment after the outage: %s", got)
	}
	eventually(t, 20*time.Second, "the queue is empty", func() bool { return len(s.queue()) == 0 })
	s.stop()
	closeBooks(t, &books, primary, 0)
}

// TestStandIn: in a planned window the message under way is the primary's, the next
// one is kept although the primary is up, also after a restart; when the window is
// closed it is relayed, and the book has an outage that was planned.
func TestStandIn(t *testing.T) {
	primary := newPostfix(t, xclientHosts)
	primary.start()
	s := newSecondary(t, primary.addr, policyFor("alice@example.org"), "")
	s.start()
	s.isLive()
	var books testmx.Ledger
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	d := &dialogue{t: t, conn: conn, in: bufio.NewReader(conn)}
	d.do("", "220")
	d.do("EHLO helo.sender.example", "250")
	d.do("MAIL FROM:<bob@sender.example>", "250")
	d.do("RCPT TO:<alice@example.org>", "250")
	s.cli("stand-in", "1h", "--reason", "new disks")
	d.do("DATA", "354")
	content := "Subject: under way\r\n\r\nx\r\n"
	if reply := d.do(content+".", "250"); !strings.Contains(reply, "Ok: queued as") || len(s.queue()) != 0 {
		t.Errorf("the message under way: %s", reply)
	}
	books.Accepted("", "alice@example.org", sum(content))
	for range 2 {
		if got := sendAs(t, s.addr, "192.0.2.7", &books); !strings.HasPrefix(got, "250 2.1.5") {
			t.Errorf("while it stands in: %s", got)
		}
		s.stop()
		s.start()
		eventually(t, 20*time.Second, "the secondary knows that the primary is up", func() bool { return s.metric(`understudy_primary_up{route="primary"}`) == 1 })
	}
	if got := sendAs(t, s.addr, "192.0.2.8", &books); !strings.HasPrefix(got, "250 2.1.5") || len(s.queue()) != 3 {
		t.Errorf("after a restart: %s, %d in the queue", got, len(s.queue()))
	}
	eventually(t, 20*time.Second, "the book has it", func() bool { return strings.Contains(s.cli("outage", "list"), "stand-in") })
	s.cli("stand-in", "--end")
	eventually(t, 20*time.Second, "the queue is empty", func() bool { return len(s.queue()) == 0 })
	eventually(t, 20*time.Second, "it is over", func() bool {
		return strings.Contains(s.cli("outage", "show"), "new disks") && strings.Contains(s.cli("outage", "list"), "over")
	})
	if got := sendAs(t, s.addr, "192.0.2.9", &books); !strings.HasPrefix(got, "250 2.1.5") || len(s.queue()) != 0 {
		t.Errorf("afterwards: %s", got)
	}
	s.stop()
	closeBooks(t, &books, primary, 0)
}

// TestLiveCutOff: a line that swallows everything, from one moment on, leaves
// sessions at each of their steps. Their senders hear 250 all the same.
func TestLiveCutOff(t *testing.T) {
	t.Parallel()
	far := newFarAway(t)
	primary := newPostfix(t)
	primary.addr = far.addr + ":25"
	primary.writeMain("inet_interfaces = all", "smtpd_peername_lookup = no", "smtpd_authorized_xclient_hosts = "+far.peer)
	write(t, filepath.Join(primary.dir, "conf/master.cf"), fmt.Sprintf(testmx.MasterCF, primary.addr))
	run, err := testmx.StartDaemon(primary.addr, nil, append([]string{"ip", "netns", "exec", far.name}, testmx.PostfixCommand(filepath.Join(primary.dir, "conf"))...)...)
	if err != nil {
		t.Fatal(err)
	}
	primary.run = run
	s := newSecondary(t, primary.addr, policyFor("alice@example.org"), "")
	s.start()
	s.isLive()
	steps := []string{"EHLO", "MAIL", "RCPT", "DATA", "half"}
	arrived, cut := make(chan string, len(steps)), make(chan struct{})
	ended := make(chan string, len(steps))
	var books testmx.Ledger
	for _, at := range steps {
		content := message("cut off after "+at, 4_000_000)
		books.Accepted("", "alice@example.org", sum(content))
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() { // each gets its 250 within the primary's twenty seconds
			d := &dialogue{t, conn, bufio.NewReader(conn)}
			after := func(step string) {
				if step == at {
					arrived <- at
					<-cut
				}
			}
			d.do("", "220")
			d.do("EHLO sender.example", "250")
			after("EHLO")
			d.do("MAIL FROM:<bob@sender.example> BODY=8BITMIME", "250")
			after("MAIL")
			d.do("RCPT TO:<alice@example.org>", "250")
			after("RCPT")
			d.do("DATA", "354")
			after("DATA")
			stuffed := strings.ReplaceAll("\r\n"+content, "\r\n.", "\r\n..")[2:]
			fmt.Fprint(conn, stuffed[:len(stuffed)/2])
			after("half")
			fmt.Fprint(conn, stuffed[len(stuffed)/2:])
			ended <- at + ": " + d.do(".", "250 2.0.0 Ok: queued as")
		}()
	}
	for range steps {
		<-arrived
	}
	far.run("ip", "-n", far.name, "link", "set", far.there, "down")
	close(cut)
	start := time.Now()
	for range steps {
		<-ended
	}
	if took := time.Since(start); took > time.Minute {
		t.Errorf("it took %v", took)
	}
	if n := s.metric("understudy_accepted_messages_total"); n != float64(len(steps)) {
		t.Errorf("%v messages were kept, want %d", n, len(steps))
	}
	far.run("ip", "-n", far.name, "link", "set", far.there, "up")
	eventually(t, 2*time.Minute, "the queue is empty", func() bool { return len(s.queue()) == 0 })
	s.stop()
	closeBooks(t, &books, primary, 0)
}
