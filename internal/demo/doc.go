// Package demo has the stand-ins with which Understudy can be shown and
// tested without a network: a toy primary, a DNS server that can misbehave,
// and an SMTP sender that tells every reply. All live on the loopback, on
// ports that the kernel chooses.
//
// It isn't meant to be correct with strangers: nothing here is for production, and
// only the demo and tests import it.
//
// RFCs: 1035, 2308 (negative answers), 5321, 6891 (EDNS0).
package demo
