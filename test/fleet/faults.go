package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// fault is something that goes wrong, and that has ended when it returns.
type fault struct {
	name  string
	short bool // -short has it, too
	do    func(ctx context.Context, r *round) error
}

// round is one fault at work on a machine.
type round struct {
	s    *stage
	m    *machine
	mail *mail
	rnd  *rand.Rand
}

const shortly = 5 * time.Second // less than Patroni's ttl

// faults come one at a time: a second one during the first could take two of three
// machines, for which nobody promises anything.
var faults = []fault{
	{"secondary killed", true, func(ctx context.Context, r *round) error {
		r.mail.answers(ctx, r.m)
		r.m.killSecondary()
		return r.m.startSecondary()
	}},
	{"machine lost", true, lose},
	{"leader killed", false, killLeader},
	{"databases killed", true, func(ctx context.Context, r *round) error {
		killPostgres(r.s.machines...)
		var err error
		for _, m := range r.s.machines {
			m.kill("patroni")
		}
		killPostgres(r.s.machines...) // what a Patroni was quick to start
		for _, m := range r.s.machines {
			err = errors.Join(err, m.startPatroni())
		}
		return err
	}},
	{"machine hears another not", true, func(ctx context.Context, r *round) error {
		return r.deaf(ctx, shortly, r.other().ip())
	}},
	{"leader hears nobody", false, func(ctx context.Context, r *round) error {
		l := r.s.awaitLeader(ctx)
		if l == nil {
			return errNoLeader
		}
		var others []string
		for _, m := range r.s.machines {
			if m != l {
				others = append(others, m.ip())
			}
		}
		r.m = l
		for_ := shortly
		if r.rnd.IntN(2) == 0 { // long enough for a failover
			for_ = 25 * time.Second
		}
		return r.deaf(ctx, for_, others...)
	}},
	{"leader cut off", false, cutOff},
	{"primary's replies lost", false, func(ctx context.Context, r *round) error {
		return r.rule(ctx, shortly, "-s", outside, "-p", "tcp", "--sport", "25")
	}},
	{"link loses packets", false, func(ctx context.Context, r *round) error {
		return r.rule(ctx, shortly, "-m", "statistic", "--mode", "random", "--probability", "0.2")
	}},
	{"slow disk", true, slowDisk},
	{"standby lags", false, func(ctx context.Context, r *round) error {
		return stop(ctx, r.m.titled("walreceiver"))
	}},
	{"database hangs", false, func(ctx context.Context, r *round) error { return stop(ctx, r.m.postgres()) }},
	{"clock of a secondary", false, func(_ context.Context, r *round) error {
		r.m.skew = otherClock(r.rnd, r.m.skew)
		r.m.killSecondary()
		return r.m.startSecondary()
	}},
	{"clock of a database", false, func(_ context.Context, r *round) error {
		r.m.dbSkew = otherClock(r.rnd, r.m.dbSkew)
		r.m.kill("patroni")
		killPostgres(r.m)
		return r.m.startPatroni()
	}},
	{"switchover", false, func(ctx context.Context, r *round) error { return r.s.switchover(ctx) }},
	{"primary killed", false, func(ctx context.Context, r *round) error {
		r.s.primaryUp(false)
		pause(ctx, shortly)
		r.s.primaryUp(true)
		return nil
	}},
}

var errNoLeader = errors.New("the database has no leader")

// otherClock is ten minutes slow, right, or ten minutes fast, and not as before.
func otherClock(rnd *rand.Rand, before int) int {
	clocks := slices.DeleteFunc([]int{-600, 0, 600}, func(s int) bool { return s == before })
	return clocks[rnd.IntN(len(clocks))]
}

func (r *round) other() *machine {
	return r.s.machines[(r.m.n+r.rnd.IntN(2))%3]
}

