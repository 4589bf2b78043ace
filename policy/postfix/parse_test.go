package postfix

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestWords(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{" a, b\tc\r\n,, d ", []string{"a", "b", "c", "d"}},
		{"check_x { inline:{ a=b, {c = d e} } }, y", []string{"check_x", "{ inline:{ a=b, {c = d e} } }", "y"}},
		{"a}b {c", []string{"a}b", "{c"}},
		{"smtpd:{a b}c d", []string{"smtpd:{a b}c", "d"}},
	} {
		if diff := cmp.Diff(tt.want, words(tt.in)); diff != "" {
			t.Errorf("words(%q) (-want +got):\n%s", tt.in, diff)
		}
	}
}

func TestParseList(t *testing.T) {
	isClass := func(s string) bool { return s == "strict" }
	for _, tt := range []struct {
		name, list, implied string
		want                []string
		err                 string
	}{
		{"plain", "permit_mynetworks, reject_unauth_destination", "", []string{"permit_mynetworks", "reject_unauth_destination"}, ""},
		{"case and old names", "Reject_RBL x.example reject_unknown_client", "", []string{"reject_rbl_client x.example", "reject_unknown_client_hostname"}, ""},
		{"bare table", "hash:/a, strict", "check_client_access", []string{"check_client_access hash:/a", "strict"}, ""},
		{"two tables", "check_recipient_access hash:/a hash:/b", "check_recipient_access", []string{"check_recipient_access hash:/a", "check_recipient_access hash:/b"}, ""},
		{"bare table where none may be", "hash:/a", "", nil, "before it"},
		{"warn", "warn_if_reject reject_rbl_client x.example, permit", "", []string{"warn_if_reject reject_rbl_client x.example", "permit"}, ""},
		{"warn at the end", "permit_mynetworks warn_if_reject", "", []string{"permit_mynetworks"}, ""},
		{"never reached", "reject, no_such_thing", "", []string{"reject"}, ""},
		{"reached", "warn_if_reject reject, no_such_thing", "", nil, "no_such_thing"},
		{"after permit, even warned", "warn_if_reject permit, no_such_thing", "", []string{"warn_if_reject permit"}, ""},
		{"policy service in braces", "check_policy_service { inet:127.0.0.1:1, timeout=10s }", "", []string{"check_policy_service { inet:127.0.0.1:1, timeout=10s }"}, ""},
		{"number", "sleep 5", "", []string{"sleep 5"}, ""},
		{"no number", "sleep five", "", nil, "number"},
		{"no table", "check_sender_access /etc/x", "", nil, "type:table"},
		{"no argument", "reject_rbl_client", "", nil, "argument"},
		{"unknown", "rejekt", "", nil, "unknown restriction"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			es, err := parseList(tt.list, tt.implied, isClass)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			var got []string
			for _, e := range es {
				got = append(got, e.text())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLogicalLines(t *testing.T) {
	var got []string
	logicalLines("  lost\n# c\na\n b\n\n# c\n c\n\nd", func(n int, s string) { got = append(got, s) })
	if diff := cmp.Diff([]string{"a b c", "d"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestPatternRules(t *testing.T) {
	for _, tt := range []struct {
		name, typ, text string
		want            []Rule
		skipped         int
	}{
		{"regexp", "regexp", `/^a\/b$/ REJECT no`, []Rule{{Op: Match, Pattern: `^a\/b$`, Flags: "ix", Value: "REJECT no", Line: 1}}, 0},
		{"flags", "regexp", "!#x#im OK", []Rule{{Op: Match, Not: true, Pattern: "x", Flags: "mx", Value: "OK", Line: 1}}, 0},
		{"two patterns", "regexp", "/a/!/b/ OK", []Rule{{Op: Match, Pattern: "a", Flags: "ix", And: &Rule{Op: Match, Not: true, Pattern: "b", Flags: "ix"}, Value: "OK", Line: 1}}, 0},
		{"if", "pcre", "if !/a/x\n/b/ OK\nendif\n", []Rule{
			{Op: If, Not: true, Pattern: "a", Flags: "isx", Line: 1}, {Op: Match, Pattern: "b", Flags: "is", Value: "OK", Line: 2}, {Op: Endif, Line: 3}}, 0},
		{"pcre flags", "pcre", "/a/isU $1", []Rule{{Op: Match, Pattern: "a", Flags: "U", Value: "$1", Line: 1}}, 0},
		{"nonsense", "pcre", "a b\n/x\n/x/q OK\nendif\n", nil, 4},
		{"empty value", "pcre", "/a/", []Rule{{Op: Match, Pattern: "a", Flags: "is", Line: 1}}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tab := Table{Type: tt.typ}
			tab.parse("rules", tt.text, nil)
			if diff := cmp.Diff(tt.want, tab.Rules, cmpopts.EquateComparable(netip.Prefix{})); diff != "" || len(tab.Skipped) != tt.skipped {
				t.Errorf("skipped %v, want %d\n%s", tab.Skipped, tt.skipped, diff)
			}
		})
	}
}

// TestCIDRLikePostfix compares a flattened table with what postmap -q answers.
func TestCIDRLikePostfix(t *testing.T) {
	const text = `# comment
if 10.0.0.0/8
10.1.2.3 one
!10.128.0.0/9 low
 continued
if !10.192.0.0/10
10.128.0.0/9 middle
endif
10.255.255.255 last
endif
!192.168.0.0/16 not private
10.0.0.1/8 has host bits
192.168.7.0/24 seven
2001:db8::/32 six
if 2001:db8:1::/48
`
	file := filepath.Join(t.TempDir(), "t.cidr")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	tab := Table{Type: "cidr", Kind: Networks}
	tab.parse("rules", text, nil)
	rules, err := flatten(tab.Rules)
	if err != nil {
		t.Fatal(err)
	}
	addrs := []string{"10.1.2.3", "10.127.255.255", "10.128.0.0", "10.191.255.255", "10.192.0.0", "10.255.255.255", "192.168.7.9", "192.168.8.1", "1.2.3.4", "2001:db8::1", "2001:db8:1::1", "2001:db9::1"}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, byte(rnd.Uint32()), byte(rnd.Uint32()), byte(rnd.Uint32())}).String())
	}
	cmd := exec.Command("/usr/sbin/postmap", "-q", "-", "cidr:"+file)
	cmd.Stdin = strings.NewReader(strings.Join(addrs, "\n") + "\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("postmap: %v", err)
	}
	want := map[string]string{}
	for l := range strings.Lines(string(out)) {
		k, v, _ := strings.Cut(strings.TrimSuffix(l, "\n"), "\t")
		want[k] = v
	}
	if len(want) < 50 {
		t.Fatalf("postmap found only %d", len(want))
	}
	for _, a := range addrs {
		got := ""
		if n := slices.IndexFunc(rules, func(r [2]string) bool { return netip.MustParsePrefix(r[0]).Contains(netip.MustParseAddr(a)) }); n >= 0 {
			got = rules[n][1]
		}
		if got != want[a] {
			t.Errorf("%s: %q, postmap says %q", a, got, want[a])
		}
	}
}

func TestDomainList(t *testing.T) {
	hash := &Table{Kind: Indexed, Entries: map[string]string{"k.example": "x", ".sub.example": "x", "a@b": "x"}}
	lit := func(s string) pattern {
		p := pattern{text: strings.TrimLeft(s, "!")}
		p.not = p.text != s
		return p
	}
	for _, tt := range []struct {
		name string
		sub  subdomains
		ps   []pattern
		want []string
		why  string
	}{
		{"plain", dotted, []pattern{lit("a.example"), lit(".b.example")}, []string{".b.example", "a.example"}, ""},
		{"parents", parents, []pattern{lit("a.example"), lit(".b.example")}, []string{".a.example", "a.example"}, ""},
		{"excluded first", dotted, []pattern{lit("!a.example"), lit("a.example")}, nil, ""},
		{"excluded too late", dotted, []pattern{lit("a.example"), lit("!a.example")}, []string{"a.example"}, ""},
		{"a hole", parents, []pattern{lit("!x.a.example"), lit("a.example")}, []string{".a.example", "a.example"}, ""},
		{"no hole", parents, []pattern{lit("!a.example"), lit("x.a.example"), lit("b.example")}, []string{".b.example", "b.example"}, ""},
		{"table", dotted, []pattern{{tab: hash}}, []string{".sub.example", "k.example"}, ""},
		{"table with parents", parents, []pattern{{tab: hash}}, []string{".k.example", "k.example"}, ""},
		{"exactly", exactly, []pattern{lit("a.example"), lit(".b.example"), {tab: hash}}, []string{"a.example", "k.example"}, ""},
		{"everything", dotted, []pattern{{tab: &Table{Kind: Constant}}}, nil, "open relay"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := domainList{sub: tt.sub, in: map[string]bool{}}
			why := ""
			for _, p := range tt.ps {
				why += d.add(p)
			}
			var got []string
			for _, k := range sortedKeys(d.in) {
				if d.in[k] {
					got = append(got, k)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || (why == "") != (tt.why == "") || !strings.Contains(why, tt.why) {
				t.Errorf("why %q, want %q\n%s", why, tt.why, diff)
			}
		})
	}
}

func TestPartialNSS(t *testing.T) {
	const conf = "# x\npasswd:  files systemd [NOTFOUND=return] # sss\ngroup: files sss\n"
	if why := partialNSS(conf, "passwd"); why != "" {
		t.Errorf("passwd: %s", why)
	}
	if why := partialNSS(conf, "group"); !strings.HasPrefix(why, "sss ") {
		t.Errorf("group: %q", why)
	}
}

func FuzzParseList(f *testing.F) {
	f.Add("permit_mynetworks, check_client_access { cidr:/x, search_order=a }, warn_if_reject reject", "check_client_access")
	f.Fuzz(func(t *testing.T, list, implied string) {
		es, err := parseList(list, implied, func(string) bool { return false })
		if err != nil {
			return
		}
		for _, e := range es {
			if e.name == "" || e.arg == "" != (restrictions[e.name].arg == argNone) && !e.implied {
				t.Errorf("%q: element %+v", list, e)
			}
		}
	})
}

func FuzzRules(f *testing.F) {
	f.Add("if /a/\n/b/i OK\nendif\n!1.2.3.0/24 x\n")
	f.Add("if 10.0.0.0/8\n!10.1.0.0/16 x\nendif\nendif")
	f.Fuzz(func(t *testing.T, text string) {
		for _, typ := range []string{"cidr", "regexp", "pcre"} {
			tab := Table{Type: typ, Kind: Networks}
			tab.parse("rules", text, nil)
			depth := 0
			for _, r := range tab.Rules {
				switch r.Op {
				case If:
					depth++
				case Endif:
					depth--
				}
				if depth < 0 {
					t.Fatalf("%s: endif without if in %q", typ, text)
				}
			}
			if typ == "cidr" && len(tab.Rules) < 50 {
				flatten(tab.Rules)
			}
		}
	})
}
