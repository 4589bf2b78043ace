package postfix

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/host"
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
	off        bool   // it is in master_service_disable
	instead    bool   // it doesn't listen on port 25, as none does
	others     []other
	services   []service // of master.cf
	smtpd      settings
	stressed   settings // what smtpd reads of stressLimits when all of its processes are busy
	postscreen settings // nil when smtpd itself listens
	warnings   []string
}

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
	c.services = services
	l := listeners[0]
	c.service, c.instead = l.key(), !l.mx() && src.Service == ""
	d, err := readDoor(ctx, src, services, l, &c.warnings)
	if err != nil {
		return nil, err
	}
	slices.Sort(c.warnings) // postconf names unused parameters as its hash table has them
	c.off = l.off || d.behind.off
	for _, o := range listeners[1:] {
		unlike, err := d.unlike(ctx, src, services, o)
		if err != nil {
			return nil, err
		}
		c.others = append(c.others, other{o.key(), unlike})
	}
	c.smtpd, c.postscreen = d.smtpd, d.postscreen
	if c.stressed, err = readStressed(ctx, src, d.behind); err != nil {
		return nil, err
	}
	c.version = c.smtpd["mail_version"]
	return c, nil
}

// checkMain lets Postfix itself read main.cf: postconf prints values that no
// program of Postfix takes.
func checkMain(ctx context.Context, src *Source) error {
	args := []string{"-q", "x", "static:y"}
	if src.ConfigDir != "" {
		args = append([]string{"-c", src.ConfigDir}, args...)
	}
	_, err := src.run(ctx, cmp.Or(src.Postmap, "postmap"), args, func(string) error { return nil })
	if errors.As(err, new(*commandError)) {
		return fmt.Errorf("main.cf is refused by Postfix: %w", err)
	}
	return err
}

// readSettings evaluates all parameters as the service sees them: with its
// overrides, and with what other parameters make of those.
func readSettings(ctx context.Context, src *Source, s service, warnings *[]string) (settings, error) {
	set, err := readValues(ctx, src, warnings, append([]string{"-x"}, s.overrides()...)...)
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
	return readValues(ctx, src, nil, slices.Concat([]string{"-x", "-o", "stress=yes"}, s.overrides(), stressLimits)...)
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
		a.stderr, err = s.run(ctx, cmp.Or(s.Postconf, "postconf"), args, func(l string) error {
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

// run runs a program where Postfix lives.
func (s *Source) run(ctx context.Context, name string, args []string, line func(string) error) (stderr string, err error) {
	return run(ctx, s.Host, host.Program{Argv: append([]string{name}, args...)}, line)
}

// run feeds the lines of a program's output to line. The error carries what the
// program said.
func run(ctx context.Context, h *host.Host, p host.Program, line func(string) error) (stderr string, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	errs := &bounded{max: maxStderr}
	p.Stderr = errs
	name := path.Base(p.Argv[0])
	lineErr, err := h.Run(ctx, p, func(out io.Reader) error {
		sc := bufio.NewScanner(out)
		sc.Buffer(nil, maxLine)
		for sc.Scan() {
			if err := line(sc.Text()); err != nil {
				return err
			}
		}
		return sc.Err()
	})
	var exit *host.ExitError
	switch {
	case errors.Is(err, host.ErrStart):
		return "", fmt.Errorf("run %s: %w", name, err)
	case lineErr != nil:
		return errs.String(), fmt.Errorf("%s: %w", name, lineErr)
	case err != nil && !h.Local() && !errors.As(err, &exit):
		return errs.String(), fmt.Errorf("run %s: %w", name, err)
	case err != nil:
		return errs.String(), &commandError{name, complaint(errs.String(), err), err}
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

// bounded keeps the first max octets and drops the rest.
type bounded struct {
	bytes.Buffer
	max int
}

func (b *bounded) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), b.max-b.Len())])
	return len(p), nil
}
