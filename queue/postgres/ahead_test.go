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
		_, second := a.take(key(2))
		if second.length < 2 {
			t.Fatalf("%d keys are read, in order", second.length)
		}
		type got struct {
			value  []byte
			length int
		}
		three, nine := make(chan got, 1), make(chan got, 1)
		for n, to := range map[uint64]chan got{3: three, 9: nine} {
			go func() {
				value, next := a.take(key(n))
				to <- got{value, next.length}
			}()
		}
		synctest.Wait()
		if len(three)+len(nine) > 0 {
			t.Error("what is being read is read again")
		}
		if _, first := a.take(key(1)); first.length != 1 {
			t.Errorf("%d keys are read for one that isn't being read", first.length)
		}
		a.keep(second, true, [][]byte{key(2), key(3)}, [][]byte{[]byte("second"), []byte("third")})
		if g := <-three; string(g.value) != "third" {
			t.Errorf("it was read, and is %q", g.value)
		}
		if g := <-nine; g.value != nil || g.length < 1 {
			t.Errorf("it wasn't read, and is %q; %d to be read", g.value, g.length)
		}
	})
}

// TestReadInTime: before what was read is used up, the next keys are being read, but not
// after the last ones.
func TestReadInTime(t *testing.T) {
	var a ahead
	const last = 300
	key := func(n uint64) []byte { return store.SeqKey('m', n) }
	read := func(of span, wanted bool) {
		var keys, values [][]byte
		for n := uint64(1); n <= last && len(keys) < of.length; n++ {
			if string(key(n)) >= string(of.from) {
				keys, values = append(keys, key(n)), append(values, []byte("value"))
			}
		}
		a.keep(of, wanted, keys, values)
	}
	waited, inTime := 0, 0
	for n := uint64(1); n <= last; n++ {
		value, next := a.take(key(n))
		switch {
		case value == nil && next.length == 1:
			waited++
		case value == nil:
			waited++
			read(next, true)
		case next.from != nil:
			inTime++
			read(next, false)
		}
		if len(a.values) > 2*aheadKeys {
			t.Fatalf("%d values are kept", len(a.values))
		}
	}
	if waited > 3 || inTime < last/aheadKeys || inTime > 15 {
		t.Errorf("%d keys of %d were waited for, %d reads came in time", waited, last, inTime)
	}
}
