package test

import (
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// triggers are the series that an alert fires on, and the same ones in good
// health, where they aren't the metric of the state's own row at 1.
var triggers = map[string]struct{ ill, well map[string]string }{
	"UnderstudyPolicyStale": {map[string]string{`understudy_sync_state{state="fresh"}`: "0x1600"}, map[string]string{`understudy_sync_state{state="fresh"}`: "1x1600"}},
	"UnderstudyMassDeletion": {map[string]string{`understudy_sync_staged_deletion{decision="pending"}`: "1x1600"},
		map[string]string{`understudy_sync_staged_deletion{decision="pending"}`: "0x1600"}},
	"UnderstudyPolicySyncTrouble": {map[string]string{"understudy_sync_signed_timestamp_seconds": "1x1600"}, map[string]string{"understudy_sync_signed_timestamp_seconds": "1+60x1600"}},
	"UnderstudyNothingPublished":  {map[string]string{"understudy_publish_version": "0x1600"}, map[string]string{"understudy_publish_version": "1x1600"}},
	"UnderstudySecondarySilent": {map[string]string{"understudy_publish_following_peers": "1x1600", "understudy_publish_peers": "2x1600"},
		map[string]string{"understudy_publish_following_peers": "2x1600", "understudy_publish_peers": "2x1600"}},
}

// TestChannelStates: each state and alarm in the source of the policy channel
// has a row in docs/SECURITY.md with a metric that there is, a line that is
// logged, and an alert that fires on it and not without it.
func TestChannelStates(t *testing.T) {
	_, section, _ := strings.Cut(readFile(t, "../docs/SECURITY.md"), "# States of the policy channel")
	known, code := readFile(t, "../docs/METRICS.md"), source(t)
	metric := regexp.MustCompile("^`(\\w+)(\\{.*\\})?`$")
	listed := map[string]bool{}
	ill, well := scenario{series: map[string]string{}}, scenario{series: map[string]string{}}
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) != 5 || strings.HasPrefix(cells[0], "| state") || strings.HasPrefix(cells[0], "| ---") {
			continue
		}
		state, logged, alert := strings.TrimPrefix(cells[0], "| "), cells[3], strings.TrimSuffix(cells[4], " |")
		m := metric.FindStringSubmatch(cells[2])
		if m == nil || !strings.Contains(known, "| `"+m[1]+"` |") {
			t.Errorf("%s: there is no metric %s", state, cells[2])
			continue
		}
		listed[m[1]+m[2]] = true
		if !strings.Contains(code, `"`+logged) && !strings.HasPrefix(logged, "none: ") {
			t.Errorf("%s: nothing logs %q", state, logged)
		}
		if alert == "none" && m[2] == `{state="fresh"}` {
			continue
		}
		trigger, ok := triggers[alert]
		if !ok {
			trigger.ill, trigger.well = map[string]string{m[1] + m[2]: "1x1600"}, map[string]string{m[1] + m[2]: "0x1600"}
			if strings.HasSuffix(m[1], "_total") {
				trigger.ill[m[1]+m[2]] = "0x1490 1x100"
			}
		}
		if !ok && m[1] == "understudy_sync_alarms_total" {
			alert += `",` + strings.Trim(m[2], `{}"`) // of this very alarm
		}
		ill.expect(alert, trigger.ill)
		well.expect(alert, trigger.well)
	}
	for _, want := range states(t) {
		if !listed[want] {
			t.Errorf("docs/SECURITY.md has no row for %s", want)
		}
	}
	playRules(t, ill.test(1)+well.test(0))
}

