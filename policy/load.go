package policy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxPolicyFile bounds a policy file and each file that it names.
const maxPolicyFile = 1 << 30

// Load reads a policy: hand-written TOML, or the canonical JSON of a snapshot.
// files are all the files that were read, or should have been, so that a
// caller can watch them. An error may join many, each a line of the form
// "file:line:col: what is wrong; what to do". The new
// Snapshot shares memory with that of before (nil: there is none), where both
// list the same recipients.
func Load(path string, before *Snapshot) (s *Snapshot, files []string, err error) {
	open := func(name string) (io.ReadCloser, error) {
		files = append(files, name)
		return openFile(name)
	}
	f, err := open(path)
	if err != nil {
		return nil, files, err
	}
	defer f.Close()
	again := func() ([]byte, error) {
		f, err := openFile(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(f)
	}
	s, err = parse(path, f, again, open, before)
	return s, files, err
}

func openFile(name string) (io.ReadCloser, error) {
	fi, err := os.Stat(name) // to open a pipe would wait for its other end
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is not a regular file", name)
	}
	if fi.Size() > maxPolicyFile {
		return nil, fmt.Errorf("%s: has %d octets; a policy file may have %d", name, fi.Size(), maxPolicyFile)
	}
	return os.Open(name)
}

// Parse reads a policy from b, which is called name in errors. Files that it
// mentions are relative to name's directory and read by readFile.
func Parse(name string, b []byte, readFile func(string) ([]byte, error)) (*Snapshot, error) {
	open := func(file string) (io.ReadCloser, error) {
		b, err := readFile(file)
		return io.NopCloser(bytes.NewReader(b)), err
	}
	return parse(name, bytes.NewReader(b), func() ([]byte, error) { return b, nil }, open, nil)
}

// parse reads r; again is all of it, from the start.
func parse(name string, r io.Reader, again func() ([]byte, error), open func(string) (io.ReadCloser, error), before *Snapshot) (*Snapshot, error) {
	br := bufio.NewReader(r)
	head, _ := br.Peek(br.Size()) // an error comes again
	if bytes.HasPrefix(bytes.TrimLeft(head, " \t\r\n"), []byte("{")) {
		return decodeFrom(name, br, again, before)
	}
	b, err := io.ReadAll(br)
	if err != nil {
		return nil, err
	}
	var like *Table
	if before != nil {
		like = before.spec.Tables[tomlRecipients]
	}
	spec, err := parseTOML(name, b, func(file string) (string, io.ReadCloser, error) {
		if !filepath.IsAbs(file) {
			file = filepath.Join(filepath.Dir(name), file)
		}
		r, err := open(file)
		return file, r, err
	}, like)
	if err != nil {
		return nil, err
	}
	s, err := Compile(spec)
	if err != nil {
		return nil, prefixErrors(name+":1:1: ", err)
	}
	return s, nil
}
