package postfix_test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// oddTables are tables of every type, as main.cf spells them. Each serves as a
// sender access list, a client access list and a list of recipients.
var oddTables = []struct {
	table string
	files map[string]string // by the name that the table has after @DIR@/
	kept  bool              // not replicated, and in the report: 4xx where Postfix says anything else
}{
	{table: "inline:{a@x.example=REJECT}"},
	{table: "inline:{ {a@x.example = REJECT a, b = c}, b@x.example=450, {d@x.example=} }"},
	{table: "inline:{A@x.example=REJECT, {x.example = REJECT {braces}}, {192.0.2.7 = 450 4.7.1 by address}}"},
	{table: "inline:{a@x.example=OK,a@x.example=REJECT}"},
	{table: "inline:{{a@x.example = }, {b@x.example=  }}"},
	{table: "static:REJECT"},
	{table: "static:{}"},
	{table: "static:{  }"},
	{table: "static:{450 4.7.1 for {now}, later}"},
	{table: "static:OK"},
	{table: "fail:x"},
	{table: "internal:x"},
	{table: "environ:x", kept: true},
	{table: "randmap:{REJECT}"},
	{table: "randmap:{450, REJECT, 421}", kept: true},
	{table: "texthash:@DIR@/th", files: map[string]string{"th": "a@x.example REJECT one\n two\n\tthree\n# b@x.example REJECT\nb@x.example\td@x.example\nd@x.example\nD@x.example REJECT\n192.0.2.7 REJECT\n192.0.2 450\n"}},
	{table: "texthash:@DIR@/tq", files: map[string]string{"tq": "\"q x\"@x.example REJECT\n\"a b\"@x.example REJECT quoted\nq\\ x@x.example OK\n@x.example REJECT at\nx.example REJECT whole\n a@x.example OK\n"}},
	{table: "unionmap:{inline:{a@x.example=REJECT},inline:{b@x.example=450,a@x.example=x}}"},
	{table: "unionmap:{inline:{a@x.example=REJECT},fail:x}"},
	{table: "unionmap:{fail:x, static:REJECT}"},
	{table: "unionmap:{static:REJECT,static:OK}"},
	{table: "unionmap:{unionmap:{inline:{a@x.example=REJECT}},regexp:{{/^b@/ 450}}}"},
	{table: "pipemap:{inline:{a@x.example=k,b@x.example=l},inline:{k=REJECT}}"},
	{table: "pipemap:{inline:{a@x.example=k},fail:x}", kept: true},
	{table: "pipemap:{fail:x,inline:{k=REJECT}}"},
	{table: "pipemap:{static:k,inline:{{k=REJECT piped}}}"},
	{table: "pipemap:{static:K,inline:{{k=REJECT folded}}}"},
	{table: "pipemap:{regexp:{{/^(.)@x/ $$1}}, inline:{a=REJECT, b=450}}"},
	{table: "pipemap:{inline:{a@x.example=10.0.0.1},cidr:{{10.0.0.0/8 REJECT}}}"},
	{table: "pipemap:{inline:{{a@x.example=}},static:REJECT}"},
	{table: "regexp:@DIR@/re", files: map[string]string{"re": "/^A@/ REJECT\n/^b@/i OK\n/^B@/i REJECT case\nif /^d/\n!/d@x/ OK\n/^(d)@(x)/ REJECT $1 ${2} $(1) $$\n  more $2\nendif\n/^e+\\(@/x REJECT basic\n/^q( )x@/!/y/ REJECT [$1]\n/^f@/ REJECT $1\n/x\\.example$/ \n"}},
	{table: "pcre:@DIR@/pc", files: map[string]string{"pc": "/^A@/ REJECT\n/^B@/i REJECT case\nif !/^[^d]/\n/(?<n>d)@(x|y)/ 450 4.7.1 $1-${2}-$(1) $$1\nendif\n/^f  @/x REJECT extended\n/^q x@x\\.example$/A REJECT anchored\n/^e@.*?/U REJECT\n~^g~ REJECT tilde\n/^(h)(i)?/ REJECT <$2>\n"}},
	{table: "regexp:{{/^a@/ REJECT {in} braces}, {if /^b/}, {/./ 450}, {endif}}"},
	{table: "pcre:{{/^(a|b)@/ REJECT $$1}, {!/x\\.example/ REJECT other}}"},
	{table: "regexp:@DIR@/rd", files: map[string]string{"rd": "/^a@/ REJECT $\n/^b@/ REJECT ${}\n/^(d)@/ REJECT ${1 }\n/^e@/ REJECT a$b\n/^f@/ REJECT $0\n/^(h)@/ REJECT ${1\n"}},
	{table: "pcre:@DIR@/pd", files: map[string]string{"pd": "/^a@/ REJECT $\n/^b@/ REJECT ${}\n/^(d)@/ REJECT $11\n/^e@/ REJECT a$b\n/^f@/ REJECT $0\n/^(h)@/ REJECT ${1\n"}},
	{table: "cidr:@DIR@/ci", files: map[string]string{"ci": "192.0.2.7 REJECT one\n!192.0.2.0/24 450 outside\nif 192.0.2.0/28\n192.0.2.9/32 OK\n!192.0.2.0/29 REJECT upper\nENDIF\n192.0.2.33/24 REJECT bits\n[2001:db8::]/32 REJECT six\n0.0.0.0/0\n192.0.2.0/24\tREJECT  tab \n"}},
	{table: "cidr:{{192.0.2.8/30 REJECT inline}, {!::/0 450 four}, {::ffff:192.0.2.0/120 OK}}"},
	{table: "texthash:@DIR@/tw", files: map[string]string{"tw": "a@x.example OK\na@x.example REJECT twice\n"}},
	{table: "unionmap:{inline:{b@x.example=REJECT},texthash:@DIR@/tw}"},
	{table: "texthash:@DIR@/ml", files: map[string]string{"ml": "a@x.example\n REJECT on the next line\n\n#c\n  and after a comment\nb@x.example 450\n\n 4.7.9 far\n"}},
}

