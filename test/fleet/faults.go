package main

import (
	"context"
	"math/rand/v2"
	"os"
	"syscall"
	"time"
)

// faults are what may go wrong, one at a time: a second one during the first could
// take two of three machines, for which nobody promises anything.
var faults = []struct {
	name string
	do   func(ctx context.Context, s *stage, m *machine, rnd *rand.Rand) error
}{
	{"kill of a secondary", func(_ context.Context, _ *stage, m *machine, _ *rand.Rand) error {
		m.kill("understudy")
		return m.startSecondary()
	}},
	{"loss of a machine", lose},
	{"kill of the leader", func(ctx context.Context, s *stage, _ *machine, _ *rand.Rand) error {
		if l := s.leader(); l != nil {
			l.kill("patroni")
			l.killPostgres()
			return l.startPatroni()
		}
		return nil
	}},
	{"kill of all databases", func(ctx context.Context, s *stage, _ *machine, _ *rand.Rand) error {
		for _, m := range s.machines {
			m.killPostgres()
		}
		return nil // each Patroni starts its own again
	}},
	{"one-way partition", func(ctx context.Context, s *stage, m *machine, rnd *rand.Rand) error {
		other := s.machines[(m.n-1+1+rnd.IntN(2))%3]
		if err := command("ip", "-n", m.ns(), "route", "add", "blackhole", other.ip()); err != nil {
			return err
		}
		pause(ctx, 6*time.Second)
		return command("ip", "-n", m.ns(), "route", "del", "blackhole", other.ip())
	}},
	{"pause of a database", func(ctx context.Context, _ *stage, m *machine, _ *rand.Rand) error { // a disk that hangs, a standby that lags
		stopped := m.postgres()
		for _, pid := range stopped {
			_ = syscall.Kill(pid, syscall.SIGSTOP)
		}
		pause(ctx, 5*time.Second)
		for _, pid := range stopped {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
		return nil
	}},
	{"clock ten minutes off", func(_ context.Context, _ *stage, m *machine, _ *rand.Rand) error {
		m.skewed = !m.skewed
		m.kill("understudy")
		return m.startSecondary()
	}},
	{"outage of the primary", func(ctx context.Context, s *stage, _ *machine, _ *rand.Rand) error {
		s.primaryUp(false)
		pause(ctx, 5*time.Second)
		s.primaryUp(true)
		return nil
	}},
}

// lose kills and wipes a machine's database and secondary, which come back empty.
func lose(ctx context.Context, s *stage, m *machine, _ *rand.Rand) error {
	m.kill("understudy")
	m.kill("patroni")
	m.killPostgres()
	for _, name := range []string{"state", "pg/data"} {
		if err := os.RemoveAll(m.file(name)); err != nil {
			return err
		}
	}
	// The others take over, and adopt.
	if !wait(ctx, 90*time.Second, func() bool {
		for _, other := range s.machines {
			if other != m && other.leads() {
				return true
			}
		}
		return false
	}) {
		return nil // shown by the mail that isn't accepted
	}
	if err := m.startPatroni(); err != nil {
		return err
	}
	return m.startSecondary()
}
