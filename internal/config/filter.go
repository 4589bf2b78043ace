package config

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// checkMilter reads the spelling of one of the primary's milters: an endpoint, or
// a program's name.
func checkMilter(s string) (string, error) {
	switch {
	case s == "" || strings.ContainsAny(s, " \t\r\n,{}"):
		return "", fmt.Errorf("%q is no milter; write it as in the primary's smtpd_milters, without braces and settings", s)
	case !strings.Contains(s, ":"):
		return s, nil
	}
	name, err := envelope.MilterName(s)
	if err != nil {
		return "", fmt.Errorf("%w; write one as in the primary's smtpd_milters, or a program's name", err)
	}
	return name, nil
}

// checkEndpoint reads where a filter listens.
func checkEndpoint(s string) (string, error) {
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "unix":
		if filepath.IsAbs(rest) {
			return s, nil
		}
	case "inet":
		if host, port, err := net.SplitHostPort(rest); err == nil && host != "" && port != "" {
			return s, nil
		}
	}
	return "", fmt.Errorf("%q is no address of a filter; write inet:HOST:PORT or unix:/PATH", s)
}
