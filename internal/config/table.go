package config

import (
	"os"
)

// setting is one key: the only place that knows its name, type, default and
// meaning.
type setting struct {
	section string // "" is the top level; "route" also takes all of "primary"
	name    string
	kind    *kind
	def     string            // as it would stand in the file; "" is none
	compute func() string     // the default where the machine decides it; def then says how
	doc     string            // sentences, shown in the man page and by `understudy config`
	field   func(*Config) any // pointer to where the value goes
}

// sections lists the tables in the order in which they are shown.
func sections() []string {
	return []string{"smtp", "primary", "route", "policy", "sync", "queue", "dns", "publish", "source", "metrics", "log"}
}

// repeated are the sections that may stand several times.
var repeated = []string{"route", "source"}

// sectionDoc introduces a section in the man page.
var sectionDoc = map[string]string{
	"smtp":    "The door that other mail servers knock at.",
	"primary": "The mail server that Understudy stands in for: where accepted mail goes.",
	"route":   "May stand several times. Sends some domains to a server of their own; all others go to [primary]. A route takes the keys below and each key of [primary], with that key's own default: nothing is inherited.",
	"policy":  "Whom mail is accepted for, and what is refused. A secondary takes it from a file or from its primary, see [sync]; the primary's publisher from a file or from its Postfix.",
	"sync":    "Of a secondary that follows its primary's publisher: `understudy invite` there, `understudy join` here.",
	"publish": "Of the primary alone: its presence makes the file one for `understudy publish`. Of the other sections that takes [policy], [[source]], [metrics] and [log]; state_dir then holds the keys and the paired secondaries.",
	"source":  "Of the primary alone. May stand several times. Adds recipients from elsewhere to those of [policy]; they count in its domains only.",
	"queue":   "Accepted mail on its way.",
	"dns":     "The resolver for blocklists and host names. Let it be one of your own, close by: public ones are refused by most blocklists.",
	"metrics": "Prometheus metrics and the pages /healthz and /readyz.",
	"log":     "What goes to standard error.",
}

