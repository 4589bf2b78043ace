package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
)

// Web is section [web]: the operator's page.
type Web struct {
	Listen        string // "" is off; host:port of the loopback interface, or unix:/path
	TokenFile     string // "" is web.token in the state directory
	Hosts         []string
	TrustedHeader string
	ShowAddresses string // token, all, none
	ShowMail      bool   // to those, what messages say
}

// WebTokenFile holds the token of the operator's page.
func (c *Config) WebTokenFile() string {
	if c.Web.TokenFile != "" {
		return c.Web.TokenFile
	}
	return filepath.Join(c.StateDir, "web.token")
}

var (
	webListen  = text(`host:port on the loopback interface, "unix:/path" or ""`, checkWebListen)
	headerName = text("name of a header field", checkHeader)
	hostList   = list("host names", checkHostname)
)

func checkWebListen(s string) (string, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
			return "", fmt.Errorf(`%q is no path from the root; write one such as "unix:/run/understudy/web.sock"`, path)
		}
		return s, nil
	}
	if s == "" {
		return s, nil
	}
	s, err := checkListen(s)
	if err != nil {
		return "", err
	}
	host, port, _ := net.SplitHostPort(s)
	if port == "0" {
		return "", fmt.Errorf("%q leaves the port to chance, and nobody could find the page; write \"127.0.0.1:9627\"", s)
	}
	if a, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !a.IsLoopback()) {
		return "", fmt.Errorf("%q is open to the network, in plain text; write %q, and reach it by ssh -L or through a web server with TLS", s, "127.0.0.1:"+port)
	}
	return s, nil
}

func checkHeader(s string) (string, error) {
	if s == "" || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
		return "", fmt.Errorf(`%q is no name of a header field; write one such as "Remote-User"`, s)
	}
	if strings.EqualFold(s, "Authorization") || strings.EqualFold(s, "Host") || strings.EqualFold(s, "Origin") {
		return "", errors.New("comes from the client, not from a proxy; have the proxy set one such as \"Remote-User\"")
	}
	return s, nil
}

// checkWeb looks at who could claim to be let in by a proxy.
func (r *reader) checkWeb() {
	w := r.cfg.Web
	if w.TrustedHeader != "" && !strings.HasPrefix(w.Listen, "unix:") && !r.failed("web.listen") {
		r.mistake("web.trusted_header", `could be sent by every program on this machine; set listen = "unix:/path" under [web], a socket that only the proxy can open`)
	}
	if w.TrustedHeader == "" && w.ShowAddresses == "all" {
		r.mistake("web.show_addresses", `"all" includes the users of a proxy; set trusted_header as well, or leave it at "token"`)
	}
}