var (
	oddSenders = []string{"", "a@x.example", "A@X.example", "a+t@x.example", "b@x.example", "d@x.example", "e@x.example", "f@x.example", `"q x"@x.example`, `"a b"@x.example`, "ghi@x.example", "h@y.example", "a@sub.x.example", "ee(@x.example"}
	oddClients = []string{"192.0.2.7", "192.0.2.9", "192.0.2.12", "192.0.2.200", "198.51.100.1"}
)

// TestTablesLikePostfix asks tables of all types, as every kind of list, through
// a real Postfix that has a service for each of them.
func TestTablesLikePostfix(t *testing.T) {
	roles := []string{"smtpd_sender_restrictions=check_sender_access ", "smtpd_client_restrictions=check_client_access ", "relay_recipient_maps="}
	master := strings.TrimPrefix(liveMaster, "%s inet n - n - - smtpd\n")
	addrs, files := map[[2]int]string{}, map[string]string{}
	for n, o := range oddTables {
		for role, r := range roles {
			a := testmx.FreeAddr()
			addrs[[2]int{n, role}] = a
			master = fmt.Sprintf("%s inet n - n - - smtpd -o {%s%s}\n", a, r, o.table) + master
		}
		maps.Copy(files, o.files)
	}
	master += "%s inet n - n - - smtpd\n"
	_, src := startServices(t, master, "mydestination =\nvirtual_alias_maps =\nvirtual_mailbox_domains =\ncanonical_maps =\nrelay_domains = x.example, y.example, sub.x.example, t.example\n"+
		"relay_recipient_maps = static:x\nsmtpd_client_restrictions =\nsmtpd_helo_restrictions =\nsmtpd_sender_restrictions =\nsmtpd_recipient_restrictions =\n"+
		"smtpd_relay_restrictions = reject_unauth_destination\nsmtpd_reject_unlisted_sender = no\nsmtpd_delay_reject = yes\nmynetworks =\nmax_idle = 3s\nrecipient_delimiter = +\n", files)
	for n, o := range oddTables {
		for role, r := range roles {
			t.Run(fmt.Sprintf("%02d.%d", n, role), func(t *testing.T) {
				t.Parallel()
				src := src
				src.Service = addrs[[2]int{n, role}]
				spec, report := load(t, src)
				snap, err := policy.Compile(spec)
				if err != nil {
					t.Fatal(err)
				}
				notes := ""
				for _, it := range report.Items {
					if it.Class == fidelity.NotReplicated || it.Class == fidelity.Approximated && it.Why != "" && strings.Contains(it.Element, ":") {
						notes += it.Element + ": " + it.Why + " → " + it.Instead + "; "
					}
				}
				if softened := strings.Contains(notes, "→ soften"); softened != (o.kept && role < 2) && notes != "" {
					t.Errorf("%s: the report says %q", o.table, notes)
				}
				if !o.kept {
					compareTable(t, src, snap, role, strings.Contains(notes, "for now only"), r+o.table+"  ["+notes+"]")
				}
			})
		}
	}
}

