package handwritten

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/understudy-mx/understudy/policy"
)

func nothing(string) ([]byte, error) { return nil, os.ErrNotExist }

// TestValidLocal: a local-part is quoted where it must be, and nowhere else.
func TestValidLocal(t *testing.T) {
	long := strings.Repeat("x", 253)
	for local, want := range map[string]bool{
		"alice": true, "a.b-c_9": true, "a+b": true, "ü": true, "Z": true,
		"": true, ".a": false, "a.": false, "a..b": false, "a b": false, `a"b`: false, "a:b": false, "a/b": true, "a{b": true, "a@b": false, "a[": false,
		`"a b"`: true, `"a@b"`: true, `".a"`: true, `"a\"b"`: true, `"a\\b"`: true,
		`"a"`: false, `""`: false, `"`: false, `"a b`: false, `a b"`: false, `"a"b"`: false, `"a\b"`: false,
		"a\x1fb": false, "\"a\x1fb\"": false, "\"a\tb\"": false, "\"a\x7fb\"": false, "\"a\x00b\"": false,
		long + "abc": true, long + "abcd": false, long + "+ab": true, long + "+abc": false,
		`"` + long + ` "`: true, `"` + long + `a "`: false,
	} {
		if got := validLocal(local); got != want {
			t.Errorf("%q: %v", local, got)
		}
	}
}

// TestEntries: what the lists of senders, HELO names and clients may hold.
func TestEntries(t *testing.T) {
	for name, of := range map[string]struct {
		read      entryKind
		good, bad []string
	}{
		"sender": {senderEntry, []string{"user@example.org", "user@", "Example.org", `"a b"@example.org`, `"a@b"@`},
			[]string{"@", "@example.org", "a b@example.org", "a b@", "user@exa mple.org", "user@.example.org", "<>", ".example.org", "", `"a"@example.org`}},
		"helo":   {heloEntry, []string{"mx.example", "[192.0.2.1]", "[IPv6:2001:db8::1]", "192.0.2.1"}, []string{"[192.0.2.256]", "a b", ".example", ""}},
		"client": {clientEntry, []string{"mx.example", "192.0.2.1", "192.0.2.0/24", "2001:db8::/32"}, []string{"192.0.2.1/24", "2001:db8::1/32", "[192.0.2.1]", "a b", ".example", ""}},
	} {
		for _, s := range of.good {
			if e, err := of.read(s); err != nil || e.key == "" && !e.net.IsValid() || e.key != strings.ToLower(e.key) {
				t.Errorf("%s %q: %+v, %v", name, s, e, err)
			}
		}
		for _, s := range of.bad {
			if e, err := of.read(s); err == nil {
				t.Errorf("%s %q became %+v", name, s, e)
			}
		}
	}
}

