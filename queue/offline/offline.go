// Package offline works on the queue of a stopped daemon: View shows it without
// changing anything, Verify reads and compares all of it, and Repair makes a
// damaged one usable again.
//
// A damaged LevelDB table, for instance, shows at a start as
//
//	queue store is damaged: … block checksum mismatch
//
// and the daemon refuses to run. Verify says what else is wrong. Repair makes a
// new store from the readable parts and keeps the damaged one; mail that had left
// may be back afterwards and be relayed once more, so no start repairs by itself.
// None of the three runs while a daemon has the queue: ErrLocked.
package offline

import (
	"fmt"

	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/store"
)

// View is a queue opened for reading alone: nothing in the directory changes but
// LOCK.
type View struct {
	queue.Reader
	store  store.Store
	route  func(string) string
	alarms []string // what the store complained about

	// Checked is called by Verify after each message, with the number of all;
	// Checked is called by Verify after each message, unless it is nil.
	Checked func()
}

// Count is how many messages the queue says that it holds, 0 if it doesn't.
func (v *View) Count() int {
	said, _ := store.LoadTotals(v.store) // Verify says why there are none
	return int(said.Messages)
}

// Opener opens a queue's store for reading alone: ErrLocked, ErrNewerVersion,
// fs.ErrNotExist. It names it for an error message.
type Opener interface {
	OpenReadOnly(alarm func(kind, line string)) (store.Store, error)
	String() string
}

// OpenView opens a queue that is there, under today's routes (see queue.Options).
func OpenView(dir Opener, route func(domain string) (dest string)) (*View, error) {
	v := &View{route: route}
	s, err := dir.OpenReadOnly(func(_, line string) { v.alarms = append(v.alarms, store.Cut(line)) })
	if err != nil {
		return nil, fmt.Errorf("queue %s: %w", dir, err)
	}
	v.Reader, v.store = queue.NewReader(s, route), s
	return v, nil
}

// Close lets go of the queue.
func (v *View) Close() error { return v.store.Close() }

// maxProblems bounds what is listed.
const maxProblems = 1000

// add lists a problem, or counts it where there are too many.
func add(list *[]string, more *int, format string, args ...any) {
	if len(*list) >= maxProblems {
		*more++
		return
	}
	*list = append(*list, store.Cut(fmt.Sprintf(format, args...)))
}
