package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/understudy-mx/understudy/internal/service"
)

func printable(s string) string { return service.Printable(s) }

// age spells a duration by its largest unit or two: "3d4h", "12m", "5s".
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, u := float64(n), 0
	for f >= 1024 && u < len(units)-1 {
		f /= 1024
		u++
	}
	if u == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[u])
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// printJSON writes v for people and jq.
func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// render prints v for people, or as JSON, unless it couldn't be had.
func render[T any](out io.Writer, asJSON bool, v T, err error, print func(io.Writer, T) error) error {
	switch {
	case err != nil:
		return err
	case asJSON:
		return printJSON(out, v)
	}
	return print(out, v)
}
