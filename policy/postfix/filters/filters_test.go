package filters

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/policy"
)

// tree writes files below a new root.
func tree(t *testing.T, files map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func read(t *testing.T, program, text string) *Filter {
	t.Helper()
	f, err := Read(t.Context(), &host.Host{Root: tree(t, map[string]string{"/f": text, "/hosts": "# ours\n10.0.0.1\n!10.0.0.0/8\n\n10.0.0.0/24\n.example.net\nMail.Example.NET\n[2001:db8::1]\n"})}, program, "/f")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestDebian: the files of Debian's packages, as they come.
func TestDebian(t *testing.T) {
	for _, tt := range []struct{ program, file, refuses string }{
		{OpenDKIM, "/etc/opendkim.conf", ""},
		{OpenDMARC, "/etc/opendmarc.conf", ""},
		{PolicySPF, "/etc/postfix-policyd-spf-python/policyd-spf.conf", "SPF Fail of the HELO name; SPF Fail of the sender"},
		{Postgrey, "/etc/default/postgrey", "a client, sender and recipient that it doesn't know together, for 300 s"},
		{Rspamd, "/etc/rspamd/rspamd.conf", "what its rules score too high"},
		{ClamAVMilter, "/etc/clamav/clamav-milter.conf", ""},
	} {
		f, err := Read(t.Context(), nil, tt.program, tt.file)
		if err != nil {
			t.Fatalf("%v; run test/install-peers", err)
		}
		if got := strings.Join(f.Refuses, "; "); got != tt.refuses {
			t.Errorf("%s refuses %q, want %q", tt.program, got, tt.refuses)
		}
		if tt.program != Postgrey && tt.program != Rspamd && len(f.Unsure) > 0 {
			t.Errorf("%s: %q", tt.program, f.Unsure)
		}
	}
}

// TestOptionsAreComplete: each option that a program of Debian's knows is
// classified, and none that it doesn't.
func TestOptionsAreComplete(t *testing.T) {
	for program, page := range map[string]string{OpenDKIM: "opendkim.conf", OpenDMARC: "opendmarc.conf"} {
		out, err := exec.Command("sh", "-c", "zcat /usr/share/man/man5/"+page+".5.gz").Output()
		if err != nil {
			t.Fatalf("%v; run test/install-peers", err)
		}
		names := regexp.MustCompile(`(?m)^\.I ([A-Za-z-]+) \(`).FindAllStringSubmatch(string(out), -1)
		if len(names) < 30 {
			t.Errorf("%s: %d options in its manual page", program, len(names))
		}
		for _, n := range names {
			if !slices.ContainsFunc(Options(program), func(o Option) bool { return strings.EqualFold(o.Name, n[1]) }) {
				t.Errorf("%s: %s isn't classified", program, n[1])
			}
		}
	}
	b, err := os.ReadFile("/usr/lib/python3/dist-packages/spf_engine/policydspfsupp.py")
	if err != nil {
		t.Fatalf("%v; run test/install-peers", err)
	}
	for _, n := range regexp.MustCompile(`(?m)^\s+'(\w+)'\s*: ?(?:str|int|bool|'dataset')`).FindAllStringSubmatch(string(b), -1) {
		if !slices.ContainsFunc(Options(PolicySPF), func(o Option) bool { return o.Name == n[1] }) {
			t.Errorf("policyd-spf: %s isn't classified", n[1])
		}
	}
	for program := range options {
		seen := map[string]bool{}
		for _, o := range Options(program) {
			if seen[strings.ToLower(o.Name)] {
				t.Errorf("%s: %s is classified twice", program, o.Name)
			}
			seen[strings.ToLower(o.Name)] = true
		}
	}
}

func TestOpenDKIM(t *testing.T) {
	base := policy.DKIMFilter{BadSignature: "accept", NoSignature: "accept", KeyNotFound: "accept", Security: "tempfail",
		MaxSignatures: 3, MinKeyBits: 1024, MaxHeader: 65536, ClockDrift: 300, Signs: true, Peers: []string{"127.0.0.1"}}
	with := func(f func(*policy.DKIMFilter)) *policy.DKIMFilter { d := base; f(&d); return &d }
	for _, tt := range []struct {
		name, text string
		want       *policy.DKIMFilter
		refuses    string
		unsure     string
	}{
		{"signer", "Mode s\nOn-BadSignature reject\nNonsense 1\n", nil, "", ""},
		{"verifier", "Mode v\n", with(func(d *policy.DKIMFilter) { d.Signs, d.Peers = false, []string{} }), "", ""},
		{"accepts", "On-Default accept\n", with(func(d *policy.DKIMFilter) { d.Security = "accept" }), "", ""},
		{"bad", "on-badsignature\treject # comment\n", with(func(d *policy.DKIMFilter) { d.BadSignature = "reject" }),
			"a bad signature (reject), a header of more than 65536 octets (tempfail)", ""},
		{"abbreviated", "Mode v\nOn-BadSignature r\nOn-NoSignature t\nOn-Security a", with(func(d *policy.DKIMFilter) {
			d.BadSignature, d.NoSignature, d.Security, d.Signs, d.Peers = "reject", "tempfail", "accept", false, []string{}
		}), "a bad signature (reject), no signature (tempfail)", ""},
		{"default and its exception", "On-Default discard\nOn-NoSignature accept\n", with(func(d *policy.DKIMFilter) {
			d.BadSignature, d.KeyNotFound, d.Security = "discard", "discard", "discard"
		}), "a bad signature (discard), a signature without a key (discard), a header of more than 65536 octets (discard)", ""},
		{"quarantine that isn't", "On-BadSignature quarantine\n", with(func(d *policy.DKIMFilter) { d.BadSignature = "quarantine" }), "", ""},
		{"quarantine", "On-BadSignature q\nQuarantine yes\nMaximumHeaders 0\n", with(func(d *policy.DKIMFilter) { d.BadSignature, d.Quarantine, d.MaxHeader = "quarantine", true, 0 }), "a bad signature (quarantine)", ""},
		{"hosts", "On-BadSignature reject\nInternalHosts 127.0.0.1, ::1\nPeerList /hosts\nExemptDomains csl:a.test,b.test\nMaximumHeaders 0\n", with(func(d *policy.DKIMFilter) {
			d.BadSignature, d.MaxHeader, d.Exempt = "reject", 0, []string{"a.test", "b.test"}
			d.Peers = []string{"mail.example.net", ".example.net", "127.0.0.1", "::1", "10.0.0.1", "2001:db8::1", "10.0.0.0/24", "!10.0.0.0/8"}
		}), "a bad signature (reject)", ""},
		{"limits", "On-BadSignature reject\nMaximumSignaturesToVerify 5\nMinimumKeyBits 512\nClockDrift 10\nMaximumHeaders 0\nAlwaysAddARHeader true", with(func(d *policy.DKIMFilter) {
			d.BadSignature, d.MaxHeader, d.MaxSignatures, d.MinKeyBits, d.ClockDrift, d.AlwaysAddsAR = "reject", 0, 5, 512, 10, true
		}), "a bad signature (reject)", ""},
		{"script", "FinalPolicyScript /x.lua\n", nil, "", "/f:1: FinalPolicyScript: a script decides"},
		{"unknown", "\n\nOn-BadSignature reject\nMaximumHeaders 0\nFrobnicate yes\n", nil, "a bad signature (reject)", `/f:5: opendkim knows no "Frobnicate"`},
		{"changes which signatures count", "On-BadSignature reject\nMaximumHeaders 0\nMustBeSigned Subject\n", nil, "a bad signature (reject)", "/f:3: MustBeSigned: it changes which signatures count"},
		{"off", "On-BadSignature reject\nMaximumHeaders 0\nRequiredHeaders no\n", with(func(d *policy.DKIMFilter) { d.BadSignature, d.MaxHeader = "reject", 0 }), "a bad signature (reject)", ""},
		{"database", "On-BadSignature reject\nMaximumHeaders 0\nPeerList dsn:mysql://x\n", nil, "a bad signature (reject)", `/f:3: PeerList: a data set of type "dsn" isn't read`},
		{"odd action", "On-BadSignature refuse\n", nil, "", `/f:1: On-BadSignature: "refuse" is none of accept, discard, quarantine, reject, tempfail`},
	} {
		f := read(t, OpenDKIM, tt.text)
		if got := strings.Join(f.Refuses, ", "); got != tt.refuses || strings.Join(f.Unsure, "; ") != tt.unsure {
			t.Errorf("%s: refuses %q, unsure %q; want %q, %q", tt.name, got, f.Unsure, tt.refuses, tt.unsure)
		}
		if diff := cmp.Diff(tt.want, f.DKIM); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestOpenDMARC(t *testing.T) {
	for _, tt := range []struct {
		name, text      string
		want            *policy.DMARCFilter
		refuses, unsure string
	}{
		{"reports only", "HoldQuarantinedMessages true\nPublicSuffixList /x\n", nil, "", ""},
		{"rejects", "RejectFailures true\nPublicSuffixList /x\n", &policy.DMARCFilter{RejectFailures: true, IgnoreHosts: []string{"127.0.0.1"}}, "what a domain's DMARC policy says to reject", ""},
		{"all", "RejectFailures 1\nHoldQuarantinedMessages y\nRequiredHeaders T\nRejectMultiValueFrom true\nIgnoreHosts /hosts\nIgnoreMailFrom a.test,b.test\nSPFSelfValidate true\nSPFIgnoreResults true\nRejectString no %s\n",
			&policy.DMARCFilter{RejectFailures: true, Quarantine: true, RequiredHeaders: true, RejectMultiFrom: true, NoSuffixes: true, SelfSPF: true, SPF: "-", RejectString: "no %s",
				IgnoreDomains: []string{"a.test", "b.test"}, IgnoreHosts: []string{"mail.example.net", ".example.net", "10.0.0.1", "2001:db8::1", "10.0.0.0/24", "!10.0.0.0/8"}},
			"what a domain's DMARC policy says to reject; what a domain's DMARC policy says to quarantine (held); header fields that RFC 5322 demands or forbids twice; authors of several domains", ""},
		{"ARC", "RejectFailures true\nDomainWhitelist a.test\n", nil, "what a domain's DMARC policy says to reject", "/f:2: DomainWhitelist: ARC may overrule a failure"},
		{"no such file", "RequiredHeaders true\nIgnoreHosts /gone\n", nil, "header fields that RFC 5322 demands or forbids twice", "/f:2: IgnoreHosts: /gone: no such file or directory"},
		{"text", "RequiredHeaders true\nRejectString no\n", nil, "header fields that RFC 5322 demands or forbids twice", "/f:2: RejectString: opendmarc doesn't start without one %s in it"},
	} {
		f := read(t, OpenDMARC, tt.text)
		if got := strings.Join(f.Refuses, "; "); got != tt.refuses || strings.Join(f.Unsure, "; ") != tt.unsure {
			t.Errorf("%s: refuses %q, unsure %q; want %q, %q", tt.name, got, f.Unsure, tt.refuses, tt.unsure)
		}
		if diff := cmp.Diff(tt.want, f.DMARC); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestPolicySPF(t *testing.T) {
	base := policy.SPFService{HELO: "Fail", MailFrom: "Fail", Skip: []string{"127.0.0.0/8", "::1/128"}, VoidLookups: 2, Seconds: 20,
		Message: "Message {rejectdefer} due to: {spf}. Please see {url}", Header: "SPF"}
	with := func(f func(*policy.SPFService)) *policy.SPFService { d := base; f(&d); return &d }
	both := "SPF Fail of the HELO name; SPF Fail of the sender"
	for _, tt := range []struct {
		name, text      string
		want            *policy.SPFService
		refuses, unsure string
	}{
		{"empty", "", &base, both, ""},
		{"test only", "TestOnly = 0\n", &base, "", ""},
		{"never", "HELO_reject = False\nMail_From_reject = No_Check\nPermError_reject = True\n", with(func(d *policy.SPFService) { d.HELO, d.MailFrom, d.PermError = "False", "No_Check", true }), "", ""},
		{"all", "HELO_reject=Null\nMail_From_reject = SPF_Not_Pass # c\nPermError_reject = True\nTempError_Defer = True\nNo_Mail = True\nWhitelist = 192.0.2.0/24,2001:db8::1\nHELO_Whitelist = a.test,b.test\n" +
			"Domain_Whitelist = c.test\nDomain_Whitelist_PTR = d.test\nReject_Not_Pass_Domains = e.test\nVoid_Limit = 5\nLookup_Time = 9\nSPF_Enhanced_Status_Codes = No\nHeader_Type = AR\nHide_Receiver = Yes\nReason_Message = no: {spf}\n",
			with(func(d *policy.SPFService) {
				d.HELO, d.MailFrom, d.PermError, d.TempError, d.NoMail = "Null", "SPF_Not_Pass", true, true, true
				d.Allow, d.AllowHELO, d.AllowDomains, d.AllowPTR, d.NotPass = []string{"192.0.2.0/24", "2001:db8::1/128"}, []string{"a.test", "b.test"}, []string{"c.test"}, []string{"d.test"}, []string{"e.test"}
				d.VoidLookups, d.Seconds, d.OldCodes, d.Header, d.HideRcpt, d.Message = 5, 9, true, "AR", true, "no: {spf}"
			}), "SPF Fail of the HELO name; SPF that doesn't pass for the sender; SPF records that can't be read; SPF records that can't be looked up (deferred); SPF that doesn't pass for e.test", ""},
		{"a bad network ends the list", "Whitelist = 192.0.2.1,192.0.2.0/8,192.0.2.9\n", with(func(d *policy.SPFService) { d.Allow = []string{"192.0.2.1/32"} }), both, ""},
		{"pass restriction", "Mail_From_pass_restriction = x\n", nil, both, "/f:1: Mail_From_pass_restriction: a restriction of Postfix's decides about who passes"},
		{"unknown", "\nhelo_reject = False\n", nil, both, `/f:2: policyd-spf knows no "helo_reject"`},
		{"number", "Void_Limit = x\n", nil, both, `/f:1: Void_Limit: "x" is no number`},
	} {
		f := read(t, PolicySPF, tt.text)
		if got := strings.Join(f.Refuses, "; "); got != tt.refuses || strings.Join(f.Unsure, "; ") != tt.unsure {
			t.Errorf("%s: refuses %q, unsure %q; want %q, %q", tt.name, got, f.Unsure, tt.refuses, tt.unsure)
		}
		if diff := cmp.Diff(tt.want, f.SPF); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestPostgrey(t *testing.T) {
	base := policy.Greylist{Delay: 300, MaxAge: 35 * 86400, RetryWindow: 2 * 86400, AutoClients: 5, IPv4: 24, IPv6: 64,
		Action: "DEFER_IF_PERMIT", Text: greyHelpText, Database: greyDir}
	with := func(f func(*policy.Greylist)) *policy.Greylist { g := base; f(&g); return &g }
	for _, tt := range []struct {
		name, opts string
		want       *policy.Greylist
		unsure     string
	}{
		{"none", "--inet=10023", &base, ""},
		{"unknown", "--inet=10023 --delay=60 -v --frob", nil, `/f:2: postgrey knows no "--frob"`},
		{"times", "-i 10023 --delay 60 -max-age=7 --retry-window=6h", with(func(g *policy.Greylist) { g.Delay, g.MaxAge, g.RetryWindow = 60, 7*86400, 6*3600 }), ""},
		{"zero is the usual", "--delay=0 --max-age=0 --ipv4cidr=0 --retry-window=0", with(func(g *policy.Greylist) { g.RetryWindow = 0 }), ""},
		{"window in words", "--retry-window=2d", nil, `/f:2: retry-window: "2d" is neither a number of days nor of hours, such as 6h`},
		{"no automatic clients", "--auto-whitelist-clients=0", with(func(g *policy.Greylist) { g.AutoClients = 0 }), ""},
		{"automatic clients", "--auto-whitelist-clients --privacy", with(func(g *policy.Greylist) { g.Privacy = true }), ""},
		{"automatic clients, apart", "--auto-whitelist-clients 3 --auto-whitelist-clients=2", with(func(g *policy.Greylist) { g.AutoClients = 2 }), ""},
		{"automatic what", "--auto-whitelist-clients=many", nil, `/f:2: auto-whitelist-clients: "many" is no number`},
		{"networks", "--lookup-by-subnet --ipv4cidr=32 --ipv6cidr=128", with(func(g *policy.Greylist) { g.IPv4, g.IPv6 = 32, 128 }), ""},
		{"too narrow", "--ipv4cidr=33", nil, `/f:2: ipv4cidr: "33" is no number that postgrey could use`},
		{"by host", "--lookup-by-host --dbdir=/x --greylist-action=451 --greylist-text=Later", with(func(g *policy.Greylist) {
			g.ByHost, g.Database, g.Action, g.Text = true, "/x", "451", "Later"
		}), ""},
		{"whitelists", "--whitelist-clients=/hosts --whitelist-recipients=/gone", with(func(g *policy.Greylist) {
			g.Clients = []string{"10.0.0.1", "!10.0.0.0/8", "10.0.0.0/24", ".example.net", "Mail.Example.NET", "[2001:db8::1]"}
		}), ""},
		{"a value that is missing", "--delay", nil, `/f:2: delay lacks its value; /f:2: delay: "" is no number that postgrey could use`},
		{"a flag with a value", "--privacy=yes", nil, `/f:2: privacy takes no value`},
		{"no effect on decisions", "--pidfile=/x --user=u --group g --daemonize --quiet --exim --hostname=h --listen-queue-size=5 --socketmode=0600 --x-greylist-header=X: --syslogfacility=mail", &base, ""},
	} {
		f := read(t, Postgrey, "# x\nPOSTGREY_OPTS=\""+tt.opts+"\"\n")
		if diff := cmp.Diff(tt.want, f.Grey); diff != "" || strings.Join(f.Unsure, "; ") != tt.unsure {
			t.Errorf("%s: unsure %q, want %q (-want +got):\n%s", tt.name, f.Unsure, tt.unsure, diff)
		}
		if len(f.Refuses) != 1 || !strings.HasPrefix(f.Refuses[0], "a client, sender and recipient that it doesn't know together, for ") {
			t.Errorf("%s: refuses %q", tt.name, f.Refuses)
		}
	}
}

func TestFind(t *testing.T) {
	debian := map[string]string{
		"/etc/opendkim.conf":    "Socket local:/var/spool/postfix/opendkim/opendkim.sock\n",
		"/etc/opendmarc.conf":   "Socket inet:8893@[127.0.0.1]\n",
		"/etc/default/postgrey": "POSTGREY_OPTS=\"--inet=10023\"\n",
	}
	overridden := map[string]string{"/etc/opendkim.conf": "Socket inet:1@localhost\n",
		"/etc/systemd/system/opendkim.service.d/override.conf": "[Service]\nExecStart=\nExecStart=/usr/sbin/opendkim -P /run/p -p inet:8891@localhost\n"}
	unix := map[string]string{"/etc/default/postgrey": "POSTGREY_OPTS='--unix=/var/spool/postfix/postgrey.sock --delay=5'\n"}
	for _, tt := range []struct {
		where string
		files map[string]string
		want  string
	}{
		{"local:opendkim/opendkim.sock", debian, "opendkim (/etc/opendkim.conf)"},
		{"unix:/var/spool/postfix/opendkim/opendkim.sock", debian, "opendkim (/etc/opendkim.conf)"},
		{"inet:localhost:8893", debian, "opendmarc (/etc/opendmarc.conf)"},
		{"{ inet:127.0.0.1:8893, connect_timeout=5s }", debian, "opendmarc (/etc/opendmarc.conf)"},
		{"inet:[::1]:10023", debian, "postgrey (/etc/default/postgrey)"},
		{"inet:localhost:11332", debian, ""},
		{"inet:localhost:8891", overridden, "opendkim (/etc/opendkim.conf)"},
		{"inet:localhost:1", overridden, ""},
		{"unix:postgrey.sock", unix, "postgrey (/etc/default/postgrey)"},
		{"inet:mx.example.org:8893", debian, ""},
	} {
		e, err := ParseEndpoint(tt.where, "/var/spool/postfix")
		if err != nil {
			t.Fatal(err)
		}
		p, _, ok := Find(t.Context(), &host.Host{Root: tree(t, tt.files)}, e, "/var/spool/postfix")
		if got := p.String(); ok != (tt.want != "") || ok && got != tt.want {
			t.Errorf("%s: %s, %v; want %q", tt.where, got, ok, tt.want)
		}
	}
	if p, ok := Spawned([]string{"/usr/bin/python3", "/usr/bin/policyd-spf", "/etc/x.conf"}); !ok || p.File != "/etc/x.conf" {
		t.Errorf("policyd-spf by python3: %v, %v", p, ok)
	}
	for _, bad := range []string{"x", "inet:localhost:1", "inet:localhost:1=opendkim", "inet:localhost:1=sendmail:/etc/x", "tcp:a:1=opendkim:/etc/x", "inet:localhost:1=opendkim:etc"} {
		if _, err := ParsePlaces([]string{bad}, "/q"); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestIncludes(t *testing.T) {
	root := tree(t, map[string]string{"/f": "Include /g\nMaximumHeaders 0\n", "/g": "On-BadSignature reject\n", "/loop": "Include /loop\n"})
	f, err := Read(t.Context(), &host.Host{Root: root}, OpenDKIM, "/f")
	if err != nil || f.DKIM == nil || f.DKIM.BadSignature != "reject" || !slices.Equal(f.Files, []string{"/f", "/g"}) {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := Read(t.Context(), &host.Host{Root: root}, OpenDKIM, "/loop"); err == nil || !strings.Contains(err.Error(), "/loop:1") {
		t.Errorf("a file that includes itself: %v", err)
	}
	if _, err := Read(t.Context(), &host.Host{Root: root}, OpenDKIM, "/gone"); err == nil || err.Error() != "/gone: no such file or directory" {
		t.Errorf("a missing file: %v", err)
	}
}

// FuzzFilters: any file is read, and says why it isn't followed.
func FuzzFilters(f *testing.F) {
	f.Add("Mode sv\nOn-BadSignature reject\nPeerList csl:a,b\nInclude /f\n")
	f.Add("RejectFailures true\nIgnoreHosts /f\n")
	f.Add("HELO_reject = Fail\nWhitelist = 1.2.3.4/33\nVoid_Limit=99999999999999999999\n")
	f.Add("POSTGREY_OPTS=\"--delay --inet\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		root := tree(t, map[string]string{"/f": text})
		for _, program := range Programs() {
			got, err := Read(t.Context(), &host.Host{Root: root}, program, "/f")
			if err == nil && (got.DKIM != nil || got.DMARC != nil || got.SPF != nil) && len(got.Unsure) > 0 {
				t.Errorf("%s is followed in spite of %q", program, got.Unsure)
			}
		}
		for line := range strings.Lines(text) {
			if e, err := ParseEndpoint(line, "/q"); err == nil {
				Find(t.Context(), &host.Host{Root: root}, e, "/q")
			}
		}
	})
}
