package postgres

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"golang.org/x/sys/unix"

	"github.com/understudy-mx/understudy/queue/store"
)

// What a server may take. A commit waits for a standby outside of
// statement_timeout, so its bound is ours: then the wait is cancelled, and the
// outcome is unknown.
const (
	connectTimeout = 5 * time.Second
	commitTimeout  = 5 * time.Second
	readTimeout    = 10 * time.Second
	lockTimeout    = 3 * time.Second
	cancelTimeout  = time.Second      // for the answer to a cancel request
	deadAfter      = 15 * time.Second // TCP, either side
)

// maxMessage bounds what the server may send at a time.
const maxMessage = 64 << 20

// ParseDSN reads a URL (or libpq's keywords) with one host or several. Only the
// server that takes writes is used.
func ParseDSN(dsn string) (*pgconn.Config, error) {
	if u, err := url.Parse(dsn); err == nil && u.User != nil {
		if _, has := u.User.Password(); has {
			return nil, errors.New("has a password; write it into a file and name that by dsn_password")
		}
	}
	c, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return nil, errors.New(`can't be read; write it like "postgres://understudy@db1.example.org,db2.example.org/understudy?sslmode=verify-full"`)
	}
	c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	c.ConnectTimeout = connectTimeout
	c.MaxProtocolMessageBodyLen = maxMessage
	c.DialFunc = dialer.DialContext
	c.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: cancelTimeout}
	}
	for name, value := range map[string]string{
		"application_name": "understudy",
		// A role's own setting could hide the warnings that we look for.
		"client_min_messages":                 "warning",
		"statement_timeout":                   millis(commitTimeout),
		"lock_timeout":                        millis(lockTimeout),
		"idle_in_transaction_session_timeout": millis(readTimeout),
		"tcp_user_timeout":                    millis(deadAfter),
		"tcp_keepalives_idle":                 "5",
		"tcp_keepalives_interval":             "5",
		"tcp_keepalives_count":                "2",
		"default_transaction_isolation":       "read committed",
		// Each query has one good plan: along the primary key.
		"plan_cache_mode":   "force_generic_plan",
		"enable_seqscan":    "off",
		"enable_bitmapscan": "off",
		"enable_sort":       "off",
		"jit":               "off",
	} {
		c.RuntimeParams[name] = value
	}
	return c, nil
}

// unproven says that somebody on the way could read the mail, or answer in a
// server's place: a host elsewhere whose certificate isn't verified.
func unproven(c *pgconn.Config) bool {
	weak := func(host string, t *tls.Config) bool {
		addr, err := netip.ParseAddr(host)
		if strings.HasPrefix(host, "/") || host == "localhost" || err == nil && addr.IsLoopback() {
			return false
		}
		return t == nil || t.InsecureSkipVerify && t.VerifyPeerCertificate == nil
	}
	return weak(c.Host, c.TLSConfig) || slices.ContainsFunc(c.Fallbacks, func(f *pgconn.FallbackConfig) bool { return weak(f.Host, f.TLSConfig) })
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

var dialer = net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 2},
	Control: func(network, _ string, c syscall.RawConn) (err error) {
		if !strings.HasPrefix(network, "tcp") {
			return nil
		}
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadAfter.Milliseconds()))
		}), err)
	},
}

// session is a connection that was found fit. It has one user at a time.
type session struct {
	conn     *pgconn.PgConn
	quorum   bool // demanded
	warned   bool // the server sent a warning
	prepared map[string]bool
	used     time.Time
	pooled   uint64 // the pool's generation
	fetched  int64  // rows, the last time
}

// connect opens a session with the server that takes writes, and looks whether it
// keeps what it commits.
func (s *Store) connect(ctx context.Context) (*session, error) {
	c := s.o.Config.Copy()
	if s.o.Password != nil {
		password, err := s.o.Password()
		if err != nil {
			return nil, fmt.Errorf("password: %w", err)
		}
		c.Password = password
	}
	n := &session{quorum: !s.o.OneMachine, prepared: map[string]bool{}, used: time.Now()}
	c.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) {
		n.noticed(notice.SeverityUnlocalized)
	}
	var err error
	if n.conn, err = pgconn.ConnectConfig(ctx, c); err != nil {
		var pg *pgconn.PgError
		if !errors.As(err, &pg) {
			return nil, fmt.Errorf("%w: connect to %s: %w", errAway, hosts(c), err)
		}
		return nil, failed("connect to "+hosts(c), err)
	}
	if err := s.fit(ctx, n); err != nil {
		n.close()
		return nil, err
	}
	n.warned = false // what concerns the login, not a commit
	return n, nil
}

// fitSQL sets synchronous_commit for the session, whatever the default is and
// becomes, unless that promises more, and asks for all else that matters.
const fitSQL = `SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false),
	current_setting('synchronous_standby_names'), current_setting('fsync'), current_setting('full_page_writes'),
	current_setting('server_version_num'), to_regprocedure('understudy.free_octets()')::text,
	CASE WHEN inet_server_addr() IS NULL AND pg_has_role('pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') END,
	(extract(epoch FROM clock_timestamp() - pg_conf_load_time()) * 1000)::bigint::text`

