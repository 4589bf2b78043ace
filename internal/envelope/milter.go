package envelope

import (
	"fmt"
	"net"
	"strings"
)

// MilterName returns an endpoint of Postfix's smtpd_milters in one spelling:
// "unix:PATH" or "inet:HOST:PORT".
func MilterName(endpoint string) (string, error) {
	kind, rest, _ := strings.Cut(strings.TrimSpace(endpoint), ":")
	switch {
	case rest == "" || strings.ContainsAny(rest, " \t\r\n,{}"):
	case kind == "unix", kind == "local":
		return "unix:" + rest, nil
	case kind == "inet", kind == "inet6":
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
	return "", fmt.Errorf("%.60q isn't inet:HOST:PORT or unix:PATH", endpoint)
}
