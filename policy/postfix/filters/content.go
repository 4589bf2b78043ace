package filters

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/fidelity"
)

// Programs that decide by what a message holds. They aren't followed: their
// signatures and rules change by the hour.
const (
	Rspamd        = "rspamd"
	ClamAVMilter  = "clamav-milter"
	SpamAssMilter = "spamass-milter"
	Amavis        = "amavis"
	ClamSMTPD     = "clamsmtpd"
	SpamPD        = "spampd"
	DSPAM         = "dspam"
)

// WhyLive is why such a program isn't followed where it refuses something.
const WhyLive = "what a message holds is decided live"

const whyRspamdGrey = "who has been let in is known; whom to put off, an rspamd of the secondary's decides"

func lives(names ...string) []Option { return each(fidelity.NotReplicated, WhyLive, names...) }

// Where Debian's packages keep their configurations. Debian 12 has no dspam.
const (
	rspamdFile  = "/etc/rspamd/rspamd.conf"
	clamFile    = "/etc/clamav/clamav-milter.conf"
	spamassFile = "/etc/default/spamass-milter"
	amavisDir   = "/etc/amavis/conf.d"
	clamsmtpd   = "/etc/clamsmtpd.conf"
	spampdFile  = "/etc/default/spampd"
	dspamFile   = "/etc/dspam/dspam.conf"
)

// live ends the reading of such a program.
func (f *Filter) live() {
	if f.Live = true; len(f.Refuses) > 0 {
		f.Unsure = append(f.Unsure, WhyLive)
	}
}

// rspamd has too many rules to be read: it may refuse anything.
func (f *Filter) rspamd(r *reader) error {
	if _, err := r.text(f.File); err != nil {
		return err
	}
	f.Verifies = true
	f.Refuses = []string{"what its rules score too high"}
	f.live()
	return nil
}

// clamavMilter reads clamav-milter.conf, as ClamAV 1.4 has it.
func (f *Filter) clamavMilter(r *reader) error {
	settings, err := r.milterConf(f.File, 0)
	if err != nil {
		return err
	}
	v := latest(settings)
	for _, on := range []struct{ option, usual, what string }{{"OnInfected", "Quarantine", "a virus"}, {"OnClean", "Accept", "a clean message"}} {
		f.dispose(v.get(on.option, on.usual), on.what)
	}
	f.live()
	return nil
}

// dispose notes what becomes of something, by the word that a program has for it.
func (f *Filter) dispose(action, what string) {
	switch strings.ToLower(action) {
	case "reject", "defer", "d_reject", "d_tempfail", "bounce":
		f.Refuses = append(f.Refuses, what+" ("+action+")")
	case "quarantine", "blackhole", "d_discard", "d_bounce", "drop":
		f.Handles = append(f.Handles, what+" ("+action+")")
	}
}

var spamassReject = regexp.MustCompile(`(^|[\s"])-r[\s]*-?\d`)

// spamassMilter refuses by -r alone.
func (f *Filter) spamassMilter(r *reader) error {
	text, err := r.text(f.File)
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "OPTIONS="); ok && spamassReject.MatchString(value) {
			f.Refuses = []string{"spam (-r)"}
		}
	}
	f.live()
	return nil
}

// amavisDestiny is an assignment that says what becomes of a kind of mail.
var amavisDestiny = regexp.MustCompile(`^\s*\$final_(virus|banned|unchecked|spam|bad_header)_destiny\s*=\s*(D_[A-Z]+)\s*;\s*(#.*)?$`)

var amavisKinds = []struct{ name, what, usual string }{ // as in amavisd's Conf.pm
	{"virus", "a virus", "D_DISCARD"}, {"banned", "a forbidden attachment", "D_DISCARD"}, {"unchecked", "what can't be examined", "D_PASS"},
	{"spam", "spam", "D_PASS"}, {"bad_header", "a bad header", "D_PASS"},
}

// amavis reads the destinies, of which the last counts. File is amavisd's file, or
// Debian's directory of them.
func (f *Filter) amavis(r *reader) error {
	lines, err := r.perl(f.File)
	if err != nil {
		return err
	}
	destiny := map[string]string{}
	for _, l := range lines {
		if m := amavisDestiny.FindStringSubmatch(l.value); m != nil {
			destiny[m[1]] = m[2]
		} else if strings.Contains(l.value, "final_") && strings.Contains(l.value, "destiny") {
			f.unsure(l, "%s isn't a plain assignment", quote(strings.TrimSpace(l.value)))
		}
	}
	for _, k := range amavisKinds {
		if destiny[k.name] == "" {
			destiny[k.name] = k.usual
		}
		f.dispose(destiny[k.name], k.what)
	}
	f.live()
	return nil
}

