package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// postmaster is the pid of the machine's PostgreSQL, 0 without one.
func (m *machine) postmaster() int {
	b, _ := os.ReadFile(m.file("pg/data/postmaster.pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(strings.SplitN(string(b), "\n", 2)[0]))
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); pid > 1 && err == nil && filepath.Base(exe) == "postgres" {
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

// titled are those of postgres that do this work.
func (m *machine) titled(work string) (pids []int) {
	for _, pid := range m.postgres() {
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); bytes.Contains(b, []byte(work)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killPostgres returns when all of it has ended.
func killPostgres(machines ...*machine) {
	var all []int
	for _, m := range machines {
		all = append(all, m.postgres()...)
	}
	for _, pid := range all {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	wait(context.Background(), 10*time.Second, func() bool {
		return !slices.ContainsFunc(all, func(pid int) bool {
			_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
			return err == nil
		})
	})
}

func (m *machine) etcdName() string { return fmt.Sprint("e", m.n) }
func (m *machine) etcdPeer() string { return "http://" + m.ip() + ":2380" }

// startEtcd starts it in a "new" cluster, or in an "existing" one.
func (m *machine) startEtcd(cluster string) error {
	var peers []string
	for _, p := range m.s.machines {
		peers = append(peers, p.etcdName()+"="+p.etcdPeer())
	}
	return m.run("etcd", "etcd", "--name", m.etcdName(), "--data-dir", m.file("etcd"),
		"--listen-peer-urls", m.etcdPeer(), "--initial-advertise-peer-urls", m.etcdPeer(),
		"--listen-client-urls", "http://"+m.ip()+":2379,http://127.0.0.1:2379", "--advertise-client-urls", "http://"+m.ip()+":2379",
		"--initial-cluster", strings.Join(peers, ","), "--initial-cluster-state", cluster, "--enable-v2", "--unsafe-no-fsync")
}

// replaceEtcd takes a machine that has lost its data out of etcd's cluster and puts it in
// again. The others may be electing.
func (s *stage) replaceEtcd(ctx context.Context, m *machine) error {
	var at []string
	for _, p := range s.machines {
		if p != m {
			at = append(at, "http://"+p.ip()+":2379")
		}
	}
	etcdctl := func(argv ...string) (string, error) {
		cmd := exec.Command("etcdctl", append([]string{"--endpoints", strings.Join(at, ",")}, argv...)...)
		cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("etcdctl %s: %w\n%s", strings.Join(argv, " "), err, out)
		}
		return string(out), err
	}
	var err error
	if !wait(ctx, time.Minute, func() bool {
		var list string
		if list, err = etcdctl("member", "list"); err != nil {
			return false
		}
		known := false
		for line := range strings.Lines(list) { // ID, state, name, …
			f := strings.Split(line, ", ")
			if len(f) < 4 || !strings.Contains(f[3], m.ip()) {
				continue
			}
			if known = f[2] == ""; !known { // it has a name when it has been there
				if _, err = etcdctl("member", "remove", f[0]); err != nil {
					return false
				}
			}
		}
		if !known {
			_, err = etcdctl("member", "add", m.etcdName(), "--peer-urls", m.etcdPeer())
		}
		return err == nil
	}) {
		return err
	}
	return m.startEtcd("existing")
}

// startPatroni starts it, and it the database: by a program that gives that the machine's clock for
// databases, 3 s after its start: Patroni wouldn't know the process with another time in its postmaster.pid.
// Patroni itself has the right time, since Python's sleep fails under libfaketime.
func (m *machine) startPatroni() error {
	postgres := fmt.Sprintf("#!/bin/sh\nexec %s/postgres \"$@\"\n", m.s.bin)
	if m.dbSkew != 0 {
		postgres = fmt.Sprintf("#!/bin/sh\nexport LD_PRELOAD=%s FAKETIME=%+d FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_START_AFTER_SECONDS=3\nexec %s/postgres \"$@\"\n", m.s.faketime, m.dbSkew, m.s.bin)
	}
	if err := os.WriteFile(m.file("bin/postgres"), []byte(postgres), 0o755); err != nil {
		return err
	}
	return m.run("patroni", "setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "/usr/bin/patroni", m.file("patroni.yml"))
}

// patroni is what a machine's Patroni says of its database now.
type patroni struct {
	Role, State string
	Sync        bool `json:"sync_standby"`
	Replication []struct{ State string }
}

func (m *machine) patroni() (p patroni) {
	if text, err := m.get(8008, "/patroni"); err != nil || json.Unmarshal([]byte(text), &p) != nil {
		return patroni{}
	}
	return p
}

func (p patroni) leads() bool {
	return (p.Role == "master" || p.Role == "primary") && p.State == "running"
}
func (m *machine) leads() bool { return m.patroni().leads() }

func (s *stage) leader() *machine {
	for _, m := range s.machines {
		if m.leads() {
			return m
		}
	}
	return nil
}

// healthy says that three databases run, that two follow the one that leads, and that one of them
// is its synchronous standby; and what it knows.
func (s *stage) healthy() (ok bool, why string) {
	running, leaders, streaming, synchronous := 0, 0, 0, 0
	for _, m := range s.machines {
		p := m.patroni()
		if p.State == "running" {
			running++
		}
		if p.leads() {
			leaders++
			for _, r := range p.Replication {
				if r.State == "streaming" {
					streaming++
				}
			}
		}
		if p.Sync { // as etcd has it: before, nobody may take over
			synchronous++
		}
		why += fmt.Sprintf("db%d %+v; ", m.n, p)
	}
	return running == 3 && leaders == 1 && streaming == 2 && synchronous >= 1, why
}

// synchronous is the synchronous standby.
func (s *stage) synchronous() *machine {
	for _, m := range s.machines {
		if m.patroni().Sync {
			return m
		}
	}
	return nil
}

// awaitLeader is the leader, nil when there is none for a minute.
func (s *stage) awaitLeader(ctx context.Context) (l *machine) {
	wait(ctx, time.Minute, func() bool { l = s.leader(); return l != nil })
	return l
}

// switchover has Patroni hand over to the synchronous standby, and asks again while it
// refuses or fails to.
func (s *stage) switchover(ctx context.Context) error {
	why := errNoLeader
	c := http.Client{Timeout: 30 * time.Second}
	for range 5 {
		l, next := s.awaitLeader(ctx), s.synchronous()
		if l == nil || next == nil {
			pause(ctx, time.Second)
			continue
		}
		body := fmt.Sprintf(`{"leader": "db%d", "candidate": "db%d"}`, l.n, next.n)
		resp, err := c.Post("http://"+l.ip()+":8008/switchover", "application/json", strings.NewReader(body))
		if err == nil {
			resp.Body.Close()
			err = errors.New(resp.Status)
		}
		// Whatever it says: its answer may be lost, and its word to etcd not.
		if wait(ctx, 10*time.Second, next.leads) {
			return nil
		}
		why = fmt.Errorf("switchover from db%d to db%d: %w", l.n, next.n, err)
	}
	return why
}