// TestRestrictions: a list that holds nothing of its own isn't asked, and an
// allowed client passes the HELO names, but no sender.
func TestRestrictions(t *testing.T) {
	const head = "domains = [\"example.org\"]\nrecipients = [\"@example.org\"]\n"
	allow := "check_client_access client.allow.networks"
	for text, want := range map[string][3]string{
		"":                                  {},
		"[client]\nallow = [\"192.0.2.1\"]": {allow, "", ""},
		"[client]\nallow = [\"192.0.2.1\"]\n[helo]\nblock = [\"bad.example\"]\n[sender]\nblock = [\"worse.example\"]": {
			allow, allow + "; check_helo_access helo.block.names", "check_sender_access sender.block.names"},
		"[client]\nallow = [\"192.0.2.1\"]\n[checks]\nreject_invalid_helo_hostname = true\nreject_unknown_client_hostname = true": {
			allow + "; reject_unknown_client_hostname", allow + "; reject_invalid_helo_hostname", ""},
	} {
		s, err := Parse("policy.toml", []byte(head+text), nothing)
		if err != nil {
			t.Fatal(err)
		}
		told := func(list []policy.Restriction) string {
			var all []string
			for _, r := range list {
				all = append(all, strings.TrimSpace(r.Kind+" "+r.Arg))
			}
			return strings.Join(all, "; ")
		}
		r := s.Spec().Restrictions
		if got := [3]string{told(r.Client), told(r.Helo), told(r.Sender)}; got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

// TestRefused: a mistake leaves no policy, also where the rest would do for one,
// and is told once, at its place.
func TestRefused(t *testing.T) {
	const head = "domains = [\"example.org\"]\nrecipients = [\"@example.org\"]\n"
	for text, want := range map[string]string{
		"surprise = 1": `policy.toml:3:1: unknown key "surprise"; known keys: `,
		"[[dnsbl]]\nzone = \"bl.example=127.0.0.2\"":                                   `policy.toml:3:1: zone must name a DNS list; write zone = "zen.spamhaus.org"`,
		"[[dnsbl]]\ncodes = \"127.0.0.2\"":                                             `policy.toml:3:1: zone must name a DNS list; write zone = "zen.spamhaus.org"`,
		"dnsbl_threshold = 2\n[[dnsbl]]\nzone = \"a.example\"":                         `policy.toml:3:1: dnsbl_threshold is 2, but all weights together are 1; lower it`,
		"[[dnsbl]]\nzone = \"a.example\"\nweight = 1":                                  `policy.toml:5:1: weight needs dnsbl_threshold`,
		"[[dnsbl]]\nzone = \"a.example\"\n[[dnsbl]]\nzone = \"A.example\"":             `policy.toml:6:1: DNS list "a.example" is given twice; remove one`,
		"[client]\nallow = [{ match = \"192.0.2.1\", reply = \"550 5.7.1 Go away\" }]": `policy.toml:4:33: an allowed entry has no reply; remove it`,
		"zone = \"a.example\"":                                                         `policy.toml:3:1: unknown key "zone"; it belongs under [[dnsbl]]`,
		"[client]\ndomains = []":                                                       `policy.toml:4:1: unknown key "domains"; it belongs at the top of the file`,
		"weight = 1":                                                                   `policy.toml:3:1: unknown key "weight"; it belongs under [[dnsbl]]`,
		"reply = \"550 5.7.1 No\"":                                                     `policy.toml:3:1: unknown key "reply"; known keys: domains, `,
		"[limits]\nhop = 3":                                                            `policy.toml:4:1: unknown key "hop"; did you mean "hops"?`,
		"[limits]\nmessage_size = \"10\"":                                              `policy.toml:4:1: message_size must be a whole number from 0 to `,
		"recipient_delimiter = '\"'":                                                   `policy.toml:3:1: recipient_delimiter must be one or more characters`,
		"[[dnsbl]]\nzone = \"bad zone\"\ncodes = \"127.0.0.2\"\nweight = 1":            `policy.toml:4:1: `,
		"[[dnsbl]]\nzone = \"a.example\"\ncodes = \"127.0.0\"\nweight = 1":             `policy.toml:5:1: filter "127.0.0"`,
		"dnsbl_threshold = 1\n[[dnsbl]]\nzone = \"a.example\"\nweight = 1001":          `policy.toml:6:1: weight must be a whole number from -1000 to 1000`,
		"dnsbl_threshold = 1\n[[dnsbl]]\nzone = \"a.example\"\nweight = -1001":         `policy.toml:6:1: weight must be a whole number from -1000 to 1000`,
		"dnsbl_threshold = 1\n[[dnsbl]]\nzone = \"a.example\"\nweight = 0":             `policy.toml:3:1: dnsbl_threshold is 1, but all weights together are 0; lower it`,
		"recipient_delimiter = 5":                                                      `policy.toml:3:1: recipient_delimiter must be a string; put it into quotes`,
		"recipient_delimiter = \"+\\u007f\"":                                           `policy.toml:3:1: recipient_delimiter must be one or more characters`,
		"recipient_delimiter = \"+ \"":                                                 `policy.toml:3:1: recipient_delimiter must be one or more characters`,
		"dnsbl_threshold = 5000\n[[dnsbl]]\nzone = \"a.example\"":                      `policy.toml:3:1: dnsbl_threshold must be a whole number from 1 to 1000`,
		"dnsbl_threshold = 1001\n[[dnsbl]]\nzone = \"a.example\"\nweight = 1000\n[[dnsbl]]\nzone = \"b.example\"\nweight = 1000": `policy.toml:3:1: dnsbl_threshold must be a whole number from 1 to 1000`,
		"[client]\nblock = [\".a b\"]": `policy.toml:4:10: ".a b" is not an address, a network or a host name; correct it`,
		"[limits]\nhops = 1":           `policy.toml:4:1: hops must be a whole number from 2 to `,
		"[limits]\nheader_size = 1023": `policy.toml:4:1: header_size must be a whole number from 1024 to `,
	} {
		s, err := Parse("policy.toml", []byte(head+text), nothing)
		if s != nil || err == nil {
			t.Errorf("%s: a policy came of it: %v", text, err)
		} else if got := err.Error(); !strings.HasPrefix(got, want) || strings.Contains(got, "\n") {
			t.Errorf("%s: got\n%s\nwant\n%s", text, got, want)
		}
	}
	for _, good := range []string{
		"[limits]\nhops = 2\nheader_size = 1024\nrecipients = 1\nline_length = 1000\nsoft_errors = 1\nhard_errors = 1\njunk_commands = 1",
		"[limits]\nhops = 1073741824", "[[client.block]]\nmatch = \"192.0.2.1\"\n[[client.block]]\nmatch = \"b.example\"\nreply = \"550 5.7.1 No\"", "recipient_delimiter = \"!~\"", "dnsbl_threshold = 1000\n[[dnsbl]]\nzone = \"a.example\"\nweight = 1000\n[[dnsbl]]\nzone = \"b.example\"\nweight = -1000",
		"[client]\nblock = [{ match = \"192.0.2.1\" }, { match = \"b.example\" }]",
		"dnsbl_threshold = 1\n[[dnsbl]]\nzone = \"a.example\""} {
		if _, err := Parse("policy.toml", []byte(head+good), nothing); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
}

// TestUnreadable: a list that can't be read is a mistake, never an empty list.
func TestUnreadable(t *testing.T) {
	text := []byte("domains = [\"example.org\"]\nrecipients_file = \"list\"\n")
	s, err := Parse("policy.toml", text, func(string) ([]byte, error) { return nil, errors.New("the disk is gone") })
	want := "policy.toml:2:1: the disk is gone; name a readable file, relative to this one"
	if s != nil || err == nil || err.Error() != want {
		t.Errorf("got %v and %v, want %s", s, err, want)
	}
}

// TestDomains: a domain that is none isn't said to lack recipients as well.
func TestDomains(t *testing.T) {
	_, err := Parse("policy.toml", []byte("domains = [\"example\", \"example.org\"]\nrecipients = [\"a@example.com\"]\n"), nothing)
	want := `policy.toml:1:12: "example" is not a domain; write it like "example.org", an internationalized one as xn--…
policy.toml:1:23: domain "example.org" has no recipient; list some, or "@example.org" to accept every address
policy.toml:2:15: recipient "a@example.com" is outside of the domains; add "example.com" to domains or remove it`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// TestManyMistakes: the first hundred are told, the rest is counted; of a list, no
// more than a thousand are.
func TestManyMistakes(t *testing.T) {
	const text = "domains = [\"example.org\"]\nrecipients = [\"@example.org\"]\nrecipients_file = \"list\"\n"
	for lines, want := range map[int]string{99: "", 100: "", 101: "policy.toml:1:1: 1 more mistakes; correct these first", 1500: "policy.toml:1:1: 900 more mistakes; correct these first"} {
		_, err := Parse("policy.toml", []byte(text), func(string) ([]byte, error) { return []byte(strings.Repeat("nobody\n", lines)), nil })
		if err == nil {
			t.Fatalf("%d mistakes: none", lines)
		}
		told := strings.Split(err.Error(), "\n")
		rest := told[min(len(told), 100):]
		if len(told) < min(lines, 100) || strings.Join(rest, "\n") != want {
			t.Errorf("%d mistakes: %d lines, behind the hundredth %q, want %q", lines, len(told), rest, want)
		}
	}
	here := strings.Replace(text, `"@example.org"]`, strings.Repeat("\"nobody\",\n", 1000)+"]", 1)
	_, err := Parse("policy.toml", []byte(here), func(string) ([]byte, error) { return []byte("a@example.org\nnobody\n"), nil })
	if err == nil || !strings.HasSuffix(err.Error(), "\npolicy.toml:1:1: 900 more mistakes; correct these first") {
		t.Errorf("a thousand in the policy's file: %.80q", fmt.Sprint(err))
	}
}

// TestComments: a # begins one at a line's start and behind space, no elsewhere.
func TestComments(t *testing.T) {
	var got []string
	n := eachLine("a#b\n#c\n #c\n\t#c\nd #c\ne\t#c\n \tf \t\r\n\n", func(line, col int, text string) {
		got = append(got, fmt.Sprint(line, ":", col, ":", text))
	})
	want := []string{"1:1:a#b", "5:1:d", "6:1:e", "7:3:f"}
	if n != 8 || !slices.Equal(got, want) {
		t.Errorf("%d lines, %q, want %q", n, got, want)
	}
}

// TestNarrowFirst: of networks in each other the narrow one counts, wherever it stands.
func TestNarrowFirst(t *testing.T) {
	const head = "domains = [\"example.org\"]\nrecipients = [\"@example.org\"]\n[client]\nblock = ["
	wide, narrow := `{ match = "192.0.2.0/24", reply = "550 5.7.1 wide" }`, `{ match = "192.0.2.0/31", reply = "550 5.7.1 narrow" }`
	middle := `{ match = "192.0.2.0/28", reply = "550 5.7.1 middle" }`
	for _, order := range [][]string{{wide, middle, narrow}, {narrow, middle, wide}, {middle, narrow, wide}} {
		s, err := Parse("policy.toml", []byte(head+strings.Join(order, ", ")+"]\n"), nothing)
		if err != nil {
			t.Fatal(err)
		}
		got := string(s.Encode())
		if n, m, w := strings.Index(got, "narrow"), strings.Index(got, "middle"), strings.Index(got, "wide"); n < 0 || n > m || m > w {
			t.Errorf("%q became %s", order, got)
		}
	}
}

// TestSwitches: the checks that are settings, not restrictions.
func TestSwitches(t *testing.T) {
	const text = "domains = [\"example.org\"]\nrecipients = [\"@example.org\"]\n[checks]\n"
	for key, of := range map[string]func(*policy.Spec) bool{
		"helo_required":          func(s *policy.Spec) bool { return s.HeloRequired },
		"reject_unlisted_sender": func(s *policy.Spec) bool { return s.RejectUnlistedSender },
	} {
		for value, want := range map[string]bool{"true": true, "false": false} {
			s, err := Parse("policy.toml", []byte(text+key+" = "+value+"\n"), nothing)
			if err != nil || of(s.Spec()) != want {
				t.Errorf("%s = %s: %v", key, value, err)
			}
		}
	}
}

// brokenFile is a file that can't be read, or not read again.
type brokenFile struct {
	io.Reader
	seek error
}

func (f brokenFile) Seek(int64, int) (int64, error) { return 0, f.seek }

// TestBrokenFile: what can't be read is no policy, and no empty one either.
func TestBrokenFile(t *testing.T) {
	boom := errors.New("boom")
	for name, f := range map[string]brokenFile{"read": {iotest.ErrReader(boom), nil}, "seek": {strings.NewReader("surprise = 1"), boom}} {
		if s, err := parse("policy.toml", f, nil, nil); s != nil || err != boom {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

// TestFiles: which files are read at all, and from where.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	big := func(name string, size int64) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil { // its rest is a hole
			t.Fatal(err)
		}
		return path
	}
	for path, want := range map[string]string{
		dir:                            "is not a regular file",
		filepath.Join(dir, "none"):     "read policy: ",
		big("toobig", maxPolicyFile+1): "has 1073741825 octets; a policy file may have 1073741824",
	} {
		if s, _, err := Load(path, nil); s != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
	list, path := filepath.Join(dir, "list"), filepath.Join(dir, "policy.toml")
	for file, text := range map[string]string{list: "a@example.org\n", path: "domains = [\"example.org\"]\nrecipients_file = \"" + list + "\"\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, files, err := Load(path, nil); err != nil || !slices.Equal(files, []string{path, list}) {
		t.Errorf("by its whole path: %v, %v", files, err)
	}
}
