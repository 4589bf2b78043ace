package lister

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/understudy-mx/understudy/internal/program"
)

// listCommand runs a command: each line of its output is a key and, after a
// tab, a value. Anything but exit 0 fails the listing, whatever was printed.
func (s *Source) listCommand(ctx context.Context, row func(key, value string) error) error {
	argv := s.Command
	if len(argv) == 0 || argv[0] == "" {
		return s.fail("command", "name a program that prints addresses", errors.New("is missing"))
	}
	if s.Shell {
		argv = append([]string{"/bin/sh", "-c", argv[0], "sh"}, argv[1:]...)
	}
	return s.bounded(ctx, func(ctx context.Context, m *meter) error {
		return s.run(ctx, m, "command", argv, func(line string) error {
			key, value, _ := strings.Cut(line, "\t")
			return rowUnlessEmpty(m, row, key, value)
		})
	})
}

// listMap has postmap list an indexed map. A key with a capital letter is one
// that Postfix, which folds what it looks up, never finds.
func (s *Source) listMap(ctx context.Context, row func(key, value string) error) error {
	typ, _, ok := strings.Cut(s.Path, ":")
	if !ok || typ == "" || strings.HasPrefix(s.Path, "-") {
		return s.fail("path", "write type:name, such as hash:/etc/postfix/virtual", fmt.Errorf("%q is no map", s.Path))
	}
	name := cmp.Or(s.Postmap, "postmap")
	if _, err := exec.LookPath(name); err != nil && s.Postmap == "" {
		name = "/usr/sbin/postmap"
	}
	return s.bounded(ctx, func(ctx context.Context, m *meter) error {
		return s.run(ctx, m, "path", []string{name, "-s", s.Path}, func(line string) error {
			key, value, _ := strings.Cut(line, "\t")
			if key != strings.ToLower(key) {
				return nil
			}
			return rowUnlessEmpty(m, row, key, value)
		})
	})
}

func rowUnlessEmpty(m *meter, row func(key, value string) error, key, value string) error {
	if strings.TrimSpace(key) == "" {
		return nil
	}
	if err := m.row(); err != nil {
		return err
	}
	return theirs(one(row, key, value))
}

// run feeds the lines that a program prints to line. When run returns, the
// program has ended, and what it left behind.
func (s *Source) run(ctx context.Context, m *meter, setting string, argv []string, line func(string) error) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	said := &beginning{}
	cmd.Stderr = said
	lineErr, err := program.Read(ctx, cmd, func(out io.Reader) error { return readLines(metered{out, m}, line) })
	if err != nil && cmd.Process == nil {
		return s.fail(setting, "name a program that this user may run", err)
	}
	switch {
	case errors.Is(lineErr, errLine):
		return s.fail(setting, "print one address a line", lineErr)
	case lineErr != nil:
		return lineErr
	case errors.Is(err, program.ErrLeft):
		return s.fail(setting, "let it wait for what it starts, or redirect the output of that", err)
	case err != nil && said.String() != "":
		return s.fail(setting, "run it by hand as this user and correct it", fmt.Errorf("%w: %s", err, said))
	case err != nil:
		return s.fail(setting, "run it by hand as this user and correct it", err)
	}
	return nil
}

// beginning keeps the beginning of a program's error output.
type beginning struct{ bytes.Buffer }

func (b *beginning) Write(p []byte) (int, error) {
	const maxSaid = 256
	b.Buffer.Write(p[:min(len(p), maxSaid-b.Len())])
	return len(p), nil
}
