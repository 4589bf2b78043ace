// Package config reads Understudy's configuration file. One table (table.go) has
// each key's type, default, unit and meaning. Reading, checking, `understudy
// config` and understudy.conf(5) all come from that table.
//
// A file with a mistake is refused as a whole, and every mistake is reported with
// line, column and remedy. The package reads no other file: whether a certificate
// or policy is valid is for its reader to say.
package config

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/understudy-mx/understudy/internal/locate"
	"github.com/understudy-mx/understudy/internal/suite"
)

// maxFile bounds a configuration file; a real one has a few kilobytes.
const maxFile = 1 << 20

// Config is a whole configuration, every value checked. It is either that of a
// secondary or, with a section [publish], that of a primary's publisher; other
// keys are needed then.
type Config struct {
	File        string // its path, "" for the defaults
	IsPublisher bool
	Hostname    string
	StateDir    string
	SMTP        SMTP
	Primary     Primary
	Routes      []Route
	Filters     []Filter
	Policy      Policy
	Sync        Sync
	Publish     Publish
	Sources     []Source
	Push        Push
	Queue       Queue
	Relay       Relay
	DNS         DNS
	Metrics     Metrics
	Web         Web
	Notify      Notify
	Log         Log
}

// SMTP is the door: section [smtp].
type SMTP struct {
	Listen                   []string // host:port, host may be empty
	TLSCert, TLSKey          string   // PEM files, both or neither
	XClientFrom, ProxyFrom   []netip.Prefix
	MaxConnections           int
	MaxConnectionsPerClient  int
	MaxConnectionsPerNetwork int
	GreetWait                time.Duration
	GreetAction              string // ignore, enforce, drop
	CommandTimeout           time.Duration
	DataTimeout              time.Duration
	ShutdownTimeout          time.Duration
	BareNewline              string // policy, reject, normalize
}

// Primary is one next hop: section [primary], and the body of each [[route]].
type Primary struct {
	Behind         []string // host:port: what a primary that filters hands mail over to
	Address        string   // host:port
	TLS            string   // opportunistic, require, off
	TLSName, TLSCA string
	XClient        bool
	Identity       string // xclient, proxy, none
	WhileUp        string // live, accept, defer
	MaxLive        int    // sessions played through at a time
	ProbeInterval  time.Duration
	MaxConnections int
	MaxRate        int // messages a second, 0 for any
}

// ByXClient says that the server is told the clients by XCLIENT.
func (p Primary) ByXClient() bool { return p.Identity == "xclient" && p.XClient }

// ByProxy says that it is told them by a PROXY header.
func (p Primary) ByProxy() bool { return p.Identity == "proxy" }

// Route sends some domains to a next hop of their own.
type Route struct {
	Name    string
	Domains []string // lower case; ".example.org" is every name below it
	Primary
}

// Filter is one [[filter]]: a mail filter of ours that stands for a milter of the
// primary's.
type Filter struct {
	Name            string
	Milter          string // an endpoint, or a program's name
	Address         string // inet:host:port or unix:/path
	TLS             bool
	TLSName         string
	TLSCA           string
	TLSCert, TLSKey string
}

// Policy is section [policy].
type Policy struct {
	File           string
	Suite          string   // a preset of what follows, and where it isn't set
	Postfix        string   // configuration directory
	PostfixPrefix  []string // a command that runs a command where Postfix lives
	PostfixRoot    string   // the directory that is its root
	PostfixHosts   []string // "address there=address here"
	PostfixService string   // of master.cf
	PostfixChoose  []string // "parameter: element=choice"
	PostfixFilter  []string // "endpoint=program:file"
	PostfixList    []string // "table=command"

	PostfixUnlisted string // "defer" or "reject"

	Preset *suite.Suite // of Suite

	Exim       string   // program, or "auto"
	EximConfig string   // its configuration file
	EximChoose []string // as PostfixChoose
}

// Queue is section [queue].
type Queue struct {
	MaxAge        time.Duration
	MinFree       Size
	MinFreeInodes int
	Return        string // never, vouched
	ReturnThrough string // a route's name, or "primary"
	Store         string // leveldb, postgres
	DSN           string // of PostgreSQL, without a password
	DSNPassword   string // file
	Durability    string // quorum, one-machine
	Fallback      string // defer, leveldb
	AdoptAfter    time.Duration
}

