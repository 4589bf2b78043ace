package handwritten

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/understudy-mx/understudy/policy"
)

// maxPolicyFile bounds a policy file and each file that it names.
const maxPolicyFile = 1 << 30

// Load reads a policy: hand-written TOML, or the canonical JSON of a snapshot.
// files are all the files that were read, or should have been, so that a caller
// can watch them. An error may join many, each a line of the form "file:line:col:
// what is wrong; what to do". The new Snapshot shares memory with before, which may
// be nil, where both list the same recipients.
func Load(path string, before *policy.Snapshot) (s *policy.Snapshot, files []string, err error) {
	open := func(name string) (io.ReadSeekCloser, error) {
		files = append(files, name)
		return openFile(name)
	}
	f, err := open(path)
	if err == nil {
		defer f.Close()
		s, err = parse(path, f, open, before)
	}
	if _, system := err.(*fs.PathError); system {
		err = fmt.Errorf("read policy: %w", err)
	}
	return s, files, err
}

func openFile(name string) (io.ReadSeekCloser, error) {
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
func Parse(name string, b []byte, readFile func(string) ([]byte, error)) (*policy.Snapshot, error) {
	open := func(file string) (io.ReadSeekCloser, error) {
		b, err := readFile(file)
		return memory{bytes.NewReader(b)}, err
	}
	return parse(name, bytes.NewReader(b), open, nil)
}

// memory is a file that is in memory.
type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

func parse(name string, r io.ReadSeeker, open func(string) (io.ReadSeekCloser, error), before *policy.Snapshot) (*policy.Snapshot, error) {
	head := make([]byte, 4096)
	n, _ := io.ReadFull(r, head) // an error comes again
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if bytes.HasPrefix(bytes.TrimLeft(head[:n], " \t\r\n"), []byte("{")) {
		return policy.Decode(name, r, before)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	d, m, err := readDocument(name, b)
	if err != nil {
		return nil, err
	}
	p := &file{document: d, spec: policy.NewSpec(), before: before, domains: map[string]int{}, unsure: map[string]bool{}}
	p.open = func(file string) (string, io.ReadCloser, error) {
		if !filepath.IsAbs(file) {
			file = filepath.Join(filepath.Dir(name), file)
		}
		r, err := open(file)
		return file, r, err
	}
	p.read(m)
	if len(d.mistakes) > 0 {
		return nil, d.err()
	}
	s, err := policy.Compile(p.spec)
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			d.wrong("", "%s", line)
		}
	}
	return s, d.err()
}
