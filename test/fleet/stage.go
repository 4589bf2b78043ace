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
	binary   string // understudy
	bin      string // PostgreSQL's programs
	faketime string // libfaketime
	uid, gid int    // of PostgreSQL
	machines []*machine
	primary  *testmx.Daemon
	notes    []note
}

// note is what may explain a message that came twice: see twice.go.
type note struct {
	at      time.Time
	machine *machine // nil for the primary
	what    string
}

func (s *stage) note(m *machine, what string) {
	s.notes = append(s.notes, note{time.Now(), m, what})
}

// machine is a network namespace with its processes.
type machine struct {
	s       *stage
	n       int
	dir     string
	skew    int // how many seconds its secondary's clock is fast
	dbSkew  int // and its database's
	daemons map[string]*exec.Cmd
	ended   map[string]chan struct{}
}

func (m *machine) ip() string   { return fmt.Sprintf("10.99.0.%d", m.n) }
func (m *machine) addr() string { return m.ip() + ":25" }
func (m *machine) host() string { return fmt.Sprintf("mx%d.example.org", m.n) }
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
	if *program != "" {
		s.binary = *program
	} else if err := build(dir, s.binary); err != nil {
		return s, err
	}
	all, _ := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if len(all) != 1 {
		return s, errors.New("libfaketime isn't installed")
	}
	s.faketime = all[0]
	if all, _ = filepath.Glob("/usr/lib/postgresql/*/bin"); len(all) == 0 {
		return s, errors.New("PostgreSQL isn't installed")
	}
	s.bin = all[0]
	pg, err := user.Lookup("postgres")
	if err != nil {
		return s, err
	}
	s.uid, _ = strconv.Atoi(pg.Uid)
	s.gid, _ = strconv.Atoi(pg.Gid)
	if err := script("ip link add usfleet type bridge\nip addr add " + outside + "/24 dev usfleet\nip link set usfleet up"); err != nil {
		return s, err
	}
	for n := 1; n <= 3; n++ {
		m := &machine{s: s, n: n, dir: filepath.Join(dir, fmt.Sprint("machine", n)), daemons: map[string]*exec.Cmd{}, ended: map[string]chan struct{}{}, dbSkew: []int{0, 600, -600}[n-1]}
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
		killPostgres(m)
		_ = command("ip", "link", "del", fmt.Sprint("usf", m.n)) // at once: the namespace goes when the last of its processes has
		_ = command("ip", "netns", "del", m.ns())
	}
	s.primaryUp(false)
	_ = command("ip", "link", "del", "usfleet")
	for _, pattern := range []string{"faketime_shm_*", "sem.faketime_sem_*"} { // which a kill leaves
		left, _ := filepath.Glob("/dev/shm/" + pattern)
		for _, name := range left {
			if i, err := os.Stat(name); err == nil && int(i.Sys().(*syscall.Stat_t).Uid) == s.uid {
				os.Remove(name)
			}
		}
	}
}

func (m *machine) file(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) write() error {
	if err := errors.Join(os.MkdirAll(m.file("pg"), 0o755), os.Mkdir(m.file("bin"), 0o755)); err != nil {
		return err
	}
	programs, err := filepath.Glob(m.s.bin + "/*")
	for _, p := range programs {
		if name := filepath.Base(p); name != "postgres" {
			err = errors.Join(err, os.Symlink(p, m.file("bin/"+name)))
		}
	}
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"patroni.yml":     fmt.Sprintf(patroniYML, m.n, m.ip(), m.dir),
		"understudy.toml": fmt.Sprintf(understudyTOML, m.n, m.ip(), m.dir, outside),
		"policy.toml":     policyTOML(),
		"password":        "secret\n",
	} {
		if err := os.WriteFile(m.file(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.Chown(m.file("pg"), m.s.uid, m.s.gid)
}

func policyTOML() string {
	var list []string
	for i := range 50 {
		list = append(list, fmt.Sprintf("%q", fmt.Sprintf("fleet%d@example.org", i)))
	}
	return "domains = [\"example.org\"]\nrecipients = [" + strings.Join(list, ", ") + "]\n"
}

// in runs a command on the machine.
func (m *machine) in(argv ...string) error {
	return command(append([]string{"ip", "netns", "exec", m.ns()}, argv...)...)
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

func (m *machine) startSecondary() error {
	return m.run("understudy", "env", fmt.Sprintf("%s=%d", skewVariable, m.skew), m.s.binary, "serve", "-c", m.file("understudy.toml"))
}

func (m *machine) killSecondary() {
	m.s.note(m, "killed")
	m.kill("understudy")
	m.s.note(m, "dead")
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

// revive starts what ended by itself, as systemd does: a secondary that found no
// database, for example.
func (s *stage) revive() error {
	for _, m := range s.machines {
		for name, start := range map[string]func() error{"understudy": m.startSecondary, "patroni": m.startPatroni} {
			if m.daemons[name] == nil {
				continue
			}
			select {
			case <-m.ended[name]:
				s.note(m, name+" ended")
				if err := start(); err != nil {
					return err
				}
			default:
			}
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

// adopted says that no living member knows of mail in the spool of m.
func (s *stage) adopted(m *machine) bool {
	for _, other := range s.machines {
		out, err := exec.Command("ip", "netns", "exec", other.ns(), s.binary, "fleet", "--json", "-c", other.file("understudy.toml")).Output()
		var view struct {
			Error   string
			Members []struct {
				Name     string
				Messages int
			}
		}
		if other == m || err != nil || json.Unmarshal(out, &view) != nil || view.Error != "" {
			continue
		}
		for _, v := range view.Members {
			if v.Name == m.host() {
				return v.Messages == 0
			}
		}
	}
	return false
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
		if err := m.startEtcd("new"); err != nil {
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
		return l.in("psql", "-qAt", "-v", "ON_ERROR_STOP=1", "postgres://postgres:secret@"+l.ip()+"/"+db, "-c", sql)
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
		s.note(nil, "killed")
		s.primary.Kill()
		s.note(nil, "dead")
		s.primary = nil
	}
}