// Relay is section [relay].
type Relay struct{ AuthenticationResults bool }

// DNS is section [dns].
type DNS struct {
	Servers   []string // ip:port; none: /etc/resolv.conf
	Timeout   time.Duration
	OnFailure string // as-primary, defer
	SickLists string // as-primary, set-aside, count
}

// Metrics is section [metrics].
type Metrics struct{ Listen string } // "" is off

// Log is section [log].
type Log struct{ Format, Level string }

// Mistake is one thing wrong in a configuration file, and what to do about it.
type Mistake struct {
	File      string
	Line, Col int // from 1
	Key       string
	Text      string
}

func (m *Mistake) Error() string {
	if m.Key == "" {
		return fmt.Sprintf("%s:%d:%d: %s", m.File, m.Line, m.Col, m.Text)
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s", m.File, m.Line, m.Col, m.Key, m.Text)
}

// Mistake is something wrong with what the configuration names, at the place of
// its key.
func (c *Config) Mistake(key, format string, args ...any) error {
	text, _ := os.ReadFile(c.File) // without it, the place is the first line
	line, col := locate.Line(text, locate.At(locate.Keys(string(text)), key))
	return &Mistake{File: c.File, Line: line, Col: col, Key: key, Text: fmt.Sprintf(format, args...)}
}

// Load reads and checks a configuration file. The error joins a *Mistake for
// everything that is wrong in it, in the file's order, one line each.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("read configuration %s: longer than %d bytes; is it the right file?", path, maxFile)
	}
	return Parse(path, b)
}

