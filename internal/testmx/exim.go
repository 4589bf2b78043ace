package testmx

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// EximRoot is where test/install-peers unpacks Debian's Exim. Its package isn't
// installed: it would take Postfix's place.
const EximRoot = "/usr/local/lib/understudy-exim"

// Exim is an Exim with an /etc of its own, in a directory of a test's.
type Exim struct {
	Dir     string
	Config  string // its configuration file
	Program string // a script that runs it
	Getent  string // a script that lists its login names
}

// eximEtc are the files of its /etc.
var eximEtc = map[string]string{
	"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	"hosts":         "127.0.0.1 localhost\n::1 localhost\n",
	"services":      "smtp 25/tcp\n",
	"group":         "root:x:0:\nmail:x:8:\nDebian-exim:x:990:\n",
	"passwd": "root:x:0:0:root:/root:/bin/sh\nuucp:x:10:10:uucp:/var/spool/uucp:/usr/sbin/nologin\nmail:x:8:8:mail:/var/mail:/usr/sbin/nologin\n" +
		"Debian-exim:x:990:990::/var/spool/exim4:/usr/sbin/nologin\nalice:x:1001:1001::/home/alice:/bin/sh\n" +
		"bob:x:1002:1002::/home/bob:/bin/sh\ncarol.x:x:1003:1003::/home/carol:/bin/sh\n",
}

// NewExim makes one ready in dir, whose DNS is nameserver's. It needs root.
func NewExim(dir, nameserver string) (*Exim, error) {
	x := &Exim{Dir: dir, Config: filepath.Join(dir, "exim.conf"), Program: filepath.Join(dir, "exim"), Getent: filepath.Join(dir, "getent")}
	if _, err := os.Stat(filepath.Join(EximRoot, "usr/sbin/exim4")); err != nil {
		return nil, fmt.Errorf("%w: run test/install-peers", err)
	}
	for _, d := range []string{"etc", "spool", "log"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{"spool", "log"} {
		if err := os.Chown(filepath.Join(dir, d), 990, 990); err != nil {
			return nil, err
		}
	}
	host := nameserver[:strings.LastIndexByte(nameserver, ':')]
	files := map[string]string{
		"etc/resolv.conf": "nameserver " + host + "\noptions timeout:30 attempts:1\n",
		"exim":            fmt.Sprintf("#!/bin/sh\nexec unshare --mount sh -ec 'mount --bind %s/etc /etc; exec %s/usr/sbin/exim4 \"$@\"' exim \"$@\"\n", dir, EximRoot),
		"getent":          fmt.Sprintf("#!/bin/sh\nexec cat %s/etc/passwd\n", dir),
	}
	for name, text := range eximEtc {
		files["etc/"+name] = text
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			return nil, err
		}
	}
	return x, nil
}

// eximOnly is what a test changes of a configuration: where Exim keeps its things,
// who may state a client, no counting, no delivery.
const eximOnly = `hosts_proxy = 127.0.0.1
spool_directory = %[1]s/spool
log_file_path = %[1]s/log/%%slog
queue_only = true
local_interfaces =
smtp_accept_max = 10000
smtp_accept_max_per_host = 10000
smtp_accept_queue_per_connection = 0
smtp_max_synprot_errors = 10000
smtp_max_unknown_commands = 10000
smtp_accept_max_nonmail = 10000
smtp_accept_max_per_connection = 0
smtp_enforce_sync = false
check_spool_space = 0
check_spool_inodes = 0
rfc1413_query_timeout = 0s
dns_retry = 1
dns_retrans = 30s
keep_environment =
`

// Start runs the daemon at addr with a copy of the configuration.
func (x *Exim) Start(addr string, out *os.File) (*Daemon, error) {
	b, err := os.ReadFile(x.Config)
	if err != nil {
		return nil, err
	}
	only := fmt.Sprintf(eximOnly, x.Dir)
	var kept []string
	inMain := true
	for line := range strings.SplitSeq(string(b), "\n") {
		if strings.HasPrefix(line, "begin ") {
			inMain = false
		}
		name, _, _ := strings.Cut(line, "=")
		if name = strings.TrimSpace(name); inMain && name != "" && strings.Contains("\n"+only, "\n"+name+" =") {
			continue
		}
		kept = append(kept, line)
	}
	run := x.Config + ".run"
	text := strings.ReplaceAll(only+strings.Join(kept, "\n"), "$interface_port", "25") // mail comes to port 25; this one doesn't
	if err := os.WriteFile(run, []byte(text), 0o644); err != nil {
		return nil, err
	}
	if out, err := exec.Command(x.Program, "-C", run, "-bV").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("exim -bV: %w\n%.2000s", err, out)
	}
	host, port := addr[:strings.LastIndexByte(addr, ':')], addr[strings.LastIndexByte(addr, ':')+1:]
	return StartDaemon(addr, out, x.Program, "-C", run, "-bdf", "-oX", host+"."+port, "-oP", filepath.Join(x.Dir, "pid"))
}
