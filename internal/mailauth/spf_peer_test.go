package mailauth

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestPySPF compares with pyspf over random zones.
func TestPySPF(t *testing.T) {
	const rounds, each = 40, 60
	rng := rand.New(rand.NewPCG(7208, 1))
	seen := map[Result]int{}
	for range rounds {
		server, err := demo.StartDNS(randomZone(rng)...)
		if err != nil {
			t.Fatal(err)
		}
		server.Behave("broken.test.", demo.Behaviour{Rcode: dns.RcodeServerFailure})
		ask := pyspf(t, server.Addr())
		r := resolver.New(resolver.Options{Servers: []string{server.Addr()}})
		for range each {
			ip, helo, sender := randomClient(rng), pick(rng, spfNames), "user.name-x@"+pick(rng, spfNames)
			if rng.IntN(6) == 0 {
				sender = ""
			}
			want := ask(ip + "\t" + helo + "\t" + sender)
			got := SPF{r, DefaultVoidLookups}.Check(t.Context(), netip.MustParseAddr(ip), helo, sender)
			if seen[got.Result]++; got.Result.String() != want[0] {
				txt, _ := r.LookupTXT(t.Context(), strings.TrimPrefix(sender, "user.name-x@"))
				t.Errorf("%s helo %s from <%s>: %v (%s), pyspf %q; record %q", ip, helo, sender, got.Result, got.Why, want, txt)
			} else if (got.Result == Fail || got.Result == SoftFail) && got.Why != want[1] {
				t.Errorf("%s from <%s>: explained %q, pyspf %q", ip, sender, got.Why, want[1])
			}
		}
		server.Close()
	}
	for _, r := range []Result{None, Neutral, Pass, Fail, SoftFail, TempError, PermError} {
		if seen[r] < 20 {
			t.Errorf("%v only %d times: the zones are too tame", r, seen[r])
		}
	}
}

// pyspf starts Debian's pyspf; it ends with the test.
func pyspf(t *testing.T, addr string) func(string) []string {
	host, port, _ := net.SplitHostPort(addr)
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "testdata/pyspf.py", host, port)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; run test/install-peers", err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	return func(q string) []string {
		io.WriteString(in, q+"\n")
		if !lines.Scan() {
			t.Fatalf("pyspf has ended on %q; run test/install-peers", q)
		}
		return strings.SplitN(lines.Text(), "\t", 2)
	}
}

var spfNames = []string{"a.test", "b.test", "c.test", "d.test", "www.a.test", "mail.b.test", "broken.test", "gone.test", "x.gone.test", "y.gone.test"}

func pick(rng *rand.Rand, list []string) string { return list[rng.IntN(len(list))] }

func randomClient(rng *rand.Rand) string {
	return pick(rng, []string{"192.0.2.1", "192.0.2.2", "192.0.2.77", "198.51.100.9", "2001:db8::1", "2001:db8::2:9"})
}

func randomZone(rng *rand.Rand) []string {
	records := []string{
		"1.2.0.192.in-addr.arpa. 60 PTR mail.b.test.", "2.2.0.192.in-addr.arpa. 60 PTR gone.test.", "2.2.0.192.in-addr.arpa. 60 PTR www.a.test.",
		`exp.test. 60 TXT "%{i} is not one of %{d}'s, %{s} %%%{c}%_%{r}"`, `odd.exp.test. 60 TXT "bad %{x}"`,
	}
	for _, n := range spfNames[:6] {
		for range rng.IntN(3) {
			records = append(records, fmt.Sprintf("%s. 60 A 192.0.2.%d", n, 1+rng.IntN(3)))
		}
		if rng.IntN(2) == 0 {
			records = append(records, n+". 60 AAAA 2001:db8::1")
		}
		for i := range rng.IntN(3) {
			records = append(records, fmt.Sprintf("%s. 60 MX %d %s.", n, i, pick(rng, spfNames)))
		}
		if rng.IntN(12) > 0 {
			records = append(records, fmt.Sprintf("%s. 60 TXT %q", n, randomSPF(rng)))
		}
		if rng.IntN(25) == 0 {
			records = append(records, fmt.Sprintf("%s. 60 TXT %q", n, randomSPF(rng)))
		}
	}
	return records
}

