package config

import (
	"os"

	"github.com/understudy-mx/understudy/internal/suite"
)

// setting is one key: the only place that knows its name, type, default and
// meaning.
type setting struct {
	section string // "" is the top level; "route" also takes all of "primary"
	name    string
	kind    *kind
	def     string            // as written in the file; "" is none
	compute func() string     // the default where it depends on the machine; def then describes it
	doc     string            // sentences, shown in the man page and by `understudy config`
	field   func(*Config) any // pointer to where the value goes
}

// sections lists the tables in the order in which they are shown.
func sections() []string {
	return []string{"smtp", "primary", "route", "filter", "policy", "sync", "queue", "relay", "dns", "publish", "source", "push", "metrics", "web", "notify", "log"}
}

// repeated are the sections that may be repeated.
var repeated = []string{"route", "filter", "source"}

// sectionDoc introduces a section in the man page.
var sectionDoc = map[string]string{
	"smtp":    "The SMTP server for other mail servers.",
	"primary": "The mail server that Understudy stands in for: where accepted mail goes.",
	"route":   "May be repeated. Sends some domains to a server of their own; all others go to [primary]. A route has the keys below and all keys of [primary], with their own defaults: nothing is inherited.",
	"filter":  "For a secondary. May be repeated. A mail filter that is asked in place of one of the primary's milters, by the milter protocol, in its order and with its time limits, macros and default action. No change that it wants is made to the message: see docs/FILTERS.md.",
	"policy":  "The recipients to accept mail for, and what to refuse. A secondary gets its policy from a file or from its primary, see [sync]; a publisher from a file or from its Postfix.",
	"sync":    "For a secondary that follows its primary's publisher: run `understudy invite` there, and `understudy join` here.",
	"publish": "For the primary only: this section makes the file one for `understudy publish`. Such a file may also have [policy], [[source]], [push], [dns] (the servers that this machine's Postfix asks), [metrics] and [log]; state_dir then holds the keys and the paired secondaries.",
	"source":  "For the primary only. May be repeated. Adds recipients from elsewhere to those of [policy]; only those in its domains count.",
	"queue":   "The queue of accepted mail.",
	"relay":   "What is done to mail on its way to the servers.",
	"dns":     "The resolver for blocklists and host names. Use one of your own, close by: most blocklists refuse public ones.",
	"push":    "Lists of recipients that are pushed here, with HTTPS, from a primary that can't be read: see docs/PUSH.md. The policy file names them by recipients_pushed. Works on a secondary and for a publisher.",
	"metrics": "Prometheus metrics and the pages /healthz and /readyz.",
	"web":     "The operator's page: the state of the primary, the queue and its drain, and held mail. It has no TLS of its own: use ssh -L, or a web server with TLS in front.",
	"notify":  "Tells the operator that an outage of the primary has begun, and that it is over. Nothing waits for it, and what fails is tried again for a day.",
	"log":     "The log, on standard error.",
}