// TestQueueAlerts: the alerts of the queue and its next hops fire on a value of
// what they look at, and not on another.
func TestQueueAlerts(t *testing.T) {
	for _, tt := range []struct{ alert, metric, ill, well string }{
		{"UnderstudyMailHeld", "understudy_queue_held_messages", "1x1600", "0x1600"},
		{"UnderstudyStoreTrouble", `understudy_queue_store_errors_total{operation="write"}`, "0x1490 1x100", "1x1600"},
		{"UnderstudyStoreTrouble", `understudy_queue_store_alarms_total{kind="drop"}`, "0x1490 1x100", "1x1600"},
		{"UnderstudyStoreTrouble", "understudy_queue_quarantined_records_total", "0x1490 1x100", "1x1600"},
		{"UnderstudyStoreAway", "understudy_queue_store_away", "1x1600", "0x1600"},
		{"UnderstudyStoreDamaged", "understudy_queue_store_damaged", "1x1600", "0x1600"},
		{"UnderstudyPrimaryDown", `understudy_primary_up{route="primary"}`, "0x1600", "1x1600"},
		{"UnderstudyPrimaryWithoutXClient", `understudy_primary_without_xclient{route="primary"}`, "1x1600", "0x1600"},
		{"UnderstudyMayArriveTwice", `understudy_live_transactions_total{ending="late"}`, "0x1490 1x100", "1x1600"},
		{"UnderstudyMayArriveTwice", `understudy_live_transactions_total{ending="after_dot"}`, "0x1490 1x100", "0x1600"},
		{"UnderstudyListsContradicted", `understudy_recipients_contradicted_total{by="live",lists="unlisted"}`, "0x1490 1x100", "1x1600"},
		{"UnderstudyListsContradicted", `understudy_recipients_contradicted_total{by="relay",lists="listed"}`, "0x1490 1x100", "0x1600"},
		{"UnderstudyParityExact", `understudy_parity_differences_total{by="live",class="exact"}`, "0x1490 1x100", "1x1600"},
		{"UnderstudyDNSFailing", "understudy_dns_failing", "1x1600", "0x1600"},
		{"UnderstudyDNSFailing", `understudy_dns_lookups_total{type="A",result="servfail"}`, "0+6x1600", "1x1600"},
		{"UnderstudyDNSListSick", `understudy_dnsbl_zones{state="lists_all"}`, "1x1600", "0x1600"},
		{"UnderstudyDNSListSick", `understudy_dnsbl_zones{state="refuses"}`, "0x1400 1x200", "0x1490 1x10"},
		{"UnderstudyDiskAlmostFull", "understudy_queue_free_bytes", "1600-1x1600", "1600x1600"},
	} {
		rules := ""
		for n, values := range []string{tt.well, tt.ill} {
			s := scenario{series: map[string]string{tt.metric: values}, alerts: []string{tt.alert}}
			rules += s.test(n)
		}
		playRules(t, rules)
	}
}

// playRules lets promtool try the alert rules.
func playRules(t *testing.T, tests string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "rules.yml")
	write(t, name, fmt.Sprintf("rule_files: [%s]\nevaluation_interval: 5m\ntests:\n%s", absolute(t, "../metrics/alerts.yml"), tests))
	if out, err := exec.Command("promtool", "test", "rules", name).CombinedOutput(); err != nil {
		t.Errorf("promtool test rules: %v\n%s", err, tail(out, 4000))
	}
}

// scenario is a test for promtool: what is scraped, a value a minute, and the
// alerts to look for.
type scenario struct {
	series map[string]string
	alerts []string
}

func (s *scenario) expect(alert string, series map[string]string) {
	maps.Copy(s.series, series)
	s.alerts = append(s.alerts, alert)
}

// test wants so many of each alert to fire after 25 hours.
func (s *scenario) test(each int) string {
	var b strings.Builder
	fmt.Fprint(&b, "- interval: 1m\n  input_series:\n")
	for name, values := range s.series {
		fmt.Fprintf(&b, "  - {series: '%s', values: '%s'}\n", name, values)
	}
	fmt.Fprint(&b, "  promql_expr_test:\n")
	for _, a := range s.alerts {
		fmt.Fprintf(&b, "  - expr: count(ALERTS{alertstate=\"firing\",alertname=\"%s\"}) or vector(0)\n    eval_time: 25h\n    exp_samples: [{value: %d}]\n", a, each)
	}
	return b.String()
}

// states finds the states and alarms where they are named.
func states(t *testing.T) (series []string) {
	t.Helper()
	for _, in := range []struct{ file, pattern, series string }{
		{"../sync/status.go", `(?m)^\tState\w+ += "(\w+)"`, `understudy_sync_state{state="%s"}`},
		{"../sync/status.go", `(?m)^\tStaged\w+ += "(\w+)"`, `understudy_sync_staged_deletion{decision="%s"}`},
		{"../sync/alarm.go", `(?m)^\tAlarm\w+ +Alarm = "(\w+)"`, `understudy_sync_alarms_total{alarm="%s"}`},
	} {
		found := regexp.MustCompile(in.pattern).FindAllStringSubmatch(readFile(t, in.file), -1)
		if len(found) < 2 {
			t.Fatalf("%s: %d states found: the search is broken", in.file, len(found))
		}
		for _, m := range found {
			series = append(series, fmt.Sprintf(in.series, m[1]))
		}
	}
	return series
}

// source is the code of the policy channel, without its tests.
func source(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range []string{"../sync/*.go", "../internal/inforce/*.go", "../internal/publisher/*.go"} {
		names, err := filepath.Glob(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if !strings.HasSuffix(n, "_test.go") {
				all.WriteString(readFile(t, n))
			}
		}
	}
	return all.String()
}

func absolute(t *testing.T, name string) string {
	t.Helper()
	abs, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}
