package exim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/understudy-mx/understudy/internal/program"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/table"
)

// users lists the login names for routers that want a local user.
func (i *importer) users() error {
	const name = "passwd"
	if i.acl.Users != "" {
		return nil
	}
	entries := map[string]string{}
	err := i.logins(func(f []string) { entries[f[0]] = f[2] + " " + f[3] + " " + f[5] })
	if err != nil {
		return err
	}
	t, err := table.NewHash(entries)
	if err != nil {
		return err
	}
	i.spec.Tables[name], i.acl.Users = t, name
	return nil
}

// accountsTable has what ${lookup passwd{NAME}} says of each login name.
const accountsTable = "passwd;"

func (i *importer) accounts() error {
	if i.spec.Tables[accountsTable] != nil {
		return nil
	}
	entries := map[string]string{}
	err := i.logins(func(f []string) { entries[f[0]] = "x:" + strings.Join(f[2:7], ":") }) // no password
	if err != nil {
		return err
	}
	t, err := table.NewHash(entries)
	if err != nil {
		return err
	}
	i.spec.Tables[accountsTable] = t
	i.item("passwd", "login names", fidelity.Exact, "", "")
	return nil
}

// logins calls one for each login name, with the fields of its line.
func (i *importer) logins(one func(fields []string)) error {
	getent := i.src.Getent
	if getent == "" {
		getent = "getent"
	}
	seen := map[string]bool{}
	cmd := exec.CommandContext(i.ctx, getent, "passwd")
	readErr, err := program.Read(i.ctx, cmd, func(r io.Reader) error {
		s := bufio.NewScanner(io.LimitReader(r, most))
		for s.Scan() {
			f := strings.Split(s.Text(), ":")
			if len(f) < 7 || f[0] != strings.ToLower(f[0]) || seen[f[0]] {
				continue
			}
			seen[f[0]] = true
			one(f)
		}
		return s.Err()
	})
	if err = errors.Join(readErr, err); err != nil {
		return fmt.Errorf("list the login names: %w", err)
	}
	i.polled["passwd"] = true
	i.files["/etc/passwd"] = true
	return nil
}
