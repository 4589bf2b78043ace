package postfix

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/program"
)

// Bounds on what a command may print: far above what any site has.
const (
	maxLine        = 1 << 20
	maxStderr      = 64 << 10
	commandTimeout = 10 * time.Minute
)

// settings are the values of all parameters for one service.
type settings map[string]string

// config is what postconf says.
type config struct {
	version    string
	service    string // name/type of the service to stand in for
	instead    bool   // it doesn't listen on port 25, as none does
	others     []other
	smtpd      settings
	stressed   settings // what smtpd reads of stressLimits when all of its processes are busy
	postscreen settings // nil when smtpd itself listens
	warnings   []string
}

// service is a line of master.cf.
type service struct{ name, typ, command string }

func (s service) key() string { return s.name + "/" + s.typ }

func readConfig(ctx context.Context, src *Source) (*config, error) {
	c := &config{}
	src.said = map[string]said{}
	if err := checkMain(ctx, src); err != nil {
		return nil, err
	}
	services, err := readServices(ctx, src)
	if err != nil {
		return nil, err
	}
	listeners, err := findListeners(services, src.Service)
	if err != nil {
		return nil, err
	}
	l := listeners[0]
	c.service, c.instead = l.key(), !l.mx() && src.Service == ""
	if c.smtpd, err = readSettings(ctx, src, l, &c.warnings); err != nil {
		return nil, err
	}
	slices.Sort(c.warnings) // postconf names unused parameters as its hash table has them
	for _, o := range listeners[1:] {
		unlike, err := c.differences(ctx, src, l, o)
		if err != nil {
			return nil, err
		}
		c.others = append(c.others, other{o.key(), unlike})
	}
	if l.command == "postscreen" {
		c.postscreen = c.smtpd
		name := c.postscreen["smtpd_service_name"]
		behind := -1
		for i, s := range services {
			if s.typ == "pass" && s.name == name {
				behind = i
			}
		}
		if behind < 0 {
			return nil, fmt.Errorf("master.cf: postscreen on %s hands clients to %s/pass, which isn't there", c.service, name)
		}
		l = services[behind]
		if c.smtpd, err = readSettings(ctx, src, l, new([]string)); err != nil {
			return nil, err
		}
	}
	if l.command != "smtpd" {
		return nil, fmt.Errorf("master.cf: service %s runs %s, not smtpd or postscreen", l.key(), l.command)
	}
	if c.stressed, err = readStressed(ctx, src, l); err != nil {
		return nil, err
	}
	c.version = c.smtpd["mail_version"]
	return c, c.readCleanup(ctx, src, services)
}

// checkMain lets Postfix itself read main.cf: postconf prints values that no
// program of Postfix takes.
func checkMain(ctx context.Context, src *Source) error {
	args := []string{"-q", "x", "static:y"}
	if src.ConfigDir != "" {
		args = append([]string{"-c", src.ConfigDir}, args...)
	}
	_, err := run(ctx, cmp.Or(src.Postmap, "postmap"), args, func(string) error { return nil })
	if err != nil {
		return fmt.Errorf("main.cf is refused by Postfix: %w", err)
	}
	return nil
}

// readCleanup puts the settings that smtpd's cleanup service goes by in place
// of smtpd's own.
func (c *config) readCleanup(ctx context.Context, src *Source, services []service) error {
	l := service{name: c.smtpd["cleanup_service_name"], typ: "unix"}
	if !slices.Contains(services, service{l.name, l.typ, "cleanup"}) {
		l = service{} // no overrides
	}
	set, err := readSettings(ctx, src, l, new([]string))
	for _, name := range cleanups {
		if v, known := set[name]; known {
			c.smtpd[name] = v
		}
	}
	return err
}

func readServices(ctx context.Context, src *Source) ([]service, error) {
	var all []service
	err := src.postconf(ctx, nil, func(line string) error {
		f := strings.Fields(line)
		if len(f) >= 8 {
			all = append(all, service{f[0], f[1], path.Base(f[7])})
		}
		return nil
	}, "-M")
	return all, err
}

// readSettings evaluates all parameters as the service sees them: with its
// overrides, and with what other parameters make of those.
func readSettings(ctx context.Context, src *Source, s service, warnings *[]string) (settings, error) {
	overrides, err := readOverrides(ctx, src, s)
	if err != nil {
		return nil, err
	}
	set, err := readValues(ctx, src, warnings, append([]string{"-x"}, overrides...)...)
	if err == nil && set["mail_version"] == "" {
		err = errors.New("postconf -x prints no mail_version; is this Postfix 2.10 or later?")
	}
	return set, err
}

// stressLimits are the limits that main.cf's ${stress?...} is for. The
// secondary has its own time limits.
var stressLimits = []string{"smtpd_soft_error_limit", "smtpd_hard_error_limit", "smtpd_junk_command_limit"}

