package handwritten

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy"
)

// readPlainly is what a list means, without pieces, runs and shared memory.
func readPlainly(file, text string, domains ...string) (keys, wrong []string) {
	all := map[string]bool{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimRight(line, "\r")
		for j := range line {
			if line[j] == '#' && (j == 0 || line[j-1] == ' ' || line[j-1] == '\t') {
				line = line[:j]
				break
			}
		}
		addr := strings.Trim(line, " \t")
		at := strings.LastIndexByte(addr, '@')
		place := fmt.Sprintf("%s:%d:%d: ", file, i+1, strings.Index(line, addr)+1)
		switch {
		case addr == "":
		case at < 0 || strings.Contains(addr[:at], ".."):
			wrong = append(wrong, fmt.Sprintf("%s%q is not an address; write user@example.org, or @example.org for every user", place, addr))
		case !slices.Contains(domains, strings.ToLower(addr[at+1:])):
			wrong = append(wrong, fmt.Sprintf("%srecipient %q is outside of the domains; add %q to domains or remove it", place, addr, addr[at+1:]))
		default:
			all[strings.ToLower(addr)] = true
		}
	}
	for k := range all {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys, wrong
}

// edit changes some lines of a list that has about n.
func edit(r *rand.Rand, lines []string, n int) []string {
	lines = slices.Clone(lines)
	for range 2 + r.IntN(5) {
		i := r.IntN(len(lines))
		switch r.IntN(12) {
		case 0, 1:
			lines = slices.Insert(lines, i, fmt.Sprintf("n%d@b.example", r.IntN(1<<30)))
		case 2:
			lines = slices.Delete(lines, i, min(len(lines), i+1+r.IntN(3)))
		case 3:
			lines[i] = fmt.Sprintf("e.%d@a.example # edited", r.IntN(1<<30))
		case 4:
			lines = slices.Insert(lines, i, "# a comment", "", " \t")
		case 5:
			lines = slices.Insert(lines, i, lines[r.IntN(len(lines))])
		case 6:
			lines[i] = "\t" + strings.ToUpper(lines[i]) + " \r"
		case 7:
			part := lines[i:min(len(lines), i+1000)]
			r.Shuffle(len(part), func(i, j int) { part[i], part[j] = part[j], part[i] })
		case 8: // the end comes first
			lines = slices.Concat(lines[i:], lines[:i])
		case 9:
			lines = append(lines, "last@a.example")
		case 10:
			lines = slices.Insert(lines, i, "İ.ß+ü@A.example", `"two words"@b.example`, "@a.example")
		case 11:
			lines = append(slices.Insert(lines, i, "two..dots@a.example", "none", "x@c.example"), "nobody")
		}
	}
	for len(lines) < n/2 {
		lines = append(lines, fmt.Sprintf("m%d@a.example", r.IntN(1<<30)))
	}
	return lines
}

// TestReload changes a list again and again: what is loaded beside the version
// before is what is loaded alone, and what the list says.
func TestReload(t *testing.T) {
	const n = 60_000 // more than a piece
	r := rand.New(rand.NewPCG(1, 4))
	var lines []string
	for i := range n {
		lines = append(lines, fmt.Sprintf("user%d.%d@%c.example", i, r.IntN(100), 'a'+byte(r.IntN(2))))
	}
	dir := t.TempDir()
	path, list := filepath.Join(dir, "policy.toml"), filepath.Join(dir, "list")
	write := func(file, text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(path, "domains = [\"a.example\", \"b.example\"]\nrecipients = [\"here@a.example\"]\nrecipients_file = \"list\"\n")
	var before *policy.Snapshot
	bad := 0
	for round := range 16 {
		if round == 5 || round == 10 {
			r.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
		}
		changed := edit(r, lines, n)
		text := strings.Join(changed, "\n")
		if r.IntN(2) == 0 {
			text += "\n"
		}
		write(list, text)
		keys, wrong := readPlainly(list, text, "a.example", "b.example")
		alone, _, err := Load(path, nil)
		beside, _, err2 := Load(path, before)
		if len(wrong) > 0 {
			bad++
			want := strings.Join(wrong, "\n")
			if err == nil || err2 == nil || err.Error() != want || err2.Error() != want {
				t.Fatalf("round %d: want\n%s\ngot\n%v\nand beside another version\n%v", round, want, err, err2)
			}
			continue
		}
		if err != nil || err2 != nil {
			t.Fatalf("round %d: %v, %v", round, err, err2)
		}
		i, _ := slices.BinarySearch(keys, "here@a.example")
		keys = slices.Insert(keys, i, "here@a.example")
		for what, s := range map[string]*policy.Snapshot{"alone": alone, "beside": beside} {
			table := s.Spec().Tables["recipients"]
			var got []string
			for key := range table.Entries(0, table.Len()) {
				got = append(got, string(key))
			}
			if !slices.Equal(got, keys) {
				t.Fatalf("round %d, %s: %d keys, want %d: %s", round, what, len(got), len(keys), cmp.Diff(keys, got))
			}
		}
		lines, before = changed, beside
	}
	if bad < 3 {
		t.Errorf("only %d lists had a mistake", bad)
	}
}

// TestEachPiece cuts texts whose lines end anywhere.
func TestEachPiece(t *testing.T) {
	long := strings.Repeat("x", 3*pieceSize+10)
	for name, text := range map[string]string{
		"empty": "", "one line": "a\n", "no end": "a\nb", "longer than a piece": "a\n" + long + "\nb\n" + long,
		"exactly a piece": long[:pieceSize-1] + "\n", "two pieces": strings.Repeat("0123456\n", pieceSize/4),
		"end behind a piece": strings.Repeat("0123456\n", pieceSize/8) + "y",
	} {
		for _, r := range []io.Reader{strings.NewReader(text), iotest.HalfReader(strings.NewReader(text)), iotest.DataErrReader(strings.NewReader(text))} {
			var all []string
			if err := eachPiece(r, func(s string) { all = append(all, s) }); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for i, s := range all {
				if s == "" || i < len(all)-1 && !strings.HasSuffix(s, "\n") {
					t.Errorf("%s: piece %d of %d has %d octets and ends within a line", name, i, len(all), len(s))
				}
			}
			if len(text) >= 2*pieceSize && len(all) < 2 {
				t.Errorf("%s: one piece of %d octets", name, len(text))
			}
			if strings.Join(all, "") != text {
				t.Errorf("%s: something got lost", name)
			}
		}
	}
	boom := errors.New("boom")
	if err := eachPiece(io.MultiReader(strings.NewReader("a\nb"), iotest.ErrReader(boom)), func(string) {}); err != boom {
		t.Errorf("a reader's error became %v", err)
	}
}

// TestListAsWritten has what editors and spreadsheets make of a list: it is read as it was
// meant, or its line is named.
func TestListAsWritten(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{ // want: the recipients, or a mistake
		"a BOM":                    {"\ufeffalice@example.org\r\nbob@example.org\r\n", "alice@example.org bob@example.org"},
		"a BOM and a comment":      {"\ufeff# ours\nalice@example.org", "alice@example.org"},
		"nothing but a BOM":        {"\ufeff", `policy.toml:1:12: domain "example.org" has no recipient`},
		"spaces at the end":        {"alice@example.org \t \r\nbob@example.org  ", "alice@example.org bob@example.org"},
		"no newline at the end":    {"alice@example.org\nbob@example.org", "alice@example.org bob@example.org"},
		"CR alone":                 {"alice@example.org\rbob@example.org", "list:1:1:"},
		"NUL":                      {"alice@example.org\nb\x00b@example.org\n", "list:2:1:"},
		"NUL at the end":           {"alice@example.org\nbob@example.org\x00\n", "list:2:1:"},
		"UTF-16":                   {"\xff\xfea\x00@\x00e\x00x\x00\n\x00", "list:1:1:"},
		"Latin-1":                  {"alice@example.org\nren\xe9@example.org", "list:2:1:"},
		"a BOM in the middle":      {"alice@example.org\n\ufeffbob@example.org\n", "list:2:1:"},
		"a no-break space":         {"alice@example.org\u00a0\n", "list:1:1:"},
		"a no-break space before":  {"\u00a0alice@example.org\n", "list:1:1:"},
		"a zero-width space":       {"ali\u200bce@example.org\n", "list:1:1:"},
		"a line of 1 MB":           {"alice@example.org\n" + strings.Repeat("a", 1<<20) + "@example.org\nbob@example.org\n", "list:2:1:"},
		"a line of 3 MB":           {"alice@example.org\n" + strings.Repeat("a", 3<<20) + "\nbob@example.org\n", "list:2: the line is longer than 1048576 octets"},
		"a file of 3 MB, one line": {strings.Repeat("alice@example.org ", 200_000), "list:1: the line is longer than 1048576 octets"},
		"a comma":                  {"alice@example.org,\nbob@example.org", "list:1:1:"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range map[string]string{"policy.toml": "domains = [\"example.org\"]\nrecipients_file = \"list\"\n", "list": tt.text} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			snap, _, err := Load(filepath.Join(dir, "policy.toml"), nil)
			if err != nil {
				if text := strings.ReplaceAll(err.Error(), dir+"/", ""); !strings.Contains(text, tt.want) || len(text) > 1000 {
					t.Errorf("%.1000s, want %s", text, tt.want)
				}
				return
			}
			var got []string
			list := snap.Spec().Tables[recipientsTable]
			for key := range list.Entries(0, list.Len()) {
				got = append(got, string(key))
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("%q, want %s", got, tt.want)
			}
		})
	}
}
