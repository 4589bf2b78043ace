package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

// completeCmd answers the shells' completion scripts in systemd/deb.
type completeCmd struct {
	Words []string `arg:"" optional:"" passthrough:"" help:"The words after the command's name, the one being typed last."`
}

func (c *completeCmd) Run(out io.Writer) error {
	parser, err := newParser(&cli{})
	if err != nil {
		return err
	}
	words := c.Words
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	for _, w := range completions(parser.Model.Node, words) {
		fmt.Fprintln(out, w)
	}
	return nil
}

// completions are the words that may stand in place of the last: subcommands,
// flags, or the values of a flag that has a fixed set. None means a file name.
func completions(n *kong.Node, words []string) (all []string) {
	last := ""
	if len(words) > 0 {
		last, words = words[len(words)-1], words[:len(words)-1]
	}
	var value *kong.Flag // that waits for its value
	for _, w := range words {
		if value != nil {
			value = nil
		} else if strings.HasPrefix(w, "-") {
			value = valueFlag(n, w)
		} else {
			for _, c := range n.Children {
				if c.Name == w {
					n = c
					break
				}
			}
		}
	}
	offer := func(s string) {
		if s != "" && strings.HasPrefix(s, last) {
			all = append(all, s)
		}
	}
	if value != nil {
		for _, e := range value.EnumSlice() {
			offer(e)
		}
		return all
	}
	if !strings.HasPrefix(last, "-") {
		for _, c := range n.Children {
			if !c.Hidden {
				offer(c.Name)
			}
		}
		return all
	}
	for _, group := range n.AllFlags(true) {
		for _, f := range group {
			offer("--" + f.Name)
		}
	}
	return all
}

// valueFlag is the flag w when its value is the next word.
func valueFlag(n *kong.Node, w string) *kong.Flag {
	for _, group := range n.AllFlags(true) {
		for _, f := range group {
			if (w == "--"+f.Name || f.Short != 0 && w == "-"+string(f.Short)) && !f.IsBool() {
				return f
			}
		}
	}
	return nil
}
