// Package doctor examines a set-up from outside: the DNS as senders see it, the
// replies of the secondary and the primary, and the machine itself. It changes
// nothing and sends no mail; a session with a mail server ends before DATA.
//
// A finding has a fixed name, so that a script can look for it, and four things
// for the operator: the subject, the problem, the evidence and the remedy.
//
//	fault    no-client-identity  mx1.example.org:25
//	         The primary relays mail for this machine, and doesn't learn whose it is: …
//	         seen: EHLO offers no XCLIENT; RCPT TO:<…> for a foreign domain got 250
//	         mend: postconf -e 'smtpd_authorized_xclient_hosts = 203.0.113.2' && postfix reload
package doctor

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/service"
	"github.com/understudy-mx/understudy/policy"
)

// Severity orders findings: those that cost mail come first.
type Severity string

const (
	Fault   Severity = "fault"   // mail is lost, refused or let in that should not be
	Unknown Severity = "unknown" // it could not be looked at
	Warning Severity = "warning" // right for some set-ups
	OK      Severity = "ok"
)

var severities = []Severity{Fault, Unknown, Warning, OK}

// Finding is one result. An OK finding has a Check and a Reason only.
type Finding struct {
	Severity Severity `json:"severity"`
	Check    string   `json:"check"`             // a fixed name
	Subject  string   `json:"subject,omitempty"` // a domain, host, zone or file
	Reason   string   `json:"reason"`
	Evidence string   `json:"evidence,omitempty"`
	Remedy   string   `json:"remedy,omitempty"`
}

// Primary is a next hop.
type Primary struct {
	Address string // host:port
	TLS     string // opportunistic, require, off
	TLSName string // of its certificate, if not the host's
	XClient bool   // we want to name clients to it
	Proxy   bool   // … by a PROXY header, which it wants before all else
}

// Exam is what to examine.
type Exam struct {
	Hostname  string   // as MX records name this machine
	Doors     []string // where it takes mail, host:port
	Domains   []string // of the policy
	Hosts     []string // names that the primary takes for its own: looked at where they have MX records
	Zones     []policy.DNSList
	Primaries []Primary
	Behind    []string // servers that the primary, a filter, hands mail over to, host:port
	StateDir  string
	MinFree   int64    // octets
	DNS       []string // the servers that are asked, ip:port
	Daemon    Daemon
	Push      Push
	Spool     *Spool // nil: the queue is in StateDir

	Timeout time.Duration  // for each question or command; 0: 10 s
	Port    string         // of mail servers that MX records name; "": 25
	Roots   *x509.CertPool // nil: the system's
	HTTP    *http.Client   // nil: the default one, with Roots
	Now     time.Time      // zero: now
	Mounts  string         // the file of mounts; "": /proc/self/mounts
}

// maxDomains bounds how many domains are looked up.
const maxDomains = 1000

// check is a part of the examination. It reports what is wrong; without a
// report it is OK, in the words of healthy, if it looked at anything.
type check struct {
	name    string
	healthy string
	run     func(*exam, context.Context) (looked bool)
}

// checks are all, in the order in which the healthy ones are shown.
var checks = []check{
	{"daemon", "The daemon runs, and decides by a fresh policy.", (*exam).daemon},
	{"resolver", "The DNS servers answer.", (*exam).resolver},
	{"mx", "MX records send mail to the primary first, and here when it is away.", (*exam).mx},
	{"addresses", "Names and addresses of this machine agree, both ways.", (*exam).addresses},
	{"mta-sts", "No MTA-STS policy shuts a mail server out.", (*exam).mtaSTS},
	{"tlsa", "TLSA records match the certificates.", (*exam).tlsa},
	{"door", "The door answers, and is ours.", (*exam).door},
	{"certificate", "The door's certificate is good for its name.", (*exam).certificate},
	{"primary", "The primary answers, and takes mail from here as it would from the sender.", (*exam).primary},
	{"behind", "The servers behind the primary let no stranger in.", (*exam).behind},
	{"push", "Lists of recipients can be pushed, and are.", (*exam).push},
	{"dns-lists", "Every DNS list lists its test address, and only that.", (*exam).lists},
	{"clock", "The clock is kept by the time service.", (*exam).clock},
	{"disk", "The state directory is on a disk that keeps what it synced.", (*exam).disk},
	{"spool", "The database has its standbys, and the other secondaries are well.", (*exam).spool},
}

