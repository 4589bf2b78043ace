package postfix_test

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// TestCatchAllUnless: a catch-all whose query leaves out addresses with "+" is
// known exactly, with and without a recipient_delimiter, alone and in a union.
func TestCatchAllUnless(t *testing.T) {
	const script = `CREATE TABLE forwardings (address text, forwarding text);
		INSERT INTO forwardings VALUES ('all.example', 'box@mx.example.org'), ('alice@plain.example', 'alice'), ('a+b@all.example', 'ab');`
	const catchall = "SELECT forwarding FROM forwardings WHERE address='%d' AND "
	for _, delimiter := range []string{"", "+"} {
		for name, tc := range map[string]struct {
			query, maps string
			plus        int // without a delimiter
		}{
			"iRedMail":   {catchall + "'%u' NOT LIKE '%%+%%'", "sqlite:@DIR@/all.cf", 550},
			"by hand":    {catchall + "NOT '%u' LIKE '%%+%%' AND '%u' IS NOT NULL AND '%d' <> ''", "sqlite:@DIR@/all.cf", 550},
			"instr":      {catchall + "instr('%u', '+') = 0", "sqlite:@DIR@/all.cf", 550},
			"in a union": {catchall + "'%u' NOT LIKE '%%+%%'", "unionmap:{sqlite:@DIR@/all.cf, inline:{x=y}}", 550},
			"by %s":      {catchall + "'%s' NOT LIKE '%%+%%'", "sqlite:@DIR@/all.cf", 0}, // "@domain" is asked for, too
			"without":    {catchall + "'%u' <> '' AND '%d' NOT LIKE 'x%%'", "sqlite:@DIR@/all.cf", 0},
		} {
			t.Run(name+delimiter, func(t *testing.T) {
				src := install(t, map[string]string{
					"main.cf": base + "virtual_mailbox_domains = all.example, plain.example\nvirtual_alias_domains =\n" +
						"virtual_mailbox_maps = inline:{bob@plain.example=x}\nrecipient_delimiter = " + delimiter +
						"\nvirtual_alias_maps = sqlite:@DIR@/each.cf, " + tc.maps + "\n",
					"each.cf": "dbpath = @DIR@/m.db\nquery = SELECT forwarding FROM forwardings WHERE address='%s'\n",
					"all.cf":  "dbpath = @DIR@/m.db\nquery = " + tc.query + "\n",
				})
				cmd := exec.Command("sqlite3", filepath.Join(src.ConfigDir, "m.db"))
				cmd.Stdin = strings.NewReader(script)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("sqlite3: %v (run test/install-peers)\n%s", err, out)
				}
				src.Lister = postfix.Databases{}
				spec, report := load(t, src)
				for _, it := range report.Items {
					if it.Parameter == "virtual_alias_maps" && it.Class != fidelity.Exact {
						t.Errorf("not exact: %+v", it)
					}
				}
				plus := tc.plus
				if delimiter != "" {
					plus = 0
				}
				snap, err := policy.Compile(spec)
				if err != nil {
					t.Fatal(err)
				}
				for to, want := range map[string]int{
					"nobody@plain.example": 550, "bob@plain.example": 0, "alice@plain.example": 0, "x+y@plain.example": 550,
					"nobody@all.example": 0, "a+b@all.example": 0, "x+y@all.example": plus, "+y@all.example": tc.plus,
				} {
					s := snap.Session(nil, envelope.Client{Addr: netip.MustParseAddr("192.0.2.1"), NameStatus: envelope.NameNotFound})
					m, err := envelope.ParseMailbox(to)
					if err != nil {
						t.Fatal(err)
					}
					if v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: m}); v.Reply.Code != want {
						t.Errorf("%s: %d %s, want %d", to, v.Reply.Code, v.Reply.Text, want)
					}
					s.Close()
				}
			})
		}
	}
}

// TestCatchAllExcept: a catch-all whose query leaves out who has a mailbox is
// known exactly, whoever that is.
func TestCatchAllExcept(t *testing.T) {
	const script = `CREATE TABLE forwardings (source text, dest text);
		INSERT INTO forwardings VALUES ('@all.example', 'box@mx.example.org'), ('alice@plain.example', 'alice'), ('dora@all.example', 'dora');
		CREATE TABLE boxes (address text); INSERT INTO boxes VALUES ('carol@all.example'), ('dora@all.example'), ('erin@plain.example');`
	const query = "SELECT dest FROM forwardings WHERE source = '%s' UNION SELECT dest FROM forwardings WHERE source = '@%d' AND NOT EXISTS (SELECT 1 FROM boxes WHERE address = '%s')"
	for name, tc := range map[string]struct {
		query string
		carol int
	}{
		"no-key":  {query + " AND '%u' <> ''", 550},
		"key":     {query, 0},
		"no-list": {"SELECT dest FROM forwardings WHERE source IN ('%s', '@%d') AND NOT (source = '@%d' AND '%s' IN (SELECT address FROM boxes)) AND '%u' <> ''", 550},
	} {
		t.Run(name, func(t *testing.T) {
			src := install(t, map[string]string{
				"main.cf": base + "virtual_mailbox_domains =\nvirtual_alias_domains = all.example, plain.example\nrecipient_delimiter = +\nvirtual_alias_maps = sqlite:@DIR@/f.cf\n",
				"f.cf":    "dbpath = @DIR@/m.db\nquery = " + tc.query + "\n",
			})
			cmd := exec.Command("sqlite3", filepath.Join(src.ConfigDir, "m.db"))
			cmd.Stdin = strings.NewReader(script)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("sqlite3: %v (run test/install-peers)\n%s", err, out)
			}
			src.Lister = postfix.Databases{}
			spec, _ := load(t, src)
			snap, err := policy.Compile(spec)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]int{"alice@plain.example": 0, "nobody@plain.example": 550, "erin@plain.example": 550, "nobody@all.example": 0, "dora@all.example": 0, "dora+x@all.example": 0, "carol@all.example": tc.carol}
			for to, code := range want {
				s := snap.Session(nil, envelope.Client{Addr: netip.MustParseAddr("192.0.2.1"), NameStatus: envelope.NameNotFound})
				m, err := envelope.ParseMailbox(to)
				if err != nil {
					t.Fatal(err)
				}
				if v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: m}); v.Reply.Code != code {
					t.Errorf("%s: %d %s, want %d", to, v.Reply.Code, v.Reply.Text, code)
				}
				s.Close()
			}
		})
	}
}
