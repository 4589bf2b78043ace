package postfix

import (
	"context"
	"net/netip"
	"path"
	"slices"
	"strings"
)

// service is a line of master.cf.
type service struct {
	name, typ, command string
	args               []string // of the command
	off                bool     // master(8) doesn't start it
	inside             bool     // by inet_interfaces only this host reaches it
}

func (s service) key() string { return s.name + "/" + s.typ }

// argv is the command line of spawn(8) or pipe(8); nil where none is.
func (s service) argv() []string {
	at := slices.IndexFunc(s.args, func(a string) bool { return strings.HasPrefix(a, "argv=") })
	if at < 0 {
		return nil
	}
	argv := slices.Clone(s.args[at:])
	argv[0] = strings.TrimPrefix(argv[0], "argv=")
	return argv
}

// readServices lists what master(8) starts, and what master_service_disable
// keeps it from. Of two lines with one name it takes the last.
func readServices(ctx context.Context, src *Source) ([]service, error) {
	var all []service
	err := src.postconf(ctx, nil, func(line string) error {
		f := fields(line)
		if len(f) < 8 {
			return nil
		}
		s := service{name: f[0], typ: f[1], command: path.Base(f[7]), args: f[8:]}
		if at := slices.IndexFunc(all, func(o service) bool { return o.key() == s.key() }); at >= 0 {
			all[at] = s
		} else {
			all = append(all, s)
		}
		return nil
	}, "-M")
	if err != nil {
		return nil, err
	}
	master, err := readValues(ctx, src, nil, "-x", "master_service_disable", "inet_interfaces")
	for i := range all {
		s := &all[i]
		s.off = disabled(master["master_service_disable"], s.key())
		host, _ := s.hostPort()
		s.inside = host == "" && !slices.ContainsFunc(words(master["inet_interfaces"]), func(w string) bool { return !loopback(w) })
	}
	return all, err
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || host == "loopback-only" || err == nil && a.IsLoopback()
}

// disabled looks a service up in master_service_disable: types, and names with
// their type after a slash or, as of old, a dot. The first that matches decides.
func disabled(list, key string) bool {
	_, typ := cutLast(key, '/')
	for _, w := range words(list) {
		pattern := strings.TrimLeft(w, "!")
		not := (len(w)-len(pattern))%2 == 1
		if name, t := cutLast(pattern, '.'); name != "" && !strings.Contains(pattern, "/") {
			pattern = name + "/" + t
		}
		if strings.EqualFold(pattern, key) || strings.EqualFold(pattern, typ) {
			return !not
		}
	}
	return false
}

// cutLast cuts s around the last sep. Without one everything is after it.
func cutLast(s string, sep byte) (before, after string) {
	i := strings.LastIndexByte(s, sep)
	return s[:max(i, 0)], s[i+1:]
}

// fields splits a line of master.cf at white space, but not inside of braces.
func fields(line string) []string {
	var list []string
	start, level := -1, 0
	for i, c := range []byte(line + " ") {
		switch {
		case c == '{':
			level++
		case c == '}' && level > 0:
			level--
		case (level == 0 || i == len(line)) && strings.IndexByte(" \t\r\n", c) >= 0:
			if start >= 0 {
				list = append(list, line[start:i])
			}
			start = -1
			continue
		}
		if start < 0 {
			start = i
		}
	}
	return list
}

// overrides are the parameters that master.cf gives a service, as postconf takes
// them. (postconf -P would mix those of two lines with one name.)
func (s service) overrides() (args []string) {
	for i := 0; i+1 < len(s.args); i++ {
		if s.args[i] != "-o" {
			continue
		}
		i++
		setting, _ := unbrace(s.args[i])
		name, value, _ := strings.Cut(setting, "=")
		args = append(args, "-o", strings.TrimSpace(name)+"="+strings.TrimSpace(value))
	}
	return args
}

func (s service) hostPort() (host, port string) {
	if i := strings.LastIndexByte(s.name, ':'); i >= 0 {
		return strings.Trim(s.name[:i], "[]"), s.name[i+1:]
	}
	return "", s.name
}

// mx says that other hosts deliver to the service.
func (s service) mx() bool {
	_, port := s.hostPort()
	return s.typ == "inet" && (port == "25" || port == "smtp")
}

func (s service) takesMail() bool { return s.command == "smtpd" || s.command == "postscreen" }

// rank orders services by how likely mail from outside comes to them: on port 25,
// then others, submission after them, and last what only this host reaches, such
// as the way back from a content filter, and what isn't started.
func (s service) rank() int {
	host, port := s.hostPort()
	local := loopback(host)
	switch {
	case s.off:
		return 5
	case s.mx() && !local:
		return 0
	case s.mx():
		return 1
	case local:
		return 4
	case slices.Contains([]string{"587", "submission", "465", "smtps", "submissions"}, port):
		return 3
	}
	return 2
}