// deaf keeps what those addresses send from the machine, for a while. They hear it.
func (r *round) deaf(ctx context.Context, long time.Duration, from ...string) error {
	var err error
	for _, ip := range from {
		err = errors.Join(err, r.m.in("iptables", "-A", "INPUT", "-s", ip, "-j", "DROP"))
	}
	pause(ctx, long)
	return errors.Join(err, r.m.in("iptables", "-F", "INPUT"))
}

// rule drops what it says of what comes to the machine, for a while.
func (r *round) rule(ctx context.Context, long time.Duration, what ...string) error {
	err := r.m.in(slices.Concat([]string{"iptables", "-A", "INPUT"}, what, []string{"-j", "DROP"})...)
	r.s.note(r.m, "deaf")
	pause(ctx, long)
	return errors.Join(err, r.m.in("iptables", "-F", "INPUT"))
}

// stop has processes hang for a while.
func stop(ctx context.Context, pids []int) error {
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	pause(ctx, shortly)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	return nil
}

// slowDisk has each flush of the machine's database take 400 ms longer.
func slowDisk(ctx context.Context, r *round) error {
	argv := []string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=400000"}
	for _, pid := range r.m.postgres() {
		argv = append(argv, "-p", strconv.Itoa(pid))
	}
	cmd := exec.Command("strace", argv...)
	if err := cmd.Start(); err != nil {
		return err
	}
	pause(ctx, shortly)
	_ = cmd.Process.Signal(syscall.SIGTERM) // it lets go of them
	_ = cmd.Wait()
	return nil
}

// killLeader kills the leader and its Patroni, which is back at once, or when a
// standby has taken over.
func killLeader(ctx context.Context, r *round) error {
	l := r.s.awaitLeader(ctx)
	if l == nil {
		return errNoLeader
	}
	l.kill("patroni")
	killPostgres(l)
	if r.rnd.IntN(2) == 0 && r.s.awaitLeader(ctx) == nil {
		return errNoLeader
	}
	return l.startPatroni()
}

// cutOff takes the leader's machine off the network until another one leads and has 100
// messages. By etcd's newer interface (etcd3) Patroni 3.0.2 may then take the lock back from
// the successor, and what that accepted is lost.
func cutOff(ctx context.Context, r *round) error {
	if r.m = r.s.awaitLeader(ctx); r.m == nil {
		return errNoLeader
	}
	link := func(state string) error {
		return command("ip", "link", "set", fmt.Sprint("usf", r.m.n), state)
	}
	r.s.note(r.m, "deaf")
	if err := link("down"); err != nil {
		return err
	}
	successor := r.s.awaitLeader(ctx)
	accepted := r.mail.total() + 100
	wait(ctx, 20*time.Second, func() bool { return r.mail.total() >= accepted })
	if err := link("up"); err != nil {
		return err
	}
	if successor == nil {
		return errNoLeader
	}
	return nil
}

// lose kills all of a machine right after a 250 of its secondary and wipes its disk. It
// comes back empty.
func lose(ctx context.Context, r *round) error {
	if *short { // then it is the only failover
		if r.m = r.s.awaitLeader(ctx); r.m == nil {
			return errNoLeader
		}
	}
	m := r.m
	r.mail.answers(ctx, m)
	m.killSecondary()
	m.kill("patroni")
	killPostgres(m)
	m.kill("etcd")
	for _, name := range []string{"state", "pg/data", "etcd"} {
		if err := os.RemoveAll(m.file(name)); err != nil {
			return err
		}
	}
	if err := r.s.replaceEtcd(ctx, m); err != nil {
		return err
	}
	if r.s.awaitLeader(ctx) == nil {
		return errNoLeader
	}
	if err := m.startPatroni(); err != nil {
		return err
	}
	if r.rnd.IntN(3) == 0 { // the others adopt
		if !wait(ctx, 90*time.Second, func() bool { return r.s.adopted(m) }) {
			return fmt.Errorf("nobody adopts the mail of machine %d", m.n)
		}
	}
	return m.startSecondary()
}
