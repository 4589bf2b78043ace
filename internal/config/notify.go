package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Notify is section [notify]: whom to tell of outages.
type Notify struct {
	Mail    []string
	Webhook string
	After   time.Duration
}

var (
	mailList = list("mail addresses", checkMail)
	hook     = text("an https address", checkHook)
)

func checkMail(s string) (string, error) {
	if m, err := envelope.ParseMailbox(s); err != nil || m.Domain == "" || len(s) > 320 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf(`%q is no mail address; write one such as "ops@example.org"`, s)
	}
	return s, nil
}

// checkHook: whoever is on the way must not read when an outage is, or answer in
// the place of the one who is to be told.
func checkHook(s string) (string, error) {
	if s == "" {
		return s, nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf(`this is no address; write one such as "https://hooks.example.org/understudy"`)
	}
	host := u.Hostname()
	a, err := netip.ParseAddr(host)
	local := host == "localhost" || err == nil && a.IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !local) {
		return "", fmt.Errorf("%s://%s would carry it in plain text; write https://", u.Scheme, u.Host)
	}
	return s, nil
}
