package handwritten

import (
	"io/fs"
	"strings"
	"testing"
)

// TestPresets: every preset is right as it is, says its sources, and lets in nobody who
// isn't known; DMARC and SPF are where it says so.
func TestPresets(t *testing.T) {
	if len(Presets()) < 6 {
		t.Fatalf("presets %q", Presets())
	}
	for _, name := range Presets() {
		text, known := Preset(name)
		if !known || !strings.Contains(string(text), "# Source") {
			t.Errorf("%s names no source", name)
		}
		s, err := Parse(name+".toml", text, func(string) ([]byte, error) { return nil, fs.ErrNotExist })
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		f := s.Spec().Filters
		dmarc, spf := strings.Contains(string(text), "\ndmarc = true"), strings.Contains(string(text), "\nspf = true")
		if (len(f.Milters) == 2) != dmarc || (len(s.Spec().Restrictions.Recipient) == 1 && len(f.SPF) == 1) != spf && name != "asked" {
			t.Errorf("%s: filters %+v", name, f)
		}
	}
	if _, known := Preset("../google"); known {
		t.Error("a name leads out of the presets")
	}
}
