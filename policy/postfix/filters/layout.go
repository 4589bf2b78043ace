package filters

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/host"
)

// Endpoint is where main.cf says that a filter listens: "inet:host:port" or
// "unix:/path", in one spelling.
type Endpoint string

// ParseEndpoint reads a milter or policy service of main.cf. A relative path
// is one below the queue directory.
func ParseEndpoint(s, queueDirectory string) (Endpoint, error) {
	s = strings.TrimSpace(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(s), "{"), "}"))
	if i := strings.IndexAny(s, ", \t"); i >= 0 {
		s = s[:i]
	}
	name, err := envelope.MilterName(s)
	if path, isUnix := strings.CutPrefix(name, "unix:"); isUnix {
		if !filepath.IsAbs(path) {
			path = filepath.Join(queueDirectory, path)
		}
		return unixEndpoint(path), nil
	}
	return Endpoint(name), err
}

// unixEndpoint is a path's; /var/run is another name of /run.
func unixEndpoint(path string) Endpoint {
	if path = clean(path); strings.HasPrefix(path, "/var/run/") {
		path = strings.TrimPrefix(path, "/var")
	}
	return Endpoint("unix:" + path)
}

func inetEndpoint(host, port string) Endpoint {
	e, _ := ParseEndpoint("inet:"+net.JoinHostPort(host, port), "")
	return e
}

// milterSocket reads the Socket of opendkim.conf and opendmarc.conf:
// "local:/path" or "inet:port@host".
func milterSocket(s string) Endpoint {
	kind, rest, ok := strings.Cut(strings.TrimSpace(s), ":")
	if !ok {
		return unixEndpoint(kind)
	}
	if kind == "inet" || kind == "inet6" {
		port, host, _ := strings.Cut(rest, "@")
		return inetEndpoint(strings.Trim(host, "[]"), port)
	}
	return unixEndpoint(rest)
}

// Place is a program and its configuration's file.
type Place struct{ Program, File string }

func (p Place) String() string { return p.Program + " (" + p.File + ")" }

// Find says which filter listens at an endpoint, by the configurations that
// Debian's packages keep. queueDirectory is Postfix's, where a filter may be
// chrooted to. ok is false where none of them does.
func Find(ctx context.Context, h *host.Host, e Endpoint, queueDirectory string) (p Place, files []string, ok bool) {
	r := reader{ctx: ctx, host: h}
	for _, milter := range []Place{{OpenDKIM, "/etc/opendkim.conf"}, {OpenDMARC, "/etc/opendmarc.conf"}} {
		settings, err := r.milterConf(milter.File, 0)
		if err != nil {
			continue
		}
		at := milterSocket(latest(settings).get("Socket", ""))
		if override := r.override(milter.Program); override != "" {
			at = milterSocket(override)
		}
		if at == e {
			return milter, r.files, true
		}
	}
	const grey = "/etc/default/postgrey"
	if opts, _, err := r.shellVariable(grey, "POSTGREY_OPTS"); err == nil {
		for _, w := range strings.Fields(opts) {
			where, isInet := strings.CutPrefix(w, "--inet=")
			path, isUnix := strings.CutPrefix(w, "--unix=")
			host, port, err := net.SplitHostPort(where)
			if err != nil {
				host, port = "", where
			}
			if isInet && inetEndpoint(host, port) == e || isUnix && unixEndpoint(path) == e {
				return Place{Postgrey, grey}, r.files, true
			}
		}
	}
	p, ok = r.findContent(e)
	return p, r.files, ok
}

// override is the socket that systemd starts a milter with, "" where its unit
// leaves that to the configuration.
func (r *reader) override(program string) string {
	text, err := r.text("/etc/systemd/system/" + program + ".service.d/override.conf")
	if err != nil {
		return ""
	}
	socket := ""
	for line := range strings.Lines(text) {
		if start, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart="); ok {
			w := strings.Fields(start)
			socket = ""
			for i := range w {
				if w[i] == "-p" && i+1 < len(w) {
					socket = w[i+1]
				}
			}
		}
	}
	return socket
}

// Spawned says which program a command of master.cf's spawn or pipe is.
func Spawned(argv []string) (Place, bool) {
	for i, w := range argv {
		switch filepath.Base(w) {
		case "policyd-spf":
			p := Place{PolicySPF, "/etc/postfix-policyd-spf-python/policyd-spf.conf"}
			if i+1 < len(argv) {
				p.File = argv[i+1]
			}
			return p, true
		}
		if p, ok := spawnedContent[filepath.Base(w)]; ok {
			return p, true
		}
	}
	return Place{}, false
}

// ParsePlaces reads "ENDPOINT=PROGRAM:FILE", what the operator says.
func ParsePlaces(list []string, queueDirectory string) (map[Endpoint]Place, error) {
	all := map[Endpoint]Place{}
	for _, s := range list {
		i := strings.LastIndexByte(s, '=')
		if i < 0 {
			return nil, fmt.Errorf("%s isn't ENDPOINT=PROGRAM:FILE", quote(s))
		}
		e, err := ParseEndpoint(s[:i], queueDirectory)
		if err != nil {
			return nil, err
		}
		program, file, ok := strings.Cut(s[i+1:], ":")
		if !ok || readers[program] == nil || !filepath.IsAbs(file) {
			return nil, fmt.Errorf("%s isn't PROGRAM:FILE, with a program of %s", quote(s[i+1:]), strings.Join(Programs(), ", "))
		}
		all[e] = Place{program, file}
	}
	return all, nil
}
