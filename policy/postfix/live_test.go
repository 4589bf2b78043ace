package postfix_test

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// liveMain has one of each kind of table and list that decides without DNS.
const liveMain = `compatibility_level = 3.6
queue_directory = @DIR@/queue
data_directory = @DIR@/data
myhostname = mx.example.org
mydomain = example.org
myorigin = example.org
mydestination = $myhostname, localhost.$mydomain, inline:{table.example=x, .wild.example=x}
mynetworks = 192.0.2.0/24, !10.0.0.66, cidr:@DIR@/office.cidr
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
maillog_file = @DIR@/queue/mail.log
maillog_file_prefixes = /
recipient_delimiter = +-
alias_maps = hash:@DIR@/aliases.map
local_recipient_maps = unionmap:{inline:{carol=x}, inline:{dave=y}} pipemap:{inline:{erin=dave, frank=nobody}, inline:{dave=x}} $alias_maps
virtual_alias_maps = hash:@DIR@/virtual.map
virtual_mailbox_domains = @DIR@/domains, !never.example
virtual_mailbox_maps = texthash:@DIR@/mailboxes
relay_domains = hash:@DIR@/relay.map, !x.friend.example, one.example
relay_recipient_maps = inline:{alice@one.example=x, @two.example=x, bob@sub.one.example=x}
canonical_maps = inline:{old@mailbox.example=alice@mailbox.example, @canon.example=x}
smtpd_reject_unlisted_sender = yes
smtpd_restriction_classes = inner, outer
inner = hash:@DIR@/class.map, permit
outer = check_sender_access inline:{ {classy@sender.example = DUNNO} }, inner
smtpd_client_restrictions = permit_mynetworks, check_client_access cidr:@DIR@/client.cidr
smtpd_helo_restrictions = reject_invalid_helo_hostname, reject_non_fqdn_helo_hostname, hash:@DIR@/helo.map
smtpd_sender_restrictions = check_sender_access hash:@DIR@/sender.map, reject_non_fqdn_sender
smtpd_recipient_restrictions = reject_non_fqdn_recipient, check_recipient_access hash:@DIR@/rcpt.map,
    warn_if_reject check_recipient_access static:REJECT, reject_unauth_destination, inner
unknown_relay_recipient_reject_code = 551
access_map_reject_code = 553
relay_domains_reject_code = 556
smtpd_hard_error_limit = 100000
smtpd_soft_error_limit = 100000
smtpd_error_sleep_time = 0
smtpd_client_connection_count_limit = 0
smtpd_authorized_xclient_hosts = 127.0.0.0/8
smtpd_peername_lookup = no
in_flow_delay = 0
`

var liveFiles = map[string]string{
	"domains.regexp": "!/\\.example$/ no\n/^(sub\\.)?one\\.example$/ x\n",
	"rcpts.regexp":   "if /@one\\.example$/\n/^(alice|bob)/ x\nendif\n/^any@two/!/x/ x\n",
	"nets.regexp":    "/^10\\.1\\./ x\n",
	"nets":           "192.0.2.5 x\nsome.host.example x\n",
	"sender.pcre":    "/^x(?=@)/ DUNNO\n/^(a|news)@([a-z]+)\\./ REJECT no $1 of ${2}\n!/q/ REJECT $1\n/nobody@/ REJECT $7\n/nobody@(/ REJECT\n/nobody@/ 450 4.7.8 nobody\n",
	"alias.regexp":   "/^sales@/ x\n/^(.*)@second\\.example$/ $1@mailbox.example\n",
	"rcpt.regexp":    "/[%!]/ REJECT routed\n/^user@/ permit\n/^BLOCKED@/ inner, reject\n/^inner@/i inner\n",
	"main.cf":        liveMain,
	"office.cidr":    "if 10.0.0.0/8\n!10.128.0.0/9 x\nendif\n",
	"client.cidr":    "if 198.51.100.0/24\n198.51.100.7 OK\n!198.51.100.128/25 450 4.7.9 later\nendif\n203.0.113.0/24 REJECT bad net\n203.0.113.0/28 OK\n0.0.0.0/0 outer\n",
	"helo.map":       "mx.example.org REJECT you are not me\n.dyn.example 550 5.7.9 dynamic\ndyn.example 550 5.7.9 dynamic\n",
	"sender.map":     "spam.example REJECT\n<> DUNNO\nnews@ 421 4.7.1 no news\nclassy@sender.example outer\ndefer@sender.example DEFER_IF_PERMIT wait\n",
	"class.map":      "classy@sender.example 554 5.7.8 class\ninner@mailbox.example REJECT inner\n",
	"rcpt.map":       "blocked@mailbox.example REJECT\ntag+x@mailbox.example 450 tagged\nlist@mailbox.example reject_unlisted_recipient, outer\nfree@elsewhere.example OK\ndefer@mailbox.example DEFER\n",
	"aliases.map":    "postmaster root\nroot alice\nowner-list carol\n",
	"virtual.map":    "alias.example anything\nsales@alias.example alice@mailbox.example\n@catch.example alice@mailbox.example\ncatch.example anything\nbare carol\n",
	"domains":        "# domains\nmailbox.example,\n  Second.Example never.example\n",
	"mailboxes":      "Alice@mailbox.example x\nblocked@mailbox.example x\ntag@mailbox.example x\ninner@mailbox.example x\n@second.example x\ndefer@mailbox.example x\n",
	"relay.map":      "two.example x\nx.friend.example x\n",
}