// perl returns the lines of a file, or of all files of a directory, that aren't
// comments.
func (r *reader) perl(name string) (lines []setting, err error) {
	names := []string{name}
	all, err := r.host.Glob(r.ctx, name+"/*")
	if err != nil {
		return nil, err
	}
	if len(all) > 0 {
		names = slices.DeleteFunc(all, func(name string) bool { return !amavisName.MatchString(filepath.Base(name)) })
	}
	for _, name := range names {
		text, err := r.text(name)
		if err != nil {
			return nil, err
		}
		n := 0
		for line := range strings.Lines(text) {
			if n++; !strings.HasPrefix(strings.TrimSpace(line), "#") {
				lines = append(lines, setting{value: strings.TrimRight(line, "\r\n"), file: name, line: n})
			}
		}
	}
	return lines, nil
}

// amavisName is how Debian's files are called that amavisd reads.
var amavisName = regexp.MustCompile(`^\d\d-[A-Za-z0-9_-]+$`)

// clamSMTPD reads clamsmtpd.conf: a name, a colon, and a value.
func (f *Filter) clamSMTPD(r *reader) error {
	v, err := r.colons(f.File)
	if err != nil {
		return err
	}
	action := v.get("Action", "drop")
	if _, set := v["action"]; !set && v.get("Bounce", "off") != "off" {
		action = "bounce" // of old
	}
	f.dispose(action, "a virus")
	f.live()
	return nil
}

func (r *reader) colons(name string) (values, error) {
	text, err := r.text(name)
	if err != nil {
		return nil, err
	}
	v := values{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && !strings.HasPrefix(key, "#") {
			v[strings.ToLower(strings.TrimSpace(key))] = setting{value: strings.TrimSpace(value), file: name}
		}
	}
	return v, nil
}

// spamPD marks spam, and refuses only where SpamAssassin fails and it is to say so.
func (f *Filter) spamPD(r *reader) error {
	opts, line, err := r.shellVariable(f.File, "ADDOPTS")
	if err != nil {
		return err
	}
	for w := range strings.FieldsSeq(opts) {
		switch {
		case w == "--dose":
			f.Refuses = append(f.Refuses, "a message that SpamAssassin fails on (--dose)")
		case strings.HasPrefix(w, "--config"):
			f.unsure(setting{file: f.File, line: line}, "%s: that file isn't read", quote(w))
		}
	}
	f.live()
	return nil
}

// dspam reads dspam.conf, in which each preference is a line of its own.
func (f *Filter) dspam(r *reader) error {
	settings, err := r.milterConf(f.File, 0)
	if err != nil {
		return err
	}
	spam, clam := "quarantine", ""
	scans := false
	for _, s := range settings {
		value := strings.Trim(s.value, `"`)
		switch strings.ToLower(s.name) {
		case "preference":
			if action, ok := strings.CutPrefix(value, "spamAction="); ok {
				spam = action
			}
		case "clamavport":
			scans = true
		case "clamavresponse":
			clam = strings.NewReplacer("accept", "drop").Replace(value)
		}
	}
	f.dispose(spam, "spam")
	if scans {
		f.dispose(clam, "a virus")
	}
	f.live()
	return nil
}

// layout is where a program listens by the configuration that its package keeps.
type layout struct {
	Place
	sockets func(r *reader, file string) []Endpoint
}

var contentLayouts = []layout{
	{Place{Rspamd, rspamdFile}, rspamdSockets},
	{Place{ClamAVMilter, clamFile}, func(r *reader, file string) []Endpoint {
		settings, _ := r.milterConf(file, 0)
		return []Endpoint{milterSocket(latest(settings).get("MilterSocket", ""))}
	}},
	{Place{SpamAssMilter, spamassFile}, func(r *reader, file string) []Endpoint {
		socket, line, err := r.shellVariable(file, "SOCKET")
		if err == nil && line == 0 {
			socket = "/var/spool/postfix/spamass/spamass.sock"
		}
		return []Endpoint{milterSocket(socket)}
	}},
	{Place{Amavis, amavisDir}, amavisSockets},
	{Place{ClamSMTPD, clamsmtpd}, func(r *reader, file string) []Endpoint {
		v, err := r.colons(file)
		if err != nil {
			return nil
		}
		return []Endpoint{ProxyEndpoint(v.get("Listen", "10025"), "")}
	}},
	{Place{SpamPD, spampdFile}, func(r *reader, file string) []Endpoint {
		host, _, err := r.shellVariable(file, "LISTENHOST")
		port, line, _ := r.shellVariable(file, "LISTENPORT")
		if err != nil {
			return nil
		}
		if line == 0 {
			port = "10025"
		}
		return []Endpoint{inetEndpoint(host, port)}
	}},
	{Place{DSPAM, dspamFile}, func(r *reader, file string) []Endpoint {
		settings, err := r.milterConf(file, 0)
		if err != nil {
			return nil
		}
		v := latest(settings)
		if path := strings.Trim(v.get("ServerDomainSocketPath", ""), `"`); path != "" {
			return []Endpoint{unixEndpoint(path)}
		}
		return []Endpoint{inetEndpoint("", v.get("ServerPort", "24"))}
	}},
}

