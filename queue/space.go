package queue

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// space is what was free when it was last looked at.
type space struct {
	sync.Mutex    // guards the rest; held while the store looks
	at            time.Time
	bytes, inodes uint64
	err           error
}

// The replies that the queue gives.
var (
	replyPoisoned = envelope.NewReply(451, "4.3.0", "Message store unavailable, try again later")
	replyNoSpace  = envelope.NewReply(452, "4.3.1", "Insufficient system storage, try again later")
)

// poisoned is the reply to mail that can't be stored: 452 for want of space, else
// 451.
func poisoned(err error) error {
	reply := replyPoisoned
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		reply = replyNoSpace
	}
	return &envelope.ReplyError{Reply: reply, Err: err}
}

// asReply makes any error one that names its reply.
func asReply(err error) error {
	var r *envelope.ReplyError
	if err == nil || errors.As(err, &r) {
		return err
	}
	return poisoned(err)
}

// Ready says whether a message of size octets (0 when unknown) can be
// accepted now. Its errors are *envelope.ReplyError: 452 4.3.1 below the floor
// of free space, 451 4.3.0 while the store can't be written.
func (q *Queue) Ready(size int64) error {
	if err := q.poison.Load(); err != nil {
		return poisoned(*err)
	}
	bytes, inodes, err := q.free()
	if err != nil {
		q.m.StoreErrors.WithLabelValues("statfs").Inc()
		return poisoned(err)
	}
	if bytes < q.o.MinFree+uint64(max(0, size)) || inodes < q.o.MinFreeInodes {
		return &envelope.ReplyError{Reply: replyNoSpace,
			Err: fmt.Errorf("%d octets and %d inodes free", bytes, inodes)}
	}
	return nil
}

// free is the space left, at most a second old.
func (q *Queue) free() (bytes, inodes uint64, err error) {
	s, now := &q.space, q.now()
	s.Lock()
	defer s.Unlock()
	if age := now.Sub(s.at); s.at.IsZero() || age > time.Second || age < 0 {
		s.bytes, s.inodes, s.err = q.store.Free()
		s.at = now
	}
	return s.bytes, s.inodes, s.err
}
