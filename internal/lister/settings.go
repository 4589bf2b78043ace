package lister

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
)

func (s *Source) set(name, fallback string) string {
	if v := s.Settings[name]; v != "" {
		return v
	}
	return fallback
}

// words are what Postfix separates by space or comma.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(" \t\r\n,", r) })
}

// yes reads a boolean as Postfix's cfg_get_bool does.
func (s *Source) yes(name string) (bool, error) {
	switch v := strings.ToLower(s.Settings[name]); v {
	case "yes", "true", "1":
		return true, nil
	case "", "no", "false", "0":
		return false, nil
	default:
		return false, s.fail(name, "write yes or no", fmt.Errorf("%q is neither", v))
	}
}

// endpoint is where a server listens.
type endpoint struct {
	network string // "unix" or "tcp"
	address string
	spelt   string // as in the settings
}

// eachHost tries the hosts, those on Unix sockets first, until one connects, as
// Postfix does, but not in random order. The error has all failures.
func (s *Source) eachHost(ctx context.Context, setting string, hosts []endpoint, connect func(context.Context, endpoint) error) error {
	var all []error
	remedy := ""
	for _, network := range []string{"unix", "tcp"} {
		for _, h := range hosts {
			if h.network != network {
				continue
			}
			err := within(ctx, h, connect)
			var done *Error
			if err == nil || errors.As(err, &done) {
				return err
			}
			name, advice := connectFailure(err)
			if remedy == "" || name != "" {
				remedy = advice
				if name != "" {
					setting = name
				}
			}
			all = append(all, fmt.Errorf("%s: %w", h.spelt, err))
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return s.fail(setting, remedy, errors.Join(all...))
}

// within gives one host its time, so that a silent one leaves some to the next.
func within(ctx context.Context, h endpoint, connect func(context.Context, endpoint) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("doesn't answer within %v", connectTimeout))
	defer cancel()
	err := connect(ctx, h)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// splitPort cuts "host:port" as Postfix does: at the last colon. An IPv6
// address stands in brackets or without a port.
func splitPort(s, port string) (string, error) {
	host := s
	if _, err := netip.ParseAddr(s); err != nil && !strings.HasSuffix(s, "]") {
		if i := strings.LastIndexByte(s, ':'); i >= 0 {
			host, port = s[:i], s[i+1:]
		}
	}
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		return "", fmt.Errorf("%q is no port", port)
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), fmt.Sprint(n)), nil
}

// tlsNames are what a driver's Postfix settings are called.
type tlsNames struct{ file, dir, cert, key string }

// tlsConfig reads certificates. Authorities that are given are used; whether
// the server's name counts is the caller's business.
func (s *Source) tlsConfig(ctx context.Context, n tlsNames) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	var files []string
	if f := s.Settings[n.file]; f != "" {
		files = append(files, f)
	}
	if dir := s.Settings[n.dir]; dir != "" {
		list, err := s.Host.Glob(ctx, filepath.Join(dir, "*"))
		if err != nil || len(list) == 0 {
			return nil, s.fail(n.dir, "put certificates of authorities there", fmt.Errorf("%s holds no file", dir))
		}
		files = append(files, list...)
	}
	for _, f := range files {
		pem, err := s.Host.ReadFile(ctx, f, maxPEM)
		if err != nil {
			return nil, s.fail(n.file, "name a readable file", err)
		}
		if c.RootCAs == nil {
			c.RootCAs = x509.NewCertPool()
		}
		if !c.RootCAs.AppendCertsFromPEM(pem) && s.Settings[n.dir] == "" {
			return nil, s.fail(n.file, "name a file with PEM certificates", fmt.Errorf("%s has none", f))
		}
	}
	if cert := s.Settings[n.cert]; cert != "" {
		pair, err := s.keyPair(ctx, cert, s.set(n.key, cert))
		if err != nil {
			return nil, s.fail(n.cert, "name the PEM files of a certificate and of its key", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// maxPEM bounds a file of certificates: a system's bundle has some 200 KiB.
const maxPEM = 16 << 20

func (s *Source) keyPair(ctx context.Context, cert, key string) (pair tls.Certificate, err error) {
	certPEM, err := s.Host.ReadFile(ctx, cert, maxPEM)
	if err != nil {
		return pair, err
	}
	keyPEM, err := s.Host.ReadFile(ctx, key, maxPEM)
	if err != nil {
		return pair, err
	}
	return tls.X509KeyPair(certPEM, keyPEM)
}

// chainOnly makes c check the server's chain, but not its name.
func chainOnly(c *tls.Config) {
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(state tls.ConnectionState) error {
		opts := x509.VerifyOptions{Roots: c.RootCAs, Intermediates: x509.NewCertPool()}
		for _, cert := range state.PeerCertificates[1:] {
			opts.Intermediates.AddCert(cert)
		}
		_, err := state.PeerCertificates[0].Verify(opts)
		return err
	}
}
