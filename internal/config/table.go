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
	return []string{"smtp", "primary", "route", "policy", "queue", "dns", "metrics", "log"}
}

// sectionDoc introduces a section in the man page.
var sectionDoc = map[string]string{
	"smtp":    "The door that other mail servers knock at.",
	"primary": "The mail server that Understudy stands in for: where accepted mail goes.",
	"route":   "May stand several times. Sends some domains to a server of their own; all others go to [primary]. A route takes the keys below and each key of [primary], with that key's own default: nothing is inherited.",
	"policy":  "Whom mail is accepted for, and what is refused.",
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
	{"smtp", "bare_newline", choice("reject", "normalize"), `"reject"`, nil,
		"What to do with a message in which a line ends in LF alone: refuse it, or turn each such end into CRLF. Neither ever ends a message at one, so that no second message can be smuggled in.",
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
		"Tell the server the real client of each message by XCLIENT when it offers that to us (Postfix: smtpd_authorized_xclient_hosts).",
		func(c *Config) any { return &c.Primary.XClient }},
	{"primary", "probe_interval", duration("100ms", "1h"), `"10s"`, nil,
		"How often to look whether the server is back. In the first ten minutes of an outage it is at least every two seconds.",
		func(c *Config) any { return &c.Primary.ProbeInterval }},
	{"primary", "max_connections", count(1, 1000), "10", nil,
		"Connections to the server at a time.",
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
		"The policy file: see `understudy policy check --help`. Must be given. It and the files that it names are read again when one changes and on SIGHUP; a bad one is refused with a log line, and the last good policy stays in force.",
		func(c *Config) any { return &c.Policy.File }},

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

// nearest returns the name that is at most a third of its letters away from
// key, or "".
func nearest(key string, names []string) string {
	best, bestAt := "", len(key)
	for _, n := range names {
		if d := distance(key, n); d < bestAt && d <= max(1, len(n)/3) {
			best, bestAt = n, d
		}
	}
	return best
}

// distance is Levenshtein's, over bytes.
func distance(a, b string) int {
	a = a[:min(len(a), 64)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
