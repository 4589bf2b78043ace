package config

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
)

// checkMilter reads the spelling of one of the primary's milters: an endpoint, or
// a program's name.
func checkMilter(s string) (string, error) {
	kind, rest, isEndpoint := strings.Cut(s, ":")
	switch {
	case s == "" || strings.ContainsAny(s, " \t\r\n,{}"):
		return "", fmt.Errorf("%q is no milter; write it as in the primary's smtpd_milters, without braces and settings", s)
	case !isEndpoint:
		return s, nil
	case (kind == "unix" || kind == "local") && rest != "":
		return "unix:" + rest, nil
	case kind == "inet" || kind == "inet6":
		host, port, err := net.SplitHostPort(rest)
		if err != nil || port == "" {
			break
		}
		switch host = strings.ToLower(host); host {
		case "", "127.0.0.1", "::1":
			host = "localhost"
		}
		return "inet:" + net.JoinHostPort(host, port), nil
	}
	return "", fmt.Errorf("%q is no milter; write inet:HOST:PORT or unix:PATH as in the primary's smtpd_milters, or a program's name", s)
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
