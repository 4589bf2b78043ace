//go:build !race

// Without the race detector: see suites_test.go.

package postfix

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// systemctl stands in for systemd's: it starts the publisher, and waits until it is ready.
const systemctl = `#!/bin/sh
[ "$*" = "enable --now understudy-publish" ] || exit 0
setsid understudy publish -c /etc/understudy/publish.toml > /run/publisher 2>&1 < /dev/null &
for n in $(seq 600); do grep -q '"msg":"ready"' /run/publisher && exit; sleep 0.1; done
cat /run/publisher >&2; exit 1
`

// onMachine: the suite isn't one in containers, and its operator types on the machine itself.
func (c *container) onMachine() bool { return len(c.suite.Containers) == 0 }

// shell runs a command as an operator types it.
func (c *container) shell(line string) string {
	c.Helper()
	cmd := exec.CommandContext(c.Context(), "sh", "-ec", line)
	cmd.Dir = c.engine
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(c.program)+":"+os.Getenv("PATH"))
	if c.onMachine() {
		cmd = exec.CommandContext(c.Context(), "docker", append(slices.Clone(c.suite.Prefix[1:]), "sh", "-ec", "cd /root\n"+line)...)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		c.Fatalf("%s: %v\n%s%s\n%s", line, err, out, &stderr, c.log())
	}
	return string(out)
}

// page is the suite's part of docs/primaries/suites.md.
func (c *container) page() string {
	c.Helper()
	page, err := os.ReadFile("../../docs/primaries/suites.md")
	_, part, found := strings.Cut(string(page), "\n### "+c.suite.Name+"\n")
	if err != nil || !found {
		c.Fatalf("docs/primaries/suites.md has no part of %s (%v)", c.suite.Name, err)
	}
	part, _, _ = strings.Cut(part, "\n### ")
	return part
}

var importLine = regexp.MustCompile(`(?m)^    (understudy policy import postfix .* -o policy\.json)`)

// typed is what the page's line imports, and its report.
func (c *container) typed() (*policy.Snapshot, *fidelity.Report) {
	c.Helper()
	line := importLine.FindStringSubmatch(c.page())
	if line == nil {
		c.Fatalf("no line imports in\n%s", c.page())
	}
	typed, dir := line[1]+" --json", c.engine
	if c.onMachine() {
		dir = filepath.Join(c.root, "root")
		if err := os.Link(c.program, filepath.Join(c.root, "bin-local/understudy")); err != nil {
			c.Fatal(err)
		}
	} else {
		for _, h := range c.hosts { // the test's own port
			typed += " --host '" + h + "'"
		}
	}
	report := &fidelity.Report{}
	if err := json.Unmarshal([]byte(c.shell(typed)), report); err != nil {
		c.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "policy.json"))
	if err != nil {
		c.Fatal(err)
	}
	snap, err := policy.Decode("policy.json", bytes.NewReader(b), nil)
	if err != nil {
		c.Fatal(err)
	}
	return snap, report
}

// setUp types what the page has for a suite on the machine: the suite is found, the publisher
// started, and the secondary let in. ./test sets those in containers up.
func (c *container) setUp() {
	if !c.onMachine() {
		return
	}
	out := c.shell("mkdir -p /etc/understudy\nunderstudy setup primary --secondary mx2.example.org --yes")
	for _, want := range []string{
		"This is " + c.suite.Title + ": there is /", "    suite = \"" + c.suite.Name + "\"\n",
		"understudy setup secondary --hostname mx2.example.org --primary ", " --join understudy1-",
	} {
		if !strings.Contains(out, want) {
			c.Errorf("set-up doesn't say %q:\n%s", want, out)
		}
	}
	for _, note := range c.suite.Notes {
		if !strings.Contains(out, note) {
			c.Errorf("set-up doesn't tell %q", note)
		}
	}
	for _, parameter := range []string{"mynetworks", "smtpd_authorized_xclient_hosts"} {
		if value := c.shell("postconf -xh " + parameter); !slices.Contains(words(value), "192.0.2.77") {
			c.Errorf("after set-up %s = %s", parameter, value)
		}
	}
}
