package test

import (
	"bufio"
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/understudy-mx/understudy/"

// arrows says which rooms a room may import; a name ending in "/*" stands for
// every package below it. What isn't listed may not be imported across rooms.
// The reasons are in the package docs; the door, the judge, the queue and the
// relay know each other only through what cmd wires.
var arrows = map[string][]string{
	"cmd/understudy":    {"*"},
	"smtpd":             {"policy", "internal/envelope", "metrics"},
	"relay":             {"internal/envelope", "metrics"},
	"queue":             {"internal/dsn", "internal/envelope", "metrics"},
	"sync":              {"policy", "metrics", "internal/lister"},
	"policy":            {"policy/pattern", "internal/envelope"},
	"policy/pattern":    nil,
	"policy/parity":     {"policy", "internal/envelope"},
	"policy/postfix":    {"policy", "internal/envelope", "internal/lister"},
	"metrics":           nil,
	"systemd":           nil,
	"test":              {"*"},
	"test/parity":       {"*"},
	"test/bench":        {"internal/demo", "internal/testmx"},
	"internal/config":   {"internal/envelope"},
	"internal/control":  {"internal/envelope"},
	"internal/demo":     {"internal/envelope"},
	"internal/dsn":      {"internal/envelope"},
	"internal/envelope": nil,
	"internal/lister":   {"internal/envelope"},
	"internal/resolver": {"internal/envelope"},
	"internal/testmx":   {"internal/envelope", "internal/demo"},

	"internal/lister/listertest": nil, // tests only, as testmx
}

// TestArrows keeps the rooms apart: it compares what the packages import with
// the table above. testmx is for tests only, so the second list, which
// includes test files, may use it and the first may not.
func TestArrows(t *testing.T) {
	for _, tt := range []struct {
		name, format string
		extra        []string
	}{
		{"code", "{{.ImportPath}}: {{join .Imports \" \"}}", nil},
		{"tests", "{{.ImportPath}}: {{join .TestImports \" \"}} {{join .XTestImports \" \"}}",
			[]string{"internal/testmx", "internal/lister/listertest", "internal/demo", "internal/resolver", "internal/envelope", "metrics", "policy"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command("go", "list", "-f", tt.format, "./...")
			cmd.Dir = ".."
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("go list: %v", err)
			}
			seen := 0
			for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
				path, imports, _ := strings.Cut(sc.Text(), ": ")
				room := strings.TrimPrefix(path, module)
				allowed, known := arrows[room]
				if !known {
					t.Errorf("%s is no room of the house: give it a row in the table, or move its code", room)
				}
				for imp := range strings.FieldsSeq(imports) {
					to, ours := strings.CutPrefix(imp, module)
					if !ours || to == room || slices.Contains(allowed, "*") || slices.Contains(allowed, to) || slices.Contains(tt.extra, to) {
						continue
					}
					t.Errorf("%s must not import %s", room, to)
				}
				seen++
			}
			if seen < 3 {
				t.Errorf("only %d packages seen: the list is not the house", seen)
			}
		})
	}
}
