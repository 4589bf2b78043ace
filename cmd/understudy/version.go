package main

import (
	"fmt"
	"io"
	"runtime/debug"
)

type versionCmd struct{}

func (versionCmd) Help() string {
	return `Prints the version, the commit that it was built from ("modified" if the tree had changes), and Go's version.`
}

func (versionCmd) Run(out io.Writer) error {
	_, err := fmt.Fprintln(out, versionLine())
	return err
}

// versionLine says which build this is, as far as the build knows.
func versionLine() string {
	version, commit, goVersion := "unknown", "", "go"
	if bi, ok := debug.ReadBuildInfo(); ok {
		version, goVersion = bi.Main.Version, bi.GoVersion
		for _, s := range bi.Settings {
			switch {
			case s.Key == "vcs.revision":
				commit = " commit " + s.Value[:min(12, len(s.Value))]
			case s.Key == "vcs.modified" && s.Value == "true":
				commit += " modified"
			}
		}
	}
	return fmt.Sprintf("understudy %s%s %s", version, commit, goVersion)
}
