package handwritten

import (
	"io/fs"
	"regexp"
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

// TestPresetsSources: each rule and each figure names the source that the head has, or says
// that it is ours.
func TestPresetsSources(t *testing.T) {
	mark := regexp.MustCompile(`\[\d\]`)
	for _, name := range Presets() {
		text, _ := Preset(name)
		head, rest, _ := strings.Cut(string(text), "\ndomains ")
		_, sources, _ := strings.Cut(head, "# Source")
		_, rules, _ := strings.Cut(rest, "\n[")
		for line := range strings.Lines(rules) {
			rule, note, _ := strings.Cut(line, " # ")
			if !strings.Contains(rule, "=") {
				continue
			}
			marks := mark.FindAllString(note, -1)
			if len(marks) == 0 && strings.TrimSpace(note) != "ours" {
				t.Errorf("%s: %s names no source", name, rule)
			}
			for _, m := range marks {
				if !strings.Contains(sources, m+" ") {
					t.Errorf("%s: %s is of source %s, which the head lacks", name, rule, m)
				}
			}
		}
	}
}
