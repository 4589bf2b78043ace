package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/understudy-mx/understudy/policy/exim"
	"github.com/understudy-mx/understudy/systemd"
)

// besideExim has the publisher read the Exim that is here.
func (c *setupPrimaryCmd) besideExim(ctx context.Context, s *setup) (keys, name string, err error) {
	program := c.Exim
	if program == "" {
		program = "auto"
	}
	c.exim = &exim.Source{}
	if program != "auto" {
		c.exim.Program = program
	}
	if name, err = c.exim.Option(ctx, "primary_hostname"); err != nil {
		return "", "", fmt.Errorf("ask Exim: %w", err)
	}
	file, err := c.exim.Option(ctx, "configure_file")
	if err != nil {
		return "", "", fmt.Errorf("ask Exim: %w", err)
	}
	group, err := c.exim.Option(ctx, "exim_group")
	if err != nil {
		return "", "", fmt.Errorf("ask Exim: %w", err)
	}
	groups := []string{group, groupOf(file), "adm", "systemd-journal"}
	groups = slices.DeleteFunc(groups, func(g string) bool {
		_, err := user.LookupGroup(g)
		return err != nil || g == "root"
	})
	slices.Sort(groups)
	fmt.Fprintf(s.out, "The primary is an Exim, with the configuration %s.\n", file)
	text := strings.Replace(systemd.Exim, "Debian-exim adm systemd-journal", strings.Join(slices.Compact(groups), " "), 1)
	return fmt.Sprintf("exim = %q\n", program), name, s.dropIn(ctx, "exim.conf", text)
}

// groupOf names a file's group, "" if it has no name.
func groupOf(file string) string {
	st, err := os.Stat(file)
	if err != nil {
		return ""
	}
	g, err := user.LookupGroupId(strconv.FormatUint(uint64(st.Sys().(*syscall.Stat_t).Gid), 10))
	if err != nil {
		return ""
	}
	return g.Name
}

// trustByProxy has Exim take the real client from the PROXY header of the secondary.
func (c *setupPrimaryCmd) trustByProxy(ctx context.Context, s *setup, from []netip.Addr) error {
	list, err := c.exim.Option(ctx, "hosts_proxy")
	if err != nil {
		return mistakes{fmt.Errorf("this Exim was built without support for the PROXY protocol: %w; Debian's exim4-daemon-light and -heavy have it; without, see docs/primaries/exim.md", err)}
	}
	file, err := c.exim.Option(ctx, "configure_file")
	if err != nil {
		return err
	}
	var missing []string
	for _, a := range from {
		if in, _ := exim.InHosts(list, a); !in {
			missing = append(missing, a.String())
		}
	}
	if len(missing) == 0 {
		fmt.Fprintf(s.out, "Exim expects a PROXY header from %s already.\n", c.Secondary)
		return nil
	}
	fmt.Fprintf(s.out, "Exim is to take the real client from a PROXY header of %s; without one it then takes nothing from there:\n\n", c.Secondary)
	line, place := "hosts_proxy = "+proxied(list, missing...)+"\n", mainPart(file)
	_, err = os.Stat(place)
	if list != "" || file != generated || err == nil {
		fmt.Fprintf(s.out, "    %s\nPut this into %s; then %s. Run this again after it.\n", line, place, reloadExim(file))
		return errors.New("stopped: Exim doesn't expect a PROXY header from " + strings.Join(missing, ", ") + " yet")
	}
	if err := s.file(place, line); err != nil {
		return err
	}
	return s.run(ctx, []string{"update-exim4.conf"}, []string{"systemctl", "reload", "exim4"})
}
