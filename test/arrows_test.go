package test

import (
	"bufio"
	"bytes"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/understudy-mx/understudy/"

// rooms reads the table of docs/ARCHITECTURE.md: which rooms a room may import.
func rooms(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	_, table, _ := strings.Cut(readFile(t, "../docs/ARCHITECTURE.md"), "\n## Rooms\n")
	table, _, _ = strings.Cut(table, "\n## ")
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(line, "| \n"), "|")
		if len(cells) != 3 || !strings.Contains(cells[0], "`") {
			continue
		}
		may := []string{}
		for w := range strings.FieldsSeq(cells[2]) {
			if w != "–" {
				may = append(may, strings.Trim(w, "`"))
			}
		}
		all[strings.Trim(cells[0], "` ")] = may
	}
	if len(all) < 15 {
		t.Fatalf("docs/ARCHITECTURE.md lists %d rooms: the table isn't read", len(all))
	}
	return all
}

// forTests may be imported by any package's tests.
var forTests = []string{"internal/testmx", "internal/lister/listertest", "internal/demo", "internal/host", "internal/milter", "internal/resolver", "internal/suite", "internal/envelope", "metrics", "policy", "policy/table", "policy/handwritten",
	"queue/leveldb", "queue/postgres", "queue/store", "queue/store/storetest"}

// TestArrows keeps the rooms apart: what the packages import is what the map
// allows, and the map allows nothing that nobody uses.
func TestArrows(t *testing.T) {
	arrows := rooms(t)
	used := map[string]map[string]bool{}
	for room := range arrows {
		used[room] = map[string]bool{}
	}
	for _, tt := range []struct {
		name, format string
		extra        []string
	}{
		{"code", "{{.ImportPath}}: {{join .Imports \" \"}}", nil},
		{"tests", "{{.ImportPath}}: {{join .TestImports \" \"}} {{join .XTestImports \" \"}}", forTests},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command("go", "list", "-f", tt.format, "./...")
			cmd.Dir = ".."
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("go list: %v", err)
			}
			for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
				path, imports, _ := strings.Cut(sc.Text(), ": ")
				room := strings.TrimPrefix(path, module)
				allowed, known := arrows[room]
				if !known {
					t.Errorf("%s is no room of the house: give it a row in docs/ARCHITECTURE.md, or move its code", room)
					continue
				}
				for imp := range strings.FieldsSeq(imports) {
					to, ours := strings.CutPrefix(imp, module)
					if !ours || to == room {
						continue
					}
					used[room][to] = true
					if !slices.Contains(allowed, "all") && !slices.Contains(allowed, to) && !slices.Contains(tt.extra, to) {
						t.Errorf("%s must not import %s", room, to)
					}
				}
			}
		})
	}
	for _, room := range slices.Sorted(maps.Keys(arrows)) {
		for _, to := range arrows[room] {
			if to != "all" && !used[room][to] {
				t.Errorf("docs/ARCHITECTURE.md lets %s import %s, and it doesn't", room, to)
			}
		}
	}
}
