package main

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/queue"
)

// loadConfig reads a secondary's configuration.
func loadConfig(path string) (*config.Config, error) {
	cfg, err := config.Load(path)
	if err != nil {
		return nil, mistakes{confError(err, path, "make one: understudy config > "+path)}
	}
	return cfg, nil
}

// confError adds to why a configuration can't be read what to do about it.
func confError(err error, path, example string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; name another with -c, or %s", err, example)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %s may not read it%s", err, whoAmI(), ownerOf(path))
	case errors.Is(err, syscall.EISDIR):
		return fmt.Errorf("%w; name the file in it", err)
	}
	return err
}

// policyMistake says where the policy's file is named, when it can't be read. A
// mistake in the file has its own place.
func policyMistake(cfg *config.Config, err error) error {
	var path *fs.PathError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &path):
		return err
	}
	return cfg.Mistake("policy.file", "%v%s; name the policy's file: understudy policy check FILE tries one", err, unreadable(err, path.Path))
}

// certMistake says which of certificate and key can't be used, which the keys
// tls_cert and tls_key of a section name.
func certMistake(cfg *config.Config, section, cert, key string, err error) error {
	for _, f := range []struct{ key, file, want string }{
		{section + ".tls_cert", cert, "CERTIFICATE"},
		{section + ".tls_key", key, "PRIVATE KEY"},
	} {
		text, readErr := os.ReadFile(f.file)
		switch types := pemTypes(text); {
		case readErr != nil:
			return cfg.Mistake(f.key, "%v%s; name a file that this user may read", readErr, unreadable(readErr, f.file))
		case slices.Contains(types, "ENCRYPTED PRIVATE KEY") || strings.Contains(string(text), "Proc-Type: 4,ENCRYPTED"):
			return cfg.Mistake(f.key, "%s is encrypted, and nobody is there to type its passphrase; decrypt it: openssl pkey -in %s -out FILE", f.file, f.file)
		case !slices.ContainsFunc(types, func(t string) bool { return strings.HasSuffix(t, f.want) }):
			return cfg.Mistake(f.key, "%s holds no %s in PEM%s; name the file that does", f.file, strings.ToLower(f.want), holds(types))
		}
	}
	if _, pairErr := tls.LoadX509KeyPair(cert, key); pairErr != nil && strings.Contains(pairErr.Error(), "does not match") {
		return cfg.Mistake(section+".tls_key", "%s is not the key of the certificate in %s; name the two that were issued together", key, cert)
	}
	return cfg.Mistake(section+".tls_cert", "%v; name a certificate with its chain and its key, both in PEM", err)
}

func pemTypes(text []byte) (types []string) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		types = append(types, block.Type)
	}
	return types
}

func holds(types []string) string {
	if len(types) == 0 {
		return ""
	}
	return ", but: " + strings.ToLower(types[0])
}

// unreadable says whose a file is that this user may not read.
func unreadable(err error, path string) string {
	if !errors.Is(err, fs.ErrPermission) {
		return ""
	}
	return " for " + whoAmI() + ownerOf(path)
}

// stateEntries are what Understudy keeps in a state directory.
var stateEntries = []string{"queue", "spool", "sync", "publish", "greylist", "fleet.json", "control.sock"}

// foreignState refuses a state directory whose content is not for this process to
// write: another program's, or another user's, who couldn't read afterwards what
// root writes there.
func foreignState(cfg *config.Config) error {
	entries, err := os.ReadDir(cfg.StateDir)
	if err != nil {
		return nil // to be made; or opening it says what is wrong
	}
	var others []string
	for _, e := range entries {
		if slices.Contains(stateEntries, e.Name()) {
			if uid, known := owner(filepath.Join(cfg.StateDir, e.Name())); known && uid != os.Geteuid() && os.Geteuid() == 0 {
				name := userName(uid)
				return cfg.Mistake("state_dir", "%s belongs to %s, who couldn't open what root writes there; start it as %s, such as by systemctl start",
					filepath.Join(cfg.StateDir, e.Name()), name, name)
			}
			return nil
		}
		if name := e.Name(); name[0] != '.' && name != "lost+found" {
			others = append(others, name)
		}
	}
	if len(others) == 0 {
		return nil
	}
	return cfg.Mistake("state_dir", "%s holds files of another program (%s); name a directory of its own, which may be missing yet",
		cfg.StateDir, strings.Join(others[:min(3, len(others))], ", "))
}

// stateError says what is in the way of the state directory.
func stateError(dir string, err error) error {
	switch {
	case errors.Is(err, queue.ErrLocked):
		return fmt.Errorf("state directory %s is in use by another understudy serve; only one may use it at a time", dir)
	case errors.Is(err, queue.ErrNewerVersion):
		return fmt.Errorf("state directory %s was written by a newer version of Understudy: %w; run that version, or drain the queue with it first", dir, err)
	case errors.Is(err, queue.ErrDamaged):
		return fmt.Errorf("state directory %s: %w; leave it as it is, copy it if you can, then see `understudy queue repair --help`", dir, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("state directory %s can't be written by %s%s: %w", dir, whoAmI(), ownerOf(dir), err)
	}
	return fmt.Errorf("state directory %s: %w", dir, err)
}

func whoAmI() string {
	return userName(os.Getuid())
}

// ownerOf says whose dir is, or the nearest directory above that exists.
func ownerOf(dir string) string {
	for {
		if fi, err := os.Stat(dir); err == nil {
			uid, known := owner(dir)
			if !known {
				return ""
			}
			return fmt.Sprintf(" (%s belongs to %s, mode %#o)", dir, userName(uid), fi.Mode().Perm())
		}
		up := filepath.Dir(dir)
		if up == dir {
			return ""
		}
		dir = up
	}
}

func owner(path string) (uid int, known bool) {
	fi, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(st.Uid), true
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return "uid " + strconv.Itoa(uid)
}