var bindSocket = regexp.MustCompile(`(?m)^\s*bind_socket\s*=\s*"?([^";\s]+)`)

// rspamdSockets are those of the proxy worker, which speaks the milter protocol.
func rspamdSockets(r *reader, file string) (all []Endpoint) {
	if _, err := r.look(file); err != nil {
		return nil
	}
	for _, name := range []string{"override.d/worker-proxy.inc", "local.d/worker-proxy.inc"} {
		text, err := r.text(filepath.Join(filepath.Dir(file), name))
		if err != nil {
			continue
		}
		for _, m := range bindSocket.FindAllStringSubmatch(text, -1) {
			all = append(all, ProxyEndpoint(m[1], ""))
		}
		if len(all) > 0 {
			return all
		}
	}
	return []Endpoint{inetEndpoint("", "11332")}
}

var (
	amavisPort = regexp.MustCompile(`^\s*\$inet_socket_port\s*=\s*([^;]*);`)
	amavisUnix = regexp.MustCompile(`^\s*\$unix_socketname\s*=\s*["']([^"';]*)["']\s*;`)
	digits     = regexp.MustCompile(`\d+`)
)

func amavisSockets(r *reader, dir string) (all []Endpoint) {
	lines, err := r.perl(dir)
	if err != nil || len(lines) == 0 {
		return nil
	}
	ports, path := []string{"10024"}, ""
	for _, l := range lines {
		if m := amavisPort.FindStringSubmatch(l.value); m != nil {
			ports = digits.FindAllString(m[1], -1)
		}
		if m := amavisUnix.FindStringSubmatch(l.value); m != nil {
			path = m[1]
		}
	}
	for _, p := range ports {
		all = append(all, inetEndpoint("", p))
	}
	return append(all, unixEndpoint(path))
}

// ProxyEndpoint reads where smtpd_proxy_filter or a transport leads to: "host:port",
// "[host]:port", "port", each perhaps after "inet:", or "unix:path". "" is none.
func ProxyEndpoint(s, queueDirectory string) Endpoint {
	s = strings.TrimSpace(s)
	if path, isUnix := strings.CutPrefix(s, "unix:"); isUnix || strings.HasPrefix(s, "/") {
		if !filepath.IsAbs(path) {
			path = filepath.Join(queueDirectory, path)
		}
		return unixEndpoint(path)
	}
	s = strings.TrimPrefix(s, "inet:")
	host, port := "", s
	if at := strings.LastIndexByte(s, ':'); at >= 0 && !strings.HasSuffix(s, "]") {
		host, port = s[:at], s[at+1:]
	} else if strings.ContainsAny(s, "[]") {
		host, port = s, "25"
	}
	if host = strings.Trim(host, "[]"); host == "*" || host == "0.0.0.0" {
		host = ""
	}
	return inetEndpoint(host, port)
}

// findContent says which of these programs listens at an endpoint.
func (r *reader) findContent(e Endpoint) (Place, bool) {
	for _, l := range contentLayouts {
		if slices.Contains(l.sockets(r, l.File), e) {
			return l.Place, true
		}
	}
	return Place{}, false
}

// spawnedContent are programs that pipe(8) starts.
var spawnedContent = map[string]Place{
	"dspam": {DSPAM, dspamFile}, "dspamc": {DSPAM, dspamFile},
}

// Describe says in words what becomes of mail after the primary has taken it.
func (f *Filter) Describe() string {
	var parts []string
	if len(f.Refuses) > 0 {
		parts = append(parts, "returns to the sender: "+strings.Join(f.Refuses, ", "))
	}
	if len(f.Handles) > 0 {
		parts = append(parts, "throws away, returns or quarantines: "+strings.Join(f.Handles, ", "))
	}
	for _, u := range f.Unsure {
		if u != WhyLive {
			parts = append(parts, u)
		}
	}
	if len(parts) == 0 {
		return "marks mail at most"
	}
	return strings.Join(parts, "; ")
}
