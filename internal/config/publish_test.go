package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const publisher = `state_dir = "/srv/state"
[publish]
address = "mx1.example.org:9626"
[policy]
postfix = "/etc/postfix"
[[source]]
name = "users"
type = "file"
path = "users"
[[source]]
name = "people"
type = "ldap"
connection = "/etc/postfix/ldap.cf"
filter = "(mail=*)"
`

func TestPublisher(t *testing.T) {
	c, err := Parse("/etc/understudy/publish.toml", []byte(publisher))
	if err != nil {
		t.Fatal(err)
	}
	want := []Source{
		{Name: "users", Type: "file", Path: "/etc/understudy/users"},
		{Name: "people", Type: "ldap", Connection: "/etc/postfix/ldap.cf", Filter: "(mail=*)", Scope: "sub", Attributes: []string{"mail"}},
	}
	if diff := cmp.Diff(want, c.Sources); diff != "" || !c.IsPublisher || c.Publish.Listen != ":9626" {
		t.Errorf("%+v\n%s", c.Publish, diff)
	}
	var out strings.Builder
	if err := Print(&out, c, true); err != nil {
		t.Fatal(err)
	}
	again, err := Parse("/etc/understudy/publish.toml", []byte(out.String()))
	if diff := cmp.Diff(c, again); err != nil || diff != "" {
		t.Errorf("what Print writes reads differently: %v\n%s\n%s", err, diff, out.String())
	}
}

// TestPublisherMistakes: the mistake and what to do stand in the message.
func TestPublisherMistakes(t *testing.T) {
	secondary := "[primary]\naddress = \"mx1.example.org:25\"\n"
	source := publisher + "[[source]]\n"
	for _, tt := range []struct{ name, text, want string }{
		{"no address", "[publish]\n[policy]\nfile = \"p\"\n", "publish.address: missing"},
		{"an address without port", "[publish]\naddress = \"mx1.example.org\"\n[policy]\nfile = \"p\"\n", "lacks a port"},
		{"no policy", "[publish]\naddress = \"mx1.example.org:9626\"\n", "policy.postfix: missing"},
		{"two policies", publisher + "[policy]\n", "defined"},
		{"a secondary's key", publisher + "[sync]\ndomains = [\"example.org\"]\n", "keep them in two files"},
		{"a secondary with a Postfix", secondary + "[policy]\npostfix = \"/etc/postfix\"\n", "understudy publish"},
		{"a secondary with a source", secondary + "[sync]\ndomains = [\"example.org\"]\n[[source]]\nname = \"a\"\ntype = \"file\"\npath = \"p\"\n", "remove it here"},
		{"a file and a primary", secondary + "[policy]\nfile = \"p\"\n[sync]\ndomains = [\"example.org\"]\n", "remove one"},
		{"a source without type", source + "name = \"x\"\n", `lacks the key "type"`},
		{"an unknown type", source + "name = \"x\"\ntype = \"oracle\"\n", "choose"},
		{"a query for a file", source + "name = \"x\"\ntype = \"file\"\npath = \"p\"\nquery = \"SELECT\"\n", `means nothing to type "file"`},
		{"no query", source + "name = \"x\"\ntype = \"pgsql\"\nconnection = \"c\"\n", `lacks the key "query"`},
		{"a command of the path", source + "name = \"x\"\ntype = \"command\"\ncommand = [\"ls\"]\n", "is no path of a program"},
		{"a name twice", source + "name = \"users\"\ntype = \"file\"\npath = \"p\"\n", "already names another source"},
		{"no list", "source = 1\n[publish]\n", "[[source]]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("/etc/understudy/publish.toml", []byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
