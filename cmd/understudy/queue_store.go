package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/leveldb"
	"github.com/understudy-mx/understudy/queue/offline"
	"github.com/understudy-mx/understudy/queue/postgres"
	"github.com/understudy-mx/understudy/queue/store"
)

// Values of [queue] store and durability.
const (
	storePostgres = "postgres"
	oneMachine    = "one-machine"
)

// queueOpener opens a queue's store, to change it or to look at it.
type queueOpener interface {
	store.Opener
	offline.Opener
}

// queueDir is where the queue of a state directory is.
func queueDir(cfg *config.Config) leveldb.Dir {
	return leveldb.Dir{Path: filepath.Join(cfg.StateDir, "queue")}
}

// spoolDir has what names this machine to the database.
func spoolDir(cfg *config.Config) string { return filepath.Join(cfg.StateDir, "spool") }

// queueStore is where the configuration keeps the queue; log may be nil.
func queueStore(cfg *config.Config, log *slog.Logger) (queueOpener, error) {
	if cfg.Queue.Store != storePostgres {
		return queueDir(cfg), nil
	}
	o, err := spoolOf(cfg, cfg.Hostname, log)
	if err != nil {
		return nil, err
	}
	o.Dir, o.Patience = spoolDir(cfg), postgres.DefaultLease
	return o, nil
}

// spoolOf is a member's spool in the database, to be opened by this one.
func spoolOf(cfg *config.Config, member string, log *slog.Logger) (postgres.Opener, error) {
	c, err := postgres.ParseDSN(cfg.Queue.DSN)
	if err != nil {
		return postgres.Opener{}, mistakes{cfg.Mistake("queue.dsn", "%v", err)}
	}
	o := postgres.Opener{Config: c, Spool: member, Member: cfg.Hostname, OneMachine: cfg.Queue.Durability == oneMachine, Log: log}
	if name := cfg.Queue.DSNPassword; name != "" {
		o.Password = func() (string, error) { return readPassword(name) }
		if _, err := o.Password(); err != nil {
			return o, mistakes{cfg.Mistake("queue.dsn_password", "%v%s; name a file that this user may read", err, unreadable(err, name))}
		}
	}
	return o, nil
}

// readPassword reads a file's first line.
func readPassword(name string) (string, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSuffix(line, "\r"), nil
}

// storeError says what is in the way of the queue.
func storeError(cfg *config.Config, err error) error {
	switch {
	case cfg.Queue.Store != storePostgres:
		return stateError(cfg.StateDir, err)
	case errors.Is(err, queue.ErrLocked):
		return fmt.Errorf("%w; only one understudy serve may use a spool, which has the name of hostname", err)
	case errors.Is(err, queue.ErrNewerVersion):
		return fmt.Errorf("%w; run that version, or drain the queue with it first", err)
	}
	return err
}
