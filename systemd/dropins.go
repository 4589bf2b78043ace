// Package systemd holds the units that Understudy runs under, and the drop-ins with
// which the publisher reads other primaries than a Postfix on the machine.
package systemd

import _ "embed"

// Drop-ins of understudy-publish.service.
var (
	//go:embed docker.conf
	Docker string
	//go:embed exim.conf
	Exim string
)