func randomSPF(rng *rand.Rand) string {
	terms := []string{pick(rng, []string{"v=spf1", "v=spf1", "v=spf1", "V=SPF1"})}
	for range rng.IntN(5) {
		terms = append(terms, pick(rng, []string{"", "", "+", "-", "~", "?"})+randomTerm(rng))
	}
	if rng.IntN(2) == 0 {
		terms = append(terms, pick(rng, []string{"-", "~", "?", "+", ""})+"all")
	}
	if rng.IntN(4) == 0 {
		terms = append(terms, pick(rng, []string{"exp=exp.test", "exp=odd.exp.test", "exp=gone.test", "exp=a", "exp="}))
	}
	return strings.Join(terms, " ")
}

func randomTerm(rng *rand.Rand) string {
	domain := pick(rng, spfNames)
	if rng.IntN(4) == 0 {
		domain = pick(rng, []string{"%{d}", "%{o}", "%{h}", "www.%{d2}", "%{l1r-}.b.test", "%{ir}.%{v}._spf.a.test", "%{p}", "%{p2}", "%{H}", "%{d1r}.test",
			"%{S}.test", "%{dr/}.test", "%{l-}.gone.test"})
	}
	switch rng.IntN(24) {
	case 0, 1:
		return "a"
	case 2, 3:
		return "a:" + domain + pick(rng, []string{"", "", "/24", "//64", "/30//126", "/0"})
	case 4:
		return "mx" + pick(rng, []string{"", "/24", "//64", "/33"})
	case 5, 6:
		return "mx:" + domain + pick(rng, []string{"", "/24", "/24//64"})
	case 7, 8:
		return "ip4:" + pick(rng, []string{"192.0.2.1", "192.0.2.0/24", "198.51.100.9/32", "192.0.2.2/0", "192.0.02.2"})
	case 9, 10:
		return "ip6:" + pick(rng, []string{"2001:db8::1", "2001:db8::/64", "2001:db8::2:0/112", "::ffff:192.0.2.1", "2001:db8:::1"})
	case 11, 12, 13, 14:
		return "include:" + domain
	case 15, 16:
		return "exists:" + domain
	case 17:
		return "ptr"
	case 18:
		return "ptr:" + domain
	case 19, 20:
		return "redirect=" + domain
	case 21:
		return pick(rng, []string{"foo=bar", "foo=%{d}", "x.y=%{q}", "FOO=1"})
	case 22:
		return pick(rng, []string{"A:" + domain, "INCLUDE:" + domain, "aLL", "Ip4:192.0.2.1"})
	}
	return pick(rng, []string{"foo", "foo:bar", "a:", "include", "include:", "exists", "a/08", "all:x", "a:b", "ip4", "ptr/24", "a:192.0.2.1", "mx,", "redirect=", "a:%{d}foo", "a:b.test%", "include:%{c}"})
}

// FuzzSPF: a record, an explanation and a sender of anybody's.
func FuzzSPF(f *testing.F) {
	f.Add("v=spf1 a:%{l1r-}.b.test/24//64 exp=%{d} -all", "%{c} %{t} %%", "u-x@a.test")
	f.Add("v=spf1 include:%{p} redirect=a.test", "", "@")
	f.Fuzz(func(t *testing.T, record, explanation, sender string) {
		_, domain, _ := strings.Cut(sender, "@")
		domain = strings.ToLower(strings.TrimSuffix(domain, "."))
		r := &testmx.MapResolver{
			TXT: map[string][]string{domain: {record}, "a.test": {record}, "exp.test": {explanation}},
			PTR: map[string][]string{"192.0.2.1": {"a.test"}},
			IP:  map[string][]string{"a.test": {"192.0.2.1"}},
		}
		got := SPF{r, DefaultVoidLookups}.Check(t.Context(), netip.MustParseAddr("192.0.2.1"), "a.test", sender)
		if got.Result == TempError || printable(got.Why, spfMaxExplanation) != got.Why {
			t.Errorf("%+v", got)
		}
		for _, kind := range []string{"txt", "mx", "ip4"} {
			if n := r.Asked(kind + " a.test"); n > 40 {
				t.Errorf("asked %d times for %s", n, kind)
			}
		}
	})
}