const liveMaster = `%s inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
rewrite unix - - n - - trivial-rewrite
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
`

// TestLikePostfix plays the same sessions against a real Postfix and against
// what was imported from its configuration.
func TestLikePostfix(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("Postfix's master needs root: run the tests as root, as .ci/run does")
	}
	for name, extra := range map[string]string{
		"every list": "",
		"dotted": "parent_domain_matches_subdomains =\nrelay_domains = .one.example, hash:@DIR@/relay.map\nrecipient_delimiter = -\n" +
			"smtpd_relay_before_recipient_restrictions = no\nowner_request_special = no\n",
		"patterns": "relay_domains = !x.two.example, two.example, regexp:@DIR@/domains.regexp\nrelay_recipient_maps = regexp:@DIR@/rcpts.regexp\n" +
			"mynetworks = regexp:@DIR@/nets.regexp, texthash:@DIR@/nets\nsmtpd_client_restrictions = permit_mynetworks, reject\n" +
			"smtpd_sender_restrictions = check_sender_access pcre:@DIR@/sender.pcre\nvirtual_alias_maps = regexp:@DIR@/alias.regexp\n" +
			"smtpd_recipient_restrictions = check_recipient_access regexp:@DIR@/rcpt.regexp, reject_unauth_destination\n",
		"switches": "allow_percent_hack = no\nswap_bangpath = no\nappend_dot_mydomain = yes\nsmtpd_recipient_restrictions =\n" +
			"transport_maps = inline:{{tag@mailbox.example = error:5.7.6 moved}, {.one.example = retry:4.3.2 wait}, second.example=smtp:x}\n" +
			"relay_transport = relay\nrelocated_maps = inline:{{alice@mailbox.example = elsewhere}, {@alias.example = new}}\n" +
			"virtual_transport = error:no mailboxes\nsmtpd_sender_restrictions =\n",
		"codes": "access_map_defer_code = 455\nreject_code = 558\ndefer_code = 456\ninvalid_hostname_reject_code = 502\nnon_fqdn_reject_code = 505\n" +
			"plaintext_reject_code = 457\nmulti_recipient_bounce_reject_code = 552\nunknown_local_recipient_reject_code = 555\n" +
			"unknown_virtual_alias_reject_code = 559\nunknown_virtual_mailbox_reject_code = 557\nsmtpd_recipient_limit = 1000\n" +
			"smtpd_restriction_classes = inner, outer, rej, def, plain, multi\nrej = reject\ndef = defer\nplain = reject_plaintext_session\nmulti = reject_multi_recipient_bounce\n" +
			"smtpd_recipient_restrictions = check_recipient_access inline:{{list@mailbox.example = rej}, {tag+x@mailbox.example = def}, {old@mailbox.example = plain}, {any@second.example = multi}},\n" +
			" reject_non_fqdn_recipient, check_recipient_access hash:@DIR@/rcpt.map, reject_unauth_destination\n",
		"older names": "smtpd_helo_restrictions = reject_invalid_hostname, reject_non_fqdn_hostname\nallow_untrusted_routing = yes\n" +
			"smtpd_sender_restrictions = reject_authenticated_sender_login_mismatch, reject_known_sender_login_mismatch, reject_unauthenticated_sender_login_mismatch,\n" +
			" check_sasl_access inline:{x=OK}, permit_inet_interfaces, permit_sasl_authenticated\nsmtpd_client_restrictions = sleep 0\n" +
			"smtpd_recipient_restrictions = check_recipient_maps, reject_unauth_destination\nsmtpd_reject_unlisted_recipient = no\n" +
			"sender_canonical_maps = inline:{nobody@mailbox.example=alice@mailbox.example}\nrecipient_canonical_maps = inline:{other@alias.example=x@y}\n" +
			"proxy_interfaces = 192.0.2.99\nsmtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination\ndefault_transport = error:5.4.4 nowhere else\nvirtual_transport = error\n",
		// alias_maps as it is by default where NIS is compiled in.
		"combined": "alias_maps = hash:@DIR@/aliases.map, nis:mail.aliases\n" +
			"local_recipient_maps = unionmap:{inline:{carol=x}, regexp:{{/^dave/ x}}} unionmap:{regexp:{{/^frank@/ x}}, inline:{erin=x}} $alias_maps\n" +
			"virtual_alias_maps = pipemap:{inline:{sales@alias.example=q}, static:x} hash:@DIR@/virtual.map\n" +
			"smtpd_sender_restrictions = check_sender_access unionmap:{inline:{{news@x.example = 450 4.7.1 one}}, regexp:{{/^(a|news)@/ REJECT two}}}\n" +
			"smtpd_recipient_restrictions = reject_unauth_destination, check_recipient_access pipemap:{inline:{alice@mailbox.example=x}, static:REJECT}\n",
		"soft":         "soft_bounce = yes\nsmtpd_null_access_lookup_key = null\nlocal_transport = error:5.1.1 nobody here\nrelay_transport = retry\n",
		"all accepted": "relay_recipient_maps =\nlocal_recipient_maps =\nsmtpd_reject_unlisted_sender = no\nvirtual_alias_domains = alias.example\n",
		"bare": "smtpd_client_restrictions =\nsmtpd_helo_restrictions =\nsmtpd_sender_restrictions =\nsmtpd_recipient_restrictions =\n" +
			"smtpd_relay_restrictions = permit_mynetworks, defer_unauth_destination\nmyorigin = mailbox.example\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			compare(t, extra)
		})
	}
}

