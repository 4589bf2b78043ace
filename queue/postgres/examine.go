package postgres

import (
	"context"
	"encoding/binary"
)

// Server is what a database server says of itself.
type Server struct {
	Unproven  bool // its certificate, and that of any other host of the DSN
	Superuser bool // is our role
	Standbys  int  // connected now
}

const examineSQL = `SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), (SELECT count(*) FROM pg_stat_replication)`

// Examine connects as a member would, and asks. It changes nothing.
func (o Opener) Examine(ctx context.Context) (found Server, err error) {
	o.Dir = ""
	s, err := o.store(nil)
	if err != nil {
		return found, err
	}
	defer s.pool.close()
	found.Unproven = unproven(o.Config)
	if err = s.pool.with(ctx, func(n *session) error {
		return n.rows(ctx, query{examineSQL, nil}, func(c [][]byte) {
			found.Superuser, found.Standbys = c[0][0] == 1, int(binary.BigEndian.Uint64(c[1]))
		})
	}); err != nil {
		err = failed("ask the database", err)
	}
	return found, err
}
