package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// mainCF makes Postfix a backup MX with restrictions of the usual kinds; ours is
// imported from it. None needs the DNS: Postfix can't be pointed to the name
// server of the benchmark. Its limits let 100 sessions in.
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
smtpd_helo_required = yes
smtpd_client_restrictions = check_client_access cidr:%[1]s/clients
smtpd_helo_restrictions = reject_invalid_helo_hostname, reject_non_fqdn_helo_hostname, check_helo_access hash:%[1]s/helos
smtpd_sender_restrictions = reject_non_fqdn_sender, check_sender_access hash:%[1]s/senders
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = reject_non_fqdn_recipient, check_recipient_access hash:%[1]s/access, reject_unlisted_recipient%[3]s
header_checks = regexp:%[1]s/headers
default_process_limit = 150
smtpd_client_connection_count_limit = 0
message_size_limit = 20480000
local_header_rewrite_clients =
relay_destination_concurrency_limit = 20
in_flow_delay = 0
`

// tables writes what mainCF names, and returns those that postmap makes.
func writeTables(dir string) (hashed []string, err error) {
	text := map[string]*strings.Builder{}
	add := func(name, format string, args ...any) {
		if text[name] == nil {
			text[name] = new(strings.Builder)
		}
		fmt.Fprintf(text[name], format+"\n", args...)
	}
	for i := range recipients {
		add("recipients", "user%d@example.org x", i)
	}
	for i := range 1000 {
		add("clients", "172.%d.%d.0/24 REJECT", 16+i/250, i%250)
		add("helos", "helo%d.invalid REJECT", i)
		add("senders", "spammer%d@elsewhere.example REJECT", i)
		add("access", "gone%d@example.org 550 5.1.6 Has moved", i)
	}
	for i := range 20 {
		add("headers", "/^Subject:.*(pills|lottery) no %d/ REJECT", i)
	}
	for name, b := range text {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b.String()), 0o644); err != nil {
			return nil, err
		}
	}
	return []string{"recipients", "helos", "senders", "access"}, nil
}

// configurePostfix writes a configuration to DIR/conf. held puts everything on hold.
func configurePostfix(dir, addr, primary string, held bool) error {
	_, port, _ := net.SplitHostPort(primary)
	for _, d := range []string{"conf", "queue", "data"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	hold := map[bool]string{true: ", check_client_access static:HOLD"}[held]
	conf := filepath.Join(dir, "conf")
	if err := os.WriteFile(filepath.Join(conf, "main.cf"), fmt.Appendf(nil, mainCF, dir, port, hold), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(conf, "master.cf"), fmt.Appendf(nil, testmx.MasterCF, addr), 0o644); err != nil {
		return err
	}
	hashed, err := writeTables(dir)
	if err != nil {
		return err
	}
	for _, name := range hashed {
		if out, err := exec.Command("postmap", "-c", conf, "hash:"+filepath.Join(dir, name)).CombinedOutput(); err != nil {
			return fmt.Errorf("postmap: %w\n%s", err, out)
		}
	}
	return testmx.CheckPostfix(dir, conf)
}

// imported is the policy of such a Postfix, as our import makes it, once.
func (b *bench) imported(ctx context.Context, held bool) (file string, err error) {
	dir := filepath.Join(b.dir, fmt.Sprint("policy-held-", held))
	file = filepath.Join(dir, "policy.json")
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	addr := testmx.FreeAddr()
	if err := configurePostfix(dir, addr, testmx.FreeAddr(), held); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, b.binary, "policy", "import", "postfix", "--config-dir", filepath.Join(dir, "conf"),
		"--service", addr, "-o", file).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("import: %w\n%s", err, out)
	}
	return file, nil
}
