package doctor_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/doctor"
	"github.com/understudy-mx/understudy/policy"
)

// machine are findings about the machine that runs the test.
var machine = []string{"clock-unkept", "clock-unknown"}

// TestFaults breaks a healthy set-up in one way each, and wants the finding
// that names it, and no other than those that must come with it.
func TestFaults(t *testing.T) {
	ourServer := func(l *lab) *mailServer { return l.servers[ourAddr] }
	primary := func(l *lab) *mailServer { return l.servers[primaryAddr] }
	for name, c := range map[string]struct {
		fault func(*lab)
		want  string // findings, the first one the fault's own
	}{
		"healthy": {func(*lab) {}, ""},
		// MX records.
		"no MX records":         {func(l *lab) { l.without("example.org") }, "mx-none"},
		"null MX":               {func(l *lab) { l.replace("example.org", "example.org. 60 IN MX 0 .") }, "mx-null"},
		"we aren't in the MX":   {func(l *lab) { l.replace("example.org", "example.org. 60 IN MX 10 mx1.example.org.") }, "mx-missing"},
		"only we are in the MX": {func(l *lab) { l.replace("example.org", "example.org. 60 IN MX 10 mx2.example.org.") }, "mx-hidden-primary"},
		"we come first": {func(l *lab) {
			l.replace("example.org", "example.org. 60 IN MX 10 mx1.example.org.", "example.org. 60 IN MX 5 mx2.example.org.")
		}, "mx-order"},
		"by chance": {func(l *lab) {
			l.replace("example.org", "example.org. 60 IN MX 10 mx1.example.org.", "example.org. 60 IN MX 10 mx2.example.org.")
		}, "mx-equal"},
		"MX is an address": {func(l *lab) { l.records = append(l.records, "example.org. 60 IN MX 30 "+otherAddr+".") }, "mx-address mx-silent mta-sts-mx"},
		"MX is an alias": {func(l *lab) {
			l.records = append(l.records, "example.org. 60 IN MX 30 old.example.org.", "old.example.org. 60 IN CNAME mx1.example.org.")
		}, "mx-cname mta-sts-mx"},
		"MX dangles":            {func(l *lab) { l.records = append(l.records, "example.org. 60 IN MX 30 old.example.org.") }, "mx-dangling mta-sts-mx"},
		"MX can't be looked up": {func(l *lab) { l.behave["example.org."] = demo.Behaviour{Rcode: dns.RcodeServerFailure} }, "mx-unknown"},
		"an MX host's A fails": {func(l *lab) {
			l.behave["mx1.example.org."] = demo.Behaviour{Rcode: dns.RcodeServerFailure, Type: dns.TypeA}
		}, "mx-unknown primary-away"},
		"another server": {func(l *lab) { l.other("220 mx3.example.net ESMTP") }, "back-door mta-sts-mx"},
		"a back door": {func(l *lab) {
			l.behind(map[string]string{"": "550 5.1.1 no such user", "postmaster@example.org": "250 2.1.5 Ok"})
		}, "back-door"},
		"a back door without a postmaster": {func(l *lab) {
			l.behind(map[string]string{"": "550 5.1.1 <x>: Recipient address rejected: User unknown"})
		}, "back-door"},
		"a back door for anybody": {func(l *lab) { l.behind(map[string]string{"": "250 2.1.5 Ok"}) }, "back-door"},
		"a back door, greylisted": {func(l *lab) { l.behind(map[string]string{"": "450 4.2.0 later"}) }, "back-door"},
		"a back door of no domain": {func(l *lab) {
			l.behind(map[string]string{"": "250 ok"})
			l.exam.Domains, l.exam.Hosts = nil, []string{"example.org"}
		}, "back-door-unknown"},
		"no back door":             {func(l *lab) { l.behind(map[string]string{"": "554 5.7.1 go through the filter"}) }, ""},
		"a back door that is shut": {func(l *lab) { l.behind(nil); l.servers[otherAddr].away = true }, ""},
		"a back door that refuses": {func(l *lab) { l.behind(nil); l.servers[otherAddr].greeting = []string{"554 5.7.1 who are you"} }, ""},
		"another server, away":     {func(l *lab) { l.other(""); l.servers[otherAddr].away = true }, "mx-silent mta-sts-mx"},
		"a second domain without": {func(l *lab) {
			l.exam.Domains = append(l.exam.Domains, "example.net")
			l.records = append(l.records, "example.net. 60 IN MX 10 mx1.example.org.")
		}, "mx-missing"},
		"a local name": {func(l *lab) { l.exam.Hosts = []string{"localhost.example.org", "example.org"}; l.exam.Domains = nil }, ""},
		// The daemon.
		"daemon down":     {func(l *lab) { l.exam.Daemon.Err = errors.New("no such file") }, "daemon-down"},
		"no policy":       {func(l *lab) { l.exam.Daemon.Policy = "none" }, "policy-none"},
		"stale":           {func(l *lab) { l.exam.Daemon.Policy = "stale" }, "policy-stale"},
		"foreign domain":  {func(l *lab) { l.exam.Daemon.Problem = "foreign_domain: example.net" }, "policy-problem"},
		"staged":          {func(l *lab) { l.exam.Daemon.Staged = "pending" }, "policy-deletion"},
		"held, damaged":   {func(l *lab) { l.exam.Daemon.Held = 2; l.exam.Daemon.Damaged = true }, "queue-damaged mail-held"},
		"lists set aside": {func(l *lab) { l.exam.Daemon.SetAside = []string{"zen.list.example"} }, "list-set-aside"},
		"everybody":       {func(l *lab) { l.exam.Daemon.Everybody = []string{"example.org"} }, "asked-everybody"},
		"idle filter":     {func(l *lab) { l.exam.Daemon.Idle = []string{"rspamd for inet:localhost:11333"} }, "filter-idle"},
		"another verdict": {func(l *lab) { l.exam.Daemon.Decided, l.exam.Daemon.Unexplained = 100, 2 }, "parity"},
		"all alike":       {func(l *lab) { l.exam.Daemon.Decided = 100 }, ""},
		"database away":   {func(l *lab) { l.exam.Spool = &doctor.Spool{Err: errors.New("refused"), Unproven: true} }, "spool-away"},
		"two standbys":    {func(l *lab) { l.exam.Spool = &doctor.Spool{Standbys: 2} }, ""},
		"one standby":     {func(l *lab) { l.exam.Spool = &doctor.Spool{Standbys: 1} }, "spool-one-standby"},
		"no standby":      {func(l *lab) { l.exam.Spool = &doctor.Spool{} }, "spool-alone"},
		"one machine":     {func(l *lab) { l.exam.Spool = &doctor.Spool{OneMachine: true} }, "spool-one-machine"},
		"a weak database": {func(l *lab) { l.exam.Spool = &doctor.Spool{Standbys: 2, Unproven: true, Superuser: true} }, "spool-tls spool-superuser"},
		"others are ill": {func(l *lab) {
			l.exam.Spool = &doctor.Spool{Standbys: 2, Unheard: []string{"mx3"}, Differing: []string{"mx2"}}
		}, "fleet-unheard fleet-policy"},
		"policy is a file": {func(l *lab) { l.exam.Daemon = doctor.Daemon{Unpaired: true} }, ""},
		// Names and addresses.
		"host name unknown": {func(l *lab) {
			l.exam.Hostname = "mx9.example.org"
			ourServer(l).greeting = []string{"220 mx9.example.org ESMTP"}
		}, "hostname-unknown mx-missing back-door certificate-bad push-certificate-name"},
		"host name fails": {func(l *lab) { l.behave["mx2.example.org."] = demo.Behaviour{Rcode: dns.RcodeServerFailure} }, "hostname-unknown mx-unknown"},
		"no PTR":          {func(l *lab) { l.without("2.1.0.127.in-addr.arpa") }, "ptr-missing"},
		"PTR elsewhere": {func(l *lab) {
			l.replace("2.1.0.127.in-addr.arpa", "2.1.0.127.in-addr.arpa. 60 IN PTR mx1.example.org.")
		}, "ptr-mismatch"},
		"PTR of another name": {func(l *lab) {
			l.replace("2.1.0.127.in-addr.arpa", "2.1.0.127.in-addr.arpa. 60 IN PTR host.example.net.", "host.example.net. 60 IN A "+ourAddr)
		}, "ptr-other"},
		"PTR fails": {func(l *lab) { l.behave["2.1.0.127.in-addr.arpa."] = demo.Behaviour{Rcode: dns.RcodeRefused} }, "ptr-unknown"},
		// MTA-STS.
		"policy lacks us": {func(l *lab) {
			l.sts["mta-sts.example.org"] = "version: STSv1\nmode: enforce\nmx: mx1.example.org\nmax_age: 1\n"
		}, "mta-sts-mx"},
		"wildcard is one label": {func(l *lab) { l.sts["mta-sts.example.org"] = "version: STSv1\nmode: enforce\nmx: *.org\nmax_age: 1\n" }, "mta-sts-mx mta-sts-mx"},
		"wildcard": {func(l *lab) {
			l.sts["mta-sts.example.org"] = "version: STSv1\nmode: enforce\nmx: *.example.org\nmax_age: 1\n"
		}, ""},
		"policy off":               {func(l *lab) { l.sts["mta-sts.example.org"] = "version: STSv1\nmode: none\nmax_age: 1\n" }, ""},
		"policy missing":           {func(l *lab) { delete(l.sts, "mta-sts.example.org") }, "mta-sts-unreachable"},
		"policy is a web page":     {func(l *lab) { l.sts["mta-sts.example.org"] = "<!doctype html>" }, "mta-sts-unreachable"},
		"enforced, no certificate": {func(l *lab) { ourServer(l).ehlo = nil; l.without("_25._tcp.mx2.example.org") }, "mta-sts-certificate no-starttls tlsa-missing"},
		// Certificates and DANE.
		"unknown authority": {func(l *lab) {
			ourServer(l).cert = l.pair(ourName, false, nil)
			l.replace("_25._tcp.mx2.example.org", l.tlsa(ourName))
		}, "mta-sts-certificate certificate-bad"},
		"expired": {func(l *lab) {
			ourServer(l).cert = l.pair(ourName, true, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
			l.replace("_25._tcp.mx2.example.org", l.tlsa(ourName))
		}, "mta-sts-certificate certificate-bad"},
		"for another name": {func(l *lab) {
			ourServer(l).cert = l.pair("www.example.org", true, nil)
			l.without("_25._tcp.mx2.example.org")
		}, "mta-sts-certificate certificate-bad tlsa-missing"},
		"ends soon": {func(l *lab) {
			ourServer(l).cert = l.pair(ourName, true, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(72 * time.Hour) })
			l.replace("_25._tcp.mx2.example.org", l.tlsa(ourName))
		}, "certificate-ends"},
		"STARTTLS fails": {func(l *lab) { ourServer(l).starttls = "454 4.7.0 TLS not available" }, "starttls-fails tlsa-mismatch mta-sts-certificate"},
		"TLSA of an old key": {func(l *lab) {
			old := l.tlsa(primaryName)
			l.pair(primaryName, true, nil)
			pair := l.pairs[primaryName]
			primary(l).cert = &pair
			l.replace("_25._tcp.mx1.example.org", old)
		}, "tlsa-mismatch"},
		"TLSA, and no TLS":    {func(l *lab) { primary(l).ehlo = []string{"XCLIENT NAME ADDR"} }, "tlsa-mismatch"},
		"TLSA can't be asked": {func(l *lab) { l.behave["_25._tcp.mx2.example.org."] = demo.Behaviour{Rcode: dns.RcodeServerFailure} }, "tlsa-unknown tlsa-missing"},
		"TLSA of the primary": {func(l *lab) { l.without("_25._tcp.mx2.example.org") }, "tlsa-missing"},
		"TLSA of CA's use": {func(l *lab) {
			l.replace("_25._tcp.mx2.example.org", strings.Replace(l.tlsa(ourName), "3 1 1", "1 1 1", 1))
		}, "tlsa-mismatch"},
		// The door.
		"nobody at the door":         {func(l *lab) { ourServer(l).away = true }, "door-shut"},
		"another at the door":        {func(l *lab) { ourServer(l).greeting = []string{"220 localhost ESMTP Exim"} }, "door-other"},
		"the door has no policy":     {func(l *lab) { ourServer(l).greeting = []string{"421 4.3.2 no policy yet"} }, "door-defers"},
		"the door doesn't talk SMTP": {func(l *lab) { ourServer(l).greeting = []string{"554 5.3.2 not here"} }, "door-shut"},
		// The primary.
		"trusted and untold": {func(l *lab) { primary(l).ehlo = []string{"STARTTLS"} }, "no-client-identity"},
		"neither": {func(l *lab) {
			primary(l).ehlo = []string{"STARTTLS"}
			primary(l).rcpt["understudy-doctor@example.com"] = "554 5.7.1 Relay access denied"
		}, "no-client-identity"},
		"greylisted": {func(l *lab) {
			primary(l).ehlo = []string{"STARTTLS"}
			primary(l).rcpt["understudy-doctor@example.com"] = "554 5.7.1 no"
			primary(l).rcpt["postmaster@example.org"] = "450 4.2.0 Greylisted"
		}, "no-client-identity primary-defers"},
		"XCLIENT unused":       {func(l *lab) { l.exam.Primaries[0].XClient = false }, "client-identity-unused"},
		"XCLIENT without ADDR": {func(l *lab) { primary(l).ehlo = []string{"STARTTLS", "XCLIENT NAME"} }, "no-client-identity"},
		"postscreen":           {func(l *lab) { primary(l).greeting = []string{"220 mx1.example.org ESMTP", "220 mx1.example.org ESMTP"} }, "primary-screens"},
		"PROXY is wanted":      {func(l *lab) { primary(l).ehloReply = "503 Command refused, required Proxy negotiation failed" }, "primary-wants-proxy"},
		"PROXY isn't known": {func(l *lab) {
			l.exam.Primaries[0].XClient, l.exam.Primaries[0].Proxy = false, true
			primary(l).unknown = "500 unrecognized command"
		}, "primary-no-proxy"},
		"a slow greeting":        {func(l *lab) { primary(l).wait = 2 * time.Second }, "primary-screens"},
		"refused by the primary": {func(l *lab) { primary(l).greeting = []string{"554 5.7.1 go away"} }, "primary-refuses"},
		"the primary is away":    {func(l *lab) { primary(l).away = true }, "primary-away"},
		"TLS demanded": {func(l *lab) {
			primary(l).ehlo = []string{"XCLIENT ADDR"}
			l.exam.Primaries[0].TLS = "require"
			l.without("_25._tcp.mx1.example.org")
		}, "primary-no-tls"},
		"TLS demanded, bad":  {func(l *lab) { l.exam.Primaries[0].TLS = "require"; l.exam.Primaries[0].TLSName = "mail.example.org" }, "primary-certificate"},
		"TLS demanded, good": {func(l *lab) { l.exam.Primaries[0].TLS = "require" }, ""},
		"a loop":             {func(l *lab) { l.exam.Primaries[0].Address = ourName }, "loop mx-equal back-door"},
		// Lists of recipients that are pushed.
		"nothing is pushed": {func(l *lab) { l.exam.Push = doctor.Push{} }, ""},
		"untaken":           {func(l *lab) { l.exam.Push = doctor.Push{Untaken: []string{"example.org"}} }, "push-untaken"},
		"another untaken":   {func(l *lab) { l.exam.Push.Untaken = []string{"example.net"} }, "push-untaken"},
		"unread":            {func(l *lab) { l.exam.Push.Unread = []string{"example.org"} }, "push-unread"},
		"never pushed":      {func(l *lab) { l.exam.Push.Lists[0].Pushed = time.Time{} }, "push-never"},
		"stale list":        {func(l *lab) { l.exam.Push.Lists[0].Stale = true }, "push-stale"},
		"staged list": {func(l *lab) {
			l.exam.Push.Lists[0].Stale, l.exam.Push.Lists[0].Staged = true, "9 of 10 recipients would go"
		}, "push-deletion"},
		"no token":            {func(l *lab) { l.exam.Push.Lists[0].Token = false }, "push-token"},
		"push shut":           {func(l *lab) { l.exam.Push.Listen = "127.0.0.1:1" }, "push-shut"},
		"push in clear":       {func(l *lab) { delete(l.pairs, pushName) }, "push-other"},
		"push ended":          {func(l *lab) { l.pairs[pushName] = *l.ends(-time.Hour) }, "push-certificate-ended"},
		"push ends":           {func(l *lab) { l.pairs[pushName] = *l.ends(time.Hour) }, "push-certificate-ends"},
		"push by another":     {func(l *lab) { l.pairs[pushName] = l.pairs[primaryName] }, "push-certificate-name"},
		"pushed to that name": {func(l *lab) { l.pairs[pushName], l.exam.Push.Name = l.pairs[primaryName], primaryName }, ""},
		"push by nobody": {func(l *lab) {
			good := l.pairs[ourName]
			l.pairs[pushName] = *l.pair(ourName, false, func(*x509.Certificate) {})
			l.pairs[ourName] = good
		}, "push-certificate-bad"},
		"lists are ours":       {func(l *lab) { l.pushed(0o700, 0o600) }, ""},
		"lists can be read":    {func(l *lab) { l.pushed(0o755, 0o644) }, ""},
		"lists can be written": {func(l *lab) { l.pushed(0o755, 0o664) }, "push-files-open"},
		"lists can be swapped": {func(l *lab) { l.pushed(0o777, 0o644) }, "push-files-open"},
		// DNS lists and servers.
		"list says no": {func(l *lab) {
			l.replace("2.0.0.127.zen.list.example", "2.0.0.127.zen.list.example. 60 IN A 127.255.255.254")
		}, "list-refuses"},
		"list of everybody": {func(l *lab) { l.records = append(l.records, "1.0.0.127.zen.list.example. 60 IN A 203.0.113.9") }, "list-lists-all"},
		"dead list":         {func(l *lab) { l.without("2.0.0.127.zen.list.example") }, "list-dead"},
		"silent list":       {func(l *lab) { l.behave["2.0.0.127.zen.list.example."] = demo.Behaviour{Rcode: dns.RcodeServerFailure} }, "list-silent"},
		"list of nobody":    {func(l *lab) { l.without("test.dbl.list.example") }, "list-dead"},
		"public resolver": {func(l *lab) {
			l.exam.Zones = append(l.exam.Zones, policy.DNSList{Zone: "x.list.example"})
			l.exam.DNS = []string{"[2001:4860:4860::8888]:53"}
			l.exam.Timeout = 100 * time.Millisecond
			l.exam.Domains = nil
		}, "resolver-silent resolver-public list-silent list-silent list-silent hostname-unknown primary-away"},
		"no resolver": {func(l *lab) { l.exam.DNS = []string{}; l.exam.Domains, l.exam.Zones = nil, nil }, "no-resolver hostname-unknown primary-away"},
		// The disk.
		"full disk":       {func(l *lab) { l.exam.MinFree = 1 << 60 }, "disk-full"},
		"in memory":       {func(l *lab) { l.mounts += "tmpfs " + l.exam.StateDir + " tmpfs rw 0 0\n" }, "disk-memory"},
		"no barriers":     {func(l *lab) { l.mounts = "/dev/root / ext4 rw,nobarrier 0 0\n" }, "disk-unsafe"},
		"far away":        {func(l *lab) { l.mounts = "nas:/x / nfs4 rw 0 0\n" }, "disk-remote"},
		"in user space":   {func(l *lab) { l.mounts = "s3 / fuse.s3fs rw 0 0\n" }, "disk-remote"},
		"in a container":  {func(l *lab) { l.mounts = "overlay / overlay rw 0 0\n" }, "disk-container"},
		"hidden by later": {func(l *lab) { l.mounts += "/dev/root / xfs rw 0 0\n" }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := healthy(t)
			c.fault(l)
			found := l.examine()
			var got []string
			for _, f := range found {
				if f.Severity == doctor.OK || slices.Contains(machine, f.Check) {
					continue
				}
				got = append(got, f.Check)
				if f.Reason == "" || f.Severity != doctor.Unknown && f.Remedy == "" {
					t.Errorf("%+v lacks a reason or a remedy", f)
				}
			}
			want := strings.Fields(c.want)
			if !sameSet(got, want) {
				t.Errorf("got %q, want %q\n%+v", got, want, found)
			}
		})
	}
}

