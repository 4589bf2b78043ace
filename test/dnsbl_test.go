package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestSickList: our resolver's answers from a DNS list are everybody's listing. The
// secondary refuses by it only where its primary does so, too.
func TestSickList(t *testing.T) {
	all := []string{"2.0.0.127.bl.example. 60 IN A 127.0.0.2", "1.0.0.127.bl.example. 60 IN A 127.0.0.2", "1.2.0.192.bl.example. 60 IN A 127.0.0.2"}
	for _, tt := range []struct {
		name   string
		theirs []string // the primary's records
		view   string   // … and what it makes of them
		reply  string   // to a client that is listed
	}{
		{"well at the primary", all[:1], "ok", "250 2.1.5"},
		{"the same at the primary", all, "lists_all", "554 5.7.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			serve := func(records ...string) string {
				d, err := demo.StartDNS(records...)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(d.Close)
				return d.Addr()
			}
			p := &filePublisher{t: t, dir: tempDir(t), addr: testmx.FreeAddr()}
			write(t, filepath.Join(p.dir, "policy.toml"), policyFor("alice@example.org")+"[[dnsbl]]\nzone = \"bl.example\"\n")
			write(t, p.conf(), fmt.Sprintf("state_dir = %q\n[publish]\nlisten = %[2]q\naddress = %[2]q\n[policy]\nfile = \"policy.toml\"\n[metrics]\nlisten = \"\"\n[dns]\nservers = [%[3]q]\n",
				p.dir+"/state", p.addr, serve(tt.theirs...)))
			p.run(binary)
			seen := func() string { return p.cliOf(binary, "dnsbl") }
			eventually(t, 20*time.Second, "the primary has asked the list", func() bool { return strings.Contains(seen(), tt.view) })

			s := newFollowing(t, testmx.FreeAddr())
			conf := strings.Replace(readFile(t, s.path("understudy.toml")), "servers = [\"127.0.0.1:1\"]\ntimeout = \"100ms\"", fmt.Sprintf("servers = [%q]", serve(all...)), 1)
			write(t, s.path("understudy.toml"), conf)
			line, _, _ := strings.Cut(p.cliOf(binary, "invite", "mx2"), "\n")
			s.cli(strings.Fields(line)[1:]...)
			s.start()
			var views []struct {
				Zone, State string
				Set         bool                    `json:"set_aside"`
				Primary     *struct{ State string } `json:"primary"`
			}
			eventually(t, 20*time.Second, "both views are known", func() bool {
				if err := json.Unmarshal([]byte(s.cli("dnsbl", "--json")), &views); err != nil {
					t.Fatal(err)
				}
				return len(views) == 1 && views[0].State == "lists_all" && views[0].Primary != nil && views[0].Primary.State == tt.view &&
					views[0].Set == (tt.view == "ok")
			})
			if got := sendAs(t, s.addr, "192.0.2.1", nil); !strings.HasPrefix(got, tt.reply) {
				t.Errorf("the client is answered %q, want %q", got, tt.reply)
			}
			if n := s.metric(`understudy_dnsbl_zones{state="lists_all"}`); n != 1 {
				t.Errorf("understudy_dnsbl_zones says %v", n)
			}
			if out := s.cli("dnsbl"); !strings.Contains(out, "bl.example: 2.0.0.127: 127.0.0.2; 1.0.0.127: 127.0.0.2") {
				t.Errorf("dnsbl says\n%s", out)
			}
		})
	}
}

// run starts the publisher; the test's end kills it.
func (p *filePublisher) run(binary string) {
	p.t.Helper()
	log, err := os.Create(p.dir + "/log")
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command(binary, "publish", "-c", p.conf())
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		log.Close()
	})
	eventually(p.t, time.Minute, "the publisher is ready", func() bool {
		return strings.Contains(readFile(p.t, p.dir+"/log"), "ready")
	})
}

func (p *filePublisher) cliOf(binary string, args ...string) string {
	p.t.Helper()
	out, err := exec.Command(binary, append(args, "-c", p.conf())...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("understudy %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
