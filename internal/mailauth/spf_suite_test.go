package mailauth

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
	"gopkg.in/yaml.v3"
)

// suite is a scenario of the openspf test suite: testdata/rfc7208-tests.yml is
// the file of that name in github.com/sdgathman/pyspf (BSD licence, beside it).
type suite struct {
	Description string
	Tests       map[string]struct {
		Helo, Host, MailFrom string
		Result               words
		Explanation          string
	}
	ZoneData map[string][]any
}

// words is a string or a list of strings.
type words []string

func (w *words) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*w = words{n.Value}
		return nil
	}
	return n.Decode((*[]string)(w))
}

func TestOpenSPF(t *testing.T) {
	f, err := os.Open("testdata/rfc7208-tests.yml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for d := yaml.NewDecoder(f); ; {
		var s suite
		if err := d.Decode(&s); err != nil {
			break
		}
		r := s.resolver(t)
		for name, test := range s.Tests {
			n++
			got := SPF{r, DefaultVoidLookups}.Check(t.Context(), netip.MustParseAddr(test.Host), test.Helo, test.MailFrom)
			if !slices.Contains(test.Result, got.Result.String()) {
				t.Errorf("%s/%s: %v (%s), want %v", s.Description, name, got.Result, got.Why, test.Result)
			}
			if e := test.Explanation; e != "" && e != "DEFAULT" && got.Why != e {
				t.Errorf("%s/%s: explanation %q, want %q", s.Description, name, got.Why, e)
			}
		}
	}
	if n != 203 {
		t.Errorf("read %d tests of the suite's 203", n)
	}
}

// resolver is the scenario's zone. A record of type SPF stands for a TXT
// record where the name has none, as the suite's drivers have it.
func (s suite) resolver(t *testing.T) *testmx.MapResolver {
	r := &testmx.MapResolver{IP: map[string][]string{}, MX: map[string][]net.MX{}, PTR: map[string][]string{}, TXT: map[string][]string{}}
	alias := map[string]string{}
	for name, records := range s.ZoneData {
		name = strings.ToLower(name)
		var spf []string
		txt := false
		for _, rec := range records {
			if rec == "TIMEOUT" {
				r.Fail = append(r.Fail, timeouts(name, records)...)
				continue
			}
			for kind, v := range rec.(map[string]any) {
				switch kind {
				case "A", "AAAA":
					r.IP[name] = append(r.IP[name], joined(v))
				case "MX":
					mx := v.([]any)
					r.MX[name] = append(r.MX[name], net.MX{Host: joined(mx[1]), Pref: uint16(mx[0].(int))})
				case "PTR":
					r.PTR[address(t, name)] = append(r.PTR[address(t, name)], joined(v))
				case "SPF":
					spf = append(spf, joined(v))
				case "TXT":
					if txt = true; v != "NONE" {
						r.TXT[name] = append(r.TXT[name], joined(v))
					}
				case "CNAME":
					alias[name] = strings.ToLower(joined(v))
				default:
					t.Fatalf("%s: no type %s", name, kind)
				}
			}
		}
		if !txt {
			r.TXT[name] = spf
		}
	}
	for name, to := range alias {
		r.IP[name], r.TXT[name], r.MX[name] = r.IP[to], r.TXT[to], r.MX[to]
	}
	return r
}

// timeouts is what fails at a name: the types that it has no record of.
func timeouts(name string, records []any) (out []string) {
	has := map[string]bool{}
	for _, rec := range records {
		if m, ok := rec.(map[string]any); ok {
			for kind, v := range m {
				has[kind] = v != "NONE"
			}
		}
	}
	for kind, ours := range map[string]string{"A": "ip4", "AAAA": "ip6", "MX": "mx", "TXT": "txt"} {
		if !has[kind] {
			out = append(out, ours+" "+name)
		}
	}
	return out
}

func joined(v any) string {
	if list, ok := v.([]any); ok {
		var b strings.Builder
		for _, s := range list {
			b.WriteString(s.(string))
		}
		return b.String()
	}
	return v.(string)
}

// address is that of a name below in-addr.arpa or ip6.arpa.
func address(t *testing.T, name string) string {
	labels := strings.Split(strings.TrimSuffix(strings.TrimSuffix(name, ".in-addr.arpa"), ".ip6.arpa"), ".")
	slices.Reverse(labels)
	s := strings.Join(labels, ".")
	if strings.HasSuffix(name, ".ip6.arpa") {
		s = ""
		for i, l := range labels {
			if i > 0 && i%4 == 0 {
				s += ":"
			}
			s += l
		}
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a.String()
}
