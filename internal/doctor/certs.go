package doctor

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// soon is when a certificate's end is near: Let's Encrypt's clients renew a month before.
const soon = 10 * 24 * time.Hour

// door: what answers where we take mail.
func (x *exam) door(ctx context.Context) (looked bool) {
	for _, at := range x.Doors {
		s := x.server(ctx, x.near(at))
		switch {
		case s.err != nil && s.code == 0:
			x.report(Fault, "door-shut", at, "Nobody answers where this machine should take mail.", s.err.Error(), "systemctl start understudy.socket understudy.service")
		case s.err != nil && s.code == 421:
			x.report(Fault, "door-defers", at, "The door turns every client away for now: it has no policy, or no more places.", s.err.Error(), "understudy policy status")
		case s.err != nil:
			x.report(Fault, "door-shut", at, "The door doesn't work.", s.err.Error(), "journalctl -u understudy")
		case !strings.HasPrefix(strings.ToLower(s.greeting), x.Hostname+" "):
			x.report(Fault, "door-other", at, "Another mail server answers where this machine should take mail.", "it greets: "+s.greeting, "stop it (systemctl disable --now postfix exim4), or set `hostname` to this name")
		}
	}
	return len(x.Doors) > 0
}

// near is an address at which a door can be reached from this machine.
func (x *exam) near(at string) string {
	host, port, _ := net.SplitHostPort(at)
	if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// certificate: the one at the door. Most senders take any; those that look
// (MTA-STS, DANE) don't deliver to a bad one.
func (x *exam) certificate(ctx context.Context) (looked bool) {
	for _, at := range x.Doors {
		s := x.server(ctx, x.near(at))
		if s.err != nil && s.tlsErr == nil {
			continue // door says so
		}
		looked = true
		_, offered := s.plain["STARTTLS"]
		switch why := ""; {
		case !offered:
			x.report(Warning, "no-starttls", at, "The door offers no STARTTLS: mail to it crosses the net in clear.", "EHLO offers "+listed(slices.Sorted(maps.Keys(s.plain))), "put a certificate and its key in /etc/credstore; see understudy.service")
		case s.tlsErr != nil:
			x.report(Fault, "starttls-fails", at, "STARTTLS fails at the door: senders with TLS can't deliver.", s.tlsErr.Error(), "look at `tls_cert` and `tls_key` under [smtp]")
		default:
			if why = x.untrusted(s.chain, x.Hostname); why != "" {
				x.report(Warning, "certificate-bad", at, "Senders that verify certificates don't deliver here.", why, "get one for "+x.Hostname+", with its chain: certbot certonly -d "+x.Hostname)
			} else if end := s.chain[0].NotAfter; end.Sub(x.Now) < soon {
				x.report(Warning, "certificate-ends", at, "The door's certificate ends soon.", "it ends at "+end.UTC().Format(time.RFC3339), "renew it, and reload: systemctl reload understudy")
			}
		}
	}
	return looked
}

// untrusted says why a verifier would not take a chain for name, "" if it would.
func (x *exam) untrusted(chain []*x509.Certificate, name string) string {
	if len(chain) == 0 {
		return "it shows no certificate"
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{DNSName: fqdn(name), Roots: x.Roots, Intermediates: between, CurrentTime: x.Now}); err != nil {
		return err.Error()
	}
	return ""
}

// tlsa: DANE (RFC 7672) for every mail server that is ours or the primary's.
func (x *exam) tlsa(ctx context.Context) (looked bool) {
	signed := map[string]bool{}
	for _, all := range x.domains {
		for _, m := range all {
			if len(m.addrs) > 0 {
				signed[m.host] = false
			}
		}
	}
	theirs := x.theirs(ctx)
	primaryHas := false
	for _, host := range slices.Sorted(maps.Keys(signed)) {
		records, err := ask[*dns.TLSA](ctx, x, "_25._tcp."+host, dns.TypeTLSA)
		if err != nil {
			if !errors.Is(err, errNone) {
				x.report(Fault, "tlsa-unknown", host, "Its TLSA records can't be looked up: senders with DANE wait.", err.Error(), "mend the zone, or its signatures")
			}
			continue
		}
		signed[host], looked = true, true
		primaryHas = primaryHas || x.isPrimary(mxHost{host: host, hostAddrs: x.addrs(ctx, host)}, theirs)
		s := x.server(ctx, net.JoinHostPort(host, x.Port))
		if s.err != nil && s.tlsErr == nil {
			continue
		}
		if !slices.ContainsFunc(records, func(r *dns.TLSA) bool { return matches(r, s.chain) }) {
			x.report(Fault, "tlsa-mismatch", host, "No TLSA record matches its certificate: senders with DANE don't deliver.", fmt.Sprintf("%s; STARTTLS shows %s", records[0].String(), leaf(&s)), "renew the record with each new key, or keep the key: certbot --reuse-key")
		}
	}
	if has, known := signed[x.Hostname]; known && !has && primaryHas {
		x.report(Warning, "tlsa-missing", x.Hostname, "The primary has TLSA records, this machine none: mail to it can be read on the way.", "", "add _25._tcp."+x.Hostname+". TLSA 3 1 1 …")
	}
	return looked
}

func leaf(s *server) string {
	if len(s.chain) == 0 {
		return fmt.Sprintf("none (%v)", cmp.Or(s.tlsErr, errors.New("it isn't offered")))
	}
	return s.chain[0].Subject.String()
}

// matches tells whether a TLSA record vouches for a chain. Usages 0 and 1 mean
// nothing in mail (RFC 7672 §3.1.3).
func matches(r *dns.TLSA, chain []*x509.Certificate) bool {
	switch {
	case len(chain) == 0:
		return false
	case r.Usage == 3:
		return r.Verify(chain[0]) == nil
	case r.Usage == 2:
		return slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return r.Verify(c) == nil })
	}
	return false
}

