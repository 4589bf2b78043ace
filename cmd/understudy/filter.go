package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/milter"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/smtpd"
)

// buildFilters makes the filters that stand for milters of the primary's.
func buildFilters(cfg *config.Config) (all []*smtpd.Filter, err error) {
	var errs []error
	for i, f := range cfg.Filters {
		section := fmt.Sprintf("filter[%d]", i)
		dial, key, err := dialFilter(f)
		switch {
		case err != nil && key == "tls_cert":
			errs = append(errs, certMistake(cfg, section, f.TLSCert, f.TLSKey, err))
		case err != nil:
			errs = append(errs, cfg.Mistake(section+"."+key, "%v", err))
		}
		all = append(all, &smtpd.Filter{Name: f.Name, For: f.Milter, Dial: dial})
	}
	return all, errors.Join(errs...)
}

// dialFilter returns the function that connects to a filter; an error is about
// the key.
func dialFilter(f config.Filter) (dial func(context.Context) (net.Conn, error), key string, err error) {
	network, addr, _ := strings.Cut(f.Address, ":")
	if network == "inet" {
		network = "tcp"
	}
	plain := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
	if !f.TLS {
		return plain, "", nil
	}
	host, _, _ := net.SplitHostPort(addr)
	conf := &tls.Config{ServerName: f.TLSName, MinVersion: tls.VersionTLS12}
	if conf.ServerName == "" {
		conf.ServerName = host
	}
	if f.TLSCA != "" {
		pem, err := os.ReadFile(f.TLSCA)
		if err != nil {
			return plain, "tls_ca", fmt.Errorf("%w%s; name a file that this user may read", err, unreadable(err, f.TLSCA))
		}
		if conf.RootCAs = x509.NewCertPool(); !conf.RootCAs.AppendCertsFromPEM(pem) {
			return plain, "tls_ca", fmt.Errorf("%s holds no certificate in PEM%s; name the file that does", f.TLSCA, holds(pemTypes(pem)))
		}
	}
	if f.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(f.TLSCert, f.TLSKey)
		if err != nil {
			return plain, "tls_cert", err
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return func(ctx context.Context) (net.Conn, error) {
		d := tls.Dialer{Config: conf}
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, fmt.Errorf("connect by TLS: %w", err)
		}
		return c, nil
	}, "", nil
}

// filterStatus is how the filters are.
func (d *daemon) filterStatus() (all []operator.Filter) {
	for _, f := range d.smtp.Filters {
		all = append(all, operator.Filter(f.Status(d.current())))
	}
	return all
}

// tryFilters negotiates with each filter of a configuration, and says in words what
// is wrong with it.
func tryFilters(ctx context.Context, cfg *config.Config) (troubles []string) {
	for _, f := range cfg.Filters {
		dial, _, err := dialFilter(f)
		if err == nil {
			err = milter.Try(ctx, dial)
		}
		if err != nil {
			troubles = append(troubles, fmt.Sprintf("%s (%s, for %s): %v", f.Name, f.Address, f.Milter, err))
		}
	}
	return troubles
}
