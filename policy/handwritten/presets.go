package handwritten

import (
	"embed"
	"slices"
	"strings"
)

//go:embed presets/*.toml
var presets embed.FS

// Presets are the names of the policy files for servers of a known kind.
func Presets() (names []string) {
	entries, _ := presets.ReadDir("presets") // embedded: it is there
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".toml"))
	}
	slices.Sort(names)
	return names
}

// Preset returns such a policy file, to be completed by its user.
func Preset(name string) (text []byte, known bool) {
	if !slices.Contains(Presets(), name) {
		return nil, false
	}
	text, err := presets.ReadFile("presets/" + name + ".toml")
	return text, err == nil
}
