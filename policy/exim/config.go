package exim

import (
	"fmt"
	"io"
	"os"
	"strings"
)

type reader = io.Reader

// limited bounds what a program may say.
func limited(r io.Reader) io.Reader { return io.LimitReader(r, 64<<20) }

// config is what "exim -bP config" prints.
type config struct {
	file     string
	included []string
	main     map[string]string            // options, as written
	lists    map[string]map[string]string // domainlist, hostlist, addresslist, localpartlist: by name
	acls     []aclText
	routers  []routerText
	rewrite  []string
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
type itemText struct{ kind, arg string }

type routerText struct {
	name    string
	options map[string]string
}

var listKinds = []string{"domainlist", "hostlist", "addresslist", "localpartlist"}

var verbs = map[string]bool{"accept": true, "defer": true, "deny": true, "discard": true, "drop": true, "require": true, "warn": true}

func parseConfig(text string) (*config, error) {
	c := &config{main: map[string]string{}, lists: map[string]map[string]string{}}
	for _, k := range listKinds {
		c.lists[k] = map[string]string{}
	}
	section := "main"
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
			}
			continue
		}
		if s, ok := strings.CutPrefix(line, "begin "); ok {
			section = strings.TrimSpace(s)
			continue
		}
		if isMacro(line) {
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
		case "rewrite":
			c.rewrite = append(c.rewrite, line)
		}
		if err != nil {
			return nil, fmt.Errorf("exim -bP config: %w", err)
		}
	}
	return c, nil
}

// isMacro says that a line defines a macro: a name that begins with a capital.
func isMacro(line string) bool {
	if line[0] < 'A' || line[0] > 'Z' {
		return false
	}
	name := strings.TrimRight(line[:max(0, strings.IndexByte(line, '='))], "= \t")
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
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
		c.lists[kind][strings.TrimSpace(name)] = dequote(strings.TrimSpace(value))
		return nil
	}
	name, value := setting(line)
	c.main[name] = value
	return nil
}

// setting reads "name = value", or a flag.
func setting(line string) (name, value string) {
	name, value, given := strings.Cut(line, "=")
	name = strings.TrimSpace(name)
	if given {
		value = dequote(strings.TrimSpace(value))
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

// dequote takes the quotes off a value, with its backslashes.
func dequote(s string) string {
	if len(s) < 2 || s[0] != '"' {
		return s
	}
	var b strings.Builder
	for i := 1; i < len(s) && s[i] != '"'; i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		switch s[i] {
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case 't':
			b.WriteByte('\t')
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
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
	s.items = append(s.items, parseItem(line))
	return nil
}

func parseItem(line string) itemText {
	kind, arg, given := strings.Cut(line, "=")
	kind = strings.Join(strings.Fields(strings.Replace(kind, "!", "! ", 1)), " ")
	if name, set := strings.CutPrefix(kind, "set "); set {
		return itemText{"set", name + "=" + strings.TrimSpace(arg)}
	}
	if rest, negated := strings.CutPrefix(kind, "! "); negated {
		kind = "!" + rest
	}
	if !given {
		return itemText{kind, ""}
	}
	return itemText{kind, strings.TrimSpace(arg)}
}

// routerLine reads a line of the routers.
func (c *config) routerLine(line string) error {
	if name, ok := strings.CutSuffix(line, ":"); ok && !strings.ContainsAny(name, " \t=") {
		c.routers = append(c.routers, routerText{name, map[string]string{}})
		return nil
	}
	if len(c.routers) == 0 {
		return fmt.Errorf("%q: in no router", line)
	}
	r := &c.routers[len(c.routers)-1]
	name, value := setting(line)
	if before := r.options[name]; before != "" && name == "condition" {
		value = "${if and {{bool_lax{" + before + "}}{bool_lax{" + value + "}}}{1}{0}}"
	}
	r.options[name] = value
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

// where finds a condition in the file: its line, or that of its list.
func (c *config) where(acl string, it itemText) string {
	b, err := os.ReadFile(c.file)
	if err != nil {
		return c.file
	}
	kind := strings.TrimPrefix(it.kind, "!")
	header, like := 0, 0
	for n, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		if header == 0 {
			if strings.HasPrefix(line, acl) && strings.HasPrefix(strings.TrimSpace(line[len(acl):]), ":") {
				header = n + 1
			}
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		if verbs[word] {
			line = strings.TrimSpace(rest)
		}
		have := parseItem(line + " ")
		if have.kind != it.kind && !(have.kind == "set" && kind == "set") {
			continue
		}
		if have.arg == it.arg {
			return fmt.Sprintf("%s:%d", c.file, n+1)
		}
		if stem, cut := strings.CutSuffix(have.arg, `\`); like == 0 && (cut && strings.HasPrefix(it.arg, strings.TrimSpace(stem)) || hasMacro(have.arg)) {
			like = n + 1
		}
	}
	if like > 0 {
		header = like
	}
	return fmt.Sprintf("%s:%d", c.file, header)
}

// hasMacro says that a value may hold a macro's name.
func hasMacro(s string) bool {
	for _, w := range strings.FieldsFunc(s, func(r rune) bool { return r != '_' && (r < 'A' || r > 'Z') && (r < '0' || r > '9') }) {
		if len(w) > 3 && w[0] >= 'A' {
			return true
		}
	}
	return false
}
