package publisher

import (
	"testing"
	"time"
)

// TestRestAfter: a slow look at a database is no reason to leave a change alone
// for long, unless looking is all that the database would do.
func TestRestAfter(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		time.Millisecond:       time.Second,
		100 * time.Millisecond: 2 * time.Second,
		time.Second:            5 * time.Second,
		30 * time.Second:       2 * time.Minute,
	} {
		if got := restAfter(took); got != want {
			t.Errorf("after %v: got %v, want %v", took, got, want)
		}
	}
}
