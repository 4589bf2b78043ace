package exim

import (
	"cmp"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/expansion"
)

// directories are the look-ups in an LDAP directory: of one entry, of several, of a name.
var directories = []string{"ldap", "ldapm", "ldapdn"}

// directory lists what a directory answers to every key.
//
//	user="cn=exim,dc=example" pass=x ldap:///ou=people,dc=example?mail?sub?(&(objectClass=account)(mail=KEY))
//
// KEY is "\x000\x00". The filter must compare it with attributes, in one place.
func (i *importer) directory(typ, text string, keys []string) (map[string]string, error) {
	if i.src.Directory == nil {
		return nil, fmt.Errorf("directories aren't listed here")
	}
	for _, k := range keys {
		if k != keys[0] {
			return nil, fmt.Errorf("it asks for more than one key")
		}
	}
	db, rest, err := i.directoryServer(typ, text)
	if err != nil {
		return nil, err
	}
	var f []string
	for _, part := range strings.SplitN(rest, "?", 4) {
		part, err := url.PathUnescape(part)
		if err != nil {
			return nil, err
		}
		f = append(f, part)
	}
	if len(f) != 4 || strings.Contains(f[0]+f[1]+f[2], "\x00") {
		return nil, fmt.Errorf("only its filter may depend on what is looked up")
	}
	filter, by, err := listingFilter(f[3])
	if err != nil {
		return nil, err
	}
	wanted := strings.FieldsFunc(f[1], func(r rune) bool { return r == ',' || r == ' ' })
	if len(wanted) == 0 && typ != "ldapdn" {
		return nil, fmt.Errorf("it asks for every attribute")
	}
	db.Search = lister.Search{Base: strings.TrimSpace(f[0]), Scope: cmp.Or(strings.TrimSpace(f[2]), "base"), Filter: filter, Attributes: append(slices.Clone(wanted), by...)}
	entries := map[string]string{}
	err = i.src.Directory(i.ctx, db, func(e lister.Entry) error {
		v, found := e.DN, true
		if typ != "ldapdn" {
			v, found = attributes(e, wanted)
		}
		if !found {
			return nil
		}
		return enter(entries, e, by, v, typ == "ldapm")
	})
	if err != nil {
		return nil, err
	}
	i.polled["ldap"] = true
	return entries, nil
}

// enter notes what an entry answers to each key that it has by these attributes.
func enter(entries map[string]string, e lister.Entry, by []string, value string, several bool) error {
	seen := map[string]bool{}
	for _, a := range by {
		for _, k := range e.Values(a) {
			if k = strings.ToLower(k); seen[k] {
				continue
			}
			seen[k] = true
			before, again := entries[k]
			switch {
			case !again:
				entries[k] = value
			case several:
				entries[k] = before + "\n" + value
			default:
				return fmt.Errorf("%q finds several entries, and Exim defers", k)
			}
		}
	}
	return nil
}

// directoryServer reads what stands before a query: who asks, and whom.
func (i *importer) directoryServer(typ, text string) (db *lister.Source, rest string, err error) {
	db = &lister.Source{Type: "ldap", Name: typ, Settings: map[string]string{}}
	servers := expansion.List(i.conf.main["ldap_default_servers"])
	for text = strings.TrimSpace(text); !strings.HasPrefix(strings.ToLower(text), "ldap"); text = strings.TrimSpace(text) {
		name, value, ok := strings.Cut(text, "=")
		if !ok || strings.ContainsAny(name, " \x00") {
			return nil, "", fmt.Errorf("it isn't a query that is known")
		}
		end := settingEnd(value)
		text = value[min(end, len(value)):]
		value = policy.Unquote(value[:min(end, len(value))])
		switch strings.ToLower(name) {
		case "user":
			if db.Settings["bind_dn"], err = url.PathUnescape(value); err != nil {
				return nil, "", err
			}
		case "pass":
			db.Settings["bind_pw"] = value
		case "servers":
			servers = expansion.List(value)
		case "size", "time", "connect", "dereference", "referrals", "network":
		default:
			return nil, "", fmt.Errorf("%s= isn't known", name)
		}
	}
	scheme, rest, ok := strings.Cut(text, "://")
	host, rest, slash := strings.Cut(rest, "/")
	if !ok || !slash {
		return nil, "", fmt.Errorf("it has no URL")
	}
	if host != "" {
		servers = []string{host}
	}
	if len(servers) > 0 {
		for n, s := range servers {
			if s = strings.TrimSpace(s); !strings.Contains(s, "://") {
				s = scheme + "://" + s
			}
			servers[n] = s
		}
		db.Settings["server_host"] = strings.Join(servers, " ")
	}
	if i.conf.main["ldap_start_tls"] == "true" {
		db.Settings["start_tls"] = "yes"
	}
	if v := i.conf.main["ldap_require_cert"]; v == "hard" || v == "demand" {
		db.Settings["tls_require_cert"] = "yes"
	}
	if f := i.conf.main["ldap_ca_cert_file"]; f != "" {
		db.Settings["tls_ca_cert_file"] = f
	}
	return db, rest, nil
}

