package exim

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/policy/expansion"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// Option is a main option of Exim's that takes part in decisions.
type Option struct {
	Name  string
	Class fidelity.Class
	Off   string // values, with "|" between, with which there is nothing to report
	Why   string
	Test  string // the test that depends on it
}

const (
	whyPrimary = "the primary decides when the message is relayed to it"
	whyFront   = "the secondary has its own limit"
)

// Options are all that decide, or might. Those that aren't here decide nothing about
// inbound mail.
var Options = []Option{
	{"acl_smtp_connect", fidelity.Exact, "", "", "hosting"},
	{"acl_smtp_helo", fidelity.Exact, "", "", "hosting"},
	{"acl_smtp_mail", fidelity.Exact, "", "", "dnslists"},
	{"acl_smtp_rcpt", fidelity.Exact, "", "", "all profiles"},
	{"acl_smtp_predata", fidelity.Exact, "", "", "hosting"},
	{"acl_smtp_data", fidelity.Exact, "", "", "debian-split"},
	{"domainlist", fidelity.Exact, "", "named lists, lsearch, dsearch and SQL in them", "all profiles"},
	{"hostlist", fidelity.GivenDNS, "", "addresses, networks, names", "all profiles"},
	{"addresslist", fidelity.Exact, "", "", "hosting"},
	{"localpartlist", fidelity.Exact, "", "", "hosting"},
	{"primary_hostname", fidelity.Exact, "", "", "debian-split"},
	{"qualify_domain", fidelity.Exact, "", "", "debian-split"},
	{"qualify_recipient", fidelity.Exact, "", "", "virtual"},
	{"message_size_limit", fidelity.Approximated, "", "the secondary counts a line's end as two octets", "virtual"},
	{"recipients_max", fidelity.Exact, "", "", "dnslists"},
	{"recipients_max_reject", fidelity.Exact, "", "", "hosting"},
	{"received_headers_max", fidelity.Approximated, "30", "the primary returns such a message when it delivers it; the secondary refuses one with 100 fields", "dnslists"},
	{"host_lookup", fidelity.GivenDNS, "", "the first PTR name counts", "all profiles"},
	{"host_reject_connection", fidelity.Exact, "", "", "dnslists"},
	{"helo_verify_hosts", fidelity.GivenDNS, "", "", "dnslists"},
	{"helo_try_verify_hosts", fidelity.NoDecision, "", "", ""},
	{"helo_accept_junk_hosts", fidelity.Exact, "", "", "dnslists"},
	{"helo_allow_chars", fidelity.Exact, "", "", "hosting"},
	{"hosts_require_helo", fidelity.Exact, "", "", "hosting"},
	{"sender_unqualified_hosts", fidelity.Approximated, "", "an address without a domain is refused at the door", "dnslists"},
	{"recipient_unqualified_hosts", fidelity.Approximated, "", "an address without a domain is refused at the door", "dnslists"},
	{"allow_domain_literals", fidelity.Exact, "", "", "virtual"},
	{"disable_ipv6", fidelity.Exact, "", "no AAAA records are looked up", "hestia"},
	{"smtp_active_hostname", fidelity.Exact, "", "", "hestia"},
	{"local_interfaces", fidelity.Exact, "", "$interface_address is the first of the client's family", "hestia"},
	{"strip_trailing_dot", fidelity.Exact, "", "", "virtual"},
	{"strip_excess_angle_brackets", fidelity.Approximated, "false", "in headers only; in the envelope they are refused", "TestHeaders"},
	{"smtp_return_error_details", fidelity.Exact, "", "", "virtual"},
	{"acl_smtp_mime", fidelity.NotReplicated, "", whyPrimary, ""},
	{"acl_smtp_dkim", fidelity.NotReplicated, "", whyPrimary, ""},
	{"acl_smtp_prdr", fidelity.NoDecision, "", "PRDR isn't offered", ""},
	{"acl_smtp_vrfy", fidelity.NotReplicated, "", "VRFY is answered 252", ""},
	{"acl_smtp_expn", fidelity.NotReplicated, "", "EXPN is refused", ""},
	{"acl_smtp_etrn", fidelity.NotReplicated, "", "the secondary starts no queue when told to", ""},
	{"acl_smtp_starttls", fidelity.NotReplicated, "", "STARTTLS is open to everybody", ""},
	{"acl_smtp_auth", fidelity.NotReplicated, "", "nobody authenticates to the secondary", ""},
	{"acl_smtp_mailauth", fidelity.NotReplicated, "", "AUTH= of MAIL isn't judged", ""},
	{"acl_smtp_quit", fidelity.NoDecision, "", "", ""},
	{"acl_smtp_notquit", fidelity.NoDecision, "", "", ""},
	{"local_scan_timeout", fidelity.NoDecision, "", "", ""},
	{"percent_hack_domains", fidelity.NotReplicated, "", "a local-part with % is taken as it is", ""},
	{"allow_utf8_domains", fidelity.NotReplicated, "false", "domains outside of ASCII are refused", ""},
	{"allow_mx_to_ip", fidelity.NotReplicated, "false", "an exchanger that is an address counts as missing", ""},
	{"dns_again_means_nonexist", fidelity.NotReplicated, "", "a failing look-up stays a failing one", ""},
	{"dns_ipv4_lookup", fidelity.NotReplicated, "", "addresses of both kinds are looked up", ""},
	{"hosts_connection_nolog", fidelity.NoDecision, "", "", ""},
	{"smtp_accept_max", fidelity.Approximated, "20", whyFront, ""},
	{"smtp_accept_max_per_host", fidelity.Approximated, "", whyFront, ""},
	{"smtp_accept_max_per_connection", fidelity.Approximated, "1000", whyFront, ""},
	{"smtp_accept_max_nonmail", fidelity.Approximated, "10", whyFront, ""},
	{"smtp_max_synprot_errors", fidelity.Approximated, "3", whyFront, ""},
	{"smtp_max_unknown_commands", fidelity.Approximated, "3", whyFront, ""},
	{"smtp_ratelimit_hosts", fidelity.NotReplicated, "", "nobody is slowed down", ""},
	{"smtp_enforce_sync", fidelity.Approximated, "", "a client that speaks out of turn is let in", ""},
	{"smtp_reserve_hosts", fidelity.NotReplicated, "", whyFront, ""},
	{"smtp_load_reserve", fidelity.NotReplicated, "", whyFront, ""},
	{"deny_on_load", fidelity.NotReplicated, "", whyFront, ""},
	{"check_spool_space", fidelity.Approximated, "10M", whyFront, ""},
	{"check_spool_inodes", fidelity.Approximated, "100", whyFront, ""},
	{"smtputf8_advertise_hosts", fidelity.Approximated, "", "offered to everybody or, where it is empty, to nobody", "debian-split"},
	{"dsn_advertise_hosts", fidelity.Approximated, "", "offered to everybody or, where it is empty, to nobody", "debian-split"},
	{"tls_verify_hosts", fidelity.NotReplicated, "", "the secondary asks for no client certificate", ""},
	{"auth_advertise_hosts", fidelity.NoDecision, "", "", ""},
	{"header_maxsize", fidelity.NotReplicated, "", whyPrimary, ""},
	{"header_line_maxsize", fidelity.NotReplicated, "", whyPrimary, ""},
}