// readStressed evaluates stressLimits as a service under stress sees them:
// master(8) says so before the overrides of master.cf.
func readStressed(ctx context.Context, src *Source, s service) (settings, error) {
	overrides, err := readOverrides(ctx, src, s)
	if err != nil {
		return nil, err
	}
	return readValues(ctx, src, nil, slices.Concat([]string{"-x", "-o", "stress=yes"}, overrides, stressLimits)...)
}

func readOverrides(ctx context.Context, src *Source, s service) (args []string, err error) {
	prefix := s.key() + "/"
	err = src.postconf(ctx, nil, func(line string) error {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			name, value, _ := strings.Cut(rest, " =")
			args = append(args, "-o", name+"="+strings.TrimPrefix(value, " "))
		}
		return nil
	}, "-P")
	return args, err
}

func readValues(ctx context.Context, src *Source, warnings *[]string, args ...string) (settings, error) {
	set := settings{}
	return set, src.postconf(ctx, warnings, func(line string) error {
		name, value, _ := strings.Cut(line, " =")
		set[name] = strings.TrimSpace(value)
		return nil
	}, args...)
}

// said is what postconf printed.
type said struct {
	lines  []string
	stderr string
}

// postconf asks once for what is asked for again.
func (s *Source) postconf(ctx context.Context, warnings *[]string, line func(string) error, args ...string) (err error) {
	if s.ConfigDir != "" {
		args = append([]string{"-c", s.ConfigDir}, args...)
	}
	key := strings.Join(args, "\x00")
	a, known := s.said[key]
	if !known {
		a.stderr, err = run(ctx, cmp.Or(s.Postconf, "postconf"), args, func(l string) error {
			a.lines = append(a.lines, l)
			return nil
		})
		if err == nil {
			s.said[key] = a
		}
	}
	for _, l := range a.lines {
		if err == nil {
			err = line(l)
		}
	}
	if warnings != nil {
		for l := range strings.Lines(a.stderr) {
			if _, said, ok := strings.Cut(l, "postconf: warning: "); ok {
				l = said
			}
			l = strings.TrimSpace(l)
			l, _, _ = strings.Cut(l, "=") // a value may be a secret
			if l != "" && !slices.Contains(*warnings, l) {
				*warnings = append(*warnings, l)
			}
		}
	}
	return err
}

// command is a program to run.
type command struct {
	name       string
	args       []string
	dir, stdin string
}

func run(ctx context.Context, name string, args []string, line func(string) error) (stderr string, err error) {
	return command{name: name, args: args}.run(ctx, line)
}

// run feeds the lines of the command's output to line. The error carries what
// the command said.
func (c command) run(ctx context.Context, line func(string) error) (stderr string, err error) {
	name := c.name
	if p, lookErr := exec.LookPath(name); lookErr == nil {
		name = p
	} else if p = "/usr/sbin/" + name; !strings.Contains(name, "/") && exists(p) {
		name = p
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, c.args...)
	if cmd.Dir = c.dir; c.stdin != "" {
		cmd.Stdin = strings.NewReader(c.stdin)
	}
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	errs := &bounded{max: maxStderr}
	cmd.Stderr = errs
	lineErr, err := program.Read(ctx, cmd, func(out io.Reader) error {
		sc := bufio.NewScanner(out)
		sc.Buffer(nil, maxLine)
		for sc.Scan() {
			if err := line(sc.Text()); err != nil {
				return err
			}
		}
		return sc.Err()
	})
	if err != nil && cmd.Process == nil {
		return "", fmt.Errorf("run %s: %w", path.Base(name), err)
	}
	switch {
	case lineErr != nil:
		return errs.String(), fmt.Errorf("%s: %w", path.Base(name), lineErr)
	case err != nil:
		return errs.String(), &commandError{path.Base(name), complaint(errs.String(), err), err}
	}
	return errs.String(), nil
}

// commandError is a command that failed, with what it said.
type commandError struct {
	name, said string
	err        error
}

func (e *commandError) Error() string { return e.name + ": " + e.said }
func (e *commandError) Unwrap() error { return e.err }

// complaint is the line that says why a command failed.
func complaint(stderr string, err error) string {
	last := ""
	for l := range strings.Lines(stderr) {
		if l = strings.TrimSpace(l); l == "" {
			continue
		}
		if _, why, ok := strings.Cut(l, "fatal: "); ok {
			return why
		}
		last = l
	}
	return cmp.Or(last, err.Error())
}

func exists(name string) bool { _, err := os.Stat(name); return err == nil }

// bounded keeps the first max octets and drops the rest.
type bounded struct {
	bytes.Buffer
	max int
}

func (b *bounded) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), b.max-b.Len())])
	return len(p), nil
}
