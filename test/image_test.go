package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// podmanConf lets podman run where it may not raise limits, in a directory of
// its own. runc knows cgroups of both versions at once.
const podmanConf = `[containers]
default_ulimits = ["nofile=20000:20000", "nproc=10000:10000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_config_dir = "DIR/networks"
`

// compose is a project of docs/compose.yaml on a machine of its own.
type compose struct {
	t   *testing.T
	dir string
	net *farAway
}

func newCompose(t *testing.T) *compose {
	t.Helper()
	c := &compose{t: t, dir: tempDir(t), net: newFarAway(t)}
	write(t, c.dir+"/containers.conf", strings.ReplaceAll(podmanConf, "DIR", c.dir))
	write(t, c.dir+"/storage.conf", "[storage]\ndriver = \"overlay\"\ngraphroot = \""+c.dir+"/graph\"\nrunroot = \""+c.dir+"/run\"\n")
	write(t, c.dir+"/compose.yaml", readFile(t, "../docs/compose.yaml"))
	if err := os.Mkdir(c.dir+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs a command of podman's on that machine.
func (c *compose) run(command ...string) string {
	c.t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + c.net.name}, command...)...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+c.dir+"/containers.conf", "CONTAINERS_STORAGE_CONF="+c.dir+"/storage.conf")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	// podman-compose 1.0 succeeds whatever podman says.
	if err != nil || strings.Contains(stderr.String(), "\nexit code: ") && !strings.Contains(stderr.String(), "\nexit code: 0") {
		c.t.Fatalf("%s: %v (test/install-peers installs podman)\n%s", strings.Join(command, " "), err, stderr.String())
	}
	return string(out)
}

// queue is the mail that waits there. All of it came from this machine's
// address, not from one of podman's.
func (c *compose) queue() (ids []string) {
	c.t.Helper()
	var list []struct {
		ID     string
		Client struct{ Addr string }
	}
	if err := json.Unmarshal([]byte(c.run("podman", "exec", "mx_understudy_1", "understudy", "queue", "list", "--json")), &list); err != nil {
		c.t.Fatal(err)
	}
	for _, m := range list {
		ids = append(ids, m.ID)
		if m.Client.Addr != c.net.peer {
			c.t.Errorf("the client is %s, want %s", m.Client.Addr, c.net.peer)
		}
	}
	return ids
}

// TestImage builds the container's image twice, to the same octets, and runs it as
// docs/CONTAINER.md says: it accepts mail, as a user without rights, from the
// client's own address, and has it after a new start on the same volume.
func TestImage(t *testing.T) {
	sh(t, "make image")
	first := sh(t, "sha256sum dist/understudy.tar")
	if second := sh(t, "make image >/dev/null 2>&1; sha256sum dist/understudy.tar"); second != first {
		t.Errorf("two builds differ: %s and %s", first, second)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		config := sh(t, `skopeo --override-arch "$1" inspect --config oci-archive:dist/understudy.tar`, arch)
		if !strings.Contains(config, `"architecture": "`+arch+`"`) || !strings.Contains(config, `"User": "10025:10025"`) {
			t.Errorf("%s: %s", arch, config)
		}
	}
	c := newCompose(t)
	write(t, c.dir+"/etc/policy.toml", policyFor("alice@example.org"))
	write(t, c.dir+"/etc/understudy.toml", "hostname = \"mx2.example.org\"\nprimary.address = \"127.0.0.1:2525\"\npolicy.file = \"/etc/understudy/policy.toml\"\n")
	c.run("podman", "load", "-i", absolute(t, "../dist/understudy.tar"))
	t.Cleanup(func() { c.run("podman-compose", "-p", "mx", "down", "-v") })
	mail := func() {
		t.Helper()
		eventually(t, 30*time.Second, "a mail is accepted", func() bool { return deliverOnce(c.net.addr+":25") == nil })
	}
	c.run("podman-compose", "-p", "mx", "up", "-d")
	mail()
	before := c.queue()
	if len(before) != 1 {
		t.Fatalf("queue: %q", before)
	}
	c.run("podman-compose", "-p", "mx", "down")
	c.run("podman-compose", "-p", "mx", "up", "-d")
	mail()
	if after := c.queue(); len(after) != 2 || after[0] != before[0] {
		t.Errorf("after a new start the queue is %q, before it %q", after, before)
	}
	version := c.run("podman", "exec", "mx_understudy_1", "understudy", "version")
	if want := " commit " + strings.TrimSpace(sh(t, "git rev-parse --short=12 HEAD")) + " of 20"; !strings.Contains(version, want) {
		t.Errorf("version %q, want %q", version, want)
	}
}
