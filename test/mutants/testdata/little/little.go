// Package little is what TestTry breaks.
package little

// Limit is tested well.
func Limit(n, most int) int {
	if n > most {
		return most
	}
	return n
}

// Both is tested on one side alone.
func Both(a, b bool) bool { return a && b }

// Nobody is not tested.
func Nobody(p *int) {
	*p = 7
}

// Lent is tested by who uses it.
func Lent() int { return 3 }
