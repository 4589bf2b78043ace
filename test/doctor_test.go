package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/demo"
)

// TestDoctor has both sides examine a real Postfix whose trust in the secondary
// is set in each way.
func TestDoctor(t *testing.T) {
	dns, err := demo.StartDNS(". 60 IN NS ns.example.", "example.org. 60 IN MX 10 primary.example.org.", "example.org. 60 IN MX 20 mx2.example.org.",
		"primary.example.org. 60 IN A 127.0.0.1", "mx2.example.org. 60 IN A 127.0.0.2", "2.0.0.127.in-addr.arpa. 60 IN PTR mx2.example.org.")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dns.Close)
	primary := newPostfix(t)
	secondary := newSecondary(t, primary.addr, "domains = [\"example.org\"]\nrecipients = [\"all@example.org\"]\n", fmt.Sprintf("[dns]\nservers = [%q]\n", dns.Addr()))
	secondary.start()
	publish := filepath.Join(tempDir(t), "publish.toml")
	write(t, publish, fmt.Sprintf("state_dir = %q\n[publish]\naddress = \"127.0.0.1:9626\"\n[policy]\npostfix = %q\n[dns]\nservers = [%q]\n",
		filepath.Join(filepath.Dir(publish), "state"), filepath.Join(primary.dir, "conf"), dns.Addr()))
	primary.start()
	for _, c := range []struct {
		name, here, there string // findings about trust
		conf              []string
	}{
		{"well", "", "", []string{"smtpd_authorized_xclient_hosts = 127.0.0.1"}},
		{"trusted and untold", "no-client-identity", "no-client-identity", nil},
		{"not even trusted", "no-client-identity", "no-client-identity", []string{"mynetworks = 192.0.2.0/24"}},
		{"limited", "", "rate-limits", []string{"smtpd_authorized_xclient_hosts = 127.0.0.1", "smtpd_client_message_rate_limit = 10", "smtpd_client_event_limit_exceptions ="}},
		{"shut out", "primary-refuses", "", []string{"smtpd_authorized_xclient_hosts = 127.0.0.1", "smtpd_delay_reject = no", "smtpd_client_restrictions = reject"}},
		{"by a table", "", "", []string{"smtpd_authorized_xclient_hosts = inline:{127.0.0.1=yes}"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			primary.kill()
			primary.writeMain(c.conf...)
			primary.start()
			if got := findings(t, secondary.path("understudy.toml"), "no-client-identity", "primary-refuses", "primary-away", "daemon-down", "mx-order", "mx-missing", "hostname-unknown"); got != c.here {
				t.Errorf("the secondary's doctor finds %q, want %q", got, c.here)
			}
			if got := findings(t, publish, "no-client-identity", "rate-limits", "trust-unknown", "secondary-unknown"); got != c.there {
				t.Errorf("the primary's doctor finds %q, want %q", got, c.there)
			}
		})
	}
}

// findings are those of the doctor's that are among the names; its exit status
// must tell whether there is a fault.
func findings(t *testing.T, conf string, among ...string) string {
	t.Helper()
	args := []string{"doctor", "--json", "-c", conf}
	if strings.HasSuffix(conf, "publish.toml") {
		args = append(args, "--secondary", "127.0.0.1")
	}
	cmd := exec.Command(binary, args...)
	out, err := cmd.Output()
	var all []struct{ Severity, Check, Subject, Reason string }
	if jerr := json.Unmarshal(out, &all); jerr != nil {
		t.Fatalf("%v, %v\n%s", err, jerr, out)
	}
	ill := false
	var found []string
	for _, f := range all {
		ill = ill || f.Severity == "fault" || f.Severity == "unknown"
		for _, name := range among {
			if f.Severity != "ok" && f.Check == name {
				found = append(found, name)
			}
		}
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) != ill || err != nil && exit.ExitCode() != 1 {
		t.Errorf("ill: %v, and the doctor ends with %v", ill, err)
	}
	return strings.Join(found, " ")
}
