package publisher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/internal/program"
	"github.com/understudy-mx/understudy/policy/postfix/maillog"
)

// usualLogs are where syslog keeps Postfix's lines: Debian, Red Hat, docker-mailserver.
var usualLogs = []string{"/var/log/mail.log", "/var/log/maillog", "/var/log/mail/mail.log"}

// journal is the log's name where journalctl has it.
const journal = "journal"

// logPlace is where the primary's log is: a file here, or a command that prints what is
// new.
type logPlace struct {
	name string // for the operator
	file string
	argv []string // nil for a file
	ends bool     // argv ends what it has begun when its input does
}

// where is the log: as configured, or where Postfix says that it is, or else where
// syslog usually keeps it, or else the journal; where Postfix lives in a container, there.
func (s *Shadow) where(ctx context.Context) (logPlace, error) {
	h, at := HostOf(&s.p.cfg.Policy), s.p.cfg.Publish.Log
	said := ""
	if r := s.p.last.Load(); at == "auto" && r != nil && r.Report != nil {
		said = r.Report.LogFile
	}
	stdout := strings.HasPrefix(said, "/dev/")
	switch {
	case at == journal:
		return journalPlace(), nil
	case at != "auto":
		return logPlace{name: at, file: at}, nil
	case stdout && len(h.Prefix) > 0:
		return containersOwn(h.Prefix)
	case stdout:
		return logPlace{name: said}, errors.New("maillog_file of Postfix is no file; name the one that has it by log under [publish]")
	case said != "" && h.Local():
		return logPlace{name: said, file: said}, nil
	}
	usual := usualLogs
	if said != "" {
		usual = []string{said}
	}
	stamps, err := h.Stamps(ctx, usual)
	if err != nil {
		return logPlace{name: h.String()}, err
	}
	i := slices.IndexFunc(usual, func(name string) bool { return stamps[name] != "" })
	switch {
	case i < 0 && h.Local():
		return journalPlace(), nil
	case i < 0 && len(h.Prefix) > 0:
		return containersOwn(h.Prefix)
	case i < 0:
		return logPlace{name: h.String()}, fmt.Errorf("there is no log of Postfix's below it: %s; name one by log under [publish]", strings.Join(usual, ", "))
	case len(h.Prefix) > 0:
		return tailThere(h, usual[i]), nil
	}
	file, err := h.Path(usual[i])
	return logPlace{name: file, file: file}, err
}

func journalPlace() logPlace {
	return logPlace{name: journal, argv: []string{"journalctl", "--no-pager", "-o", "json", "-f", "-n", "0", "SYSLOG_FACILITY=2"}}
}

// tailThere follows a file behind a command. Its tail(1) isn't a child of ours, so it
// ends when our end of its input is closed, by our own death, too.
func tailThere(h *host.Host, file string) logPlace {
	const script = `tail -n 0 -F "$1" & t=$!; cat >/dev/null; kill $t`
	return logPlace{name: h.String() + " tail " + file, argv: append(slices.Clone(h.Prefix), "sh", "-c", script, "sh", file), ends: true}
}

// containersOwn is the log that a container's engine keeps of its output.
func containersOwn(prefix []string) (logPlace, error) {
	i := slices.Index(prefix, "exec")
	engine := func(word string) bool {
		return slices.Contains([]string{"docker", "podman", "nerdctl", "docker-compose", "podman-compose"}, filepath.Base(word))
	}
	if i < 1 || !slices.ContainsFunc(prefix[:i], engine) || strings.HasPrefix(prefix[len(prefix)-1], "-") {
		return logPlace{name: strings.Join(prefix, " ")}, errors.New("there is no log file there, and how that machine keeps its output isn't known; name a file that has it here by log under [publish]")
	}
	argv := append(slices.Clone(prefix[:i]), "logs", "--follow", "--tail", "0")
	if slices.ContainsFunc(prefix[:i], func(word string) bool { return strings.HasSuffix(word, "compose") }) {
		argv = append(argv, "--no-log-prefix")
	}
	argv = append(argv, prefix[len(prefix)-1])
	return logPlace{name: strings.Join(argv, " "), argv: append([]string{"sh", "-c", `exec "$@" 2>&1`, "sh"}, argv...)}, nil
}

// maxEntry bounds an entry of the journal, which spells octets as numbers.
const maxEntry = 8 * maillog.MaxLine

// follow calls emit for each line that the place's command prints, until ctx ends or the
// command does.
func (p logPlace) follow(ctx context.Context, emit func(line []byte)) error {
	cmd := exec.CommandContext(ctx, p.argv[0], p.argv[1:]...)
	said := &head{max: 1024}
	cmd.Stderr = said
	if p.ends {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer r.Close()
		defer w.Close()
		cmd.Stdin = r
	}
	readErr, err := program.Read(ctx, cmd, func(r io.Reader) error {
		t := &lines{max: maxEntry}
		b := make([]byte, 64<<10)
		for {
			n, err := r.Read(b)
			t.take(b[:n], emit)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	if ctx.Err() != nil {
		return nil
	}
	if err = errors.Join(readErr, err); err == nil {
		err = errors.New("it has ended")
	}
	return fmt.Errorf("%w: %s", err, bytes.TrimSpace(said.b))
}

// head keeps the beginning of what is written to it.
type head struct {
	max int
	b   []byte
}

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), h.max-len(h.b))]...)
	return len(p), nil
}
