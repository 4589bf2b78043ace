package exim

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/understudy-mx/understudy/policy"
)

// most bounds what Exim may say.
const most = 64 << 20

// config is what "exim -bP config" prints.
type config struct {
	file     string
	included []string
	main     map[string]string            // options, as written
	lists    map[string]map[string]string // domainlist, hostlist, addresslist, localpartlist: by name
	acls     []aclText
	routers  []routerText
	drivers  map[string]string // of transports
	rewrite  []itemText
	at       map[string]string // where options and lists are: FILE:LINE
	here     string            // where the line is that is being read
}

type aclText struct {
	name       string
	statements []statementText
}

type statementText struct {
	verb  string
	items []itemText
}

// itemText is a condition or a modifier; kind has the "!" of a negated one.
type itemText struct{ kind, arg, where string }

type routerText struct {
	name    string
	where   string
	options map[string]string
	at      map[string]string // where each option is
}

var listKinds = []string{"domainlist", "hostlist", "addresslist", "localpartlist"}

var verbs = map[string]bool{"accept": true, "defer": true, "deny": true, "discard": true, "drop": true, "require": true, "warn": true}

func parseConfig(text string) (*config, error) {
	c := &config{main: map[string]string{}, lists: map[string]map[string]string{}, drivers: map[string]string{}, at: map[string]string{}}
	for _, k := range listKinds {
		c.lists[k] = map[string]string{}
	}
	section, transport := "main", ""
	from := &origin{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			continue
		case strings.HasPrefix(line, "#"):
			var n int
			var file string
			if k, _ := fmt.Sscanf(line, "# %d %q", &n, &file); k == 2 {
				c.included = append(c.included, file)
				from.enter(file)
			}
			continue
		}
		c.here = from.locate(line)
		if s, ok := strings.CutPrefix(line, "begin "); ok {
			section = strings.TrimSpace(s)
			continue
		}
		if name := macroName(line); name != "" {
			from.define(name, line)
			continue
		}
		var err error
		switch section {
		case "main":
			err = c.option(line)
		case "acl":
			err = c.aclLine(line)
		case "routers":
			err = c.routerLine(line)
		case "transports":
			if name, ok := strings.CutSuffix(line, ":"); ok {
				transport = name
			} else if name, value := setting(line); name == "driver" {
				c.drivers[transport] = value
			}
		case "rewrite":
			c.rewrite = append(c.rewrite, itemText{arg: line, where: c.here})
		}
		if err != nil {
			return nil, fmt.Errorf("exim -bP config: %w", err)
		}
	}
	return c, nil
}

// macroName is the macro that a line defines: a name that begins with a capital.
func macroName(line string) string {
	if line[0] < 'A' || line[0] > 'Z' {
		return ""
	}
	name := strings.TrimRight(line[:max(0, strings.IndexByte(line, '='))], "= \t")
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
		return ""
	}
	return name
}

// option reads a line of the main section.
func (c *config) option(line string) error {
	line = strings.TrimSpace(strings.TrimPrefix(line, "hide "))
	word, rest, _ := strings.Cut(line, " ")
	kind := strings.TrimSuffix(word, "_cache")
	if c.lists[kind] != nil {
		rest = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(rest), "hide "))
		name, value, ok := strings.Cut(rest, "=")
		if !ok {
			return fmt.Errorf("%q: no list is given", line)
		}
		name = strings.TrimSpace(name)
		c.lists[kind][name], c.at[kind+" "+name] = policy.Unquote(strings.TrimSpace(value)), c.here
		return nil
	}
	name, value := setting(line)
	c.main[name], c.at[name] = value, c.here
	return nil
}

// setting reads "name = value", or a flag.
func setting(line string) (name, value string) {
	name, value, given := strings.Cut(line, "=")
	name = strings.TrimSpace(name)
	if given {
		value = policy.Unquote(strings.TrimSpace(value))
		switch value {
		case "yes", "true":
			value = "true"
		case "no", "false":
			value = "false"
		}
		return name, value
	}
	for _, no := range []string{"no_", "not_"} {
		if rest, is := strings.CutPrefix(name, no); is {
			return rest, "false"
		}
	}
	return name, "true"
}

// aclLine reads a line of an access control list.
func (c *config) aclLine(line string) error {
	word := line[:strings.IndexAny(line+" ", " \t:=!")]
	if rest := strings.TrimSpace(line[len(word):]); strings.HasPrefix(rest, ":") && strings.TrimSpace(rest[1:]) == "" {
		c.acls = append(c.acls, aclText{name: word})
		return nil
	}
	if len(c.acls) == 0 {
		return fmt.Errorf("%q: in no access control list", line)
	}
	a := &c.acls[len(c.acls)-1]
	if verbs[word] {
		a.statements = append(a.statements, statementText{verb: word})
		if line = strings.TrimSpace(line[len(word):]); line == "" {
			return nil
		}
	}
	if len(a.statements) == 0 {
		return fmt.Errorf("%q: a verb is missing", line)
	}
	s := &a.statements[len(a.statements)-1]
	it := parseItem(line)
	it.where = c.here
	s.items = append(s.items, it)
	return nil
}

func parseItem(line string) itemText {
	kind, arg, given := strings.Cut(line, "=")
	kind = strings.Join(strings.Fields(strings.Replace(kind, "!", "! ", 1)), " ")
	if name, set := strings.CutPrefix(kind, "set "); set {
		return itemText{kind: "set", arg: name + "=" + strings.TrimSpace(arg)}
	}
	if rest, negated := strings.CutPrefix(kind, "! "); negated {
		kind = "!" + rest
	}
	if !given {
		return itemText{kind: kind}
	}
	return itemText{kind: kind, arg: strings.TrimSpace(arg)}
}

// routerLine reads a line of the routers.
func (c *config) routerLine(line string) error {
	if name, ok := strings.CutSuffix(line, ":"); ok && !strings.ContainsAny(name, " \t=") {
		c.routers = append(c.routers, routerText{name, c.here, map[string]string{}, map[string]string{}})
		return nil
	}
	if len(c.routers) == 0 {
		return fmt.Errorf("%q: in no router", line)
	}
	r := &c.routers[len(c.routers)-1]
	name, value := setting(strings.TrimPrefix(line, "hide "))
	if before := r.options[name]; before != "" && name == "condition" {
		value = "${if and {{bool_lax{" + before + "}}{bool_lax{" + value + "}}}{1}{0}}"
	}
	r.options[name], r.at[name] = value, c.here
	return nil
}

// asked are the options whose values in force, with defaults, are asked for.
var asked = []string{
	"primary_hostname", "qualify_domain", "qualify_recipient", "message_size_limit", "recipients_max", "received_headers_max", "helo_allow_chars",
	"smtputf8_advertise_hosts", "dsn_advertise_hosts", "hosts_require_helo", "smtp_accept_max_per_connection", "smtp_max_synprot_errors",
}

// effective takes what Exim says of single options.
func (c *config) effective(said string) {
	for line := range strings.Lines(said) {
		name, value := setting(strings.TrimSpace(line))
		if name != "" && name[0] != '#' {
			c.main[name] = value
		}
	}
}

// where is where an option of the main section, or a list, is set.
func (c *config) where(name string) string { return cmp.Or(c.at[name], c.file) }
