package test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// finding is one line of testssl's JSON.
type finding struct{ ID, Severity, Finding string }

// excused are findings that aren't about us. They are warnings (WARN) about the
// tool itself, but for the first.
var excused = map[string]string{
	"cert_revocation":          "a CA of the test's own publishes no revocation list and answers no OCSP",
	"engine_problem":           "the system's openssl lacks GOST",
	"sessionresumption_ticket": "testssl's check fails with STARTTLS; smtpd's TestTLS resumes a session",
	"sessionresumption_ID":     "the same",
}

// TestTestssl has testssl.sh look at our STARTTLS. Nothing above LOW may be
// found.
func TestTestssl(t *testing.T) {
	t.Parallel()
	secondary := newSecondary(t, testmx.FreeAddr(), policyFor("alice@example.org"), "")
	ca := secondary.certificate(t)
	secondary.start()
	report := secondary.path("testssl.json")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	// Its exit status is the number of findings.
	out, err := exec.CommandContext(ctx, "testssl", "--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "-t", "smtp",
		"--add-ca", ca, "--jsonfile", report, "-p", "-s", "-f", "-P", "-S", "-U", "localhost:"+port(secondary.addr)).CombinedOutput()
	b, readErr := os.ReadFile(report)
	if readErr != nil {
		t.Fatalf("testssl: %v, %v (test/install-peers installs it)\n%s", err, readErr, tail(out, 3000))
	}
	var all []finding
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatalf("%v\n%s", err, tail(out, 3000))
	}
	seen := map[string]bool{}
	for _, f := range all {
		seen[f.ID] = true
		switch f.Severity {
		case "OK", "INFO", "DEBUG":
		case "LOW":
			t.Logf("%s %s: %s", f.Severity, f.ID, strings.TrimSpace(f.Finding))
		default:
			if why := excused[f.ID]; why != "" {
				t.Logf("excused: %s %s: %s (%s)", f.Severity, f.ID, f.Finding, why)
				continue
			}
			t.Errorf("%s %s: %s", f.Severity, f.ID, f.Finding)
		}
	}
	// It looked at all that it was to look at.
	for _, id := range []string{"TLS1_2", "TLS1_3", "SSLv3", "cipherlist_NULL", "PFS", "cert_chain_of_trust", "heartbleed", "ROBOT", "secure_client_renego", "RC4"} {
		if !seen[id] {
			t.Errorf("testssl said nothing about %s", id)
		}
	}
	secondary.stop()
}