// settingEnd is where a value before a query ends: at a space, or at its closing quote.
func settingEnd(value string) int {
	if !strings.HasPrefix(value, `"`) {
		return strings.IndexByte(value+" ", ' ')
	}
	end := 1
	for ; end < len(value) && value[end] != '"'; end++ {
		if value[end] == '\\' {
			end++
		}
	}
	return end + 1
}

// attributes spells an entry's attributes as Exim does.
func attributes(e lister.Entry, wanted []string) (text string, found bool) {
	var all []string
	for _, a := range e.Attributes {
		base, _, _ := strings.Cut(a.Name, ";")
		if !slices.ContainsFunc(wanted, func(w string) bool { return strings.EqualFold(w, base) || strings.EqualFold(w, a.Name) }) || len(a.Values) == 0 {
			continue
		}
		var values []string
		for _, v := range a.Values {
			v = strings.ReplaceAll(v, ",", ",,")
			if len(wanted) > 1 {
				v = strings.NewReplacer("\n", `\n`, `"`, `\"`, `\`, `\\`).Replace(v)
			}
			values = append(values, v)
		}
		v := strings.Join(values, ",")
		if len(wanted) > 1 {
			v = a.Name + `="` + v + `"`
		}
		all = append(all, v)
	}
	if len(wanted) > 1 {
		return strings.Join(all, " "), len(all) > 0
	}
	return strings.Join(all, ","), len(all) > 0
}

var keyedFilter = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9;-]*)=\x00\d+\x00$`)

// listingFilter makes a filter for all keys out of one for a key, and says which
// attributes hold the keys.
func listingFilter(s string) (filter string, by []string, err error) {
	f, err := lister.ParseFilter(s)
	if err != nil {
		return "", nil, fmt.Errorf("its filter: %w", err)
	}
	if by, err = forAllKeys(f); err == nil && len(by) == 0 {
		err = fmt.Errorf("its filter compares the key with no attribute")
	}
	if err != nil {
		return "", nil, err
	}
	return f.String(), by, nil
}

// forAllKeys has a filter find what has any key, and returns the attributes that it
// compares with the key.
func forAllKeys(f *lister.Filter) (by []string, err error) {
	bad := fmt.Errorf("its filter compares the key with more than attributes")
	if m := keyedFilter.FindStringSubmatch(f.Item); m != nil {
		f.Item = m[1] + "=*"
		return []string{m[1]}, nil
	}
	if strings.Contains(f.Item, "\x00") {
		return nil, bad
	}
	keyed, bound := 0, false
	for _, c := range f.Children {
		in, err := forAllKeys(c)
		if err != nil {
			return nil, err
		}
		if len(in) > 0 {
			keyed++
			by = append(by, in...)
			bound = bound || strings.Contains(c.String(), "(&") // only with something else does an entry have that key
		}
	}
	kids := len(f.Children)
	if keyed > 0 && (f.Op == '!' || f.Op == '|' && (keyed != kids || kids > 1 && bound) || f.Op == '&' && keyed > 1) {
		return nil, bad
	}
	return by, nil
}
