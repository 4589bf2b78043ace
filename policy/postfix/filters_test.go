package postfix_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// TestFilters: what stands behind milters and policy services is found, and what
// refuses nothing is no gap.
func TestFilters(t *testing.T) {
	src := install(t, map[string]string{
		"main.cf": base + `queue_directory = /var/spool/postfix
smtpd_milters = local:opendkim/opendkim.sock, { inet:localhost:8893, connect_timeout=5s }, inet:localhost:9999, inet:localhost:8895
smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service unix:private/policyd-spf,
  check_policy_service inet:127.0.0.1:10023, check_policy_service inet:127.0.0.1:10031
`,
		"master.cf": `smtp inet n - y - - smtpd
policyd-spf unix - n n - 0 spawn user=nobody argv=/usr/bin/policyd-spf
127.0.0.1:10031 inet n n n - 0 spawn
  user=nobody argv=/usr/bin/python3 /usr/bin/policyd-spf /etc/spf/strict.conf
`,
	})
	for name, text := range map[string]string{
		"etc/opendkim.conf":                               "Mode sv\nSocket local:/var/spool/postfix/opendkim/opendkim.sock\nOn-BadSignature accept\n",
		"etc/opendmarc.conf":                              "Socket inet:8893@localhost\nRejectFailures true\nDomainWhitelist a.test\n",
		"etc/default/postgrey":                            "POSTGREY_OPTS=\"--inet=10023\"\n",
		"etc/postfix-policyd-spf-python/policyd-spf.conf": "TestOnly = 0\n",
		"etc/spf/strict.conf":                             "HELO_reject = SPF_Not_Pass\nUnheardOf = 1\n",
	} {
		path := filepath.Join(src.Root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	src.Filters = []string{"inet:127.0.0.1:8895=opendkim:/etc/gone.conf"}
	_, report, err := postfix.Import(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, it := range report.Items {
		if it.Parameter == "smtpd_milters" || strings.HasPrefix(it.Element, "check_policy_service") {
			got = append(got, string(it.Class)+" "+it.Element+": "+it.Why+" -> "+it.Instead)
		}
	}
	if diff := cmp.Diff([]string{
		"not-replicated inet:localhost:8895: opendkim (/etc/gone.conf) can't be read: /etc/gone.conf: no such file or directory -> " + fidelity.Defer,
		"not-replicated inet:localhost:9999: what listens there isn't known; it decides live -> " + fidelity.Ignore,
		"not-replicated { inet:localhost:8893, connect_timeout=5s }: opendmarc (/etc/opendmarc.conf) refuses what a domain's DMARC policy says to reject; " +
			"/etc/opendmarc.conf:3: DomainWhitelist: ARC may overrule a failure -> " + fidelity.Ignore,
		"not-replicated check_policy_service inet:127.0.0.1:10023: postgrey (/etc/default/postgrey) refuses a client, sender and recipient that it doesn't know together, for 300 s; " +
			"who passed is known to the primary alone -> " + fidelity.Ignore,
		"not-replicated check_policy_service inet:127.0.0.1:10031: policyd-spf (/etc/spf/strict.conf) refuses SPF that doesn't pass for the HELO name, SPF Fail of the sender; " +
			`/etc/spf/strict.conf:2: policyd-spf knows no "UnheardOf" -> ` + fidelity.Ignore,
		"exact local:opendkim/opendkim.sock: opendkim (/etc/opendkim.conf) refuses nothing by its settings -> ",
		"exact check_policy_service unix:private/policyd-spf: policyd-spf (/etc/postfix-policyd-spf-python/policyd-spf.conf) refuses nothing by its settings -> ",
	}, got); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	for _, name := range []string{"etc/opendkim.conf", "etc/spf/strict.conf", "etc/gone.conf"} {
		if !strings.Contains(strings.Join(report.Files, "\n"), filepath.Join(src.Root, name)) {
			t.Errorf("%s isn't watched", name)
		}
	}
	src.Filters = []string{"inet:127.0.0.1:8895=rspamd:/etc/x"}
	if _, _, err := postfix.Import(t.Context(), src); err == nil || !strings.Contains(err.Error(), "postfix_filter:") {
		t.Errorf("an odd postfix_filter: %v", err)
	}
}
