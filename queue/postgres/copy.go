package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// copyAbove is from how many keys on a batch is written by COPY: it costs the
// server half as much as INSERT does, but can't replace what is there, so all keys
// are deleted first.
const copyAbove = 16

const copySQL = `COPY understudy.kv (spool, key, value) FROM STDIN (FORMAT binary)`

// copyRows appends rows in COPY's binary form to b.
func copyRows(b []byte, spool int32, keys, values [][]byte) []byte {
	b = append(b, "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	field := func(v []byte) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	for i := range keys {
		b = append(b, 0, 3, 0, 0, 0, 4)
		b = binary.BigEndian.AppendUint32(b, uint32(spool))
		field(keys[i])
		field(values[i])
	}
	return append(b, 0xff, 0xff)
}

// commitCopy is commit for a fence, a deletion and a COPY. All goes out at once: a
// server whose COPY fails ignores the rows that come after.
func (n *session) commitCopy(fence string, deletion query, rows []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	if err := n.prepare(ctx, deletion.sql); err != nil {
		return err
	}
	n.warned = false
	// As with commit, a wait for a standby is cancelled at the end of our patience.
	giveUp := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			ctx, cancel := context.WithTimeout(context.Background(), cancelTimeout)
			defer cancel()
			n.conn.CancelRequest(ctx)
		}
	})
	defer giveUp()
	n.conn.Conn().SetDeadline(time.Now().Add(commitTimeout + cancelTimeout))
	defer n.conn.Conn().SetDeadline(time.Time{})
	f := n.conn.Frontend()
	f.SendQuery(&pgproto3.Query{String: "BEGIN; " + fence})
	f.SendBind(&pgproto3.Bind{PreparedStatement: deletion.sql, ParameterFormatCodes: binaryForm, Parameters: deletion.params})
	f.SendExecute(&pgproto3.Execute{})
	f.SendSync(&pgproto3.Sync{})
	f.SendQuery(&pgproto3.Query{String: copySQL})
	f.Send(&pgproto3.CopyData{Data: rows})
	f.Send(&pgproto3.CopyDone{})
	f.SendQuery(&pgproto3.Query{String: "COMMIT"})
	f.SendQuery(&pgproto3.Query{String: namesSQL})
	if err := f.Flush(); err != nil {
		return err
	}
	said, err := n.answers(f, 5)
	n.used = time.Now()
	switch {
	case n.warned:
		return errors.Join(errWarned, err)
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case said[3] != "COMMIT":
		return fmt.Errorf("the server answered %.20q to COMMIT", said[3])
	case n.quorum && said[4] != "SELECT 1":
		return errNoQuorum
	}
	return nil
}

// answers reads to the nth ReadyForQuery, and tells the last completed command
// before each. The error is the server's first.
func (n *session) answers(f *pgproto3.Frontend, count int) (said []string, first error) {
	last := ""
	for len(said) < count {
		m, err := f.Receive()
		if err != nil {
			return said, errors.Join(first, err)
		}
		switch m := m.(type) {
		case *pgproto3.CommandComplete:
			last = string(m.CommandTag)
		case *pgproto3.ReadyForQuery:
			said, last = append(said, last), ""
		case *pgproto3.NoticeResponse:
			n.noticed(m.SeverityUnlocalized)
		case *pgproto3.ErrorResponse:
			if first == nil {
				first = pgconn.ErrorResponseToPgError(m)
			}
			if m.SeverityUnlocalized == "FATAL" || m.SeverityUnlocalized == "PANIC" {
				return said, first
			}
		}
	}
	return said, first
}
