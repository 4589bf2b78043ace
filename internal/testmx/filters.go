package testmx

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What the filters below refuse: rspamd GTUBE by itself, and the subjects
// "forbidden" (554) and "later" (451); ClamAV the virus.
const (
	GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
	Virus = "understudy: a body that only this test's signature knows"
)

const rspamdConf = `options { pidfile = "%[1]s/pid"; filters = ""; }
actions { reject = 15; add_header = 6; greylist = 4; }
logging { type = "file"; filename = "%[1]s/log"; level = "warning"; }
worker "rspamd_proxy" { bind_socket = "%[2]s"; milter = yes; count = 1; timeout = 60s; upstream "local" { default = yes; self_scan = yes; } }
lua = "%[1]s/rules.lua";
`

const rspamdRules = `rspamd_config.FORBIDDEN = { callback = function(task) return task:get_header('Subject') == 'forbidden' end, score = 20 }
rspamd_config.LATER = { callback = function(task)
  if task:get_header('Subject') == 'later' then task:set_pre_result('soft reject', 'Try again in an hour') end
end, type = 'prefilter' }
rspamd_config.GREY = { callback = function(task) return task:get_header('Subject') == 'grey' end, score = 5 }
`

const greyConf = `modules { path = "/usr/share/rspamd/plugins/greylist.lua"; }
redis { servers = "%s"; password = "%s"; }
greylist { timeout = 2s; }
`

// StartRspamd runs Debian's rspamd as a milter at addr. It asks nobody.
func StartRspamd(t testing.TB, addr string) *Daemon {
	t.Helper()
	d, _ := startRspamd(t, addr, "")
	return d
}

// StartGreylisting runs an rspamd that greylists the subject "grey" for two seconds, with its
// Redis at another address; both want the password. It returns rspamd's configuration.
func StartGreylisting(t testing.TB, addr, redis, password string) (conf string) {
	t.Helper()
	dir := openDir(t)
	_, port, _ := net.SplitHostPort(redis)
	startFilter(t, redis, "", "/usr/bin/redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", dir, "--save", "", "--requirepass", password)
	_, conf = startRspamd(t, addr, fmt.Sprintf(greyConf, redis, password))
	return conf
}

func startRspamd(t testing.TB, addr, more string) (d *Daemon, conf string) {
	t.Helper()
	dir := openDir(t)
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o755); err != nil {
		t.Fatal(err)
	}
	conf = put(t, dir, "rspamd.conf", fmt.Sprintf(rspamdConf, dir, addr)+more)
	put(t, dir, "rules.lua", rspamdRules)
	if out, err := exec.Command("chown", "-R", "_rspamd", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s; run test/install-peers", err, out)
	}
	return startFilter(t, addr, filepath.Join(dir, "log"), "/usr/bin/rspamd", "-f", "-u", "_rspamd", "-g", "_rspamd", "-c", conf, "--var=RUNDIR="+run, "--var=DBDIR="+dir), conf
}

// ClamAV is Debian's clamav-milter with a clamd that knows one signature.
type ClamAV struct {
	t    testing.TB
	addr string
	dir  string
	*Daemon
}

// StartClamAV runs both. What is infected is refused.
func StartClamAV(t testing.TB, addr string) *ClamAV {
	t.Helper()
	dir := openDir(t)
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "db/test.ndb", "Understudy.Test:0:*:"+hex.EncodeToString([]byte(Virus))+"\n")
	_, port, _ := net.SplitHostPort(addr)
	clamd := FreeAddr()
	_, clamdPort, _ := net.SplitHostPort(clamd)
	conf := put(t, dir, "clamd.conf", "TCPSocket "+clamdPort+"\nTCPAddr 127.0.0.1\nDatabaseDirectory "+dir+"/db\nForeground true\nLogFile "+dir+"/log\nTemporaryDirectory "+dir+"\n")
	put(t, dir, "milter.conf", "MilterSocket inet:"+port+"@127.0.0.1\nClamdSocket tcp:127.0.0.1:"+clamdPort+"\nForeground true\nOnInfected Reject\nRejectMsg Infected: %v\nLogFile "+dir+"/milter.log\nLogVerbose yes\nTemporaryDirectory "+dir+"\n")
	startFilter(t, clamd, filepath.Join(dir, "log"), "/usr/sbin/clamd", "-c", conf)
	c := &ClamAV{t: t, addr: addr, dir: dir}
	c.Restart()
	return c
}

// Restart starts the milter anew, after a Kill, and waits until it has found its clamd: before,
// it defers what it is asked.
func (c *ClamAV) Restart() {
	c.t.Helper()
	log := filepath.Join(c.dir, "milter.log")
	_ = os.Remove(log)
	c.Daemon = startFilter(c.t, c.addr, log, "/usr/sbin/clamav-milter", "-c", filepath.Join(c.dir, "milter.conf"))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		text, _ := os.ReadFile(log)
		if bytes.Contains(text, []byte("returned: success")) {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("clamav-milter doesn't find clamd: %s", text)
		}
	}
}

func startFilter(t testing.TB, addr, log string, argv ...string) *Daemon {
	t.Helper()
	var out bytes.Buffer
	d, err := StartDaemon(addr, &out, argv...)
	if err != nil {
		text, _ := os.ReadFile(log)
		t.Fatalf("%v: %s\n%s; run test/install-peers", err, &out, text)
	}
	t.Cleanup(func() {
		if err := d.Kill(); err != nil {
			t.Errorf("kill %s: %v", argv[0], err)
		}
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("%s: %s", argv[0], strings.TrimSpace(string(text[max(0, len(text)-2000):])))
		}
	})
	return d
}

// openDir is like t.TempDir, but other users may pass through it.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "understudy-filter")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func put(t testing.TB, dir, name, text string) string {
	t.Helper()
	name = filepath.Join(dir, name)
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}
