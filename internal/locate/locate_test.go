package locate

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestKeys(t *testing.T) {
	const text = `a = """
x"""
b.c = [1, { d = "]" }, # ]
  "e"]
[[t]]
k = 'v'
[[t]]
"q r" = 1
[t.u]
`
	got := map[string][2]int{}
	for path, off := range Keys(text) {
		line, col := Line(text, off)
		got[path] = [2]int{line, col}
	}
	want := map[string][2]int{
		"a": {1, 1}, "b.c": {3, 1}, "b.c[0]": {3, 8}, "b.c[1]": {3, 11}, "b.c[1].d": {3, 13}, "b.c[2]": {4, 3},
		"t": {5, 1}, "t[0]": {5, 1}, "t[0].k": {6, 1}, "t[1]": {7, 1}, "t[1].q r": {8, 1}, "t[1].u": {9, 1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	for path, want := range map[string]int{"b.c[1].none": Keys(text)["b.c[1]"], "nowhere": 0, "b.c[9]": Keys(text)["b.c"]} {
		if got := At(Keys(text), path); got != want {
			t.Errorf("%s: at %d, want %d", path, got, want)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"hostname", "listen", "tls_cert", "to"}
	for word, want := range map[string]string{"hostnmae": "hostname", "Listen": "listen", "tls-cert": "tls_cert", "password": "", "": ""} {
		if got := Nearest(word, names); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
}
