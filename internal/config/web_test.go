package config

import (
	"strings"
	"testing"
)

// TestWeb: the page never listens on the network, and no header is trusted on TCP.
func TestWeb(t *testing.T) {
	for _, tt := range []struct{ name, web, want string }{
		{"off", ``, ""},
		{"IPv4", `listen = "127.0.0.1:9627"`, ""},
		{"IPv6", `listen = "[::1]:9627"`, ""},
		{"localhost", `listen = "localhost:9627"`, ""},
		{"socket", `listen = "unix:/run/understudy/web.sock"`, ""},
		{"every address", `listen = ":9627"`, `web.listen: ":9627" is open to the network, in plain text; write "127.0.0.1:9627"`},
		{"any address", `listen = "0.0.0.0:9627"`, "open to the network"},
		{"any IPv6 address", `listen = "[::]:9627"`, "open to the network"},
		{"public address", `listen = "192.0.2.1:9627"`, "open to the network"},
		{"name", `listen = "mx2.example.org:9627"`, "open to the network"},
		{"name that begins as localhost", `listen = "localhost.example.org:9627"`, "open to the network"},
		{"no port", `listen = "127.0.0.1:0"`, "leaves the port to chance"},
		{"relative socket", `listen = "unix:web.sock"`, "no path from the root"},
		{"header on a socket", `listen = "unix:/run/web.sock"` + "\n" + `trusted_header = "Remote-User"`, ""},
		{"header on TCP", `listen = "127.0.0.1:9627"` + "\n" + `trusted_header = "Remote-User"`, "every program on this machine"},
		{"header of the client", `listen = "unix:/run/web.sock"` + "\n" + `trusted_header = "authorization"`, "comes from the client"},
		{"no header", `listen = "unix:/run/web.sock"` + "\n" + `trusted_header = "Remote User"`, "is no name of a header field"},
		{"addresses for a proxy's users", `listen = "unix:/run/web.sock"` + "\n" + `trusted_header = "Remote-User"` + "\n" + `show_addresses = "all"`, ""},
		{"addresses for all, without a proxy", `listen = "127.0.0.1:9627"` + "\n" + `show_addresses = "all"`, "set trusted_header as well"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("/etc/understudy/understudy.toml", []byte(minimal+"[web]\n"+tt.web+"\n"))
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q", err, tt.want)
			case err == nil && c.WebTokenFile() != c.StateDir+"/web.token":
				t.Errorf("the token is in %s", c.WebTokenFile())
			}
		})
	}
	if _, err := Parse("publish.toml", []byte("[publish]\naddress = \"mx1.example.org:9626\"\n[policy]\npostfix = \"/etc/postfix\"\n[web]\nlisten = \"127.0.0.1:9627\"\n")); err == nil || !strings.Contains(err.Error(), "web.listen: is for a secondary") {
		t.Errorf("a publisher's page: %v", err)
	}
}
