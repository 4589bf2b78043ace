package filters

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// greyOptions are what postgrey 1.37 of Debian 12 knows.
var greyOptions = slices.Concat(
	each(fidelity.Exact, "", "delay", "retry-window", "auto-whitelist-clients", "lookup-by-subnet", "lookup-by-host", "ipv4cidr", "ipv6cidr",
		"whitelist-clients", "whitelist-recipients", "greylist-action", "greylist-text", "privacy"),
	each(fidelity.Exact, "of what the primary knew, to a day", "max-age"),
	each(fidelity.Exact, "where its database is read from", "dbdir"),
	each(fidelity.NoDecision, "", "inet", "unix", "socketmode", "user", "group", "pidfile", "daemonize", "verbose", "quiet", "syslogfacility",
		"syslog-facility", "facility", "hostname", "exim", "listen-queue-size"),
	each(fidelity.NoDecision, "no header is added; the primary sees the message as it came", "x-greylist-header"),
)

// Files that postgrey reads without being told.
const (
	greyDir      = "/var/lib/postgrey"
	greyClients  = "/etc/postgrey/whitelist_clients"
	greyRcpts    = "/etc/postgrey/whitelist_recipients"
	greyHelpText = "Greylisted, see http://postgrey.schweikert.ch/help/%r.html"
)

// shortGrey are the options of one letter.
var shortGrey = map[string]string{"i": "inet", "u": "unix", "d": "daemonize", "v": "verbose", "q": "quiet"}

// greyFlags take no value.
var greyFlags = []string{"daemonize", "verbose", "quiet", "lookup-by-subnet", "lookup-by-host", "privacy", "exim"}

// greyWords reads a command line as postgrey does (Getopt::Long, POSIX): with one
// dash or two, up to the first word that is none.
func (f *Filter) greyWords(words []string, at setting) (opts []setting) {
	for i := 0; i < len(words); i++ {
		name, value, given := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(words[i], "-"), "-"), "=")
		name = cmp.Or(shortGrey[name], name)
		known := slices.ContainsFunc(greyOptions, func(o Option) bool { return o.Name == name })
		switch {
		case !known || !strings.HasPrefix(words[i], "-"):
			f.unsure(at, "postgrey knows no %s", quote(words[i]))
			continue
		case slices.Contains(greyFlags, name):
			if given {
				f.unsure(at, "%s takes no value", name)
			}
		case given:
		case i+1 < len(words) && (name != "auto-whitelist-clients" || !strings.HasPrefix(words[i+1], "-")):
			i++
			value = words[i]
		case name != "auto-whitelist-clients":
			f.unsure(at, "%s lacks its value", name)
		}
		opts = append(opts, setting{name, value, at.file, at.line})
	}
	return opts
}

// postgrey reads the options of the service as /etc/default/postgrey and the
// service's unit have them.
func (f *Filter) postgrey(r *reader) error {
	opts, line, err := r.shellVariable(f.File, "POSTGREY_OPTS")
	if err != nil {
		return err
	}
	given := f.greyWords(strings.Fields(opts), setting{file: f.File, line: line})
	if text, line, ok := r.greyText(f.File); ok {
		given = append(given, setting{"greylist-text", text, f.File, line})
	}
	last := values{}
	lists := map[string][]setting{}
	for _, s := range given {
		last[s.name] = s
		lists[s.name] = append(lists[s.name], s)
	}
	g := &policy.Greylist{
		Delay: f.greyNumber(last, "delay", 300), MaxAge: f.greyNumber(last, "max-age", 35) * 86400, RetryWindow: f.greyWindow(last),
		IPv4: f.greyNumber(last, "ipv4cidr", 24), IPv6: f.greyNumber(last, "ipv6cidr", 64), Database: last.get("dbdir", greyDir), AutoClients: 5,
		Action: perlOr(last.get("greylist-action", ""), "DEFER_IF_PERMIT"), Text: perlOr(last.get("greylist-text", ""), greyHelpText),
	}
	_, g.ByHost = last["lookup-by-host"]
	_, g.Privacy = last["privacy"]
	if s, ok := last["auto-whitelist-clients"]; ok && s.value != "" {
		if g.AutoClients, err = strconv.Atoi(s.value); err != nil || g.AutoClients < 0 {
			f.unsure(s, "auto-whitelist-clients: %s is no number", quote(s.value))
		}
	}
	g.Clients, err = f.greyList(r, lists["whitelist-clients"], greyClients, false)
	if err == nil {
		g.Recipients, err = f.greyList(r, lists["whitelist-recipients"], greyRcpts, true)
	}
	f.Refuses = []string{fmt.Sprintf("a client, sender and recipient that it doesn't know together, for %d s", g.Delay)}
	if err == nil && len(f.Unsure) == 0 {
		f.Grey = g
	}
	return err
}

