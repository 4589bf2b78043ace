package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

const outside = "10.99.0.254"

// stage is the machines, and what is outside of them.
type stage struct {
	dir      string
	binary   string
	machines []*machine
	primary  *testmx.Daemon
}

// machine is a network namespace with its processes.
type machine struct {
	s       *stage
	n       int
	dir     string
	skewed  bool // its secondary's clock is ten minutes fast
	daemons map[string]*exec.Cmd
	ended   map[string]chan struct{}
}

func (m *machine) ip() string   { return fmt.Sprintf("10.99.0.%d", m.n) }
func (m *machine) addr() string { return m.ip() + ":25" }
func (m *machine) ns() string   { return fmt.Sprintf("usfleet%d", m.n) }

func command(argv ...string) error {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return nil
}

func script(lines string) (err error) {
	for line := range strings.Lines(lines) {
		if f := strings.Fields(line); len(f) > 0 {
			err = errors.Join(err, command(f...))
		}
	}
	return err
}

func newStage(dir string) (*stage, error) {
	s := &stage{dir: dir, binary: filepath.Join(dir, "understudy")}
	if err := command("go", "build", "-o", s.binary, "./cmd/understudy"); err != nil {
		return s, err
	}
	if err := script("ip link add usfleet type bridge\nip addr add " + outside + "/24 dev usfleet\nip link set usfleet up"); err != nil {
		return s, err
	}
	for n := 1; n <= 3; n++ {
		m := &machine{s: s, n: n, dir: filepath.Join(dir, fmt.Sprint("machine", n)), daemons: map[string]*exec.Cmd{}, ended: map[string]chan struct{}{}}
		s.machines = append(s.machines, m)
		err := script(fmt.Sprintf(`ip netns add %[1]s
			ip link add usf%[2]d type veth peer name eth0 netns %[1]s
			ip link set usf%[2]d master usfleet up
			ip -n %[1]s addr add %[3]s/24 dev eth0
			ip -n %[1]s link set eth0 up
			ip -n %[1]s link set lo up`, m.ns(), n, m.ip()))
		if err == nil {
			err = m.write()
		}
		if err != nil {
			return s, err
		}
	}
	return s, s.writePostfix()
}

// end ends everything that was begun.
func (s *stage) end() {
	for _, m := range s.machines {
		for name := range m.daemons {
			m.kill(name)
		}
		m.killPostgres()
		_ = command("ip", "netns", "del", m.ns())
	}
	s.primaryUp(false)
	_ = command("ip", "link", "del", "usfleet")
}