func compare(t *testing.T, extra string) {
	addr, src := startPostfix(t, extra)
	spec, _ := load(t, src)
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	compared, refused := 0, 0
	eachSession(func(client, helo, sender string) {
		live := playLive(t, addr, client, helo, sender)
		ours := playEngine(t, snap, client, helo, sender)
		for i, rcpt := range liveRecipients {
			compared++
			if live[i][0] != '2' {
				refused++
			}
			if live[i] != ours[i] {
				t.Errorf("client %s helo %s sender <%s> rcpt <%s>: Postfix %s, we %s", client, helo, sender, rcpt, live[i], ours[i])
			}
		}
	})
	t.Logf("%d replies compared, %d of them refusals", compared, refused)
	if refused < compared/10 || refused == compared {
		t.Errorf("%d of %d refused: the sessions say little", refused, compared)
	}
	matter(t, src, extra, func(snap *policy.Snapshot) (all []string) {
		eachSession(func(client, helo, sender string) { all = append(all, playEngine(t, snap, client, helo, sender)...) })
		return all
	})
}

func eachSession(play func(client, helo, sender string)) {
	for _, client := range []string{"192.0.2.5", "10.1.1.1", "10.200.1.1", "198.51.100.7", "198.51.100.9", "198.51.100.200", "203.0.113.5"} {
		for _, helo := range []string{"ok.example", "mx.example.org", "a.dyn.example", "noname", "-bad-.example"} {
			for _, sender := range []string{"", "a@spam.example", "news@x.example", "x@sender.example", "classy@sender.example", "defer@sender.example", "alice@mailbox.example", "nobody@mailbox.example", "bare"} {
				if helo == "ok.example" || sender == "x@sender.example" {
					play(client, helo, sender)
				}
			}
		}
	}
}

