package little

import "testing"

func TestLimit(t *testing.T) {
	for n, want := range map[int]int{1: 1, 9: 5} {
		if got := Limit(n, 5); got != want {
			t.Errorf("Limit(%d, 5) is %d", n, got)
		}
	}
}

func TestBoth(t *testing.T) {
	if Both(true, false) || !Both(true, true) {
		t.Error("Both")
	}
}
