package postfix_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// etc writes files below the root of a Source.
func etc(t *testing.T, src postfix.Source, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(src.Root, "etc", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFollowedFilters: filters that refuse become part of the policy, and
// opendmarc hears of those before it.
func TestFollowedFilters(t *testing.T) {
	const spfConf = "postfix-policyd-spf-python/policyd-spf.conf"
	debian := map[string]string{
		"opendkim.conf":  "Socket inet:8891@localhost\nOn-BadSignature reject\n",
		"opendmarc.conf": "Socket inet:8893@localhost\nRejectFailures true\n",
		spfConf:          "",
	}
	for _, tt := range []struct {
		name, milters, main string
		files               map[string]string
		want                string // of each item, and of what opendmarc hears
	}{
		{"all", "inet:localhost:8891, inet:localhost:8893", "", nil, "given-dns given-dns given-dns; DKIM true, SPF policyd-spf-1, self false; check_spf policyd-spf-1"},
		{"opendmarc first", "inet:localhost:8893, inet:localhost:8891", "", nil, "given-dns given-dns given-dns; DKIM false, SPF policyd-spf-1, self false; check_spf policyd-spf-1"},
		{"opendmarc alone", "inet:localhost:8893", "", map[string]string{"opendmarc.conf": debian["opendmarc.conf"] + "SPFIgnoreResults true\nSPFSelfValidate true\n"},
			"approximated given-dns; DKIM false, SPF , self true; check_spf policyd-spf-1"},
		{"opendkim only signs", "inet:localhost:8891, inet:localhost:8893", "", map[string]string{"opendkim.conf": "Socket inet:8891@localhost\nMode s\n"},
			"exact given-dns given-dns; DKIM false, SPF policyd-spf-1, self false; check_spf policyd-spf-1"},
		{"opendkim accepts", "inet:localhost:8891, inet:localhost:8893", "", map[string]string{"opendkim.conf": "Socket inet:8891@localhost\nAuthservID mx.example.org\n"},
			"exact given-dns given-dns; DKIM true, SPF policyd-spf-1, self false; check_spf policyd-spf-1"},
		{"opendkim by another name", "inet:localhost:8891, inet:localhost:8893", "", map[string]string{"opendkim.conf": "Socket inet:8891@localhost\nAuthservID other.example\n"},
			"exact given-dns given-dns; DKIM false, SPF policyd-spf-1, self false; check_spf policyd-spf-1"},
		{"a trusted name", "inet:localhost:8891, inet:localhost:8893", "", map[string]string{"opendkim.conf": "Socket inet:8891@localhost\nAuthservID other.example\n",
			"opendmarc.conf": debian["opendmarc.conf"] + "TrustedAuthservIDs a.example,OTHER.example\n"}, "exact approximated given-dns; DKIM true, SPF policyd-spf-1, self false; check_spf policyd-spf-1"},
		{"policyd-spf only tests", "inet:localhost:8893", "", map[string]string{spfConf: "TestOnly = 0\n"}, "given-dns exact; DKIM false, SPF policyd-spf-1, self false; check_spf policyd-spf-1"},
		{"policyd-spf writes nothing", "inet:localhost:8893", "", map[string]string{spfConf: "Header_Type = None\n"}, "given-dns given-dns; DKIM false, SPF , self false; check_spf policyd-spf-1"},
		{"policyd-spf only tests, and nobody hears", "inet:localhost:8891", "", map[string]string{spfConf: "TestOnly = 0\n"}, "given-dns exact"},
		{"an unknown milter first", "inet:localhost:11332, inet:localhost:8893", "", nil, "not-replicated not-replicated given-dns; check_spf policyd-spf-1"},
		{"clamav-milter first, which writes no results", "inet:localhost:7357, inet:localhost:8893", "", map[string]string{"clamav/clamav-milter.conf": "MilterSocket inet:7357@localhost\nOnInfected Reject\n"},
			"not-replicated given-dns given-dns; DKIM false, SPF policyd-spf-1, self false; check_spf policyd-spf-1"},
		{"rspamd first, which does", "inet:localhost:11332, inet:localhost:8893", "", map[string]string{"rspamd/rspamd.conf": ""}, "not-replicated not-replicated given-dns; check_spf policyd-spf-1"},
		{"an unknown milter last", "inet:localhost:8893, inet:localhost:11332", "", nil, "given-dns not-replicated given-dns; DKIM false, SPF policyd-spf-1, self false; check_spf policyd-spf-1"},
		{"policyd-spf that can't be followed", "inet:localhost:8893", "", map[string]string{spfConf: "Prospective = 192.0.2.1\n"}, "not-replicated not-replicated"},
		{"other milters for some", "inet:localhost:8891", "smtpd_milter_maps = cidr:{192.0.2.0/24 DISABLE}\n", nil, "not-replicated given-dns; check_spf policyd-spf-1"},
	} {
		src := install(t, map[string]string{
			"main.cf": base + "queue_directory = /var/spool/postfix\nsmtpd_recipient_restrictions = reject_unauth_destination, check_policy_service unix:private/spf\n" +
				"smtpd_milters = " + tt.milters + "\n" + tt.main,
			"master.cf": "smtp inet n - y - - smtpd\nspf unix - n n - 0 spawn user=nobody argv=/usr/bin/policyd-spf\n",
		})
		files := maps.Clone(debian)
		maps.Copy(files, tt.files)
		etc(t, src, files)
		spec, report, err := postfix.Import(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, w := range strings.Split(tt.milters, ", ") {
			got = append(got, classOf(&report, w))
		}
		text := strings.Join(append(got, classOf(&report, "check_policy_service unix:private/spf")), " ")
		for _, m := range spec.Filters.Milters {
			if m.DMARC != nil {
				text += fmt.Sprintf("; DKIM %v, SPF %s, self %v", m.DMARC.DKIM, m.DMARC.SPF, m.DMARC.SelfSPF)
			}
		}
		for _, r := range spec.Restrictions.Recipient {
			if r.Kind == "check_spf" {
				text += "; " + r.Kind + " " + r.Arg
			}
		}
		if text != tt.want {
			t.Errorf("%s: %s\nwant %s", tt.name, text, tt.want)
		}
		if _, err := policy.Compile(spec); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func classOf(r *fidelity.Report, element string) string {
	for _, it := range r.Items {
		if it.Element == element {
			return string(it.Class)
		}
	}
	return "none"
}

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
	etc(t, src, map[string]string{
		"opendkim.conf":    "Mode sv\nSocket local:/var/spool/postfix/opendkim/opendkim.sock\nOn-BadSignature accept\n",
		"opendmarc.conf":   "Socket inet:8893@localhost\nRejectFailures true\nDomainWhitelist a.test\n",
		"default/postgrey": "POSTGREY_OPTS=\"--inet=10023\"\n",
		"postfix-policyd-spf-python/policyd-spf.conf": "TestOnly = 0\n",
		"spf/strict.conf": "HELO_reject = SPF_Not_Pass\nUnheardOf = 1\n",
	})
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
			"who passed there can't be read: /var/lib/postgrey: postgrey.db: no such file or directory -> " + fidelity.Ignore,
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
	src.Filters = []string{"inet:127.0.0.1:8895=sendmail:/etc/x"}
	if _, _, err := postfix.Import(t.Context(), src); err == nil || !strings.Contains(err.Error(), "postfix_filter:") {
		t.Errorf("an odd postfix_filter: %v", err)
	}
}

// TestContentFilters: programs to which whole messages are handed over. After the
// queue they refuse nobody; before it they may.
func TestContentFilters(t *testing.T) {
	const master = "smtp inet n - y - - smtpd\nsmtp-amavis unix - - n - 2 smtp\nrelay unix - - n - - smtp\ndspam unix - n n - 10 pipe flags=Rhqu user=dspam argv=/usr/bin/dspam --client -f ${sender}\n" +
		"own unix - n n - 10 pipe user=nobody argv=/usr/local/bin/filter\nspamassassin unix - n n - - pipe user=nobody argv=/usr/bin/spamc -e /usr/sbin/sendmail -oi -f ${sender} ${recipient}\n"
	files := map[string]string{
		"amavis/conf.d/50-user": "$final_spam_destiny = D_BOUNCE;\n", "clamsmtpd.conf": "Listen: 127.0.0.1:10026\nAction: bounce\n",
		"default/spampd": "LISTENPORT=10025\n", "dspam/dspam.conf": "ServerPort 2424\n", "rspamd/rspamd.conf": "",
		"clamav/clamav-milter.conf": "MilterSocket /q/clamav.ctl\n",
	}
	for _, tt := range []struct{ name, main, item, want, remedy string }{
		{"amavis after the queue", "content_filter = smtp-amavis:[127.0.0.1]:10024", "content_filter: smtp-amavis:[127.0.0.1]:10024",
			"exact " + afterQueue + "; amavis (/etc/amavis/conf.d) throws away, returns or quarantines: a virus (D_DISCARD), a forbidden attachment (D_DISCARD), spam (D_BOUNCE)", ""},
		{"clamsmtpd after the queue", "content_filter = relay:127.0.0.1:10026", "content_filter: relay:127.0.0.1:10026",
			"exact " + afterQueue + "; clamsmtpd (/etc/clamsmtpd.conf) returns to the sender: a virus (bounce)", ""},
		{"dspam by pipe", "content_filter = dspam:", "content_filter: dspam:", "exact " + afterQueue + "; dspam (/etc/dspam/dspam.conf) throws away, returns or quarantines: spam (quarantine)", ""},
		{"a program of one's own", "content_filter = own:x", "content_filter: own:x", "exact " + afterQueue + "; what it does then isn't known", ""},
		{"no such transport", "content_filter = gone:x", "content_filter: gone:x", "exact " + afterQueue + "; what it does then isn't known", ""},
		{"FILTER of a client", "smtpd_client_restrictions = check_client_access cidr:{{192.0.2.0/24 filter smtp-amavis:[127.0.0.1]:10024}}", "content_filter: FILTER smtp-amavis:[127.0.0.1]:10024",
			"exact " + afterQueue + "; amavis (/etc/amavis/conf.d) throws away, returns or quarantines: a virus (D_DISCARD), a forbidden attachment (D_DISCARD), spam (D_BOUNCE)", ""},
		{"FILTER of a header", "header_checks = pcre:{{/^Subject: x/ FILTER relay:[127.0.0.1]:10025}}", "content_filter: FILTER relay:[127.0.0.1]:10025",
			"exact " + afterQueue + "; spampd (/etc/default/spampd) marks mail at most", ""},
		{"amavis before the queue", "smtpd_proxy_filter = [127.0.0.1]:10024", "smtpd_proxy_filter: [127.0.0.1]:10024",
			"exact amavis (/etc/amavis/conf.d) refuses nothing by its settings; accepted, and then thrown away, returned or quarantined: a virus (D_DISCARD), a forbidden attachment (D_DISCARD), spam (D_BOUNCE)", ""},
		{"clamsmtpd before the queue", "smtpd_proxy_filter = 10026", "smtpd_proxy_filter: 10026",
			"not-replicated clamsmtpd (/etc/clamsmtpd.conf) refuses a virus (bounce); what a message holds is decided live -> ignore", ""},
		{"unknown before the queue", "smtpd_proxy_filter = inet:localhost:9999", "smtpd_proxy_filter: inet:localhost:9999",
			"not-replicated what listens there isn't known; it decides live -> ignore", "--filter 'inet:localhost:9999=PROGRAM:FILE', if it is one of "},
		{"rspamd as a milter", "smtpd_milters = inet:localhost:11332", "smtpd_milters: inet:localhost:11332",
			"not-replicated rspamd (/etc/rspamd/rspamd.conf) refuses what its rules score too high; what a message holds is decided live; whom its greylisting has let in can't be read: rspamadm configdump: can't be run: there is no rspamadm below @ROOT@ -> ignore", "a [[filter]] of the secondary, with milter = \"inet:localhost:11332\"; or let the publisher run rspamadm: install -D -m 644 /usr/share/understudy/rspamd.conf "},
		{"clamav-milter", "smtpd_milters = unix:clamav.ctl", "smtpd_milters: unix:clamav.ctl",
			"exact clamav-milter (/etc/clamav/clamav-milter.conf) refuses nothing by its settings; accepted, and then thrown away, returned or quarantined: a virus (Quarantine)", ""},
	} {
		src := install(t, map[string]string{"main.cf": base + "queue_directory = /q\n" + tt.main + "\n", "master.cf": master})
		etc(t, src, files)
		spec, report, err := postfix.Import(t.Context(), src)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		got, remedy := "", ""
		for _, it := range report.Items {
			if it.ID() == tt.item {
				if got, remedy = string(it.Class)+" "+it.Why, it.Remedy; it.Instead != "" {
					got += " -> " + it.Instead
				}
			}
		}
		got = strings.ReplaceAll(got, src.Root, "@ROOT@")
		if got != tt.want || !strings.HasPrefix(remedy, tt.remedy) || tt.remedy == "" && remedy != "" {
			t.Errorf("%s: %s, remedy %q\nwant %s, %q", tt.name, got, remedy, tt.want, tt.remedy)
		}
		if is := strings.HasPrefix(tt.main, "smtpd_milters"); is != (len(spec.Filters.Milters) == 1) {
			t.Errorf("%s: milters of the policy: %+v", tt.name, spec.Filters.Milters)
		}
	}
}

// afterQueue is what the report says of every filter after the queue.
const afterQueue = "no verdict: it decides after the primary's 250, and when the message is relayed"

// TestProxyFilterDefers: the choice for smtpd_proxy_filter defers at DATA.
func TestProxyFilterDefers(t *testing.T) {
	src := install(t, map[string]string{"main.cf": base + "smtpd_proxy_filter = localhost:9999\n", "master.cf": "smtp inet n - y - - smtpd\n"})
	src.Choices = fidelity.Choices{"smtpd_proxy_filter: localhost:9999": fidelity.Defer}
	spec, _, err := postfix.Import(t.Context(), src)
	if err != nil || len(spec.Restrictions.Data) != 1 || spec.Restrictions.Data[0].Kind != "defer_if_permit" {
		t.Errorf("%v, %v", spec, err)
	}
}
