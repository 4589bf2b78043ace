package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// boundGarbage keeps the garbage that may lie about to 8 MiB, or to a tenth of
// what is alive; Go's own bound, as much again, holds where that is less. Most
// of what is alive is tables without pointers, so that to collect more often
// costs little, and a list of ten million recipients doesn't make room for as
// much again. The bound follows each collection: a list grows in seconds.
func boundGarbage() {
	if os.Getenv("GOGC") != "" {
		return
	}
	const most, least, room = 100, 10, 8 << 20
	debug.SetGCPercent(int(max(least, min(most, 100*room/max(1, liveHeap())))))
	type witness struct{ _ *int }                                     // with a pointer, for what has none may be kept by its neighbours
	runtime.AddCleanup(new(witness), func(int) { boundGarbage() }, 0) // when the next collection finds it
}

// liveHeap is what the last collection left, in octets.
func liveHeap() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	if metrics.Read(s); s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}