// matter asserts of each name that evidence.txt gives the test: with the
// parameter back at Postfix's default, or the restriction taken away, what is
// imported replies something else.
func matter(t *testing.T, src postfix.Source, extra string, replies func(*policy.Snapshot) []string) {
	t.Helper()
	name := filepath.Join(src.ConfigDir, "main.cf")
	main, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(text string) []string {
		old := time.Now().Add(-time.Hour) // what was changed just now Postfix's commands wait for
		if err := errors.Join(os.WriteFile(name, []byte(text), 0o644), os.Chtimes(name, old, old)); err != nil {
			t.Fatal(err)
		}
		spec, _, err := postfix.Import(t.Context(), src)
		if err != nil {
			return nil
		}
		snap, err := policy.Compile(spec)
		if err != nil {
			return nil
		}
		return replies(snap)
	}
	want := ask(string(main))
	matters := func(what string) bool {
		got := ask(testmx.Without(string(main), what))
		return got != nil && !slices.Equal(got, want)
	}
	for _, what := range testmx.Evidence(t, "testdata/evidence.txt", t.Name(), testmx.Mentioned(cmp.Or(extra, liveMain)), matters) {
		if !matters(what) {
			t.Errorf("%s doesn't matter here, though evidence.txt says so", what)
		}
	}
}

var liveRecipients = []string{
	"postmaster", "carol@mx.example.org", "Carol@MX.example.org", "carol+x@mx.example.org", "carol-x@localhost.example.org",
	"dave@table.example", "erin@sub.wild.example", "erin@wild.example", "frank@table.example", "root@mx.example.org", "owner-list@mx.example.org",
	"carol@[127.0.0.1]", "nobody@[127.0.0.1]", "carol@[192.0.2.99]", "bare@mx.example.org", "bare@mailbox.example",
	"alice@mailbox.example", "alice+tag@mailbox.example", "tag+x@mailbox.example", "nobody@mailbox.example", "blocked@mailbox.example",
	"blocked+y@mailbox.example", "inner@mailbox.example", "list@mailbox.example", "old@mailbox.example", "any@second.example", "any@never.example",
	"sales@alias.example", "other@alias.example", "x@catch.example", "x@canon.example", "alice@one.example", "bob@one.example",
	"bob@sub.one.example", "carl@sub.one.example", "any@two.example", "any@sub.two.example", "any@x.friend.example", "free@elsewhere.example",
	"user@elsewhere.example", "alice%mailbox.example@mx.example.org", "mailbox.example!alice@mx.example.org", "user@nodot", "defer@mailbox.example",
}

func startPostfix(t *testing.T, extra string, more ...map[string]string) (addr string, src postfix.Source) {
	t.Helper()
	return startServices(t, liveMaster, extra, more...)
}

// startServices starts a Postfix whose master.cf has the address for its %s,
// with more tables than all others have.
func startServices(t *testing.T, master, extra string, more ...map[string]string) (addr string, src postfix.Source) {
	t.Helper()
	addr = testmx.FreeAddr()
	files := map[string]string{"master.cf": fmt.Sprintf(master, addr)}
	maps.Copy(files, liveFiles)
	maps.Copy(files, contentFiles)
	maps.Copy(files, screenFiles)
	for _, m := range more {
		maps.Copy(files, m)
	}
	files["main.cf"] = testmx.Override(files["main.cf"], extra)
	src = install(t, files)
	src.Service = addr
	for dir := src.ConfigDir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) { // Postfix's user reads the tables
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := `cd "$1" && mkdir queue data && chmod 644 *.map *.db *.cidr *.regexp *.pcre nets main.cf master.cf domains mailboxes`
	if out, err := exec.Command("sh", "-c", "PATH=$PATH:/usr/sbin; "+script, "sh", src.ConfigDir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := testmx.CheckPostfix(src.ConfigDir, src.ConfigDir); err != nil {
		t.Fatal(err)
	}
	daemon, err := testmx.StartDaemon(addr, nil, testmx.PostfixCommand(src.ConfigDir)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := daemon.Kill(); err != nil {
			t.Errorf("kill Postfix: %v", err)
		}
		if log, _ := os.ReadFile(filepath.Join(src.ConfigDir, "queue/mail.log")); t.Failed() {
			t.Logf("the end of Postfix's log:\n%s", log[max(0, len(log)-3000):])
		}
	})
	return addr, src
}

