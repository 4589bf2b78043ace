// Package postgres keeps queues in a PostgreSQL server that may have standbys, so
// that accepted mail survives the loss of a machine.
//
// Each secondary (a member) has a spool of its own in the database: the same keys,
// records and bodies that queue/leveldb keeps in a directory. A batch is one
// transaction. With a quorum of standbys (synchronous_standby_names) its commit
// returns when a standby has it on disk, too.
//
//	understudy.spool  name mx2.example.org, epoch 7, held by mx2.example.org until 12:00:15
//	understudy.kv     spool 2, key m 00…07, value: the record
//	understudy.body   spool 2, id 1m84jpnqcczaqjsv, piece 0: the first 128 KiB
//
// A spool is held by one process at a time, on a lease that it renews. The
// database's clock alone decides when a lease is over. Taking a spool raises its
// epoch, and each change locks the spool's row and compares the epoch: a process
// that was taken for dead, and isn't, can change nothing any more. For the same
// reason Reopen raises the epoch: whatever the last connection still has under way
// is done or refused when Reopen returns.
//
// PostgreSQL commits locally and only warns when the wait for a standby is
// cancelled, and waits for none when the administrator (or Patroni) empties
// synchronous_standby_names. Both are looked for after each commit, and the
// outcome then counts as unknown. docs/decisions/0015 says why all this is so.
package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/understudy-mx/understudy/internal/repeat"
	"github.com/understudy-mx/understudy/queue/store"
)

// DefaultLease is how long a member that doesn't answer keeps its spool.
const DefaultLease = 15 * time.Second

// Opener names a spool in a database.
type Opener struct {
	Config   *pgconn.Config         // from ParseDSN
	Password func() (string, error) // asked for each connection; nil: as in Config
	Spool    string                 // the member whose mail it is
	Member   string                 // the member that opens it; default Spool
	// Dir is a directory of this process's own. Whoever comes back with the same
	// one needn't wait for the end of its lease. It is made, mode 0700, when
	// missing. "" for none.
	Dir        string
	OneMachine bool          // don't demand a quorum of standbys
	Lease      time.Duration // default DefaultLease
	Patience   time.Duration // how long Open waits for the end of another's lease
	Log        *slog.Logger  // default none
}

func (o Opener) String() string {
	return fmt.Sprintf("%s in database %s on %s", o.Spool, o.Config.Database, hosts(o.Config))
}

func hosts(c *pgconn.Config) string {
	name := func(host string, port uint16) string { return fmt.Sprintf("%s:%d", host, port) }
	list := []string{name(c.Host, c.Port)}
	for _, f := range c.Fallbacks {
		if h := name(f.Host, f.Port); h != list[len(list)-1] { // the same again without TLS
			list = append(list, h)
		}
	}
	return strings.Join(list, ",")
}

// Store is a spool that is held.
type Store struct {
	o     Opener
	alarm func(kind, detail string)
	lock  io.Closer // Dir's, nil for none
	token string

	id        atomic.Int32
	epoch     atomic.Int64
	until     atomic.Int64 // when the lease ends by our own clock, see now
	lost      atomic.Bool  // another holds it
	handovers atomic.Int64
	ready     atomic.Bool // false between a failed Apply and Reopen
	readOnly  bool

	asksFree    atomic.Bool            // the database has understudy.free_octets()
	dataDir     atomic.Pointer[string] // of a server on this machine
	warnedPages atomic.Bool            // of full_page_writes

	writer *session // Apply's and Reopen's
	batch  folded   // Apply's, used again
	pool   pool
	ahead  ahead
	reads  sync.WaitGroup // that read ahead

	stop  context.CancelFunc // ends the keeper
	kept  sync.WaitGroup
	often repeat.Log // the keeper's
}

func (o Opener) store(alarm func(kind, detail string)) (*Store, error) {
	if o.Member == "" {
		o.Member = o.Spool
	}
	if o.Lease <= 0 {
		o.Lease = DefaultLease
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if alarm == nil {
		alarm = func(string, string) {}
	}
	s := &Store{o: o, alarm: alarm, token: rand.Text()}
	s.pool.init(s.connect)
	if o.Dir == "" {
		return s, nil
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := store.LockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	if s.token, err = tokenOf(o.Dir); err != nil {
		lock.Close()
		return nil, err
	}
	s.lock = lock
	return s, nil
}

// tokenOf reads what names the processes of a directory, one at a time. A lost one
// costs the wait for the end of a lease.
func tokenOf(dir string) (string, error) {
	name := filepath.Join(dir, "token")
	b, err := os.ReadFile(name)
	if err == nil && len(b) > 0 && len(b) < 100 {
		return string(b), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	token := rand.Text()
	return token, os.WriteFile(name, []byte(token), 0o600)
}

// Open takes the spool, and makes it and the schema when there are none.
func (o Opener) Open(alarm func(kind, detail string)) (store.Store, error) {
	s, err := o.store(alarm)
	if err != nil {
		return nil, err
	}
	if unproven(o.Config) {
		s.o.Log.Warn("the database's certificate isn't verified: who is on the way can read mail, and answer in its place; add sslmode=verify-full to dsn", "database", o.String())
	}
	if err := s.open(); err != nil {
		s.Close()
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.kept.Go(func() { s.keep(ctx) })
	return s, nil
}

func (s *Store) open() error {
	err := s.take(migrate)
	deadline := time.Now().Add(s.o.Patience)
	for errors.Is(err, store.ErrLocked) && time.Now().Before(deadline) {
		s.o.Log.Info("waiting for the spool", "err", err)
		timer := time.NewTimer(min(time.Second, time.Until(deadline)))
		<-timer.C
		err = s.take(migrate)
	}
	if err != nil {
		return err
	}
	return store.CheckFormat(s)
}

// OpenReadOnly opens a spool that is there and that nobody holds, and changes
// nothing. Of the store's methods only those that read may be called.
// fs.ErrNotExist.
func (o Opener) OpenReadOnly(alarm func(kind, detail string)) (store.Store, error) {
	s, err := o.store(alarm)
	if err != nil {
		return nil, err
	}
	s.readOnly = true
	if err = s.look(); err == nil {
		err = store.CheckFormat(s)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close lets go of the spool.
func (s *Store) Close() error {
	if s.stop != nil {
		s.stop()
		s.kept.Wait()
	}
	s.ready.Store(false)
	s.reads.Wait()
	var err error
	if s.writer != nil {
		err = s.letGo()
		s.writer.close()
		s.writer = nil
	}
	s.pool.close()
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
		s.lock = nil
	}
	return err
}

// Damaged is always false: a server that meets damage says so, and goes on with
// the rest.
func (s *Store) Damaged() bool { return false }

// Reclaim leaves it to autovacuum.
func (s *Store) Reclaim(...store.Range) error { return nil }
