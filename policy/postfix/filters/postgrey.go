package filters

import (
	"fmt"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/fidelity"
)

const whyGrey = "who passed is known to the primary alone"

// greyOptions are what postgrey 1.37 of Debian 12 knows.
var greyOptions = slices.Concat(
	each(fidelity.NotReplicated, whyGrey, "delay", "max-age", "retry-window", "auto-whitelist-clients", "lookup-by-subnet", "lookup-by-host", "ipv4cidr", "ipv6cidr",
		"whitelist-clients", "whitelist-recipients", "greylist-action", "greylist-text", "privacy"),
	each(fidelity.NoDecision, "", "inet", "unix", "socketmode", "user", "group", "dbdir", "pidfile", "daemonize", "verbose", "quiet", "syslogfacility",
		"syslog-facility", "facility", "hostname", "exim", "listen-queue-size", "x-greylist-header"),
)

// shortGrey are the options of one letter.
var shortGrey = map[string]string{"-i": "inet", "-u": "unix", "-d": "daemonize", "-v": "verbose", "-q": "quiet"}

// postgrey reads the options of the service as /etc/default/postgrey has them.
func (f *Filter) postgrey(r *reader) error {
	opts, line, err := r.shellVariable(f.File, "POSTGREY_OPTS")
	if err != nil {
		return err
	}
	delay := "300"
	words := strings.Fields(opts)
	for i := 0; i < len(words); i++ {
		name, value, given := strings.Cut(strings.TrimPrefix(words[i], "--"), "=")
		if short, ok := shortGrey[words[i]]; ok {
			name = short
		}
		at := slices.IndexFunc(greyOptions, func(o Option) bool { return o.Name == name })
		if at < 0 || !strings.HasPrefix(words[i], "-") {
			f.Unsure = append(f.Unsure, fmt.Sprintf("%s:%d: postgrey knows no %s", f.File, line, quote(words[i])))
			continue
		}
		if !given && i+1 < len(words) && !strings.HasPrefix(words[i+1], "-") {
			i++
			value = words[i]
		}
		if name == "delay" {
			delay = value
		}
	}
	f.Refuses = []string{fmt.Sprintf("a client, sender and recipient that it doesn't know together, for %s s", quote(delay))}
	f.Refuses[0] = strings.ReplaceAll(f.Refuses[0], `"`, "")
	f.Unsure = append(f.Unsure, whyGrey)
	return nil
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