var settings = []setting{
	{"", "hostname", hostname, "the machine's host name", machineName,
		"The name that Understudy gives itself in its banner, in EHLO and in Received fields: a full one that DNS knows, such as mx2.example.org.",
		func(c *Config) any { return &c.Hostname }},
	{"", "state_dir", file, `$STATE_DIRECTORY, else "/var/lib/understudy"`, stateDir,
		"Directory of the queue and of the control socket. Needs a file system that keeps what fsync promises; only one Understudy may use it at a time.",
		func(c *Config) any { return &c.StateDir }},

	{"smtp", "listen", listenList, `[":25"]`, nil,
		"Addresses to listen on. Sockets that systemd passes (understudy.socket) take the place of this list.",
		func(c *Config) any { return &c.SMTP.Listen }},
	{"smtp", "tls_cert", file, "", nil,
		"PEM file with the certificate chain for STARTTLS. Without it STARTTLS is not offered. The file is read again when it changes and on SIGHUP; a broken pair is refused and the old one stays.",
		func(c *Config) any { return &c.SMTP.TLSCert }},
	{"smtp", "tls_key", file, "", nil,
		`PEM file with the key of tls_cert. "$CREDENTIALS_DIRECTORY/NAME" names a file that systemd's LoadCredential= passes.`,
		func(c *Config) any { return &c.SMTP.TLSKey }},
	{"smtp", "xclient_from", prefixes, "[]", nil,
		"Networks whose clients may say by XCLIENT for whom they speak, as Postfix's smtpd_authorized_xclient_hosts. Whoever may do so passes every check on clients: list only proxies and test machines of your own.",
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
		"How long to listen before the greeting; 0s greets at once. Mail servers wait for it, many robots don't. Who brought mail before, since the start, is greeted at once. A policy with postscreen settings of its own goes first. Postfix's postscreen_greet_wait is 6s.",
		func(c *Config) any { return &c.SMTP.GreetWait }},
	{"smtp", "greet_action", choice("ignore", "enforce", "drop"), `"ignore"`, nil,
		"What to do with a client that speaks before the greeting: only count it, refuse each of its recipients with 550 5.5.1, or answer 521 5.5.1 and hang up. As Postfix's postscreen_greet_action.",
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
		"What to do with a message in which a line ends in LF alone: refuse it, turn each such end into CRLF, or do as the policy says, which refuses it unless it was read from a Postfix that takes it. None of them ever ends a message at one, so that no second message can be smuggled in.",
		func(c *Config) any { return &c.SMTP.BareNewline }},

	{"primary", "address", hostport, "", nil,
		`The server as host:port, such as "mx1.example.org:25" or "[2001:db8::1]:25". Must be given: mail for <Postmaster>, without a domain, goes there too.`,
		func(c *Config) any { return &c.Primary.Address }},
	{"primary", "tls", choice("opportunistic", "require", "off"), `"opportunistic"`, nil,
		"STARTTLS towards the server: opportunistic encrypts when the server offers it and checks no certificate; require sends nothing unless the certificate is good for tls_name; off never encrypts.",
		func(c *Config) any { return &c.Primary.TLS }},
	{"primary", "tls_name", hostname, "", nil,
		"The name that the server's certificate must be good for with tls = \"require\"; by default the host of address.",
		func(c *Config) any { return &c.Primary.TLSName }},
	{"primary", "tls_ca", file, "", nil,
		"PEM file with the certificates to trust with tls = \"require\", instead of the system's.",
		func(c *Config) any { return &c.Primary.TLSCA }},
	{"primary", "xclient", boolean, "true", nil,
		"Tell the server the real client of each message by XCLIENT when it offers that to us (Postfix: smtpd_authorized_xclient_hosts). Postfix wants a session for each client then, so the mail of a client goes together, as far as it is near in line; over a long line raise max_connections as well. Without it the server can't be asked about recipients.",
		func(c *Config) any { return &c.Primary.XClient }},
	{"primary", "identity", choice("xclient", "proxy", "none"), `"xclient"`, nil,
		"How the server is told the real client: xclient, by the command; proxy, by a PROXY protocol header (version 2) at the start of each connection, which the server must be set up to read, such as a port of Postfix's of its own with smtpd_upstream_proxy_protocol=haproxy; none, not at all. With proxy each client has a connection of its own, and the server looks its name up. xclient = false is the same as none.",
		func(c *Config) any { return &c.Primary.Identity }},
	{"primary", "while_up", choice("live", "accept", "defer"), `"live"`, nil,
		"What to do with mail while the server is up. live plays each client's session through to it, in the client's name: its own replies go back, down to the one to the message, and nothing is kept here unless it falls silent on the way (docs/LIVE.md). That needs an identity, see there; where the server doesn't take XCLIENT from us, and while it is down, mail is judged by the policy and kept, as with accept. defer answers 451 to recipients that the policy lets in, so that the server sees each sender itself; who comes back three times over half an hour, by the client's network or with the same sender and recipient, is taken as with accept: the server may be out of reach from there. With routes, recipients that go different ways in one message get 452 for all ways but the first.",
		func(c *Config) any { return &c.Primary.WhileUp }},
	{"primary", "live_max_connections", count(1, 10000), "50", nil,
		"Sessions that are played through to the server at a time, half of them for one client at most (but ten at least). What is beyond, and all while its replies are slow, is judged by the policy and kept.",
		func(c *Config) any { return &c.Primary.MaxLive }},
	{"primary", "probe_interval", duration("100ms", "1h"), `"10s"`, nil,
		"How often to look whether the server is back. In the first ten minutes of an outage it is at least every two seconds.",
		func(c *Config) any { return &c.Primary.ProbeInterval }},
	{"primary", "max_connections", count(1, 1000), "10", nil,
		"Connections to the server at a time, and as many again to ask it about recipients where the policy says so.",
		func(c *Config) any { return &c.Primary.MaxConnections }},
	{"primary", "max_rate", count(0, 1_000_000), "0", nil,
		"Messages a second to the server at most, when it is back and the backlog drains; 0 is no limit. Without one Understudy opens more connections while answers are good and quick, and fewer when they are not.",
		func(c *Config) any { return &c.Primary.MaxRate }},

	{"route", "name", label, "", nil,
		"A short name for logs and metrics. Must be given.",
		func(c *Config) any { return &last(c).Name }},
	{"route", "domains", domainList, "[]", nil,
		`The domains that go this way: "example.org" is that domain alone, ".example.org" every one below it. Must be given.`,
		func(c *Config) any { return &last(c).Domains }},

	{"policy", "file", file, "", nil,
		"The policy file: see `understudy policy check --help`. A secondary needs this or [sync], a publisher this or postfix. It and the files that it names are read again when one changes and on SIGHUP; a bad one is refused with a log line, and the last good policy stays in force.",
		func(c *Config) any { return &c.Policy.File }},
	{"policy", "postfix", file, "", nil,
		`Publisher only: the configuration directory of the Postfix to stand in for, such as "/etc/postfix". Its main.cf, master.cf and maps are the policy; "understudy publish --check" lists what can't be replicated.`,
		func(c *Config) any { return &c.Policy.Postfix }},
	{"policy", "postfix_service", text("service", checkService), "", nil,
		"Publisher only: the first column of master.cf's line for the SMTP server to stand in for; by default that on port 25.",
		func(c *Config) any { return &c.Policy.PostfixService }},
	{"policy", "postfix_choose", list("ITEM=CHOICE", checkAssignment), "[]", nil,
		`Publisher only: what to do instead of items that aren't replicated, such as "smtpd_milters: inet:localhost:11332=defer". The report of "understudy publish --check" shows what each offers; "understudy policy import postfix --help" explains the choices.`,
		func(c *Config) any { return &c.Policy.PostfixChoose }},
	{"policy", "postfix_filter", list("ENDPOINT=PROGRAM:FILE", checkAssignment), "[]", nil,
		`Publisher only: which filter listens at an endpoint of smtpd_milters or check_policy_service, and where its configuration is, such as "inet:localhost:8891=opendkim:/etc/opendkim.conf". Programs: opendkim, opendmarc, policyd-spf, postgrey. Where Debian's packages keep theirs, it is found without.`,
		func(c *Config) any { return &c.Policy.PostfixFilter }},
	{"policy", "postfix_list", list("TABLE=COMMAND", checkAssignment), "[]", nil,
		`Publisher only: for tables that can't be listed, or not completely, a shell command that prints the entries: a key a line, or key, tab and value. Such as "socketmap:inet:localhost:9999:users=/usr/local/bin/list-users". Or, for mysql, pgsql and sqlite, a query that the table's own database gets, such as "mysql:/etc/postfix/aliases.cf=query:SELECT address, goto FROM alias".`,
		func(c *Config) any { return &c.Policy.PostfixList }},
	{"policy", "postfix_unlisted", choice("defer", "reject"), `"defer"`, nil,
		`Publisher only: how secondaries answer a recipient that an SQL table doesn't list, where the listing isn't exact: its query computes, and it was asked about whatever looks like an address or a domain in the tables behind. "defer": 450. "reject": 550, as long as the check at every listing holds: random keys aren't there, and a sample of those listed is.`,
		func(c *Config) any { return &c.Policy.PostfixUnlisted }},

	{"sync", "domains", domainList, "[]", nil,
		`The domains that the primary may fill with recipients: "example.org" that domain, ".example.org" every one below it. With it the policy comes from the primary, and a policy that names any other domain is refused. Whatever the policy permits otherwise, recipients of other domains are answered 450.`,
		func(c *Config) any { return &c.Sync.Domains }},
	{"sync", "stale_after", duration("1m", "365d"), `"1d"`, nil,
		"Out of contact with the publisher for longer, unknown recipients are answered 450 in place of 550. Known ones are accepted without end.",
		func(c *Config) any { return &c.Sync.StaleAfter }},
	{"sync", "max_size", size, `"1GiB"`, nil,
		"The largest policy that is taken from the primary, in memory.",
		func(c *Config) any { return &c.Sync.MaxSize }},

	{"queue", "max_age", duration("1h", "365d"), `"14d"`, nil,
		"How long to try to relay a message. What is older is held for the operator, never thrown away.",
		func(c *Config) any { return &c.Queue.MaxAge }},
	{"queue", "min_free", size, `"256MiB"`, nil,
		"Free space below which messages are answered 452 before their content is taken.",
		func(c *Config) any { return &c.Queue.MinFree }},
	{"queue", "min_free_inodes", count(0, 1<<40), "1000", nil,
		"Free inodes below which messages are answered 452; for file systems that count them.",
		func(c *Config) any { return &c.Queue.MinFreeInodes }},

	{"dns", "servers", serverList, "[]", nil,
		"Name servers as ip:port, or ip for port 53. With none those of /etc/resolv.conf are asked.",
		func(c *Config) any { return &c.DNS.Servers }},
	{"dns", "timeout", duration("100ms", "1m"), `"2s"`, nil,
		"How long one try waits for a server's answer; each server is tried twice. A look-up that gets none counts as failed for the time being, never as an answer.",
		func(c *Config) any { return &c.DNS.Timeout }},
	{"dns", "on_failure", choice("as-primary", "defer"), `"as-primary"`, nil,
		"What to do when a blocklist in the DNS doesn't answer, or no server does: take the client for not listed, as Postfix does, or answer 450 unless a rule before has decided. Other checks that the DNS doesn't answer put mail off in any case.",
		func(c *Config) any { return &c.DNS.OnFailure }},

	{"publish", "listen", listen, `":9626"`, nil,
		"Address at which secondaries connect: TLS 1.3 with keys that were exchanged at pairing, no certificate is needed. Open the port for them alone.",
		func(c *Config) any { return &c.Publish.Listen }},
	{"publish", "address", hostport, "", nil,
		`The same as the secondaries reach it, host:port, such as "mx1.example.org:9626". It goes into invitations. Must be given.`,
		func(c *Config) any { return &c.Publish.Address }},
	{"publish", "poll", duration("1s", "1d"), `"30s"`, nil,
		"How often sources that announce no change are listed: databases, directories, commands. Files are read as soon as they change. SQL tables of Postfix are listed within a second or so when the database can tell cheaply that a row has changed: MySQL by UPDATE_TIME, PostgreSQL by its counters (track_counts), SQLite by the file's time; a query that looks at a view, a clock or a function of your own has to wait for this. A look that took long, with the reading that may have followed, delays the next one: to 20 times as long, up to 5 seconds, but at least to 4 times as long.",
		func(c *Config) any { return &c.Publish.Poll }},
	{"publish", "debounce", duration("10ms", "1m"), `"100ms"`, nil,
		"How long files must have rested before they are read.",
		func(c *Config) any { return &c.Publish.Debounce }},
	{"publish", "hashed", boolean, "false", nil,
		"Send and store on the secondaries no recipient's address but HMAC-SHA-256 of it, under a key that each pairing has for itself. Decisions are the same; the secondary's operator sees numbers and domains in place of addresses. A table of patterns travels as it is. Secondaries that were paired before understudy could do this are paired again first.",
		func(c *Config) any { return &c.Publish.Hashed }},

	{"source", "name", label, "", nil,
		"A short name for logs and errors. Must be given.",
		func(c *Config) any { return &lastSource(c).Name }},
	{"source", "type", choice("file", "map", "command", "pgsql", "mysql", "sqlite", "ldap"), "", nil,
		"file: a text file, one address a line; map: an indexed table of Postfix; command: what a program prints; pgsql, mysql, sqlite: a query; ldap: a search. Must be given.",
		func(c *Config) any { return &lastSource(c).Type }},
	{"source", "path", text("file or map", checkFile), "", nil,
		`file and sqlite: the file. map: its name for Postfix, such as "hash:/etc/postfix/virtual".`,
		func(c *Config) any { return &lastSource(c).Path }},
	{"source", "command", list("words", checkFile), "[]", nil,
		`command: the program's path and its arguments. It prints an address a line, and ends with 0: else nothing of it counts.`,
		func(c *Config) any { return &lastSource(c).Command }},
	{"source", "connection", file, "", nil,
		"pgsql, mysql, ldap: a file that says how to connect, as pgsql_table(5), mysql_table(5) and ldap_table(5) describe: hosts, user, password, dbname; server_host, bind_dn, bind_pw and so on. Postfix's own file will do. Let others not read it.",
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
		"With [policy] postfix: these addresses need not exist. Tables of recipients that can't be listed (tcp, socketmap, queries that compute) are asked about each, so that a secondary knows the answers before it needs them; take them from the mail log, for instance.",
		func(c *Config) any { return &lastSource(c).Ask }},

	{"metrics", "listen", optionalListen, `"127.0.0.1:9625"`, nil,
		`Address of the HTTP server, or "" for none. It has no password: keep it on the loopback interface or behind one.`,
		func(c *Config) any { return &c.Metrics.Listen }},

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

// names lists the keys and sections that may stand in a section.
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