// Run makes the examination. progress, if not nil, is called with the name of each
// part before it begins. The worst findings come first.
func (e Exam) Run(ctx context.Context, progress func(check string)) []Finding {
	x := newExam(e)
	x.progress = progress
	for _, c := range checks {
		x.part(c.name, c.healthy, func() bool { return c.run(x, ctx) })
	}
	order(x.findings)
	return x.findings
}

// part runs a part of the examination.
func (x *exam) part(name, healthy string, run func() (looked bool)) {
	if x.progress != nil {
		x.progress(name)
	}
	before := len(x.findings)
	if run() && len(x.findings) == before {
		x.findings = append(x.findings, Finding{Severity: OK, Check: name, Reason: healthy})
	}
}

// order puts the worst first, and leaves the rest of the order as it is.
func order(findings []Finding) {
	slices.SortStableFunc(findings, func(a, b Finding) int {
		return cmp.Compare(slices.Index(severities, a.Severity), slices.Index(severities, b.Severity))
	})
}

// Ill tells whether something is wrong, or can't be known.
func Ill(findings []Finding) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool { return f.Severity == Fault || f.Severity == Unknown })
}

// exam is an examination under way.
type exam struct {
	Exam
	progress func(check string) // nil: nobody wants to know

	mu       sync.Mutex // guards what follows: domains are looked at side by side
	findings []Finding
	hosts    map[string]*once[hostAddrs]
	servers  map[string]*once[server]
	domains  map[string][]mxHost // of each domain, as found by mx
}

// once is a value that is made once.
type once[T any] struct {
	sync.Once
	v T
}

func newExam(e Exam) *exam {
	e.Timeout = cmp.Or(e.Timeout, 10*time.Second)
	e.Port = cmp.Or(e.Port, "25")
	e.Mounts = cmp.Or(e.Mounts, "/proc/self/mounts")
	e.Hostname = fqdn(e.Hostname)
	if e.Now.IsZero() {
		e.Now = time.Now()
	}
	slices.Sort(e.Domains)
	return &exam{Exam: e, hosts: map[string]*once[hostAddrs]{}, servers: map[string]*once[server]{}, domains: map[string][]mxHost{}}
}

// fqdn is a name as it is compared: lower case, without the root's dot.
func fqdn(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// report notes a finding.
func (x *exam) report(s Severity, check, subject, reason, evidence, remedy string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.findings = append(x.findings, Finding{s, check, bounded(subject), bounded(reason), bounded(evidence), bounded(remedy)})
}

// maxText bounds a text of a finding, which may quote a peer.
const maxText = 600

// bounded keeps a text to one printable line.
func bounded(s string) string {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return service.Printable(s)
}

// memo returns the value for key, which make makes once. Other keys don't wait
// for it.
func memo[T any](x *exam, m map[string]*once[T], key string, make func() T) T {
	x.mu.Lock()
	o := m[key]
	if o == nil {
		o = &once[T]{}
		m[key] = o
	}
	x.mu.Unlock()
	o.Do(func() { o.v = make() })
	return o.v
}

// each calls do for every domain, some at a time.
func (x *exam) each(do func(domain string)) {
	domains := slices.Concat(x.Domains, x.Hosts)
	if len(domains) > maxDomains {
		domains = domains[:maxDomains]
	}
	var g sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, d := range domains {
		slots <- struct{}{}
		g.Go(func() {
			defer func() { <-slots }()
			do(d)
		})
	}
	g.Wait()
}

// listed joins names for a text.
func listed[T any](items []T) string {
	var s []string
	for i, v := range items {
		if i == 8 {
			s = append(s, fmt.Sprintf("and %d more", len(items)-i))
			break
		}
		s = append(s, fmt.Sprint(v))
	}
	return strings.Join(s, ", ")
}

// hostOf is the host of host:port, without the port.
func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

// isPublic tells whether an address can be that of a mail server on the Internet.
func isPublic(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !slices.ContainsFunc(notPublic, func(p netip.Prefix) bool { return p.Contains(a) })
}

// notPublic are shared (RFC 6598) and benchmarking (RFC 2544) addresses.
var notPublic = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("198.18.0.0/15")}
