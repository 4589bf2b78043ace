package main

import (
	"errors"
	"io"
	"os"

	"github.com/understudy-mx/understudy/internal/config"
)

type configCmd struct {
	confFlag
	Diff bool `name:"diff" short:"n" help:"Only what differs from the defaults, without explanations."`
}

func (configCmd) Help() string {
	return `Prints the configuration in force as a file that could take its place. Without a file the defaults are printed: a start for your own.

Examples:

    understudy config > understudy.toml      a commented file to begin with
    understudy config -n                     what I have changed
    understudy config -c new.toml            is it right? Exit code 2 if not, with every mistake`
}

func (c *configCmd) Run(out io.Writer) error {
	cfg, err := c.load()
	if err != nil {
		if c.Conf != defaultConfig || !errors.Is(err, os.ErrNotExist) {
			return err
		}
		cfg = config.Default()
	}
	return config.Print(out, cfg, c.Diff)
}
