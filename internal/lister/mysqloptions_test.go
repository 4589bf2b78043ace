package lister

import (
	"os"
	"path/filepath"
	"testing"
)

// Below a command each option file costs a program, and there may be ten of them.
func TestOptionFilesOnce(t *testing.T) {
	name := filepath.Join(t.TempDir(), "my.cnf")
	files := &OptionFiles{}
	for _, try := range []struct {
		port, group string
		files       *OptionFiles
		want        string
	}{
		{"1", "client", files, "1"},
		{"2", "client", files, "1"},
		{"3", "mail", files, "3x"},
		{"4", "client", nil, "4"},
		{"5", "client", &OptionFiles{}, "5"},
	} {
		if err := os.WriteFile(name, []byte("[client]\nport = "+try.port+"\n[mail]\nport = "+try.port+"x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := Source{Type: "mysql", Settings: map[string]string{"option_file": name, "option_group": try.group}, Options: try.files}
		got, err := s.mysqlOptions(t.Context())
		if err != nil || got["port"] != try.want {
			t.Errorf("port %s in the file, group %s: %q, %v; want %s", try.port, try.group, got["port"], err, try.want)
		}
	}
}
