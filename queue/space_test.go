package queue

import (
	"syscall"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// backWithin is how soon mail is accepted again once a fault has gone.
const backWithin = 5 * time.Second

func TestInodeFloor(t *testing.T) {
	disk := newMemDisk()
	now := time.Now()
	o := options(disk)
	o.MinFreeInodes = 1000
	o.Now = func() time.Time { return now }
	q := mustOpen(t, o)
	defer mustClose(t, q)
	disk.SetFree(testmx.Space{Bytes: 1 << 40, Inodes: 999})
	wantReply(t, q.Ready(0), 452, "4.3.1")
	disk.SetFree(testmx.Space{Bytes: 1 << 40, Inodes: 1000})
	now = now.Add(2 * time.Second)
	mustAccept(t, q, "again", "a@example.com")
}

// TestFullDiskIsNoMalfunction: the reply names the want of space also while
// the store waits to be reopened.
func TestFullDiskIsNoMalfunction(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		disk := newMemDisk()
		q := mustOpen(t, options(disk))
		disk.Fault(func(op testmx.Op) error {
			if op.Kind == testmx.OpWrite || op.Kind == testmx.OpCreate {
				return syscall.ENOSPC
			}
			return nil
		})
		_, err := accept(q, "no", "a@example.com")
		wantReply(t, err, 452, "4.3.1")
		wantReply(t, q.Ready(0), 452, "4.3.1")
		disk.Fault(nil)
		time.Sleep(backWithin)
		mustAccept(t, q, "again", "a@example.com")
		mustClose(t, q)
	})
}
