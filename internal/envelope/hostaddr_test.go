package envelope

import "testing"

func TestValidHostname(t *testing.T) {
	for name, want := range map[string]bool{
		"a.example": true, "a-b_c.example": true, "a": true, "1a": true,
		"": false, "a.": false, ".a": false, "a..b": false, "-a": false, "a-": false, "a.-b": false, "a-.b": false, "1.2": false, "a b": false,
	} {
		if ValidHostname(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

func TestValidHostaddr(t *testing.T) {
	for s, want := range map[string]bool{
		"::": true, "::1": true, "1::": true, "1:2:3:4:5:6:7:8": true, "1::8": true,
		":1": false, "1:": false, ":::": false, "1:::2": false, "1::2::3": false, "12345::": false, "": false, "g::": false,
		"192.0.2.1": true, "0.0.0.0": true, "0.0.0.1": false, "192.0.2": false, "192.0.2.256": false,
	} {
		if ValidHostaddr(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}
