package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime/debug"
)

type versionCmd struct{}

func (versionCmd) Help() string {
	return `Prints the version, the commit that it was built from ("modified" if the tree had changes) with its date, and Go's version.`
}

func (versionCmd) Run(out io.Writer) error {
	_, err := fmt.Fprintln(out, versionLine())
	return err
}

// version is set by the build of a package (systemd/deb/root).
var version string

// versionLine says which build this is, as far as the build knows.
func versionLine() string {
	is, commit, date, modified, goVersion := "unknown", "", "", "", "go"
	if bi, ok := debug.ReadBuildInfo(); ok {
		is, goVersion = bi.Main.Version, bi.GoVersion
		for _, s := range bi.Settings {
			switch {
			case s.Key == "vcs.revision":
				commit = " commit " + s.Value[:min(12, len(s.Value))]
			case s.Key == "vcs.time":
				date = " of " + s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				modified = " modified"
			}
		}
	}
	return fmt.Sprintf("understudy %s%s%s%s %s", cmp.Or(version, is), commit, date, modified, goVersion)
}
