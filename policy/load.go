package policy

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// maxPolicyFile bounds a policy file and each file that it names.
const maxPolicyFile = 1 << 30

// Load reads a policy: hand-written TOML, or the canonical JSON of a snapshot.
// files are all the files that were read, or should have been, so that a
// caller can watch them. An error may join many, each a line of the form
// "file:line:col: what is wrong; what to do".
func Load(path string) (s *Snapshot, files []string, err error) {
	read := func(name string) ([]byte, error) {
		files = append(files, name)
		return readFile(name)
	}
	b, err := read(path)
	if err != nil {
		return nil, files, err
	}
	s, err = Parse(path, b, read)
	return s, files, err
}

func readFile(name string) ([]byte, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is not a regular file", name)
	}
	if fi.Size() > maxPolicyFile {
		return nil, fmt.Errorf("%s: has %d octets; a policy file may have %d", name, fi.Size(), maxPolicyFile)
	}
	return os.ReadFile(name)
}

// Parse reads a policy from b, which is called name in errors. Files that it
// mentions are relative to name's directory and read by readFile.
func Parse(name string, b []byte, readFile func(string) ([]byte, error)) (*Snapshot, error) {
	if bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("{")) {
		return decode(name, b)
	}
	spec, err := parseTOML(name, b, func(file string) (string, []byte, error) {
		if !filepath.IsAbs(file) {
			file = filepath.Join(filepath.Dir(name), file)
		}
		b, err := readFile(file)
		return file, b, err
	})
	if err != nil {
		return nil, err
	}
	s, err := Compile(spec)
	if err != nil {
		return nil, prefixErrors(name+":1:1: ", err)
	}
	return s, nil
}
