package doctor_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/doctor"
	"github.com/understudy-mx/understudy/internal/host"
)

// TestPublisher breaks a primary that is well in one way each.
func TestPublisher(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		fault func(*doctor.Publisher)
		want  string
	}{
		"healthy":         {func(*doctor.Publisher) {}, ""},
		"policy unread":   {func(p *doctor.Publisher) { p.Unread = errors.New("main.cf: no such file") }, "policy-unread"},
		"publisher down":  {func(p *doctor.Publisher) { p.Running = errors.New("no such socket") }, "publisher-down"},
		"it fails":        {func(p *doctor.Publisher) { p.Failing = "chroot: operation not permitted" }, "publisher-failing"},
		"so does anybody": {func(p *doctor.Publisher) { p.Failing, p.Unread = "gone", errors.New("gone") }, "policy-unread"},
		"nobody paired":   {func(p *doctor.Publisher) { p.Peers = nil }, "no-secondary"},
		"never seen":      {func(p *doctor.Publisher) { p.Peers[0].Seen = time.Time{} }, "secondary-silent"},
		"long ago":        {func(p *doctor.Publisher) { p.Peers[0].Seen = now.Add(-time.Hour) }, "secondary-silent"},
		"its problem":     {func(p *doctor.Publisher) { p.Peers[0].Problem = "foreign domain" }, "secondary-problem"},
		"no addresses":    {func(p *doctor.Publisher) { p.Secondaries = nil }, "secondary-unknown"},
		"untold, trusted": {func(p *doctor.Publisher) { p.Postconf["smtpd_authorized_xclient_hosts"] = "" }, "no-client-identity"},
		"untold, excluded": {func(p *doctor.Publisher) {
			p.Postconf["smtpd_authorized_xclient_hosts"] = "!127.0.1.2, 127.0.1.0/24"
		}, "no-client-identity"},
		"in a file": {func(p *doctor.Publisher) {
			p.Postconf["smtpd_authorized_xclient_hosts"] = file(t, "# ours\n127.0.1.0/25\n")
		}, ""},
		"in no file":     {func(p *doctor.Publisher) { p.Postconf["smtpd_authorized_xclient_hosts"] = "/nonexistent/list" }, "trust-unknown"},
		"in a table":     {func(p *doctor.Publisher) { p.Postconf["smtpd_authorized_xclient_hosts"] = "hash:/yes" }, ""},
		"table broken":   {func(p *doctor.Publisher) { p.Postconf["smtpd_authorized_xclient_hosts"] = "hash:/broken" }, "trust-unknown"},
		"screened":       {func(p *doctor.Publisher) { p.Screened = true; p.Postconf["postscreen_access_list"] = "hash:/no" }, "primary-screens"},
		"exempt":         {func(p *doctor.Publisher) { p.Screened = true }, ""},
		"exempt by list": {func(p *doctor.Publisher) { p.Screened = true; p.Postconf["postscreen_access_list"] = "cidr:/permit" }, ""},
		"limits": {func(p *doctor.Publisher) {
			p.Postconf["smtpd_client_message_rate_limit"] = "60"
			p.Postconf["smtpd_client_event_limit_exceptions"] = ""
		}, "rate-limits"},
		"limits for others": {func(p *doctor.Publisher) { p.Postconf["smtpd_client_message_rate_limit"] = "60" }, ""},
		"few connections": {func(p *doctor.Publisher) {
			p.Postconf["smtpd_client_connection_count_limit"] = "3"
			p.Postconf["smtpd_client_event_limit_exceptions"] = ""
		}, "rate-limits"},
		"many connections": {func(p *doctor.Publisher) {
			p.Postconf["smtpd_client_connection_count_limit"] = "50"
			p.Postconf["smtpd_client_event_limit_exceptions"] = ""
		}, ""},
		"the door is shut": {func(p *doctor.Publisher) {
			p.Secondaries = append(p.Secondaries, netip.MustParseAddr("127.0.1.9"))
			trust(p, "127.0.1.9")
		}, "secondary-unreachable"},
		"loop by relayhost":   {func(p *doctor.Publisher) { p.Postconf["relayhost"] = "[127.0.1.2]:25" }, "loop"},
		"loop by a name":      {func(p *doctor.Publisher) { p.Postconf["smtp_fallback_relay"] = "mx9.example.net, mx2.example.org" }, "loop"},
		"loop by a transport": {func(p *doctor.Publisher) { p.Postconf["relay_transport"] = "smtp:[mx2.example.org]" }, "loop"},
		"relayhost elsewhere": {func(p *doctor.Publisher) { p.Postconf["relayhost"] = "[127.0.1.8]:25" }, ""},
		"gaps":                {func(p *doctor.Publisher) { p.Gaps = []doctor.Gap{{What: "smtpd_milters: inet:127.0.0.1:11332"}} }, "not-replicated"},
		"Exim, told":          {func(p *doctor.Publisher) { p.Exim = eximOf("127.0.1.2", nil, "") }, ""},
		"Exim, untold":        {func(p *doctor.Publisher) { p.Exim = eximOf("127.0.1.3", nil, "") }, "no-client-identity"},
		"Exim, unknown":       {func(p *doctor.Publisher) { p.Exim = eximOf("127.0.1.2", errors.New("hosts_proxy = +relays"), "") }, "trust-unknown"},
		"Exim, limited":       {func(p *doctor.Publisher) { p.Exim = eximOf("127.0.1.2", nil, "5") }, "rate-limits"},
		"Exim, many connections": {func(p *doctor.Publisher) {
			p.Exim = eximOf("127.0.1.2", nil, "${if eq{$sender_host_address}{127.0.1.2}{0}{5}}")
		}, ""},
		"not to be asked": {func(p *doctor.Publisher) { p.Away = errors.New("No such container: mail"); p.Postconf = nil }, "primary-unread"},
		"guarded":         {func(p *doctor.Publisher) { p.Guarded = []doctor.Gap{{What: "/var/lib/postgrey", Remedy: "a drop-in"}} }, "publisher-may-not-read"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &doctor.Publisher{
				Postconf: map[string]string{
					"mynetworks": "127.0.0.0/24 [::1]/128 127.0.1.2", "smtpd_authorized_xclient_hosts": "127.0.1.2",
					"smtpd_client_event_limit_exceptions": "127.0.0.0/24 127.0.1.2", "postscreen_access_list": "permit_mynetworks",
				},
				Lookup: func(_ context.Context, table, key string) (string, bool, error) {
					if table == "hash:/broken" {
						return "", false, errors.New("open database /broken.db: No such file or directory")
					}
					return strings.TrimPrefix(strings.TrimPrefix(table, "cidr:/"), "hash:/"), table != "hash:/no", nil
				},
				ReadFile:    (*host.Host)(nil).ReadFile,
				Secondaries: []netip.Addr{netip.MustParseAddr("127.0.1.2")},
				Peers:       []doctor.Peer{{Name: "mx2", Seen: now.Add(-time.Minute)}},
			}
			c.fault(p)
			d, err := demo.StartDNS(". 60 IN NS ns.example.", "mx2.example.org. 60 IN A 127.0.1.2")
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			l := &lab{t: t, servers: map[string]*mailServer{"127.0.1.2": {greeting: []string{"220 mx2.example.org ESMTP"}}}}
			found := doctor.Exam{Port: l.listen(), DNS: []string{d.Addr()}, StateDir: "/", Mounts: file(t, "/dev/root / ext4 rw 0 0\n"), Now: now}.RunPublisher(t.Context(), p, nil)
			var got []string
			for _, f := range found {
				if f.Severity != doctor.OK && !slices.Contains(machine, f.Check) {
					got = append(got, f.Check)
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// eximOf expects a PROXY header from one address.
func eximOf(from string, err error, perHost string) *doctor.Exim {
	return &doctor.Exim{Hostname: "mx1.example.org", PerHost: perHost, Proxied: func(a netip.Addr) (bool, error) { return a.String() == from, err },
		Set: func(option, value string) string { return option + " = " + value }}
}

// trust lets Postfix know a secondary.
func trust(p *doctor.Publisher, a string) {
	for _, name := range []string{"mynetworks", "smtpd_authorized_xclient_hosts", "smtpd_client_event_limit_exceptions"} {
		p.Postconf[name] += " " + a
	}
}

func file(t *testing.T, text string) string {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestHostile: what a server says is bounded, and printed as text.
func TestHostile(t *testing.T) {
	for name, greeting := range map[string]string{
		"endless line":  "220 " + strings.Repeat("x", 2<<20),
		"endless lines": strings.Repeat("220-x\r\n", 1<<18) + "220 x",
		"controls":      "220 \x1b[2J\u009b31m\x00 ESMTP",
		"no SMTP":       "HTTP/1.1 400 Bad Request",
	} {
		t.Run(name, func(t *testing.T) {
			l := healthy(t)
			l.servers[ourAddr].greeting = []string{greeting}
			for _, f := range l.examine() {
				for _, s := range []string{f.Subject, f.Reason, f.Evidence, f.Remedy} {
					if len(s) > 1000 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }) {
						t.Errorf("%q", s[:min(len(s), 200)])
					}
				}
			}
		})
	}
}