// Parse checks the text of a configuration file; path is its name, against
// whose directory relative file names in it are read.
func Parse(path string, text []byte) (*Config, error) {
	var tree map[string]any
	if err := toml.Unmarshal(text, &tree); err != nil {
		var pe toml.ParseError
		if errors.As(err, &pe) {
			// The library's own line is one too many for a line that ends early, and
			// its start is -1 for a lone octet.
			line, col := locate.Line(text, pe.Position.Start)
			return nil, &Mistake{File: path, Line: line, Col: col,
				Text: strings.ReplaceAll(pe.Message, "\n", `\n`) + "; see https://toml.io for the syntax"}
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r := &reader{file: path, text: text, at: locate.Keys(string(text)), cfg: Default()}
	r.cfg.File = path
	_, r.cfg.IsPublisher = tree["publish"]
	r.table("", tree)
	r.check()
	if len(r.mistakes) > 0 {
		slices.SortStableFunc(r.mistakes, func(a, b *Mistake) int {
			if a.Line != b.Line {
				return a.Line - b.Line
			}
			return a.Col - b.Col
		})
		errs := make([]error, len(r.mistakes))
		for i, m := range r.mistakes {
			errs[i] = m
		}
		return nil, errors.Join(errs...)
	}
	return r.cfg, nil
}

// Default returns the configuration of an empty file. It lacks what only the
// operator can know: the primary's address and the policy's file.
func Default() *Config {
	c := &Config{}
	for _, s := range settings {
		if !slices.Contains(repeated, s.section) {
			s.setDefault(c)
		}
	}
	return c
}

// reader walks a parsed file and gathers values and mistakes.
type reader struct {
	file     string
	text     []byte
	at       map[string]int
	cfg      *Config
	mistakes []*Mistake
}

func (r *reader) mistake(path, format string, args ...any) {
	line, col := locate.Line(r.text, locate.At(r.at, path))
	r.mistakes = append(r.mistakes, &Mistake{File: r.file, Line: line, Col: col,
		Key: path, Text: fmt.Sprintf(format, args...)})
}

// table reads one TOML table; section is "" for the top level.
func (r *reader) table(section string, t map[string]any) {
	for key, v := range t {
		path := locate.Join(section, key)
		if section == "" && slices.Contains(sections(), key) {
			r.section(key, v)
			continue
		}
		s := lookup(section, key)
		if s == nil {
			r.unknown(section, path, key)
			continue
		}
		r.set(r.cfg, s, path, v)
	}
}

func (r *reader) section(name string, v any) {
	if slices.Contains(repeated, name) {
		list, ok := v.([]map[string]any)
		if !ok {
			r.mistake(name, "is a list of tables; write [[%s]] above its keys", name)
			return
		}
		for i, t := range list {
			path := fmt.Sprintf("%s[%d]", name, i)
			switch name {
			case "source":
				r.source(path, t)
			case "filter":
				r.filter(path, t)
			default:
				r.route(path, t)
			}
		}
		return
	}
	t, ok := v.(map[string]any)
	if !ok {
		r.mistake(name, "is a section; write [%s] on a line of its own above its keys", name)
		return
	}
	r.table(name, t)
}

// route reads one [[route]]: its own keys and those of [primary], which it
// does not inherit.
func (r *reader) route(path string, t map[string]any) {
	c := &Config{Routes: make([]Route, 1)}
	for _, s := range settings {
		if s.section == "primary" {
			s.setDefault(c)
		}
	}
	for key, v := range t {
		s := lookup("route", key)
		if s == nil {
			s = lookup("primary", key)
		}
		if s == nil {
			r.unknown("route", path+"."+key, key)
			continue
		}
		r.set(c, s, path+"."+key, v)
	}
	rt := c.Routes[0]
	rt.Primary = c.Primary
	for key, missing := range map[string]bool{"name": rt.Name == "", "address": rt.Address == ""} {
		if _, there := t[key]; missing && !there {
			r.mistake(path, "lacks the key %q; add it", key)
		}
	}
	r.cfg.Routes = append(r.cfg.Routes, rt)
}

// filter reads one [[filter]].
func (r *reader) filter(path string, t map[string]any) {
	c := &Config{Filters: make([]Filter, 1)}
	for _, s := range settings {
		if s.section == "filter" {
			s.setDefault(c)
		}
	}
	for key, v := range t {
		if s := lookup("filter", key); s != nil {
			r.set(c, s, path+"."+key, v)
		} else {
			r.unknown("filter", path+"."+key, key)
		}
	}
	for _, key := range []string{"name", "milter", "address"} {
		if _, there := t[key]; !there {
			r.mistake(path, "lacks the key %q; add it", key)
		}
	}
	f := c.Filters[0]
	if !f.TLS && f.TLSName+f.TLSCA+f.TLSCert+f.TLSKey != "" {
		r.mistake(path+".tls", "is off, and other keys of TLS are set; write tls = true")
	}
	if (f.TLSCert == "") != (f.TLSKey == "") {
		r.mistake(path, "has one of tls_cert and tls_key; set both, or none")
	}
	for _, other := range r.cfg.Filters {
		if other.Name == f.Name && f.Name != "" {
			r.mistake(path+".name", "%q already names another filter; choose another", f.Name)
		}
		if other.Milter == f.Milter && f.Milter != "" {
			r.mistake(path+".milter", "filter %q already stands for %s; keep one", other.Name, f.Milter)
		}
	}
	r.cfg.Filters = append(r.cfg.Filters, f)
}

func (r *reader) set(c *Config, s *setting, path string, v any) {
	if err := s.kind.parse(v, s.field(c)); err != nil {
		r.mistake(path, "%v", err)
		return
	}
	if s.kind.file {
		p := s.field(c).(*string)
		*p = resolveFile(filepath.Dir(r.file), *p)
		if abs, err := filepath.Abs(*p); err == nil {
			*p = abs // so that messages name it whole
		}
	}
}

func (r *reader) unknown(section, path, key string) {
	known := names(section)
	if near := locate.Nearest(key, known); near != "" {
		r.mistake(path, "unknown key; did you mean %q?", near)
		return
	}
	for _, s := range settings {
		if s.name == key && s.section != section {
			r.mistake(path, "unknown key here; it belongs in section [%s]", s.section)
			return
		}
	}
	r.mistake(path, "unknown key; remove it, or see understudy.conf(5) for the keys that exist")
}

// resolveFile reads a relative name against the configuration's directory and
// "$CREDENTIALS_DIRECTORY/…" against where systemd's LoadCredential= puts
// its files, also when an operator asks from outside the service.
func resolveFile(dir, name string) string {
	if rest, ok := strings.CutPrefix(name, "$CREDENTIALS_DIRECTORY/"); ok {
		base := os.Getenv("CREDENTIALS_DIRECTORY")
		if base == "" {
			base = "/run/credentials/understudy.service"
		}
		return filepath.Join(base, rest)
	}
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}