// settled is how long a server is left alone after it has read its configuration. Sessions
// see synchronous_standby_names before the checkpointer does, and no commit waits for
// a standby before that has told all of them to.
const settled = 2 * time.Second

// minServer is PostgreSQL 13.
const minServer = 130000

func (s *Store) fit(ctx context.Context, n *session) error {
	r := n.conn.ExecParams(ctx, fitSQL, nil, nil, nil, nil).Read()
	if r.Err != nil {
		return failed("look at the server's settings", r.Err)
	}
	is := func(i int) string { return string(r.Rows[0][i]) }
	show := n.conn.ExecParams(ctx, "SHOW synchronous_commit", nil, nil, nil, nil).Read()
	if show.Err != nil {
		return failed("look at the server's settings", show.Err)
	}
	if version, _ := strconv.Atoi(is(4)); version < minServer {
		return fmt.Errorf("the server is PostgreSQL %d; version %d or later is needed", version/10000, minServer/10000)
	}
	switch sync := string(show.Rows[0][0]); {
	case sync != "on" && sync != "remote_apply":
		return fmt.Errorf("synchronous_commit is %q and can't be set", store.Cut(sync))
	case is(2) != "on":
		return errors.New("the server runs with fsync = off: a power cut would lose what it commits; set fsync = on there")
	case n.quorum && is(1) == "":
		return errNoQuorum
	}
	if is(3) != "on" && !s.warnedPages.Swap(true) {
		s.o.Log.Warn("the server runs with full_page_writes = off: unless its file system never tears a page, a power cut may damage the spool")
	}
	s.asksFree.Store(r.Rows[0][5] != nil)
	if r.Rows[0][6] != nil {
		dir := is(6)
		s.dataDir.Store(&dir)
	}
	if n.quorum {
		age, _ := strconv.Atoi(is(7))
		return pause(ctx, settled-time.Duration(max(0, age))*time.Millisecond)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// noticed takes note of a notice. Its text is in the server's language, so any
// warning counts.
func (n *session) noticed(severity string) { n.warned = n.warned || severity == "WARNING" }

func (n *session) close() {
	ctx, cancel := context.WithTimeout(context.Background(), cancelTimeout)
	defer cancel()
	n.conn.Close(ctx)
}

// prepare has the server parse a statement, once.
func (n *session) prepare(ctx context.Context, sql string) error {
	if n.prepared[sql] {
		return nil
	}
	if _, err := n.conn.Prepare(ctx, sql, sql, nil); err != nil {
		return err
	}
	n.prepared[sql] = true
	return nil
}

// A query is a statement with its parameters, all in binary form.
type query struct {
	sql    string
	params [][]byte
}

var binaryForm = []int16{1}

// rows runs a query and calls fn for each row, whose columns are valid during the
// call only.
func (n *session) rows(ctx context.Context, q query, fn func([][]byte)) error {
	if err := n.prepare(ctx, q.sql); err != nil {
		return err
	}
	r := n.conn.ExecPrepared(ctx, q.sql, q.params, binaryForm, binaryForm)
	for r.NextRow() {
		fn(r.Values())
	}
	_, err := r.Close()
	n.used = time.Now()
	return err
}

// namesSQL finds a row if commits wait for a standby. The server signals its
// processes before any of them can commit without waiting, so a process that
// is asked after a commit sees the new setting if the commit did.
const namesSQL = `SELECT 1 WHERE current_setting('synchronous_standby_names') <> ''`

// commit runs queries in one transaction, in one round trip, and returns when
// that is committed and a standby has it, too. It tells how many rows the last
// query changed or returned.
func (n *session) commit(ctx context.Context, queries ...query) (changed int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	for _, q := range queries {
		if err := n.prepare(ctx, q.sql); err != nil {
			return 0, err
		}
	}
	n.warned = false
	p := n.conn.StartPipeline(ctx)
	for _, q := range queries {
		p.SendQueryPrepared(q.sql, q.params, binaryForm, binaryForm)
	}
	p.SendPipelineSync()
	p.SendQueryParams(namesSQL, nil, nil, nil, nil)
	err = p.Sync()
	var names int64
	for err == nil {
		var got any
		if got, err = p.GetResults(); err != nil || got == nil {
			break
		}
		if r, ok := got.(*pgconn.ResultReader); ok {
			var tag pgconn.CommandTag
			tag, err = r.Close()
			changed, names = names, tag.RowsAffected()
		}
	}
	err = errors.Join(err, p.Close())
	n.used = time.Now()
	switch {
	case n.warned:
		return 0, errors.Join(errWarned, err)
	case err != nil:
		return 0, err
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case n.quorum && names == 0:
		return 0, errNoQuorum
	}
	return changed, nil
}

func int4(n int32) []byte  { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
func int8b(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }
