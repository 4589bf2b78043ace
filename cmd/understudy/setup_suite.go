package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/publisher"
	"github.com/understudy-mx/understudy/internal/suite"
	"github.com/understudy-mx/understudy/systemd"
)

// dropIns is where systemd looks for those of the publisher's unit.
const dropIns = "/etc/systemd/system/understudy-publish.service.d"

// primary finds out which mail server is here, and returns the keys of [policy] that say
// so, and the server's name.
func (c *setupPrimaryCmd) primary(ctx context.Context, s *setup) (keys, name string, err error) {
	if c.Exim != "" && (c.Postfix != "" || c.Suite != "") {
		return "", "", mistakes{errors.New("--exim stands for an Exim, --postfix and --suite for a Postfix: give one of them")}
	}
	var found *suite.Found
	if c.Exim == "" {
		if found, err = c.suite(ctx, s); err != nil {
			return "", "", err
		}
	}
	if c.Exim != "" || c.Postfix == "" && found == nil && isExim(ctx, "127.0.0.1:25") {
		return c.besideExim(ctx, s)
	}
	if keys, err = c.besidePostfix(ctx, s, found); err != nil {
		return "", "", err
	}
	name, err = hostCommand(ctx, c.host, "postconf", "-c", c.Postfix, "-xh", "myhostname")
	return keys, strings.TrimSpace(name), err
}

func (c *setupPrimaryCmd) besidePostfix(ctx context.Context, s *setup, found *suite.Found) (keys string, err error) {
	p := config.Policy{Postfix: c.Postfix}
	if found != nil {
		for _, note := range found.Notes {
			fmt.Fprintf(s.out, "- %s\n", note)
		}
		p.Suite, c.main = found.Name, found.Main
		keys = fmt.Sprintf("suite = %q\n", found.Name)
		if found.Renamed {
			p.PostfixPrefix, p.PostfixList = found.Prefix, found.List
			keys += fmt.Sprintf("postfix_prefix = [%s]\n", quotedList(found.Prefix))
			if len(found.List) > 0 {
				keys += fmt.Sprintf("postfix_list = [%s]\n", quotedList(found.List))
			}
		}
		if err := p.FillPreset(); err != nil {
			return "", mistakes{err}
		}
	}
	c.host = publisher.HostOf(&p)
	if p.Postfix == "" {
		dir, err := hostCommand(ctx, c.host, "postconf", "-h", "config_directory")
		if err != nil {
			return "", fmt.Errorf("find Postfix: %w; name its directory by --postfix, the suite that it belongs to by --suite, or an Exim by --exim", err)
		}
		p.Postfix = strings.TrimSpace(dir)
	}
	if found == nil || c.Postfix != "" {
		keys += fmt.Sprintf("postfix = %q\n", p.Postfix)
	}
	c.Postfix = p.Postfix
	switch engine := append(p.PostfixPrefix, "")[0]; engine {
	case "docker":
		fmt.Fprintln(s.out, "The publisher's user has to run docker, whose group may do all that root may.")
		return keys, s.dropIn(ctx, "docker.conf", systemd.Docker)
	case "podman":
		return "", mistakes{errors.New("the publisher's user can't look into podman's containers, which are root's or another user's: let that user's cron run understudy policy import postfix, and publish the file (docs/primaries/container.md)")}
	}
	return keys, nil
}

// dropIn adds to the publisher's unit.
func (s *setup) dropIn(ctx context.Context, name, text string) error {
	if err := s.file(filepath.Join(dropIns, name), text); err != nil {
		return err
	}
	if _, err := exec.LookPath("systemctl"); err != nil {
		return nil
	}
	return s.run(ctx, []string{"systemctl", "daemon-reload"})
}

// suite is the one that is named, or that is found here.
func (c *setupPrimaryCmd) suite(ctx context.Context, s *setup) (*suite.Found, error) {
	found := suite.Detect(ctx)
	switch {
	case c.Suite == "none":
		return nil, nil
	case c.Suite != "":
		if at := slices.IndexFunc(found, func(f suite.Found) bool { return f.Name == c.Suite }); at >= 0 {
			return &found[at], nil
		}
		preset := suite.Find(c.Suite)
		if preset == nil {
			return nil, mistakes{(&config.Policy{Suite: c.Suite}).FillPreset()}
		}
		return &suite.Found{Suite: preset.Renamed(nil)}, nil
	case len(found) == 0 || c.Postfix != "":
		return nil, nil
	case len(found) > 1:
		var all []string
		for _, f := range found {
			all = append(all, f.Name+" ("+f.Why+")")
		}
		return nil, mistakes{fmt.Errorf("several suites are here: %s; choose one by --suite, or --suite none", strings.Join(all, ", "))}
	}
	fmt.Fprintf(s.out, "This is %s: %s.\n", found[0].Title, found[0].Why)
	return &found[0], nil
}

func quotedList(words []string) string {
	var all []string
	for _, w := range words {
		all = append(all, strconv.Quote(w))
	}
	return strings.Join(all, ", ")
}

// isExim says that an Exim greets at an address.
func isExim(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	banner, err := bufio.NewReader(io.LimitReader(c, 512)).ReadString('\n')
	return err == nil && strings.HasPrefix(banner, "220") && strings.Contains(banner, " Exim ")
}