// options reports the main options that aren't followed as they are.
func (i *importer) options() {
	for _, o := range Options {
		v, set := i.conf.main[o.Name]
		if !set || v == "" || o.Class == fidelity.NoDecision || slices.Contains(strings.Split(o.Off, "|"), v) {
			continue
		}
		if strings.HasPrefix(o.Name, "acl_smtp_") && o.Class == fidelity.Exact {
			continue // said already
		}
		instead := ""
		if o.Class == fidelity.NotReplicated {
			instead = fidelity.Ignore
			if o.Why == whyPrimary {
				instead = fidelity.Later
			}
		}
		i.item(o.Name, v, o.Class, o.Why, instead)
	}
}

// settings translates the main options.
func (i *importer) settings() {
	m, a := i.conf.main, i.acl
	a.Hostname = m["primary_hostname"]
	a.QualifyDomain = cmp.Or(m["qualify_domain"], a.Hostname)
	a.QualifyRecipient = cmp.Or(m["qualify_recipient"], a.QualifyDomain)
	a.Own = i.own()
	a.Interfaces = i.interfaces()
	a.HostsFile = i.hostsFile()
	if name := m["smtp_active_hostname"]; name != "" {
		i.here = i.conf.where("smtp_active_hostname")
		got, err := i.str(name)
		if err != nil {
			i.item("smtp_active_hostname", name, fidelity.NotReplicated, fmt.Sprintf("%s: %v", i.here, err), "primary_hostname")
		}
		a.ActiveHostname = got
	}
	a.HeloChars = m["helo_allow_chars"]
	a.DomainLiterals, a.TrailingDot = m["allow_domain_literals"] == "true", m["strip_trailing_dot"] == "true"
	a.ExcessBrackets = m["strip_excess_angle_brackets"] == "true"
	a.DisableIPv6 = m["disable_ipv6"] == "true"
	a.MaxReject, a.Details = m["recipients_max_reject"] == "true", m["smtp_return_error_details"] == "true"
	a.MaxRecipients = int(i.size("recipients_max", 0))
	for name, to := range map[string]*string{
		"host_lookup": &a.HostLookup, "host_reject_connection": &a.RejectHosts, "helo_verify_hosts": &a.HeloVerify, "helo_try_verify_hosts": &a.HeloTryVerify,
		"helo_accept_junk_hosts": &a.HeloJunk, "hosts_require_helo": &a.RequireHelo, "sender_unqualified_hosts": &a.UnqualifiedSender,
		"recipient_unqualified_hosts": &a.UnqualifiedRecipient,
	} {
		v, err := i.listString(m[name], "hostlist")
		if err != nil {
			i.item(name, m[name], fidelity.NotReplicated, fmt.Sprintf("%s: %v", i.conf.where(name), err), fidelity.Ignore)
			continue
		}
		*to = v
	}
	s := i.spec
	s.DelayReject, s.RejectUnlistedRcpt, s.HeloRequired = false, false, false
	s.Addresses.MyOrigin = a.QualifyRecipient
	l := &s.Limits
	l.MessageSize = i.size("message_size_limit", 50<<20)
	l.Hops = 0
	l.Recipients, l.RcptOvershoot = 0, 0
	l.SoftErrors, l.HardErrors, l.ErrorSleep = 0, 0, 0
	s.Protocol.DisableVRFY = false
	if m["smtputf8_advertise_hosts"] == "" {
		s.Protocol.Discard = append(s.Protocol.Discard, "SMTPUTF8")
	}
	if m["dsn_advertise_hosts"] == "" {
		s.Protocol.Discard = append(s.Protocol.Discard, "DSN")
	}
}

