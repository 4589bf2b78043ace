package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
)

type serveCmd struct{ confFlag }

func (serveCmd) Help() string {
	return `Answers SMTP as the policy says, keeps what it accepts in state_dir, and relays it to the primary as soon as that answers.

The policy comes from a file, or from the primary's publisher after ` + "`understudy join`" + `. The policy file and the certificate are read again when they change and on SIGHUP; a bad one is refused with a log line and the last good one stays. SIGTERM stops in good order.

Under systemd it takes the sockets of understudy.socket, reports when it is ready and feeds the watchdog.

Examples:

    understudy serve -c understudy.toml
    systemctl enable --now understudy.socket understudy.service`
}

func (c *serveCmd) Run(ctx context.Context) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if cfg.IsPublisher {
		return mistakes{fmt.Errorf("%s: has a section [publish], so it is the primary's; start `understudy publish` with it", c.Conf)}
	}
	boundGarbage()
	lines := &gatherer{w: os.Stderr}
	defer lines.flush()
	d, err := newDaemon(cfg, newLogger(cfg.Log, lines))
	if err != nil {
		return err
	}
	err = d.run(ctx)
	// systemd starts it again, and holds the sockets meanwhile.
	if errors.Is(err, errDatabaseBack) && os.Getenv("NOTIFY_SOCKET") == "" {
		lines.flush()
		return startAgain()
	}
	return err
}

// startAgain replaces this process by a new one of the same program.
func startAgain() error {
	program, err := os.Executable()
	if err == nil {
		err = syscall.Exec(program, os.Args, os.Environ())
	}
	return fmt.Errorf("start again: %w", err)
}
