package postfix_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// TestGreylistImport: a postgrey becomes part of the policy at its place, once
// for all places, with whom it knows; it isn't where its database can't be read or
// the operator has chosen something else.
func TestGreylistImport(t *testing.T) {
	const service = "check_policy_service inet:127.0.0.1:10023"
	const now = 1_790_000_000
	dump := fmt.Sprintf("VERSION=3\nformat=print\nHEADER=END\n 192.0.2.0/a@x.example/u@here.test\n %d,%d\nDATA=END\nVERSION=3\nformat=print\nHEADER=END\n 192.0.2.1\n 5,%d\nDATA=END\n", now-400, now, now)
	src := install(t, map[string]string{
		"main.cf": base + "smtpd_sender_restrictions = " + service + "\nsmtpd_recipient_restrictions = reject_unauth_destination, " + service + ", reject_unlisted_recipient\n",
	})
	etc(t, src, map[string]string{
		"default/postgrey":                 "POSTGREY_OPTS=\"--inet=10023 --delay=60\"\nPOSTGREY_TEXT=\"from the file\"\n",
		"postgrey/whitelist_clients":       "# x\nexample.net\n",
		"postgrey/whitelist_clients.local": "192.0.2.0/24\nno host\n",
		"systemd/system/postgrey.service":  "[Service]\nEnvironment=POSTGREY_TEXT=\"from the unit\"\nEnvironmentFile=-/etc/default/postgrey\nExecStart=/usr/sbin/postgrey \\\n $POSTGREY_OPTS \\\n --greylist-text=\"${POSTGREY_TEXT}\"\n",
	})
	file := filepath.Join(t.TempDir(), "dump")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(dump)
	src.Commands = map[string][]string{"postgrey:/var/lib/postgrey": {"cat", file}}
	src.Now = func() time.Time { return time.Unix(now, 0) }
	remedy := ""
	imported := func() (*policy.Spec, string) {
		t.Helper()
		spec, report, err := postfix.Import(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := policy.Compile(spec); err != nil {
			t.Fatal(err)
		}
		for _, it := range report.Items {
			if it.Parameter == "smtpd_recipient_restrictions" && it.Element == service {
				remedy = it.Remedy
				return spec, string(it.Class) + ": " + it.Why
			}
		}
		t.Fatal("the service isn't in the report")
		return nil, ""
	}
	spec, said := imported()
	if want := "exact: postgrey (/etc/default/postgrey) refuses a client, sender and recipient that it doesn't know together, for 60 s"; said != want {
		t.Errorf("report %q, want %q", said, want)
	}
	want := map[string]policy.Greylist{"postgrey-1": {
		Delay: 60, MaxAge: 35 * 86400, RetryWindow: 2 * 86400, AutoClients: 5, IPv4: 24, IPv6: 64, Action: "DEFER_IF_PERMIT", Text: "from the file",
		Clients: []string{"example.net", "192.0.2.0/24"}, Database: "/var/lib/postgrey", KnownClients: "postgrey-1-clients", KnownTriplets: "postgrey-1-triplets",
	}}
	if diff := cmp.Diff(want, spec.Filters.Greylists); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	kinds := func(list []policy.Restriction) string {
		var all []string
		for _, r := range list {
			all = append(all, strings.TrimSpace(r.Kind+" "+r.Arg))
		}
		return strings.Join(all, ", ")
	}
	if got := kinds(spec.Restrictions.Sender) + "; " + kinds(spec.Restrictions.Recipient); got != "check_greylist postgrey-1; reject_unauth_destination, check_greylist postgrey-1, reject_unlisted_recipient" {
		t.Error(got)
	}
	if a, b := spec.Tables["postgrey-1-triplets"], spec.Tables["postgrey-1-clients"]; a.Len() != 1 || b.Len() != 1 {
		t.Errorf("%d triplets, %d clients are known", a.Len(), b.Len())
	}

	src.Memo = &postfix.Memo{}
	imported()
	write("broken\n")
	if _, said := imported(); strings.Contains(said, "broken") {
		t.Errorf("the database was read again at once: %s", said)
	}
	src.Memo = nil
	if spec, said := imported(); !strings.HasPrefix(said, "not-replicated: ") || !strings.HasSuffix(said, `who passed there can't be read: /var/lib/postgrey: "broken" isn't db_dump's`) || len(spec.Filters.Greylists) != 0 {
		t.Errorf("a database that can't be read: %s, %v", said, spec.Filters.Greylists)
	}
	if !strings.HasPrefix(remedy, "let the publisher read it: install -D -m 644 /usr/share/understudy/postgrey.conf ") {
		t.Errorf("remedy %q", remedy)
	}
	write(dump)
	src.Choices = fidelity.Choices{"smtpd_recipient_restrictions: " + service: fidelity.Ask}
	if spec, said := imported(); !strings.HasSuffix(said, "; it could be followed, but for your choice") || kinds(spec.Restrictions.Recipient) != "reject_unauth_destination, ask_primary check_policy_service:inet:127.0.0.1:10023, reject_unlisted_recipient" {
		t.Errorf("the operator's choice: %s: %s", said, kinds(spec.Restrictions.Recipient))
	}
}
