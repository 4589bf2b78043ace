package postgres

import (
	"testing"
	"testing/synctest"

	"github.com/understudy-mx/understudy/queue/store"
)

// TestReadOnce: of several who get keys in order, one reads, and those whose keys come with
// that wait for it. A key that doesn't come with it is read then, and one before it at once.
func TestReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a ahead
		key := func(n uint64) []byte { return store.SeqKey('m', n) }
		a.take(key(1))
		_, length, age := a.take(key(2))
		if length < 2 {
			t.Fatalf("%d keys are read, in order", length)
		}
		type got struct {
			value  []byte
			length int
		}
		three, nine := make(chan got, 1), make(chan got, 1)
		for n, to := range map[uint64]chan got{3: three, 9: nine} {
			go func() {
				value, length, _ := a.take(key(n))
				to <- got{value, length}
			}()
		}
		synctest.Wait()
		if len(three)+len(nine) > 0 {
			t.Error("what is being read is read again")
		}
		if _, length, _ := a.take(key(1)); length == 0 {
			t.Error("no length for a key that isn't being read")
		}
		a.keep(key(2), age, [][]byte{key(3)}, [][]byte{[]byte("third")})
		if g := <-three; string(g.value) != "third" {
			t.Errorf("it was read, and is %q", g.value)
		}
		if g := <-nine; g.value != nil || g.length < 1 {
			t.Errorf("it wasn't read, and is %q; %d to be read", g.value, g.length)
		}
	})
}