// interfaces are the addresses that mail comes to.
func (i *importer) interfaces() []string {
	list := i.acl.Own
	if given := expansion.List(i.conf.main["local_interfaces"]); len(given) > 0 && !strings.Contains(i.conf.main["local_interfaces"], "$") {
		list = nil
		for _, g := range given {
			if a, err := netip.ParseAddr(strings.Trim(g, "[]")); err == nil && a.IsUnspecified() {
				list = i.acl.Own
				break
			} else if err == nil {
				list = append(list, a.String())
			}
		}
	}
	var all []string
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			all = append(all, s)
		}
	}
	return all
}

// size reads a number with K, M or G; 0 is none.
func (i *importer) size(name string, otherwise int64) int64 {
	v := strings.TrimSpace(i.conf.main[name])
	if v == "" {
		return otherwise
	}
	p, err := expansion.Parse(v)
	constant := false
	if err == nil {
		v, constant = p.Constant()
	}
	shift := 0
	if n := strings.IndexByte("KMG", (v + "\x00")[max(0, len(v)-1)]&^32); v != "" && n >= 0 {
		shift, v = 10*(n+1), v[:len(v)-1]
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || !constant {
		i.item(name, i.conf.main[name], fidelity.NotReplicated, i.conf.where(name)+": it isn't a constant number", "the default of "+strconv.FormatInt(otherwise, 10))
		return otherwise
	}
	return n << shift
}

// mostHosts bounds the names of /etc/hosts: some have a blocklist of advertisers in there.
const mostHosts = 10000

// hostsFile has the addresses of each name in /etc/hosts; nil where there is none.
func (i *importer) hostsFile() map[string][]string {
	file := filepath.Join(cmp.Or(i.src.Etc, "/etc"), "hosts")
	i.files[file] = true
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		i.errorf("list the hosts that have no need of the DNS: %w", err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(f[0])
		if err != nil || addr.IsUnspecified() {
			continue
		}
		for _, name := range f[1:] {
			name = strings.ToLower(name)
			if len(all) == mostHosts && all[name] == nil {
				i.item("hosts", file, fidelity.Approximated, fmt.Sprintf("of more than %d names; the DNS is asked for %s and those after it", mostHosts, name), "")
				return all
			}
			all[name] = append(all[name], addr.String())
		}
	}
	return all
}
