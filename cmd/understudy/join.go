package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/control"
	policysync "github.com/understudy-mx/understudy/sync"
)

type joinCmd struct {
	Token string `arg:"" help:"The word that understudy invite printed on the primary."`
	confFlag
}

func (joinCmd) Help() string {
	return `Pairs this secondary with the primary that made the invitation: makes a key here, proves the invitation's secret, and remembers the primary's keys. Works before understudy serve was ever started and while it runs. An older pairing is replaced.

The fingerprint that it prints is the one that understudy peers shows on the primary.`
}

func (c *joinCmd) Run(ctx context.Context, out io.Writer) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if cfg.IsPublisher {
		return mistakes{fmt.Errorf("%s: has a section [publish], so this is the primary; run join on the secondary", c.Conf)}
	}
	joined, err := c.join(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Paired with %s as %q. Fingerprint, the same on both sides: %s\n", joined.Address, joined.Name, joined.Fingerprint)
	if len(cfg.Sync.Domains) == 0 {
		fmt.Fprintf(out, "The policy still comes from policy.file: put domains = [\"example.org\"] under [sync] in %s in its place, and restart.\n", c.Conf)
	}
	return nil
}

// join has the daemon pair, if one follows the primary, or does so itself.
func (c *joinCmd) join(ctx context.Context, cfg *config.Config) (*policysync.Joined, error) {
	if len(cfg.Sync.Domains) > 0 && answered(ctx, control.SocketPath(cfg.StateDir)) {
		daemon := daemonOf(cfg)
		defer daemon.Close()
		return daemon.Join(ctx, c.Token)
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, stateError(cfg.StateDir, err)
	}
	joined, err := policysync.Join(ctx, syncDir(cfg), c.Token)
	if errors.Is(err, fs.ErrPermission) {
		return nil, stateError(cfg.StateDir, err)
	}
	if err != nil {
		return nil, err
	}
	return joined, giveTo(cfg.StateDir, syncDir(cfg))
}

// answered says whether a daemon answers at a control socket.
func answered(ctx context.Context, path string) bool {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err == nil {
		c.Close()
	}
	return err == nil || errors.Is(err, fs.ErrPermission) // then the request says it
}

// giveTo hands what root has written below dir to the owner of parent, who is
// the service's user if it ran before. systemd does it itself the first time.
func giveTo(parent, dir string) error {
	fi, err := os.Stat(parent)
	if err != nil {
		return fmt.Errorf("hand what was written to the daemon's user: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || os.Getuid() != 0 || st.Uid == 0 {
		return nil
	}
	return filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(name, int(st.Uid), int(st.Gid))
		}
		return err
	})
}