// ends makes a trusted certificate of ours that ends then; the others stay.
func (l *lab) ends(in time.Duration) *tls.Certificate {
	good := l.pairs[ourName]
	defer func() { l.pairs[ourName] = good }()
	return l.pair(ourName, true, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(in)
	})
}

// pushed lays a list out, with these rights.
func (l *lab) pushed(dir, file os.FileMode) {
	name := filepath.Join(l.exam.Push.Dir, "example.org.list")
	err := errors.Join(os.Mkdir(l.exam.Push.Dir, 0o700), os.WriteFile(name, nil, 0o600), os.Chmod(name, file), os.Chmod(l.exam.Push.Dir, dir))
	if err != nil {
		l.t.Fatal(err)
	}
}

// other adds a mail server that is neither.
// behind puts a server behind the primary, with its replies to recipients.
func (l *lab) behind(rcpt map[string]string) {
	l.servers[otherAddr] = &mailServer{greeting: []string{"220 real.example.org ESMTP"}, rcpt: rcpt}
	l.exam.Behind = []string{otherAddr}
}

func (l *lab) other(greeting string) {
	l.records = append(l.records, "example.org. 60 IN MX 30 mx3.example.net.", "mx3.example.net. 60 IN A "+otherAddr)
	l.servers[otherAddr] = &mailServer{greeting: []string{greeting}}
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}
