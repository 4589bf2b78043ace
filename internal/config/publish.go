package config

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/locate"
	"github.com/understudy-mx/understudy/internal/suite"
)

// Sync is section [sync]: a secondary's policy comes from its primary.
type Sync struct {
	Domains    []string // lower case; none: the policy comes from a file
	StaleAfter time.Duration
	MaxSize    Size
}

// Publish is section [publish] of a publisher's configuration.
type Publish struct {
	Listen, Address string // host:port
	Poll, Debounce  time.Duration
	Hashed          bool
	Log             string // "", auto, journal, or a file's absolute name
}

// Push is section [push]: lists of recipients that are pushed here.
type Push struct {
	Listen          string // host:port, "" is off
	Domains         []string
	TLSCert, TLSKey string
	StaleAfter      time.Duration
	MaxRecipients   int
}

// Source is a [[source]] of recipients. Type says which keys count.
type Source struct {
	Name, Type  string
	Path        string // file, sqlite: absolute; map: as Postfix spells it
	Command     []string
	Connection  string // file of settings, as pgsql_table(5) and its like
	Query       string
	Base, Scope string // of an LDAP search
	Filter      string
	Attributes  []string
	Ask         bool // its addresses are only looked up
}

// sourceKeys are the keys that each type needs, and those that it may have.
var sourceKeys = map[string]struct{ must, may []string }{
	"file":    {[]string{"path"}, nil},
	"map":     {[]string{"path"}, nil},
	"command": {[]string{"command"}, nil},
	"pgsql":   {[]string{"connection", "query"}, nil},
	"mysql":   {[]string{"connection", "query"}, nil},
	"sqlite":  {[]string{"path", "query"}, nil},
	"ldap":    {[]string{"connection", "filter"}, []string{"base", "scope", "attributes"}},
}

// source reads one [[source]].
func (r *reader) source(path string, t map[string]any) {
	c := &Config{Sources: make([]Source, 1)}
	typ, _ := t["type"].(string)
	need, known := sourceKeys[typ]
	for _, s := range settings {
		if s.section == "source" && slices.Contains(need.may, s.name) {
			s.setDefault(c)
		}
	}
	for key, v := range t {
		s := lookup("source", key)
		switch {
		case s == nil:
			r.unknown("source", path+"."+key, key)
		case known && key != "name" && key != "type" && key != "ask" && !slices.Contains(need.must, key) && !slices.Contains(need.may, key):
			r.mistake(path+"."+key, "means nothing to type %q; remove it", typ)
		default:
			r.set(c, s, path+"."+key, v)
		}
	}
	for _, key := range append([]string{"name", "type"}, need.must...) {
		if _, there := t[key]; !there {
			r.mistake(path, "lacks the key %q; add it", key)
		}
	}
	src := &c.Sources[0]
	if typ == "file" || typ == "sqlite" {
		src.Path = absolute(r.file, src.Path)
	}
	if typ == "command" && len(src.Command) > 0 && !filepath.IsAbs(src.Command[0]) {
		r.mistake(path+".command", "%q is no path of a program; write it from the root, such as /usr/local/bin/list-users", src.Command[0])
	}
	for _, other := range r.cfg.Sources {
		if other.Name == src.Name && src.Name != "" {
			r.mistake(path+".name", "%q already names another source; choose another", src.Name)
		}
	}
	r.cfg.Sources = append(r.cfg.Sources, *src)
}

func absolute(conf, name string) string {
	name = resolveFile(filepath.Dir(conf), name)
	if abs, err := filepath.Abs(name); err == nil && name != "" {
		return abs
	}
	return name
}

// checkPolicy requires exactly one source of a secondary's policy.
func (r *reader) checkPolicy() {
	c := r.cfg
	switch {
	case c.Policy.Kind() != "" && c.Policy.Kind() != "file":
		r.mistake("policy."+c.Policy.Kind(), "is for `understudy publish` on the primary; a secondary follows it with domains = [...] under [sync]")
	case len(c.Sources) > 0:
		r.mistake("source[0]", "is for `understudy publish` on the primary; remove it here")
	case c.Policy.File != "" && len(c.Sync.Domains) > 0:
		r.mistake("policy.file", "and sync.domains are both set; remove one: the policy comes from the file or from the primary")
	case c.Policy.File == "" && len(c.Sync.Domains) == 0 && !r.failed("policy.file") && !r.failed("sync.domains"):
		r.mistake("policy.file", `missing: whom do we accept mail for? Add domains = ["example.org"] under [sync] to follow the primary, or file = "policy.toml" under [policy]`)
	}
}

// policyKinds are the keys of [policy] that name the source of a publisher's
// policy; it needs one of them.
var policyKinds = []struct {
	key string
	of  func(*Policy) string
}{
	{"postfix", func(p *Policy) string { return p.Postfix }},
	{"exim", func(p *Policy) string { return p.Exim }},
	{"file", func(p *Policy) string { return p.File }},
}

// Kind is the key of [policy] that names the source of a publisher's policy.
func (p *Policy) Kind() string {
	for _, k := range policyKinds {
		if k.of(p) != "" {
			return k.key
		}
	}
	return ""
}