func compareTable(t *testing.T, src postfix.Source, snap *policy.Snapshot, role int, softened bool, what string) {
	clients, senders, rcpts := []string{"198.51.100.1"}, []string{"s@s.example"}, []string{"r@t.example"}
	switch role {
	case 0:
		senders = oddSenders
	case 1:
		clients = oddClients
	default:
		rcpts = oddSenders[1:]
	}
	for _, client := range clients {
		live := dialLive(t, src.Service)
		addr := client
		if strings.Contains(client, ":") {
			addr = "IPV6:" + client
		}
		live.greet(t, addr, "h.example")
		ctx := context.Background()
		s := snap.Session(&testmx.MapResolver{}, envelope.Client{Addr: netip.MustParseAddr(client), Name: "unknown", ReverseName: "unknown"})
		s.Connect(ctx)
		s.Helo(ctx, "h.example")
		for _, sender := range senders {
			from, _, err := envelope.ParseReversePath("<" + sender + ">")
			if err != nil {
				t.Fatal(err)
			}
			live.say("RSET")
			want := live.whole("MAIL FROM:<" + sender + ">")
			got := spellVerdict(s.Mail(ctx, from, policy.MailParams{}))
			for _, rcpt := range rcpts {
				if want[0] == '2' {
					want = live.whole("RCPT TO:<" + rcpt + ">")
					to, _, err := envelope.ParseForwardPath("<" + rcpt + ">")
					if err != nil {
						t.Fatal(err)
					}
					got = spellVerdict(s.Rcpt(ctx, to))
				}
				if want[0] == '2' && got[0] == '2' || role == 2 && want[0] == '4' && got[0] == '4' || role == 2 && softened && got[0] == '4' {
					want, got = "2", "2"
				}
				if want != got {
					t.Errorf("%s\n client %s sender <%s> rcpt <%s>:\n Postfix %s\n we      %s", what, client, sender, rcpt, want, got)
				}
				want = "2"
			}
		}
		s.Close()
		live.Close()
	}
}

func spellVerdict(v policy.Verdict) string {
	if v.Action == policy.Permit {
		return "250"
	}
	return fmt.Sprintf("%d %s %s", v.Reply.Code, v.Reply.Enhanced, v.Reply.Text)
}

func (c *live) whole(line string) string {
	fmt.Fprintf(c, "%s\r\n", line)
	for {
		reply, err := c.r.ReadString('\n')
		if err != nil {
			return "closed"
		}
		if len(reply) > 3 && reply[3] == ' ' {
			return strings.TrimRight(reply, "\r\n")
		}
	}
}
