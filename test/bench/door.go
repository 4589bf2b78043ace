package main

import (
	"context"
	"net"
	"net/netip"

	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/handwritten"
	"github.com/understudy-mx/understudy/smtpd"
)

// serveDoor is the ceiling of accepting: our door with the policy in file, and a
// spool that forgets what it gets. It keeps no log.
func serveDoor(ctx context.Context, file, addr, dns string) error {
	snap, _, err := handwritten.Load(file, nil)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	s := &smtpd.Server{
		Hostname: "mx2.example.org", Policy: func() *policy.Snapshot { return snap }, Keep: smtpd.Nowhere{},
		Resolver:    resolver.New(resolver.Options{Servers: []string{dns}}),
		XClientFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, MaxConnectionsPerClient: 1000,
	}
	return s.Serve(ctx, ln)
}
