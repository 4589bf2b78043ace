package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

const (
	understudy = "understudy"
	postfix    = "postfix"
	sink       = "smtp-sink" // the ceiling
)

// recipients is the length of the recipient list; user0 to user9999.
const recipients = 10_000

// peer is a mail server under load. Its processes are one group.
type peer struct {
	kind    string
	dir     string
	addr    string // SMTP
	primary string // where it relays to: nobody listens there at first
	web     string // metrics, of Understudy
	argv    []string
	cmd     *exec.Cmd
	ended   chan error
}

func (b *bench) newPeer(c cell, kind, dir string) (*peer, error) {
	p := &peer{kind: kind, dir: dir, addr: testmx.FreeAddr(), primary: testmx.FreeAddr(), web: testmx.FreeAddr()}
	var list strings.Builder
	for i := range recipients {
		fmt.Fprintf(&list, "user%d@example.org%s\n", i, map[string]string{postfix: " x"}[kind])
	}
	if err := os.WriteFile(filepath.Join(dir, "recipients"), []byte(list.String()), 0o644); err != nil {
		return nil, err
	}
	switch kind {
	case understudy:
		p.argv = []string{b.binary, "serve", "-c", filepath.Join(dir, "understudy.toml")}
		return p, b.configureUnderstudy(p, c.clients > 0)
	case postfix:
		p.argv = []string{"/usr/lib/postfix/sbin/master", "-c", filepath.Join(dir, "conf"), "-d"}
		return p, configurePostfix(p)
	}
	p.argv = sinkArgs(p.addr, c.ceiling...)
	return p, nil
}

func sinkArgs(addr string, more ...string) []string {
	return append(append([]string{"smtp-sink", "-u", "nobody"}, more...), addr, "1024")
}

func (b *bench) configureUnderstudy(p *peer, xclient bool) error {
	policy := `domains = ["example.org"]
recipients_file = "recipients"
[[dnsbl]]
zone = "bl.example"
`
	config := fmt.Sprintf(`hostname = "mx2.example.org"
state_dir = %q
[smtp]
listen = [%q]
max_connections_per_client = 1000
xclient_from = ["127.0.0.1"]
[policy]
file = "policy.toml"
[dns]
servers = [%q]
[metrics]
listen = %q
[log]
format = "json"
[primary]
address = %q
probe_interval = "200ms"
xclient = %v
`, filepath.Join(p.dir, "state"), p.addr, b.dns, p.web, p.primary, xclient)
	return errors.Join(
		os.WriteFile(filepath.Join(p.dir, "policy.toml"), []byte(policy), 0o644),
		os.WriteFile(filepath.Join(p.dir, "understudy.toml"), []byte(config), 0o644))
}

// mainCF makes Postfix a backup MX. Its limits let 100 sessions in.
const mainCF = `compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = mx2.example.org
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks =
maillog_file = %[1]s/log
maillog_file_prefixes = /
relay_domains = example.org
relay_recipient_maps = hash:%[1]s/recipients
relay_transport = relay:[127.0.0.1]:%[2]s
smtpd_relay_restrictions = reject_unauth_destination
default_process_limit = 150
smtpd_client_connection_count_limit = 0
message_size_limit = 20480000
local_header_rewrite_clients =
relay_destination_concurrency_limit = 20
`

func configurePostfix(p *peer) error {
	_, port, _ := net.SplitHostPort(p.primary)
	for _, d := range []string{"conf", "queue", "data"} {
		if err := os.Mkdir(filepath.Join(p.dir, d), 0o755); err != nil {
			return err
		}
	}
	conf := filepath.Join(p.dir, "conf")
	err := errors.Join(
		os.WriteFile(filepath.Join(conf, "main.cf"), fmt.Appendf(nil, mainCF, p.dir, port), 0o644),
		os.WriteFile(filepath.Join(conf, "master.cf"), fmt.Appendf(nil, testmx.MasterCF, p.addr), 0o644))
	if err != nil {
		return err
	}
	if out, err := exec.Command("postmap", "-c", conf, "hash:"+filepath.Join(p.dir, "recipients")).CombinedOutput(); err != nil {
		return fmt.Errorf("postmap: %w\n%s", err, out)
	}
	return testmx.CheckPostfix(p.dir, conf)
}

// launch runs the server.
func (p *peer) launch() error {
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(p.argv[0], p.argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.ended = make(chan error, 1)
	go func() { p.ended <- p.cmd.Wait() }()
	return nil
}

// start runs the server and returns when it greets.
func (p *peer) start() error {
	if err := p.launch(); err != nil {
		return err
	}
	for range 400 {
		if c, err := dial(p.addr); err == nil {
			_, err = c.reply()
			c.Close()
			if err == nil {
				return nil
			}
		}
		time.Sleep(25 * time.Millisecond)
	}
	p.stop()
	return fmt.Errorf("%s does not answer", p.kind)
}

func (p *peer) group() int { return p.cmd.Process.Pid }

// kill ends the group.
func (p *peer) kill() {
	_ = syscall.Kill(-p.group(), syscall.SIGKILL) // fails when all have ended
	<-p.ended
}

// stop kills the group: nothing in a spool is needed any more.
func (p *peer) stop() {
	p.kill()
	for range 400 { // children that share the socket die a moment later
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			return
		}
		c.Close()
		time.Sleep(10 * time.Millisecond)
	}
}

func (b *bench) startDNS() (func(), error) {
	d, err := demo.StartDNS(
		"bl.example. 3600 IN SOA ns.bl.example. admin.bl.example. 1 3600 3600 3600 3600",
		"1.0.0.127.in-addr.arpa. 3600 IN PTR localhost.",
		"localhost. 3600 IN A 127.0.0.1",
		"sender.example. 3600 IN A 127.0.0.1")
	if err != nil {
		return nil, err
	}
	b.dns = d.Addr()
	return d.Close, nil
}
