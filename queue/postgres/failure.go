package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/understudy-mx/understudy/queue/store"
)

var (
	errNoQuorum = errors.New("the server commits without waiting for a standby (synchronous_standby_names is empty); " +
		`name a quorum there, such as 'ANY 1 (mx2, mx3)', or set durability = "one-machine" under [queue]`)
	errWarned = errors.New("the server warned at the commit, as it does when the wait for a standby is cancelled: it may be on one machine alone")
	errFenced = errors.New("another process has taken the spool")
	errAway   = errors.New("the database is away")
)

// Away says that a database couldn't be reached, or didn't answer in time. As far as
// is known nothing is wrong with its content, nor with how it is named.
func Away(err error) bool {
	return errors.Is(err, errAway) || errors.Is(err, errWarned) || errors.Is(err, context.DeadlineExceeded)
}

// SQLSTATEs that mean something to a queue.
const (
	stateDivision  = "22012" // the fence, see fenceSQL
	stateDiskFull  = "53100"
	stateCorrupted = "XX001"
	stateIndex     = "XX002"
	stateNoTable   = "42P01"
	stateNoColumn  = "42703"
	stateNoSchema  = "3F000"
	stateReadOnly  = "25006"
	stateLocked    = "55P03"
	classOperator  = "57" // the server starts, stops, or was told to end a session
)

// failed makes a server's error one of the store's. Its text is bounded.
func failed(doing string, err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || errors.Is(err, errWarned) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	said := fmt.Errorf("%s: server says %q (SQLSTATE %.5s)", doing, store.Cut(pg.Message), pg.Code)
	if strings.HasPrefix(pg.Code, classOperator) {
		return fmt.Errorf("%w: %w", errAway, said)
	}
	switch pg.Code {
	case stateDivision:
		return fmt.Errorf("%s: %w", doing, errFenced)
	case stateDiskFull:
		return fmt.Errorf("%w: %w", said, syscall.ENOSPC)
	case stateCorrupted, stateIndex, stateNoTable, stateNoColumn, stateNoSchema:
		return fmt.Errorf("%w: %w", store.ErrDamaged, said)
	case stateReadOnly:
		return fmt.Errorf("%w; is it a standby, or was default_transaction_read_only set?", said)
	case stateLocked:
		return fmt.Errorf("%w; an earlier commit still waits, for a standby perhaps", said)
	}
	return said
}

// answered says that the error is the server's answer, over a connection that
// works.
func answered(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Severity != "FATAL" && pg.Severity != "PANIC"
}
