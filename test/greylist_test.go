package test

import (
	"bufio"
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

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// postgrey is Debian's, with a delay of two seconds.
type postgrey struct {
	t    *testing.T
	addr string
	dir  string // of its database
	file string // as /etc/default/postgrey
	argv []string
	run  *testmx.Daemon
}

func newPostgrey(t *testing.T) *postgrey {
	t.Helper()
	dir := tempDir(t)
	g := &postgrey{t: t, addr: testmx.FreeAddr(), dir: filepath.Join(dir, "db"), file: filepath.Join(dir, "default")}
	if err := os.Mkdir(g.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chown", "postgrey:postgrey", g.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s; run test/install-peers", err, out)
	}
	none := filepath.Join(dir, "none")
	write(t, none, "")
	options := []string{"--inet=" + g.addr, "--dbdir=" + g.dir, "--delay=2", "--whitelist-clients=" + none, "--whitelist-recipients=" + none}
	write(t, g.file, fmt.Sprintf("POSTGREY_OPTS=%q\n", strings.Join(options, " ")))
	g.argv = append([]string{"/usr/sbin/postgrey"}, options...)
	g.start()
	t.Cleanup(func() { _ = g.run.Kill() })
	return g
}

func (g *postgrey) start() {
	g.t.Helper()
	var out bytes.Buffer
	var err error
	if g.run, err = testmx.StartDaemon(g.addr, &out, g.argv...); err != nil {
		g.t.Fatalf("%v: %s", err, &out)
	}
}

// defers puts a triplet to postgrey.
func (g *postgrey) defers(client, sender, rcpt string) bool {
	g.t.Helper()
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(c, "request=smtpd_access_policy\nclient_address=%s\nclient_name=unknown\nsender=%s\nrecipient=%s\n\n", client, sender, rcpt)
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		g.t.Fatal(err)
	}
	return strings.HasPrefix(answer, "action=DEFER")
}

// TestGreylistTravels: whom the primary's postgrey knows is let in by the secondary, hashed
// as the policy is; a stranger is put off once. Whom the secondary has let in the
// primary hears of, and its postgrey can learn it.
func TestGreylistTravels(t *testing.T) {
	grey := newPostgrey(t)
	const to, client = "alice@example.org", "203.0.113.7"
	eventually(t, time.Minute, "postgrey knows a triplet", func() bool { return !grey.defers(client, "known@sender.example", to) })

	p := newPublisher(t, newFarAway(t))
	p.postfix.writeMain("virtual_mailbox_maps = hash:$config_directory/vmailbox", "smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service inet:"+grey.addr)
	write(t, p.conf(), strings.Replace(readFile(t, p.conf()), "[policy]\n", fmt.Sprintf("hashed = true\n[policy]\npostfix_filter = [\"inet:%s=postgrey:%s\"]\n", grey.addr, grey.file), 1))
	p.start()
	s := newFollowing(t, "127.0.0.1:1")
	pair(t, p, s)
	s.start()
	reply := func(sender string) int {
		t.Helper()
		o := testmx.Send(t, s.addr, demo.Mail{XClient: "ADDR=" + client + " NAME=[UNAVAILABLE]", From: sender, To: []string{to}, Content: []byte("Subject: x\r\n\r\nx\r\n")})
		return o.Rcpt[0].Code
	}
	eventually(t, time.Minute, "there is a policy", func() bool { return s.sync().State == "fresh" })
	if code := reply("known@sender.example"); code != 250 {
		t.Errorf("whom the primary knows gets %d", code)
	}
	if s.holds("known@sender.example") {
		t.Error("the triplet can be read in what the primary has sent")
	}
	began := time.Now()
	if code := reply("stranger@sender.example"); code != 450 {
		t.Errorf("a stranger gets %d", code)
	}
	eventually(t, time.Minute, "the stranger is let in", func() bool { return reply("stranger@sender.example") == 250 })
	if took := time.Since(began); took < time.Second { // times are whole seconds
		t.Errorf("a stranger is let in after %v", took)
	}

	triplet := hex.EncodeToString([]byte("203.0.113.0/stranger@sender.example/" + to))
	p.mailboxes(to, "bob@example.org") // a new version, so that the secondary reports at once
	eventually(t, time.Minute, "the primary hears of the stranger", func() bool { return strings.Contains(p.cli("greylist", "export", "triplets"), triplet) })
	if out := p.cli("greylist", "list"); !strings.Contains(out, "stranger@sender.example") || strings.Contains(out, "known@") {
		t.Errorf("greylist list:\n%s", out)
	}
	p.kill()
	p.start()
	export := p.cli("greylist", "export", "triplets")
	if !strings.Contains(export, triplet) {
		t.Error("the publisher has forgotten the stranger")
	}
	if err := grey.run.Kill(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(filepath.Dir(grey.dir), "triplets"), export)
	if out, err := exec.Command("setpriv", "--reuid=postgrey", "--regid=postgrey", "--clear-groups", "sh", "-c",
		`cd "$0" && db5.3_recover && db5.3_load -n postgrey.db < ../triplets`, grey.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	grey.start()
	if grey.defers(client, "stranger@sender.example", to) {
		t.Error("postgrey puts off whom the secondary has let in")
	}
	if !grey.defers(client, "another@sender.example", to) {
		t.Error("postgrey lets a stranger in")
	}
	s.stop()
}