var settings = []setting{
	{"", "hostname", hostname, "the machine's host name", machineName,
		"This machine's name in the banner, in EHLO and in Received fields: a fully qualified name in the DNS, such as mx2.example.org.",
		func(c *Config) any { return &c.Hostname }},
	{"", "state_dir", file, `$STATE_DIRECTORY, else "/var/lib/understudy"`, stateDir,
		"Directory of the queue and of the control socket. Needs a file system whose fsync is reliable; only one Understudy may use it at a time.",
		func(c *Config) any { return &c.StateDir }},

	{"smtp", "listen", listenList, `[":25"]`, nil,
		"Addresses to listen on. Sockets passed by systemd (understudy.socket) replace this list.",
		func(c *Config) any { return &c.SMTP.Listen }},
	{"smtp", "tls_cert", file, "", nil,
		"PEM file with the certificate chain for STARTTLS. Without it STARTTLS is not offered. The file is read again when it changes and on SIGHUP; a broken pair is refused and the old one stays.",
		func(c *Config) any { return &c.SMTP.TLSCert }},
	{"smtp", "tls_key", file, "", nil,
		`PEM file with the key of tls_cert. "$CREDENTIALS_DIRECTORY/NAME" names a file that systemd's LoadCredential= passes.`,
		func(c *Config) any { return &c.SMTP.TLSKey }},
	{"smtp", "xclient_from", prefixes, "[]", nil,
		"Networks whose clients may name another client by XCLIENT, as in Postfix's smtpd_authorized_xclient_hosts. They can pass every check on clients: list only proxies and test machines of your own.",
		func(c *Config) any { return &c.SMTP.XClientFrom }},
	{"smtp", "proxy_from", prefixes, "[]", nil,
		"Networks whose connections must begin with a PROXY protocol header (version 1 or 2) that names the client. List only load balancers of your own.",
		func(c *Config) any { return &c.SMTP.ProxyFrom }},
	{"smtp", "max_connections", count(1, 1_000_000), "1000", nil,
		"Connections open at a time; one more is answered 421.",
		func(c *Config) any { return &c.SMTP.MaxConnections }},
	{"smtp", "max_connections_per_client", count(1, 1_000_000), "50", nil,
		"Connections that one IPv4 address, or one IPv6 /64, may hold open at a time.",
		func(c *Config) any { return &c.SMTP.MaxConnectionsPerClient }},
	{"smtp", "max_connections_per_network", count(1, 1_000_000), "200", nil,
		"Connections that the clients of one IPv4 /24, or one IPv6 /48, may hold open at a time.",
		func(c *Config) any { return &c.SMTP.MaxConnectionsPerNetwork }},
	{"smtp", "greet_wait", duration("0s", "1m"), `"0s"`, nil,
		"How long to listen before the greeting; 0s greets at once. Mail servers wait for it, many robots don't. A client whose mail was accepted since the start is greeted at once. A policy's own postscreen settings take precedence. Postfix's postscreen_greet_wait is 6s.",
		func(c *Config) any { return &c.SMTP.GreetWait }},
	{"smtp", "greet_action", choice("ignore", "enforce", "drop"), `"ignore"`, nil,
		"What to do with a client that speaks before the greeting: only count it, refuse each of its recipients with 550 5.5.1, or answer 521 5.5.1 and hang up. Like Postfix's postscreen_greet_action.",
		func(c *Config) any { return &c.SMTP.GreetAction }},
	{"smtp", "command_timeout", duration("1s", "1h"), `"5m"`, nil,
		"How long to wait for a client's next command (RFC 5321 section 4.5.3.2.7 asks for five minutes).",
		func(c *Config) any { return &c.SMTP.CommandTimeout }},
	{"smtp", "data_timeout", duration("1s", "1h"), `"3m"`, nil,
		"How long to wait for the next piece of a message (RFC 5321 section 4.5.3.2.5 asks for three minutes).",
		func(c *Config) any { return &c.SMTP.DataTimeout }},
	{"smtp", "shutdown_timeout", duration("1s", "10m"), `"30s"`, nil,
		"How long a message that is being received at shutdown may take to finish.",
		func(c *Config) any { return &c.SMTP.ShutdownTimeout }},
	{"smtp", "bare_newline", choice("policy", "reject", "normalize"), `"policy"`, nil,
		"What to do with a message in which a line ends in LF alone: refuse it, turn each such end into CRLF, or follow the policy, which refuses it unless it was read from a Postfix that accepts it. In no case does such a line end a message, so that no second message can be smuggled in.",
		func(c *Config) any { return &c.SMTP.BareNewline }},

	{"primary", "address", hostport, "", nil,
		`The server as host:port, such as "mx1.example.org:25" or "[2001:db8::1]:25". Must be given: mail for <Postmaster>, without a domain, goes there too.`,
		func(c *Config) any { return &c.Primary.Address }},
	{"primary", "behind", list("host:port", func(s string) (string, error) { return checkHostport(s, false) }), "[]", nil,
		`The mail servers to which the primary hands mail over, where it is a filter appliance or service: "understudy doctor" looks whether they let strangers in past the filter (docs/primaries/appliance.md). Nothing is sent to them.`,
		func(c *Config) any { return &c.Primary.Behind }},
	{"primary", "tls", choice("opportunistic", "require", "off"), `"opportunistic"`, nil,
		"STARTTLS towards the server: opportunistic encrypts when the server offers it and checks no certificate; require sends nothing unless the certificate is valid for tls_name; off never encrypts.",
		func(c *Config) any { return &c.Primary.TLS }},
	{"primary", "tls_name", hostname, "", nil,
		"The name for which the server's certificate must be valid with tls = \"require\"; by default the host of address.",
		func(c *Config) any { return &c.Primary.TLSName }},
	{"primary", "tls_ca", file, "", nil,
		"PEM file with the certificates to trust with tls = \"require\", instead of the system's.",
		func(c *Config) any { return &c.Primary.TLSCA }},
	{"primary", "xclient", boolean, "true", nil,
		"Name the real client of each message to the server by XCLIENT, if the server offers it to us (Postfix: smtpd_authorized_xclient_hosts). Postfix then wants one session per client, so messages of one client that are close together in the queue share a session; for a long queue raise max_connections as well. Without XCLIENT the server can't be asked about recipients.",
		func(c *Config) any { return &c.Primary.XClient }},
	{"primary", "identity", choice("xclient", "proxy", "none"), `"xclient"`, nil,
		"How to name the real client to the server: xclient, by that command; proxy, by a PROXY protocol header (version 2) at the start of each connection, which the server must be set up to read, for instance on a separate port of Postfix with smtpd_upstream_proxy_protocol=haproxy; none, not at all. With proxy each client has a connection of its own, and the server looks up its name. xclient = false is the same as none.",
		func(c *Config) any { return &c.Primary.Identity }},
	{"primary", "while_up", choice("live", "accept", "defer"), `"live"`, nil,
		"What to do with mail while the server is up. live plays each client's session through to the server, in the client's name: the client gets the server's own replies, including that to the message, and nothing is kept here unless the server falls silent (docs/LIVE.md). live needs an identity, see there; where the server doesn't accept XCLIENT from us, and while it is down, the policy judges mail and it is kept here, as with accept. defer answers 451 to recipients that the policy lets in, so that the server sees each sender itself. A sender that comes back three times over half an hour, from the same network or with the same sender and recipient, is accepted as with accept: it may be unable to reach the server. So is whoever comes within five minutes after an outage. With routes, recipients of one message that belong to other routes than the first get 452.",
		func(c *Config) any { return &c.Primary.WhileUp }},
	{"primary", "live_max_connections", count(1, 10000), "50", nil,
		"Sessions played through to the server at a time, at most half of them for one client (but at least ten). Any others, and all while the server's replies are slow, are judged by the policy and their mail is kept here.",
		func(c *Config) any { return &c.Primary.MaxLive }},
	{"primary", "probe_interval", duration("100ms", "1h"), `"10s"`, nil,
		"How often to check whether the server is back. In the first ten minutes of an outage it is at least every two seconds.",
		func(c *Config) any { return &c.Primary.ProbeInterval }},
	{"primary", "max_connections", count(1, 1000), "10", nil,
		"Connections to the server at a time, and as many again to ask it about recipients where the policy says so.",
		func(c *Config) any { return &c.Primary.MaxConnections }},
	{"primary", "max_rate", count(0, 1_000_000), "0", nil,
		"The most messages per second to the server while the backlog drains; 0 is no limit. In any case Understudy opens more connections while replies are good and quick, and fewer when they are not.",
		func(c *Config) any { return &c.Primary.MaxRate }},

	{"route", "name", label, "", nil,
		"A short name for logs and metrics. Must be given.",
		func(c *Config) any { return &last(c).Name }},
	{"route", "domains", domainList, "[]", nil,
		`The domains of this route: "example.org" is that domain alone, ".example.org" all of its subdomains. Must be given, but for a route that queue.return_through names.`,
		func(c *Config) any { return &last(c).Domains }},

	{"filter", "name", label, "", nil,
		"A short name for logs and metrics. Must be given.",
		func(c *Config) any { return &c.Filters[0].Name }},
	{"filter", "milter", text("milter of the primary", checkMilter), "", nil,
		`The primary's milter that the filter stands for, as in its smtpd_milters, such as "inet:localhost:11332" or "unix:private/clamav", or the name of a program that the import has recognised there, such as "opendkim". Must be given.`,
		func(c *Config) any { return &c.Filters[0].Milter }},
	{"filter", "address", text("inet:host:port or unix:/path", checkEndpoint), "", nil,
		`Where the filter listens: "inet:127.0.0.1:11332" or "unix:/run/clamav/milter.ctl". Must be given. The protocol isn't encrypted: use it on this machine, or with tls.`,
		func(c *Config) any { return &c.Filters[0].Address }},
	{"filter", "tls", boolean, "false", nil,
		"Connect by TLS, from the first octet, to a filter on another machine that has a TLS proxy in front, such as stunnel or HAProxy. The certificate must be valid for tls_name.",
		func(c *Config) any { return &c.Filters[0].TLS }},
	{"filter", "tls_name", hostname, "", nil,
		"The name for which the filter's certificate must be valid; by default the host of address.",
		func(c *Config) any { return &c.Filters[0].TLSName }},
	{"filter", "tls_ca", file, "", nil,
		"PEM file with the certificates to trust, instead of the system's.",
		func(c *Config) any { return &c.Filters[0].TLSCA }},
	{"filter", "tls_cert", file, "", nil,
		"PEM file with a certificate to show to the filter.",
		func(c *Config) any { return &c.Filters[0].TLSCert }},
	{"filter", "tls_key", file, "", nil,
		"PEM file with the key of tls_cert.",
		func(c *Config) any { return &c.Filters[0].TLSKey }},

	{"policy", "file", file, "", nil,
		"The policy file: see `understudy policy check --help`. A secondary needs this or [sync], a publisher this or postfix. This file and those that it names are read again on SIGHUP and when one of them changes; a bad policy is refused with a log line, and the last good one stays in force.",
		func(c *Config) any { return &c.Policy.File }},
	{"policy", "suite", choice(suite.Names()...), "", nil,
		`Publisher only: the mail suite that Postfix belongs to. It sets the keys postfix, postfix_prefix, postfix_hosts, postfix_list and postfix_choose as that suite needs them; what is set here, too, takes precedence, in the lists item by item. docs/primaries/suites.md has a part for each.`,
		func(c *Config) any { return &c.Policy.Suite }},
	{"policy", "postfix", file, "", nil,
		`Publisher only: the configuration directory of the Postfix to stand in for, such as "/etc/postfix". Its main.cf, master.cf and maps are the policy; "understudy publish --check" lists what can't be replicated.`,
		func(c *Config) any { return &c.Policy.Postfix }},
	{"policy", "postfix_prefix", list("words", checkFile), "[]", nil,
		`Publisher only: where Postfix lives in a container or on another machine, the command that runs a command there, such as ["docker", "exec", "-i", "NAME"], ["podman", "exec", "-i", "NAME"], ["docker", "compose", "-f", "/srv/mail/compose.yaml", "exec", "-T", "SERVICE"] or ["ssh", "root@mx1.example.org"]. It must pass on standard input. postconf, postmap, sh, cat and stat are run there, and all files are read there.`,
		func(c *Config) any { return &c.Policy.PostfixPrefix }},
	{"policy", "postfix_root", file, "", nil,
		`Publisher only, in place of postfix_prefix: the directory that is Postfix's root, such as that of a container's file system or of a chroot. postconf and postmap are run by chroot(2), which takes root or CAP_SYS_CHROOT, with the publisher's rights: prefer postfix_prefix for a container whose programs you don't trust.`,
		func(c *Config) any { return &c.Policy.PostfixRoot }},
	{"policy", "postfix_hosts", list("ADDRESS=ADDRESS", checkAssignment), "[]", nil,
		`Publisher only, with postfix_prefix or postfix_root: how servers are reached from here that Postfix's tables name, such as "mysql=127.0.0.1:13306" or "unix:/var/run/mysqld/mysqld.sock=127.0.0.1:13306". The loopback interface and sockets there are other ones than here.`,
		func(c *Config) any { return &c.Policy.PostfixHosts }},
	{"policy", "postfix_service", text("service", checkService), "", nil,
		"Publisher only: the first column of master.cf's line for the SMTP server to stand in for; by default the one on port 25.",
		func(c *Config) any { return &c.Policy.PostfixService }},
	{"policy", "postfix_choose", list("ITEM=CHOICE", checkAssignment), "[]", nil,
		`Publisher only: what to do instead of items that aren't replicated, such as "smtpd_milters: inet:localhost:11332=defer". The report of "understudy publish --check" shows the choices for each; "understudy policy import postfix --help" explains them.`,
		func(c *Config) any { return &c.Policy.PostfixChoose }},
	{"policy", "postfix_filter", list("ENDPOINT=PROGRAM:FILE", checkAssignment), "[]", nil,
		`Publisher only: which filter listens at an endpoint of smtpd_milters, check_policy_service, smtpd_proxy_filter or a content_filter's transport, and where its configuration is, such as "inet:localhost:8891=opendkim:/etc/opendkim.conf". Programs: amavis, clamav-milter, clamsmtpd, dspam, opendkim, opendmarc, policyd-spf, postgrey, rspamd, spamass-milter, spampd. Files where Debian's packages keep them are found by themselves.`,
		func(c *Config) any { return &c.Policy.PostfixFilter }},
	{"policy", "postfix_list", list("TABLE=COMMAND", checkAssignment), "[]", nil,
		`Publisher only: for tables that can't be listed, or not completely, a shell command that prints the entries, one a line: a key, or key, tab and value. A line that begins with a tab says what the list lacks; then other keys are unknown, not absent. The key "@" says that the server of a tcp or socketmap table searches for "@domain", and without extensions, by itself. An example is "socketmap:inet:localhost:9999:users=/usr/local/bin/list-users". Or, for mysql, pgsql and sqlite, a query to the table's own database, such as "mysql:/etc/postfix/aliases.cf=query:SELECT address, goto FROM alias".`,
		func(c *Config) any { return &c.Policy.PostfixList }},
	{"policy", "postfix_unlisted", choice("defer", "reject"), `"defer"`, nil,
		`Publisher only: how secondaries answer a recipient missing from the listing of an SQL table that isn't exact, because its query computes: the table was then asked about everything in its database that looks like an address or a domain. "defer": 450. "reject": 550, as long as each listing passes its check: random keys must not be there, and a sample of the listed ones must.`,
		func(c *Config) any { return &c.Policy.PostfixUnlisted }},

	{"policy", "exim", text("program", checkEximProgram), "", nil,
		`Publisher only: the Exim 4 to stand in for: the path of its program, or "auto" for exim4 or exim where Debian has it. What "exim -bP config" prints is the policy; "understudy publish --check" lists what can't be replicated.`,
		func(c *Config) any { return &c.Policy.Exim }},
	{"policy", "exim_config", file, "", nil,
		"Publisher only: Exim's configuration file, where that isn't its own choice.",
		func(c *Config) any { return &c.Policy.EximConfig }},
	{"policy", "exim_choose", list("ITEM=CHOICE", checkAssignment), "[]", nil,
		`Publisher only: what to do instead of items that aren't replicated, as with postfix_choose: "acl_check_rcpt: deny ratelimit = 10 / 1h=defer".`,
		func(c *Config) any { return &c.Policy.EximChoose }},

	{"sync", "domains", domainList, "[]", nil,
		`The domains for which the primary may name recipients: "example.org" is that domain alone, ".example.org" all of its subdomains. With this key the policy comes from the primary. Recipients of other domains are answered 450, whatever the policy permits.`,
		func(c *Config) any { return &c.Sync.Domains }},
	{"sync", "stale_after", duration("1m", "365d"), `"1d"`, nil,
		"After that long without contact to the publisher, unknown recipients are answered 450 instead of 550. Known ones are accepted indefinitely.",
		func(c *Config) any { return &c.Sync.StaleAfter }},
	{"sync", "max_size", size, `"1GiB"`, nil,
		"The largest policy to accept from the primary, in memory.",
		func(c *Config) any { return &c.Sync.MaxSize }},

	{"queue", "max_age", duration("1h", "365d"), `"14d"`, nil,
		"How long to try to relay a message. An older message is held for the operator, never discarded.",
		func(c *Config) any { return &c.Queue.MaxAge }},
	{"queue", "min_free", size, `"256MiB"`, nil,
		"Free space below which messages are answered 452 before their content is read.",
		func(c *Config) any { return &c.Queue.MinFree }},
	{"queue", "min_free_inodes", count(0, 1<<40), "1000", nil,
		"Free inodes below which messages are answered 452; for file systems that count them.",
		func(c *Config) any { return &c.Queue.MinFreeInodes }},

	{"queue", "return", choice("never", "vouched"), `"never"`, nil,
		"What to do with mail that the server refused after it was accepted here, or that outlived max_age. never: it is held for the operator. vouched: a report (DSN) goes to the sender, if SPF passed or a good DKIM signature is the author's own when the message came; all other mail is held, since the sender may be forged. SPF and DKIM are then checked for each message that is kept, whatever the policy's filters are. What is held already, and was vouched for, is returned as well.",
		func(c *Config) any { return &c.Queue.Return }},
	{"queue", "return_through", label, `"primary"`, nil,
		`Where reports go: "primary" is [primary], any other name that of a [[route]], which then needs no domains: a smarthost. It must accept mail to any domain from this machine. No MX is looked up.`,
		func(c *Config) any { return &c.Queue.ReturnThrough }},

	{"queue", "store", choice("leveldb", "postgres"), `"leveldb"`, nil,
		"Where accepted mail is kept. leveldb: in state_dir, on this machine. postgres: in the database of dsn, so that with standbys it survives the loss of a machine (docs/FLEET.md). understudy queue migrate moves the mail.",
		func(c *Config) any { return &c.Queue.Store }},
	{"queue", "dsn", text("URL", checkDSN), "", nil,
		`With store = "postgres": the database, such as "postgres://understudy@db1.example.org,db2.example.org/understudy?sslmode=verify-full&sslrootcert=/etc/understudy/db.pem", with libpq's parameters. Of several hosts, the one that takes writes is used. Connect to the servers themselves, or to a pool of sessions; a pool of transactions won't do. There are up to nine connections. The user must be able to create a schema in the database: make it the owner.`,
		func(c *Config) any { return &c.Queue.DSN }},
	{"queue", "dsn_password", file, "", nil,
		`File with the password for dsn; "$CREDENTIALS_DIRECTORY/NAME" names a file that systemd's LoadCredential= passes. It is read again for each connection.`,
		func(c *Config) any { return &c.Queue.DSNPassword }},
	{"queue", "durability", choice("quorum", "one-machine"), `"quorum"`, nil,
		`With store = "postgres": quorum accepts mail only while the server waits for a standby at each commit (synchronous_standby_names is set, such as 'ANY 1 (db2, db3)'); a message is answered 250 when two machines have it, and 451 when no standby answers within five seconds. one-machine is content with the server alone.`,
		func(c *Config) any { return &c.Queue.Durability }},

	{"queue", "fallback", choice("defer", "leveldb"), `"defer"`, nil,
		`With store = "postgres", while the database is away: defer answers 451, and senders come again. leveldb accepts mail into state_dir, on this machine alone, relays it from there if it can, and moves the rest into the database when that is back. What is in state_dir from earlier is moved as well.`,
		func(c *Config) any { return &c.Queue.Fallback }},
	{"queue", "adopt_after", duration("20s", "30d"), `"1m"`, nil,
		`With store = "postgres": how long another secondary may be silent before its mail is moved into this one's queue. A restart that takes longer than this does no harm: the other one gets what hasn't been moved by then.`,
		func(c *Config) any { return &c.Queue.AdoptAfter }},

	{"relay", "authentication_results", boolean, "false", nil,
		`Put an Authentication-Results field (RFC 8601) with what SPF and DKIM said on top of each message, under hostname, and remove those that claim to be of hostname. It is for servers that can't be told the real client, with identity = "none", whose own SPF check would see this machine; to all others messages go as they came. It is the only change that Understudy makes to mail.`,
		func(c *Config) any { return &c.Relay.AuthenticationResults }},

	{"dns", "servers", serverList, "[]", nil,
		"Name servers as ip:port, or ip for port 53. Without any, those of /etc/resolv.conf are asked.",
		func(c *Config) any { return &c.DNS.Servers }},
	{"dns", "timeout", duration("100ms", "1m"), `"2s"`, nil,
		"How long one try waits for a server's answer; each server is tried twice. A look-up without an answer counts as a temporary failure, never as an answer.",
		func(c *Config) any { return &c.DNS.Timeout }},
	{"dns", "on_failure", choice("as-primary", "defer"), `"as-primary"`, nil,
		"What to do when a DNS blocklist, or every server, fails to answer: as-primary treats the client as not listed, as Postfix does, and a DMARC record as absent, as opendmarc does; defer answers 450 (DMARC: 451) unless an earlier rule has decided. Other checks defer mail in any case when the DNS doesn't answer.",
		func(c *Config) any { return &c.DNS.OnFailure }},
	{"dns", "sick_lists", choice("as-primary", "set-aside", "count"), `"as-primary"`, nil,
		"What to do with a DNS list whose test entries show that its answers can't be right: it lists everybody, or nobody any more, or refuses this machine's questions (`understudy dnsbl` tells). set-aside counts each look-up in it as failed for now, see on_failure, until it is well again; as-primary does so unless the primary sees the list in the same state, and decides by it, too; count believes every answer, but for refusals.",
		func(c *Config) any { return &c.DNS.SickLists }},

	{"publish", "listen", listen, `":9626"`, nil,
		"Address on which to listen for secondaries, with TLS 1.3 and the keys exchanged at pairing; no certificate is needed. Open the port to the secondaries only.",
		func(c *Config) any { return &c.Publish.Listen }},
	{"publish", "address", hostport, "", nil,
		`The address at which secondaries reach it, host:port, such as "mx1.example.org:9626". It goes into invitations. Must be given.`,
		func(c *Config) any { return &c.Publish.Address }},
	{"publish", "poll", duration("1s", "1d"), `"30s"`, nil,
		"How often sources that announce no change are listed: databases, directories, commands. Files are read as soon as they change. Tables of Postfix in SQL are listed within a second or so when the database can tell cheaply that a row has changed: MySQL by UPDATE_TIME, PostgreSQL by its counters (track_counts), SQLite by the file's time; so are LDAP tables where the server is an OpenLDAP with the overlay syncprov, and its contextCSN can be read. A query that uses a view, a clock or a function of your own waits for the poll. A check, with any listing after it, delays the next one: by 20 times its own duration, up to 5 seconds, but by at least 4 times.",
		func(c *Config) any { return &c.Publish.Poll }},
	{"publish", "debounce", duration("10ms", "1m"), `"100ms"`, nil,
		"How long files must be unchanged before they are read.",
		func(c *Config) any { return &c.Publish.Debounce }},
	{"publish", "hashed", boolean, "false", nil,
		"Send the secondaries no recipients' addresses but their HMAC-SHA-256, under a key of each pairing's own. Decisions are the same; the secondary's operator sees numbers and domains instead of addresses. Tables of patterns are sent as they are. Secondaries paired before understudy could do this must first be paired again.",
		func(c *Config) any { return &c.Publish.Hashed }},
	{"publish", "log", text("log", checkLog), "", nil,
		`The primary's own log. Everybody whom the primary judged by it is judged by the published policy, too: "understudy parity shadow" shows how well they agree. "auto" is Postfix's maillog_file, else /var/log/mail.log, /var/log/maillog or /var/log/mail/mail.log, else the journal; where Postfix lives in a container, the file there, else what the container prints (docker logs). "journal" runs journalctl; a file's name is one on this machine. The publisher's user must be able to read it. The look-ups are made by [dns]. Without it nothing is read.`,
		func(c *Config) any { return &c.Publish.Log }},

	{"source", "name", label, "", nil,
		"A short name for logs and errors. Must be given.",
		func(c *Config) any { return &lastSource(c).Name }},
	{"source", "type", choice("file", "map", "command", "pgsql", "mysql", "sqlite", "ldap"), "", nil,
		"file: a text file, one address a line; map: an indexed table of Postfix; command: a program's output; pgsql, mysql, sqlite: a query; ldap: a search. Must be given.",
		func(c *Config) any { return &lastSource(c).Type }},
	{"source", "path", text("file or map", checkFile), "", nil,
		`file and sqlite: the file. map: its name for Postfix, such as "hash:/etc/postfix/virtual".`,
		func(c *Config) any { return &lastSource(c).Path }},
	{"source", "command", list("words", checkFile), "[]", nil,
		`command: the program's path and its arguments. It must print one address per line and exit with 0; otherwise its output is ignored.`,
		func(c *Config) any { return &lastSource(c).Command }},
	{"source", "connection", file, "", nil,
		"pgsql, mysql, ldap: a file that says how to connect, as pgsql_table(5), mysql_table(5) and ldap_table(5) describe: hosts, user, password, dbname; server_host, bind_dn, bind_pw and so on. Postfix's own file will do. Only its owner should be able to read it.",
		func(c *Config) any { return &lastSource(c).Connection }},
	{"source", "query", text("SELECT", checkFile), "", nil,
		"pgsql, mysql, sqlite: a SELECT that lists all addresses in its first column.",
		func(c *Config) any { return &lastSource(c).Query }},
	{"source", "base", text("DN", checkFile), "", nil,
		"ldap: where to search; by default search_base of the connection.",
		func(c *Config) any { return &lastSource(c).Base }},
	{"source", "scope", choice("sub", "one", "base"), `"sub"`, nil,
		"ldap: how deep to search.",
		func(c *Config) any { return &lastSource(c).Scope }},
	{"source", "filter", text("filter", checkFile), "", nil,
		`ldap: which entries count, such as "(objectClass=inetOrgPerson)".`,
		func(c *Config) any { return &lastSource(c).Filter }},
	{"source", "attributes", list("names", checkFile), `["mail"]`, nil,
		"ldap: the attributes whose values are addresses.",
		func(c *Config) any { return &lastSource(c).Attributes }},
	{"source", "ask", boolean, "false", nil,
		"With [policy] postfix: these addresses need not exist. Tables of recipients that can't be listed (tcp, socketmap, queries that compute) are asked about each, so that a secondary has the answers before it needs them. The mail log is a good source.",
		func(c *Config) any { return &lastSource(c).Ask }},

	{"push", "listen", optionalListen, `""`, nil,
		`Address on which lists are pushed, such as ":9628", or "" for none. Open the port to those who push only.`,
		func(c *Config) any { return &c.Push.Listen }},
	{"push", "domains", domainList, "[]", nil,
		`The domains whose lists may be pushed. Each needs a token: "understudy push token DOMAIN". Lists of other domains are refused. The list of a domain that is taken out stays as it is for a policy that still names it.`,
		func(c *Config) any { return &c.Push.Domains }},
	{"push", "tls_cert", file, "", nil,
		"PEM file with the certificate chain; by default smtp.tls_cert. There is no push without TLS.",
		func(c *Config) any { return &c.Push.TLSCert }},
	{"push", "tls_key", file, "", nil,
		"PEM file with the key of tls_cert.",
		func(c *Config) any { return &c.Push.TLSKey }},
	{"push", "stale_after", duration("1m", "365d"), `"2d"`, nil,
		"After that long without a push, even of the same list, unknown recipients of the domain are answered 450 instead of 550. Known ones are accepted indefinitely.",
		func(c *Config) any { return &c.Push.StaleAfter }},
	{"push", "max_recipients", count(1, 20_000_000), "2000000", nil,
		"The most addresses that a list may have.",
		func(c *Config) any { return &c.Push.MaxRecipients }},

	{"metrics", "listen", optionalListen, `"127.0.0.1:9625"`, nil,
		`Address of the HTTP server, or "" for none. It has no password: keep it on the loopback interface, or behind a proxy with one.`,
		func(c *Config) any { return &c.Metrics.Listen }},

	{"web", "listen", webListen, `""`, nil,
		`Address of the page, such as "127.0.0.1:9627" or "unix:/run/understudy/web.sock", or "" for none. It must be on the loopback interface. A Unix socket has mode 0660; in a directory with the setgid bit it gets the group of the directory. "understudy page" prints the address to open.`,
		func(c *Config) any { return &c.Web.Listen }},
	{"web", "token_file", file, "", nil,
		"File with the token that opens the page; by default web.token in state_dir. A missing file is created with a new token. To change the token, remove the file and restart.",
		func(c *Config) any { return &c.Web.TokenFile }},
	{"web", "hosts", hostList, "[]", nil,
		`Host names of the page behind a proxy, such as ["mx2.example.org"]. "localhost" and loopback addresses are always accepted. Requests for other names are refused, against DNS rebinding.`,
		func(c *Config) any { return &c.Web.Hosts }},
	{"web", "trusted_header", headerName, "", nil,
		`Header field in which a proxy names the user it has authenticated, such as "Remote-User"; such users need no token. Requires a Unix socket that only the proxy can open. The proxy must overwrite the field if its client sends it.`,
		func(c *Config) any { return &c.Web.TrustedHeader }},
	{"web", "show_addresses", choice("token", "all", "none"), `"token"`, nil,
		"Who may see envelope addresses, and release and remove held mail: those with the token, users of the proxy too, or nobody. Others see only numbers.",
		func(c *Config) any { return &c.Web.ShowAddresses }},
	{"web", "show_mail", boolean, "false", nil,
		"Whether those who see envelope addresses may read waiting mail as well: its main header fields and text, with what could act in a browser replaced. Each message that is read is logged with the reader.",
		func(c *Config) any { return &c.Web.ShowMail }},

	{"notify", "mail", mailList, "[]", nil,
		`Mail addresses at the primary, such as ["ops@example.org"]. The mail waits for the primary in the queue, as all mail does; for news at once, use a webhook, or an address elsewhere for which a [[route]] exists.`,
		func(c *Config) any { return &c.Notify.Mail }},
	{"notify", "webhook", hook, `""`, nil,
		`Address to which a JSON object is posted at once, such as "https://hooks.example.org/understudy"; http only on this machine. It has "event" (outage_began, outage_ended), "host", "outage", "route", "began", "ended", "seconds", "accepted_messages", "refused_verdicts" and "saved_messages".`,
		func(c *Config) any { return &c.Notify.Webhook }},
	{"notify", "after", duration("0s", "1h"), `"1m"`, nil,
		"How long an outage must last before anybody is told.",
		func(c *Config) any { return &c.Notify.After }},

	{"log", "format", choice("auto", "text", "json"), `"auto"`, nil,
		"auto is text on a terminal and JSON elsewhere.",
		func(c *Config) any { return &c.Log.Format }},
	{"log", "level", choice("debug", "info", "warn", "error"), `"info"`, nil,
		"The least serious lines to write.",
		func(c *Config) any { return &c.Log.Level }},
}

func lastSource(c *Config) *Source { return &c.Sources[len(c.Sources)-1] }

func last(c *Config) *Route { return &c.Routes[len(c.Routes)-1] }

func machineName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}

// stateDir takes the first of systemd's StateDirectory= paths.
func stateDir() string {
	if dir := os.Getenv("STATE_DIRECTORY"); dir != "" {
		return dir
	}
	return "/var/lib/understudy"
}

// lookup returns the setting of a key, or nil.
func lookup(section, name string) *setting {
	for i := range settings {
		if settings[i].section == section && settings[i].name == name {
			return &settings[i]
		}
	}
	return nil
}

// names lists the keys and sections that a section may contain.
func names(section string) []string {
	var list []string
	if section == "" {
		list = sections()
	}
	for _, s := range settings {
		if s.section == section || section == "route" && s.section == "primary" {
			list = append(list, s.name)
		}
	}
	return list
}