// TestServicesLikePostfix: what master(8) starts of what is said twice or in
// master_service_disable. A, B and C are services.
func TestServicesLikePostfix(t *testing.T) {
	for n, disable := range []string{"", "A.inet", "B/INET, pass", "!C/inet !!B.inet", "A/inet B/unix !B/inet, B/inet,C/inet", "!A/inet, ./inet"} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			a, b, c := testmx.FreeAddr(), testmx.FreeAddr(), testmx.FreeAddr()
			disable := strings.NewReplacer("A", a, "B", b, "C", c).Replace(disable)
			const line = " inet n - n - - smtpd\n"
			master := a + line + " -o smtpd_helo_required=yes\n" + b + line + c + line + a + line + b + line + " -o smtpd_helo_required=yes\n" + liveMaster
			first, src := startServices(t, master, "master_service_disable = "+disable+"\n")
			dialLive(t, first)
			for _, service := range []string{a, b, c} {
				conn, err := net.Dial("tcp", service)
				src.Service = service
				spec, report := load(t, src)
				off := slices.ContainsFunc(report.Items, func(it fidelity.Item) bool { return strings.HasPrefix(it.Why, "master_service_disable") })
				if off != (err != nil) {
					t.Errorf("%s = %s: dialled with %v, but it is off: %v", service, disable, err, off)
				}
				if err != nil {
					continue
				}
				conn.Close()
				live, required := dialLive(t, service), "250"
				if spec.HeloRequired {
					required = "503"
				}
				live.say("")
				if got := live.say("MAIL FROM:<>"); !strings.HasPrefix(got, required) {
					t.Errorf("%s: smtpd_helo_required is %v, and Postfix says %s", service, spec.HeloRequired, got)
				}
			}
		})
	}
}

// live is a session with a Postfix that believes what XCLIENT says.
type live struct {
	net.Conn
	r *bufio.Reader
}

func dialLive(t *testing.T, addr string) *live {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return &live{c, bufio.NewReader(c)}
}

// say sends a line, if it is one, and returns the reply's code and enhanced
// code.
func (c *live) say(line string) string {
	if line != "" {
		fmt.Fprintf(c, "%s\r\n", line)
	}
	for {
		reply, err := c.r.ReadString('\n')
		if err != nil {
			return "closed"
		}
		if len(reply) > 3 && reply[3] == ' ' {
			f := strings.Fields(reply)
			return strings.Join(f[:min(2, len(f))], " ")
		}
	}
}

// greet begins as another client.
func (c *live) greet(t *testing.T, client, helo string) {
	t.Helper()
	c.say("")
	if got := c.say("XCLIENT ADDR=" + client + " NAME=[UNAVAILABLE] REVERSE_NAME=[UNAVAILABLE]"); got[:3] != "220" {
		t.Fatalf("XCLIENT: %s", got)
	}
	c.say("EHLO " + helo)
}

// playLive returns the reply to each recipient.
func playLive(t *testing.T, addr, client, helo, sender string) []string {
	t.Helper()
	c := dialLive(t, addr)
	defer c.Close()
	c.greet(t, client, helo)
	say := c.say
	var replies []string
	mail := say("MAIL FROM:<" + sender + ">")
	for _, rcpt := range liveRecipients {
		got := mail
		if mail[0] == '2' {
			got = say("RCPT TO:<" + rcpt + ">")
		}
		if strings.HasPrefix(got, "421") || got == "closed" { // Postfix hangs up
			got, mail = "421 4.7.1", "421 4.7.1"
		}
		replies = append(replies, got)
	}
	return replies
}

func playEngine(t *testing.T, snap *policy.Snapshot, client, helo, sender string) []string {
	t.Helper()
	ctx := context.Background()
	s := snap.Session(&testmx.MapResolver{}, envelope.Client{
		Addr: netip.MustParseAddr(client), Name: "unknown", ReverseName: "unknown",
	})
	defer s.Close()
	spell := func(v policy.Verdict) string {
		if v.Action == policy.Permit {
			return "250 2.1.5"
		}
		return fmt.Sprintf("%d %s", v.Reply.Code, v.Reply.Enhanced)
	}
	s.Connect(ctx)
	s.Helo(ctx, helo)
	from, _, err := envelope.ParseReversePath("<" + sender + ">")
	if err != nil {
		t.Fatal(err)
	}
	mail := s.Mail(ctx, from, policy.MailParams{})
	var replies []string
	closed := false
	for _, rcpt := range liveRecipients {
		to, _, err := envelope.ParseForwardPath("<" + rcpt + ">")
		if err != nil {
			t.Fatalf("%s: %v", rcpt, err)
		}
		v := mail
		if mail.Action == policy.Permit && !closed {
			v = s.Rcpt(ctx, to)
			closed = v.Close
		}
		if closed || v.Close {
			replies = append(replies, "421 4.7.1")
			continue
		}
		replies = append(replies, spell(v))
	}
	return replies
}