// perlOr is Perl's ||.
func perlOr(s, other string) string {
	if s == "" || s == "0" {
		return other
	}
	return s
}

func (f *Filter) greyNumber(v values, name string, usual int) int {
	s, ok := v[name]
	if !ok {
		return usual
	}
	n, err := strconv.Atoi(s.value)
	if err != nil || n < 0 || n > 3650*86400 || name == "ipv4cidr" && n > 32 || name == "ipv6cidr" && n > 128 || name == "max-age" && n > 3650 {
		f.unsure(s, "%s: %s is no number that postgrey could use", name, quote(s.value))
		return usual
	}
	return cmp.Or(n, usual)
}

var greyHours = regexp.MustCompile(`^(\d{1,6})[hH]$`)

// greyWindow is the retry window in seconds.
func (f *Filter) greyWindow(v values) int {
	const usual = 2 * 86400
	s, ok := v["retry-window"]
	if !ok {
		return usual
	}
	if m := greyHours.FindStringSubmatch(s.value); m != nil {
		n, _ := strconv.Atoi(m[1])
		return n * 3600
	}
	n, err := strconv.ParseUint(s.value, 10, 11)
	if err != nil {
		f.unsure(s, "retry-window: %s is neither a number of days nor of hours, such as 6h", quote(s.value))
		return usual
	}
	return int(n) * 86400
}

// greyList reads the files of a whitelist: those named, or the usual one and the local
// one, which may both be missing.
func (f *Filter) greyList(r *reader, named []setting, usual string, ofRecipients bool) (lines []string, err error) {
	names := []string{usual, usual + ".local"}
	if len(named) > 0 {
		names = nil
		for _, s := range named {
			names = append(names, s.value)
		}
	}
	for _, name := range names {
		text, err := r.text(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // postgrey goes on without it
		}
		if err != nil {
			return nil, err
		}
		n := 0
		for line := range strings.Lines(text) {
			n++
			line, _, _ = strings.Cut(line, "#")
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			passedOver, err := policy.CheckGreylistLine(line, ofRecipients)
			switch s := (setting{file: name, line: n}); {
			case passedOver: // by postgrey, too
			case err != nil:
				f.unsure(s, "%s: %v", quote(line), err)
			default:
				lines = append(lines, line)
			}
		}
	}
	return lines, nil
}

// greyText is the text that the service's unit gives, by the file of its
// environment; systemd replaces %H by the host's name. ok is false without a unit.
func (r *reader) greyText(file string) (text string, line int, ok bool) {
	unit := ""
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} {
		if t, err := r.look(dir + "/postgrey.service"); err == nil {
			unit = t
			break
		}
	}
	dropIns, _ := r.host.Glob(r.ctx, "/etc/systemd/system/postgrey.service.d/*.conf")
	for _, name := range dropIns {
		if t, err := r.look(name); err == nil {
			unit += "\n" + t
		}
	}
	unit = strings.ReplaceAll(unit, "\\\n", " ")
	start := ""
	for l := range strings.Lines(unit) {
		l = strings.TrimSpace(l)
		if v, is := strings.CutPrefix(l, "ExecStart="); is {
			start = v
		}
		if v, is := strings.CutPrefix(l, "Environment="); is {
			if v, is := strings.CutPrefix(strings.Trim(v, `"`), "POSTGREY_TEXT="); is {
				text = v
			}
		}
	}
	if !strings.Contains(start, "--greylist-text=") || !strings.Contains(start, "POSTGREY_TEXT") {
		return "", 0, false
	}
	if name := r.host.Hostname(r.ctx); name != "" {
		text = strings.ReplaceAll(text, "%H", name)
	}
	if v, line, err := r.shellVariable(file, "POSTGREY_TEXT"); err == nil && line > 0 {
		return v, line, true
	}
	return text, 0, true
}

// shellVariable reads an assignment of a file of /etc/default.
func (r *reader) shellVariable(name, variable string) (value string, line int, err error) {
	text, err := r.text(name)
	if err != nil {
		return "", 0, err
	}
	n := 0
	for l := range strings.Lines(text) {
		n++
		if v, ok := strings.CutPrefix(strings.TrimSpace(l), variable+"="); ok {
			value, line = strings.Trim(v, `"'`), n
		}
	}
	return value, line, nil
}