func (m *machine) file(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) write() error {
	pg, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	uid, _ := strconv.Atoi(pg.Uid)
	gid, _ := strconv.Atoi(pg.Gid)
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(bins) == 0 {
		return errors.New("PostgreSQL isn't installed")
	}
	if err := os.MkdirAll(m.file("pg"), 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"patroni.yml":     fmt.Sprintf(patroniYML, m.n, m.ip(), bins[0], m.dir),
		"understudy.toml": fmt.Sprintf(understudyTOML, m.n, m.ip(), m.dir, outside),
		"policy.toml":     policyTOML(),
		"password":        "secret\n",
	} {
		if err := os.WriteFile(m.file(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.Chown(m.file("pg"), uid, gid)
}

func policyTOML() string {
	var list []string
	for i := range 50 {
		list = append(list, fmt.Sprintf("%q", fmt.Sprintf("fleet%d@example.org", i)))
	}
	return "domains = [\"example.org\"]\nrecipients = [" + strings.Join(list, ", ") + "]\n"
}

// run starts a process on the machine.
func (m *machine) run(name string, argv ...string) error {
	log, err := os.OpenFile(m.file(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("ip", append([]string{"netns", "exec", m.ns()}, argv...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	m.daemons[name], m.ended[name] = cmd, ended
	return nil
}

// kill is kill -9 of a process that run started, and of its group.
func (m *machine) kill(name string) {
	if cmd := m.daemons[name]; cmd != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-m.ended[name]
		delete(m.daemons, name)
	}
}

// postmaster is the pid of the machine's PostgreSQL, 0 without one.
func (m *machine) postmaster() int {
	b, _ := os.ReadFile(m.file("pg/data/postmaster.pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(strings.SplitN(string(b), "\n", 2)[0]))
	if pid > 1 && syscall.Kill(pid, 0) == nil {
		return pid
	}
	return 0
}

// postgres are the pids of the machine's PostgreSQL and its children.
func (m *machine) postgres() []int {
	top := m.postmaster()
	if top == 0 {
		return nil
	}
	all := []int{top}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", top, top))
	for f := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

func (m *machine) signal(sig syscall.Signal) {
	for _, pid := range m.postgres() {
		_ = syscall.Kill(pid, sig)
	}
}

func (m *machine) killPostgres() { m.signal(syscall.SIGKILL) }

func (m *machine) startEtcd() error {
	var peers []string
	for n := 1; n <= 3; n++ {
		peers = append(peers, fmt.Sprintf("e%d=http://10.99.0.%d:2380", n, n))
	}
	return m.run("etcd", "etcd", "--name", fmt.Sprint("e", m.n), "--data-dir", m.file("etcd"),
		"--listen-peer-urls", "http://"+m.ip()+":2380", "--initial-advertise-peer-urls", "http://"+m.ip()+":2380",
		"--listen-client-urls", "http://"+m.ip()+":2379,http://127.0.0.1:2379", "--advertise-client-urls", "http://"+m.ip()+":2379",
		"--initial-cluster", strings.Join(peers, ","), "--initial-cluster-state", "new", "--unsafe-no-fsync")
}

func (m *machine) startPatroni() error {
	return m.run("patroni", "setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "/usr/bin/patroni", m.file("patroni.yml"))
}

func (m *machine) startSecondary() error {
	argv := []string{m.s.binary, "serve", "-c", m.file("understudy.toml")}
	if m.skewed {
		argv = append([]string{"faketime", "-f", "+600s"}, argv...)
	}
	return m.run("understudy", argv...)
}

// get asks an HTTP server on the machine.
func (m *machine) get(port int, path string) (string, error) {
	c := http.Client{Timeout: 2 * time.Second}
	resp, err := c.Get(fmt.Sprintf("http://%s:%d%s", m.ip(), port, path))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// leads says that the machine has the database's leader.
func (m *machine) leads() bool {
	text, err := m.get(8008, "/patroni")
	var is struct{ Role, State string }
	return err == nil && json.Unmarshal([]byte(text), &is) == nil && (is.Role == "master" || is.Role == "primary") && is.State == "running"
}

func (s *stage) leader() *machine {
	for _, m := range s.machines {
		if m.leads() {
			return m
		}
	}
	return nil
}

// revive starts what ended by itself, as systemd does: a secondary that found no
// database, for example.
func (s *stage) revive() error {
	for _, m := range s.machines {
		if m.daemons["understudy"] == nil {
			continue
		}
		select {
		case <-m.ended["understudy"]:
			if err := m.startSecondary(); err != nil {
				return err
			}
		default:
		}
	}
	return nil
}

func (m *machine) metric(name string) float64 {
	text, err := m.get(9187, "/metrics")
	if err != nil {
		return -1
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return v
		}
	}
	return -1
}

func (s *stage) drained() bool {
	for _, m := range s.machines {
		if m.metric("understudy_queue_messages") != 0 || m.metric("understudy_queue_fallback_messages") != 0 {
			return false
		}
	}
	// What isn't executable was never accepted: a killed Postfix leaves it.
	out, _ := exec.Command("find", filepath.Join(s.dir, "postfix/queue/incoming"), filepath.Join(s.dir, "postfix/queue/active"), filepath.Join(s.dir, "postfix/queue/maildrop"), "-type", "f", "-perm", "-100").Output()
	return len(out) == 0
}

// start brings all up and waits until mail is taken.
func (s *stage) start(ctx context.Context) error {
	for _, m := range s.machines {
		if err := m.startEtcd(); err != nil {
			return err
		}
	}
	for _, m := range s.machines {
		if err := m.startPatroni(); err != nil {
			return err
		}
	}
	if !wait(ctx, 2*time.Minute, func() bool { return s.leader() != nil }) {
		return errors.New("no leader after two minutes")
	}
	l := s.leader()
	admin := func(sql, db string) error {
		return command("ip", "netns", "exec", l.ns(), "psql", "-qAt", "-v", "ON_ERROR_STOP=1", "postgres://postgres:secret@"+l.ip()+"/"+db, "-c", sql)
	}
	if err := errors.Join(admin("CREATE ROLE understudy LOGIN PASSWORD 'secret'", "postgres"), admin("CREATE DATABASE understudy OWNER understudy", "postgres")); err != nil {
		return err
	}
	s.primaryUp(true)
	for _, m := range s.machines {
		if err := m.startSecondary(); err != nil {
			return err
		}
	}
	// A first start may fail, and systemd would try again: Patroni may not have named
	// its standbys yet, or another secondary is making the schema.
	members := map[int]float64{}
	if !wait(ctx, 2*time.Minute, func() bool {
		all := s.revive() == nil
		for _, m := range s.machines {
			members[m.n] = m.metric("understudy_fleet_members")
			all = all && members[m.n] == 3
		}
		return all
	}) {
		return fmt.Errorf("the secondaries don't find each other; each knows of %v, -1 where it isn't up; logs in %s", members, s.dir)
	}
	return nil
}

func (s *stage) writePostfix() error {
	dir := filepath.Join(s.dir, "postfix")
	for _, d := range []string{"conf", "queue", "data", "mail"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chown(filepath.Join(dir, "mail"), 65534, 65534); err != nil {
		return err
	}
	conf := filepath.Join(dir, "conf")
	if err := os.WriteFile(filepath.Join(conf, "main.cf"), []byte(fmt.Sprintf(mainCF, dir)), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(conf, "master.cf"), []byte(fmt.Sprintf(testmx.MasterCF, outside+":25")), 0o644); err != nil {
		return err
	}
	return testmx.CheckPostfix(dir, conf)
}

func (s *stage) primaryUp(up bool) {
	switch {
	case up && s.primary == nil:
		s.primary, _ = testmx.StartDaemon(outside+":25", nil, testmx.PostfixCommand(filepath.Join(s.dir, "postfix/conf"))...)
	case !up && s.primary != nil:
		s.primary.Kill()
		s.primary = nil
	}
}
