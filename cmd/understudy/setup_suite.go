package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/publisher"
	"github.com/understudy-mx/understudy/internal/suite"
)

// dropIn lets the publisher run docker.
const dropIn = "/etc/systemd/system/understudy-publish.service.d/docker.conf"

const dropInText = `# Understudy reads a Postfix in a container. The group docker may do all that root may.
[Service]
SupplementaryGroups=docker
`

// primary finds out where Postfix lives, and returns the keys of [policy] that say so.
func (c *setupPrimaryCmd) primary(ctx context.Context, s *setup) (keys string, err error) {
	p := config.Policy{Postfix: c.Postfix}
	found, err := c.suite(ctx, s)
	if err != nil {
		return "", err
	}
	if found != nil {
		p.Suite = found.Name
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
	if c.Postfix == "" && p.Suite == "" {
		if isExim(ctx, "127.0.0.1:25") {
			return "", mistakes{fmt.Errorf("an Exim answers at port 25, and this sets up Postfix only: write [publish] address and [policy] exim = \"auto\" into %s, see understudy publish --check, and have Exim let the secondary in (docs/PARITY-EXIM.md); or name Postfix's directory by --postfix", c.Conf)}
		}
		dir, err := hostCommand(ctx, c.host, "postconf", "-h", "config_directory")
		if err != nil {
			return "", fmt.Errorf("find Postfix: %w; name its directory by --postfix, or the suite that it belongs to by --suite", err)
		}
		p.Postfix = strings.TrimSpace(dir)
	}
	if found == nil || c.Postfix != "" {
		keys += fmt.Sprintf("postfix = %q\n", p.Postfix)
	}
	c.Postfix = p.Postfix
	if len(p.PostfixPrefix) > 0 && p.PostfixPrefix[0] == "docker" {
		fmt.Fprintln(s.out, "The publisher's user has to run docker, whose group may do all that root may.")
		if err := s.file(dropIn, dropInText); err != nil {
			return "", err
		}
		if _, err := exec.LookPath("systemctl"); err == nil {
			return keys, s.run(ctx, []string{"systemctl", "daemon-reload"})
		}
	}
	return keys, nil
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
			return nil, mistakes{fmt.Errorf("no suite is called %q; choose one of %s", c.Suite, strings.Join(suite.Names(), ", "))}
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
