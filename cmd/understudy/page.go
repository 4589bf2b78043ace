package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/understudy-mx/understudy/internal/page"
)

// openPage opens the operator's page, if it is to be.
func (d *daemon) openPage() error {
	c := d.cfg.Web
	if c.Listen == "" {
		return nil
	}
	token, err := page.Token(d.cfg.WebTokenFile())
	if err != nil {
		return mistakes{d.cfg.Mistake("web.token_file", "%v", err)}
	}
	if d.pageAt, err = page.Listen(c.Listen); err != nil {
		return fmt.Errorf("page: %w", err)
	}
	d.page = page.New(page.Options{Hostname: d.cfg.Hostname, Version: versionLine(), Desk: daemonOf(d.cfg),
		History: filepath.Join(d.cfg.StateDir, "page.json"), Metrics: d.registry, Fleet: d.fleet != nil,
		Token: token, Header: c.TrustedHeader, Hosts: c.Hosts, Addresses: c.ShowAddresses, ShowMail: c.ShowMail, Log: d.log})
	return nil
}

type pageCmd struct{ confFlag }

func (pageCmd) Help() string {
	return `Prints the address of the operator's page, with its token, for a browser on this machine. The page shows the state of the primary, the queue and its drain, and held mail. Keep the address secret: it allows to release and to remove held mail.

On another machine, forward the port with ssh and open the same address there; forward a Unix socket to port 9627.

Examples:

    understudy page
    ssh -N -L 9627:127.0.0.1:9627 mx2.example.org
    ssh -N -L 9627:/run/understudy/web.sock mx2.example.org`
}

func (c *pageCmd) Run(out io.Writer) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	if cfg.Web.Listen == "" {
		return mistakes{cfg.Mistake("web.listen", `the page is off; add listen = "127.0.0.1:9627" under [web] and restart understudy serve`)}
	}
	file := cfg.WebTokenFile()
	token, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s isn't there yet: restart `understudy serve`, which makes it", file)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("not allowed to read %s: run this as root or as the daemon's user", file)
	case err != nil:
		return err
	}
	_, port, err := net.SplitHostPort(cfg.Web.Listen)
	if err != nil || strings.HasPrefix(cfg.Web.Listen, "unix:") {
		port = "9627"
	}
	_, err = fmt.Fprintln(out, (&url.URL{Scheme: "http", Host: net.JoinHostPort("localhost", port), Path: "/", Fragment: strings.TrimSpace(string(token))}).String())
	return err
}
