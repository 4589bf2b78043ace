package listertest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Node is a PostgreSQL that keeps what it commits (fsync is on), with a database
// "understudy" of the user of that name. It can be killed, and have standbys.
type Node struct {
	*Server
	name  string
	owner *syscall.Credential
	bin   string
	data  string
}

// Primary starts a node without standbys.
func Primary(t testing.TB) *Node {
	t.Helper()
	n := newNode(t, "primary")
	run(t, n.owner, n.Dir, "", n.tool("initdb"), "-D", n.data, "-A", "trust", "-U", "admin", "-N", "-E", "UTF8", "--locale=C")
	write(t, n.owner, filepath.Join(n.data, "pg_hba.conf"), "local all all trust\nhost replication all 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
	n.Start(t)
	n.Admin(t, "CREATE ROLE understudy LOGIN PASSWORD '"+strings.ReplaceAll(Password, "'", "''")+"'; CREATE DATABASE understudy OWNER understudy")
	return n
}

func newNode(t testing.TB, name string) *Node {
	t.Helper()
	dir, owner := directory(t, "postgres")
	return &Node{Server: &Server{Dir: dir}, name: name, owner: owner, data: filepath.Join(dir, "data"),
		bin: filepath.Dir(program(t, "postgres", "/usr/lib/postgresql/*/bin/postgres"))}
}

func (n *Node) tool(name string) string { return filepath.Join(n.bin, name) }

// Start starts a node, again perhaps, at the port that it had.
func (n *Node) Start(t testing.TB, settings ...string) {
	t.Helper()
	n.Socket = filepath.Join(n.Dir, ".s.PGSQL.5432")
	n.also = func() bool { // a killed one left its file
		pid, err := os.ReadFile(filepath.Join(n.data, "postmaster.pid"))
		return err == nil && strings.HasPrefix(string(pid), fmt.Sprintln(n.process.Process.Pid)) && strings.Contains(string(pid), "ready")
	}
	had := n.Port
	command := func(port int) []string {
		if had != 0 {
			port = had
			n.Port = had
		}
		link(t, fmt.Sprintf(".s.PGSQL.%d", port), n.Socket)
		argv := []string{n.tool("postgres"), "-D", n.data, "-k", n.Dir, "-h", "127.0.0.1", "-p", fmt.Sprint(port),
			"-c", "shared_buffers=32MB", "-c", "max_connections=60", "-c", "wal_receiver_status_interval=1", "-c", "cluster_name=" + n.name}
		for _, s := range settings {
			argv = append(argv, "-c", s)
		}
		return argv
	}
	n.start(t, n.owner, command)
}

// Standby starts a node that follows n under a name for synchronous_standby_names.
func (n *Node) Standby(t testing.TB, name string) *Node {
	t.Helper()
	s := newNode(t, name)
	run(t, s.owner, s.Dir, "", n.tool("pg_basebackup"), "-D", s.data, "-h", "127.0.0.1", "-p", fmt.Sprint(n.Port), "-U", "admin", "-c", "fast", "-N", "-R",
		"-d", "application_name="+name)
	s.Start(t)
	return s
}

// Quorum has n wait for one of its standbys at each commit, or for none.
func (n *Node) Quorum(t testing.TB, names ...string) {
	t.Helper()
	value := ""
	if len(names) > 0 {
		value = "ANY 1 (" + strings.Join(names, ", ") + ")"
	}
	n.Admin(t, "ALTER SYSTEM SET synchronous_standby_names = '"+value+"'")
	n.Admin(t, "SELECT pg_reload_conf()")
	n.Await(t, fmt.Sprintf("SELECT count(*) >= %d FROM pg_stat_replication WHERE sync_state = 'quorum'", min(1, len(names))))
	n.Await(t, "SELECT current_setting('synchronous_standby_names') = '"+value+"'")
	n.Admin(t, "CHECKPOINT") // the checkpointer is who has commits wait, and reads the names last
}

// Await waits until a query says t.
func (n *Node) Await(t testing.TB, sql string) {
	t.Helper()
	deadline := time.NewTimer(startTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n.Admin(t, sql) != "t" {
		select {
		case <-deadline.C:
			t.Fatalf("not within %v: %s", startTimeout, sql)
		case <-tick.C:
		}
	}
}

// Admin has an administrator run SQL, and returns what it prints.
func (n *Node) Admin(t testing.TB, sql string) string {
	t.Helper()
	return n.sql(t, "postgres", sql)
}

// SQL is Admin in the database "understudy".
func (n *Node) SQL(t testing.TB, sql string) string {
	t.Helper()
	return n.sql(t, "understudy", sql)
}

func (n *Node) sql(t testing.TB, db, sql string) string {
	t.Helper()
	cmd := exec.Command(n.tool("psql"), "-h", n.Dir, "-p", fmt.Sprint(n.Port), "-U", "admin", "-d", db, "-qAt", "-v", "ON_ERROR_STOP=1")
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(sql, "; ", ";\n"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("psql: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// Kill is a crash: kill -9.
func (n *Node) Kill() {
	n.process.Process.Kill()
	<-n.ended
}

// CPU is how long the node's processes have computed.
func (n *Node) CPU(t testing.TB) time.Duration {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	ticks, pid := 0, strconv.Itoa(n.process.Process.Pid)
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		// proc(5): after the name in parentheses state, ppid; utime and stime are the
		// 14th and 15th field, those of children that have ended follow.
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		own := filepath.Base(filepath.Dir(name)) == pid
		for i, field := range f[11:15] {
			if v, err := strconv.Atoi(field); err == nil && (own || f[1] == pid && i < 2) {
				ticks += v
			}
		}
	}
	return time.Duration(ticks) * time.Second / 100
}

// Promote makes a standby one that takes writes.
func (n *Node) Promote(t testing.TB) {
	t.Helper()
	n.Admin(t, "SELECT pg_promote()")
	n.Await(t, "SELECT NOT pg_is_in_recovery()")
}

// DSN is how the user "understudy" finds the nodes; it needs Password.
func DSN(nodes ...*Node) string {
	var list []string
	for _, n := range nodes {
		list = append(list, n.Address())
	}
	return "postgres://understudy@" + strings.Join(list, ",") + "/understudy?sslmode=disable"
}