// maxSTS bounds a policy's size (RFC 8461 §3.3 suggests 64 KB).
const maxSTS = 64 << 10

// mtaSTS: a policy (RFC 8461) must name every mail server of its domain.
func (x *exam) mtaSTS(ctx context.Context) (looked bool) {
	client := x.HTTP
	if client == nil {
		client = &http.Client{Timeout: x.Timeout, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: x.Roots}},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }} // RFC 8461 §3.3
	}
	var announced atomic.Bool
	x.each(func(d string) {
		txt, err := ask[*dns.TXT](ctx, x, "_mta-sts."+d, dns.TypeTXT)
		if err != nil || !slices.ContainsFunc(txt, func(t *dns.TXT) bool { return strings.HasPrefix(strings.Join(t.Txt, ""), "v=STSv1") }) {
			return
		}
		announced.Store(true)
		url := "https://mta-sts." + d + "/.well-known/mta-sts.txt"
		mode, patterns, err := fetchSTS(ctx, client, url)
		if err != nil {
			x.report(Fault, "mta-sts-unreachable", d, "The domain announces an MTA-STS policy that can't be had.", err.Error(), "serve it at "+url+", or remove the TXT record")
			return
		}
		if mode == "none" {
			return
		}
		severity := Warning
		if mode == "enforce" {
			severity = Fault
		}
		for _, m := range x.domains[d] {
			if !slices.ContainsFunc(patterns, func(p string) bool { return stsMatch(p, m.host) }) {
				x.report(severity, "mta-sts-mx", d, "The domain's MTA-STS policy doesn't name one of its mail servers: senders that follow it don't deliver there.",
					fmt.Sprintf("mode %s, mx %s; MX %v", mode, listed(patterns), m), "add the line: mx: "+m.host)
				continue
			}
			if m.host != x.Hostname || len(x.Doors) == 0 {
				continue
			}
			if s := x.server(ctx, net.JoinHostPort(m.host, x.Port)); s.err == nil {
				if why := x.untrusted(s.chain, m.host); why != "" {
					x.report(severity, "mta-sts-certificate", d, "The domain's MTA-STS policy asks for a good certificate, and this machine has none.", why, "certbot certonly -d "+x.Hostname)
				}
			}
		}
	})
	return announced.Load()
}

func fetchSTS(ctx context.Context, client *http.Client, url string) (mode string, mx []string, err error) {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return "", nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", nil, fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	version := ""
	lines := bufio.NewScanner(io.LimitReader(resp.Body, maxSTS))
	for lines.Scan() {
		k, v, _ := strings.Cut(lines.Text(), ":")
		switch v = strings.TrimSpace(v); strings.TrimSpace(k) {
		case "version":
			version = v
		case "mode":
			mode = v
		case "mx":
			mx = append(mx, fqdn(v))
		}
	}
	if lines.Err() != nil || version != "STSv1" || !slices.Contains([]string{"enforce", "testing", "none"}, mode) {
		return "", nil, fmt.Errorf("%s is no policy: version %q, mode %q", url, version, mode)
	}
	return mode, mx, nil
}

// stsMatch: a pattern's asterisk stands for one label (RFC 8461 §4.1).
func stsMatch(pattern, host string) bool {
	if rest, wild := strings.CutPrefix(pattern, "*."); wild {
		_, parent, found := strings.Cut(host, ".")
		return found && parent == rest
	}
	return pattern == host
}