// FillPreset fills what the suite sets and nobody else has.
func (p *Policy) FillPreset() error {
	if p.Suite == "" {
		return nil
	}
	found := suite.Find(p.Suite)
	if found == nil {
		meant := ""
		if near := locate.Nearest(p.Suite, suite.Names()); near != "" {
			meant = fmt.Sprintf("; did you mean %q?", near)
		}
		return fmt.Errorf("no suite is called %q%s Choose one of %s", p.Suite, cmp.Or(meant, "."), strings.Join(suite.Names(), ", "))
	}
	s := found.Renamed(nil)
	p.Preset = &s
	if p.Postfix == "" {
		p.Postfix = s.Postfix
	}
	if len(p.PostfixPrefix) == 0 && p.PostfixRoot == "" {
		p.PostfixPrefix = s.Prefix
	}
	p.PostfixHosts = merged(p.PostfixHosts, s.Hosts)
	p.PostfixList = merged(p.PostfixList, s.List)
	return nil
}

// merged adds the assignments of a preset whose names aren't there.
func merged(own, preset []string) []string {
	all := slices.Clone(own)
	for _, s := range preset {
		name := assigned(s)
		if !slices.ContainsFunc(own, func(o string) bool { return assigned(o) == name }) {
			all = append(all, s)
		}
	}
	return all
}

func assigned(s string) string {
	name, _, _ := strings.Cut(s, "=")
	return name
}

// checkPublisher checks what a publisher needs.
func (r *reader) checkPublisher() {
	c := r.cfg
	_ = c.Policy.FillPreset() // another suite than those that there are is a mistake already
	if c.Policy.PostfixRoot != "" && len(c.Policy.PostfixPrefix) > 0 {
		r.mistake("policy.postfix_root", "and policy.postfix_prefix are both set; remove one")
	}
	if c.Publish.Address == "" && !r.failed("publish.address") {
		r.mistake("publish.address", `missing: where do secondaries reach this machine? Add address = "mx1.example.org:9626"`)
	}
	kind, failed := c.Policy.Kind(), false
	for _, k := range policyKinds {
		failed = failed || r.failed("policy."+k.key)
		if k.key != kind && k.of(&c.Policy) != "" {
			r.mistake("policy."+k.key, "and policy.%s are both set; remove one", kind)
		}
	}
	if kind == "" && !failed {
		r.mistake("policy.postfix", `missing: what is the policy? Add postfix = "/etc/postfix", exim = "auto" or file = "policy.toml" under [policy]`)
	}
	if kind == "exim" && c.Publish.Hashed {
		r.mistake("publish.hashed", "and policy.exim are both set; an Exim's routers look addresses up in ways that digests don't allow")
	}
	for i, s := range c.Sources {
		if s.Ask && c.Policy.Postfix == "" {
			r.mistake(fmt.Sprintf("source[%d].ask", i), "needs the tables of a Postfix; remove it, or set postfix under [policy]")
		}
	}
	r.checkPush()
	for _, at := range []struct {
		path string
		set  bool
	}{{"sync.domains", len(c.Sync.Domains) > 0}, {"primary.address", c.Primary.Address != ""}, {"route", len(c.Routes) > 0}, {"filter", len(c.Filters) > 0}, {"web.listen", c.Web.Listen != ""}} {
		if at.set {
			r.mistake(at.path, "is for a secondary, and this file is a publisher's because of [publish]; keep them in two files")
		}
	}
}

// checkPush checks what pushing needs.
func (r *reader) checkPush() {
	p := &r.cfg.Push
	if (p.TLSCert == "") != (p.TLSKey == "") {
		r.mistake("push", "has one of tls_cert and tls_key; set both")
	}
	if p.TLSCert == "" {
		p.TLSCert, p.TLSKey = r.cfg.SMTP.TLSCert, r.cfg.SMTP.TLSKey
	}
	for _, d := range p.Domains {
		if strings.HasPrefix(d, ".") {
			r.mistake("push.domains", "%q: each domain has a list of its own; name the domains", d)
		}
	}
	switch {
	case p.Listen == "":
	case p.TLSCert == "" && !r.failed("push.tls_cert") && !r.failed("smtp.tls_cert"):
		r.mistake("push.tls_cert", "missing: tokens and addresses travel by TLS only; add tls_cert and tls_key")
	case len(p.Domains) == 0 && !r.failed("push.domains"):
		r.mistake("push.domains", `missing: whose lists may be pushed? Add domains = ["example.org"] under [push]`)
	case len(r.cfg.Sync.Domains) > 0:
		r.mistake("push.listen", "is for a secondary whose policy comes from a file, or for a publisher; push to the publisher")
	}
}

// checkEximProgram checks the name of Exim's program.
func checkEximProgram(s string) (string, error) {
	if s != "" && s != "auto" && !filepath.IsAbs(s) {
		return "", fmt.Errorf("%q is neither \"auto\" nor an absolute path, such as /usr/sbin/exim4", s)
	}
	return s, nil
}

// checkAssignment checks "name=value".
func checkAssignment(s string) (string, error) {
	if i := strings.LastIndexByte(s, '='); i < 1 || i == len(s)-1 {
		return "", fmt.Errorf("%q lacks a name or a value; write name=value", s)
	}
	return s, nil
}

// checkLog checks where the primary's log is.
func checkLog(s string) (string, error) {
	if s != "" && s != "auto" && s != "journal" && !filepath.IsAbs(s) {
		return "", fmt.Errorf(`%q is no log; write "auto", "journal" or a file's absolute name`, s)
	}
	return s, nil
}

// checkService checks the first column of a line of master.cf.
func checkService(s string) (string, error) {
	if s == "" || strings.ContainsAny(s, " \t\r\n") {
		return "", fmt.Errorf("%q is no service; write the first column of its line in master.cf", s)
	}
	return s, nil
}
