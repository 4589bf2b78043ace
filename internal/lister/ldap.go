package lister

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

func (s *Source) ldapRequest(search Search) (*ldap.SearchRequest, error) {
	scopes := map[string]int{"": ldap.ScopeWholeSubtree, "sub": ldap.ScopeWholeSubtree, "one": ldap.ScopeSingleLevel, "base": ldap.ScopeBaseObject}
	scope, ok := scopes[strings.ToLower(search.Scope)]
	if !ok {
		return nil, s.fail("scope", "write sub, one or base", fmt.Errorf("%q is unknown", search.Scope))
	}
	if _, err := ldap.CompileFilter(search.Filter); err != nil {
		return nil, s.fail("query_filter", "write a filter as RFC 4515 has it", err)
	}
	deref, err := strconv.Atoi(s.set("dereference", "0"))
	if err != nil || deref < 0 || deref > 3 {
		return nil, s.fail("dereference", "write a number from 0 to 3", fmt.Errorf("%q is none", s.Settings["dereference"]))
	}
	if chase, err := s.yes("chase_referrals"); chase || err != nil {
		return nil, s.fail("chase_referrals", "list each directory by itself", errors.New("referrals aren't followed"))
	}
	return ldap.NewSearchRequest(search.Base, scope, deref, 0, 0, false, search.Filter, search.Attributes, nil), nil
}

// ldapConnect dials and binds.
func (s *Source) ldapConnect(ctx context.Context, m *meter) (conn *ldap.Conn, err error) {
	startTLS, err := s.yes("start_tls")
	if err != nil {
		return nil, err
	}
	require, err := s.yes("tls_require_cert")
	if err != nil {
		return nil, err
	}
	config, err := s.tlsConfig(ctx, tlsNames{"tls_ca_cert_file", "tls_ca_cert_dir", "tls_cert", "tls_key"})
	if err != nil {
		return nil, err
	}
	config.InsecureSkipVerify = !require // as ldap_table(5) has it
	var hosts []endpoint
	for _, w := range words(s.set("server_host", "localhost")) {
		e, err := ldapHost(w, s.set("server_port", "389"))
		if err != nil {
			return nil, s.fail("server_host", "write a host, or an ldap://, ldaps:// or ldapi:// URL", fmt.Errorf("%s: %w", w, err))
		}
		hosts = append(hosts, e)
	}
	err = s.eachHost(ctx, "server_host", hosts, func(ctx context.Context, h endpoint) (err error) {
		c, err := m.dial(ctx, h.network, h.address)
		if err != nil {
			return err
		}
		config := config.Clone()
		config.ServerName, _, _ = net.SplitHostPort(h.address)
		conn, err = s.ldapBind(ctx, c, config, strings.HasPrefix(h.spelt, "ldaps:"), startTLS)
		return err
	})
	return conn, err
}

// ldapHost reads a URL, or host[:port].
func ldapHost(w, port string) (endpoint, error) {
	u, err := url.Parse(w)
	if !strings.Contains(w, "://") {
		address, err := splitPort(w, port)
		return endpoint{"tcp", address, w}, err
	}
	if err != nil && !strings.HasPrefix(w, "ldapi://") {
		return endpoint{}, errors.New("can't be read")
	}
	switch scheme, rest, _ := strings.Cut(w, "://"); scheme {
	case "ldapi":
		path, err := url.PathUnescape(strings.TrimSuffix(rest, "/"))
		return endpoint{"unix", cmp.Or(path, "/var/run/slapd/ldapi"), w}, err
	case "ldap", "ldaps":
		usual := map[string]string{"ldap": "389", "ldaps": "636"}[scheme]
		return endpoint{"tcp", net.JoinHostPort(cmp.Or(u.Hostname(), "localhost"), cmp.Or(u.Port(), usual)), w}, nil
	}
	return endpoint{}, fmt.Errorf("scheme %q", u.Scheme)
}

func (s *Source) ldapBind(ctx context.Context, c net.Conn, config *tls.Config, overTLS, startTLS bool) (*ldap.Conn, error) {
	if overTLS {
		t := tls.Client(c, config)
		if err := t.HandshakeContext(ctx); err != nil {
			c.Close()
			return nil, err
		}
		c = t
	}
	conn := ldap.NewConn(&ldapStream{Conn: c, mayTLS: startTLS}, overTLS)
	conn.SetTimeout(s.Limits.defaults().Time)
	conn.Start()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var err error
	if startTLS && !overTLS {
		err = conn.StartTLS(config)
	}
	switch bind := strings.ToLower(s.set("bind", "yes")); {
	case err != nil:
	case slices.Contains([]string{"no", "none", "0", "false"}, bind):
	case bind == "sasl" || bind == "2":
		err = s.fail("bind", "use bind = yes with bind_dn and bind_pw", errors.New("SASL isn't supported"))
	case s.Settings["bind_pw"] == "":
		err = conn.UnauthenticatedBind(s.Settings["bind_dn"])
	default:
		err = conn.Bind(s.Settings["bind_dn"], s.Settings["bind_pw"])
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (s *Source) listLDAP(ctx context.Context, row func(key, value string) error) error {
	if len(s.Search.Attributes) == 0 || s.Search.Filter == "" {
		return s.fail("query_filter", "give a filter and the attributes that hold addresses", errors.New("is missing, or no attribute is named"))
	}
	return s.Directory(ctx, func(d *Directory) error {
		return d.Search(s.Search, func(e Entry) error {
			for _, a := range s.Search.Attributes {
				for _, v := range e.Values(a) {
					if strings.EqualFold(a, "proxyAddresses") {
						if len(v) < 5 || !strings.EqualFold(v[:5], "smtp:") {
							continue
						}
						v = v[5:]
					}
					if err := one(row, v, ""); err != nil {
						return err
					}
				}
			}
			return nil
		})
	})
}
