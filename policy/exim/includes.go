package exim

import (
	"os"
	"regexp"
	"strings"

	"github.com/understudy-mx/understudy/policy/table"
)

var includes = regexp.MustCompile(`:include:[ \t]*([^\s,"$]+)`)

// hash is a table of entries. The files of addresses that they include are read, too.
func (i *importer) hash(entries map[string]string) (*table.Table, error) {
	for _, v := range entries {
		i.include(v)
	}
	return table.NewHash(entries)
}

// include reads the files that redirection data names after ":include:", and those that they
// name. One that isn't there, or can't be read, makes its addresses wait, as in Exim.
func (i *importer) include(data string) {
	if !strings.Contains(data, ":include:") {
		return
	}
	for _, m := range includes.FindAllStringSubmatch(data, -1) {
		file := m[1]
		name := "include;" + file
		if i.acl.Files[name] != nil || !strings.HasPrefix(file, "/") || len(i.acl.Files) >= maxFiles {
			continue
		}
		i.files[file] = true
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		i.acl.Files[name] = strings.Split(string(b), "\n")
		i.include(string(b))
	}
}
