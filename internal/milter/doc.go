// Package milter asks mail filters as a mail server does: it is the client of
// the milter protocol of Sendmail 8, versions 2 to 6.
//
// A milter hears of each command of an SMTP session, with macros that describe
// it, and of each header field and piece of the message. A packet is a length of
// four octets, a letter and data; to each event the filter answers with one more
// packet, or with several at the end of the message:
//
//	server: 00 00 00 0d O  00000006 000001ff 001fffff   versions, actions and events
//	filter: 00 00 00 0d O  00000006 00000000 00000000
//	server: 00 00 00 0b D  C j mx.test                  macros for the next event
//	server: 00 00 00 1b C  [192.0.2.1] 4 ....           a client connects
//	filter: 00 00 00 01 c                               go on
//	...
//	server: 00 00 00 01 E                               end of the message
//	filter: 00 00 00 16 y  550 5.7.1 Spam              refuse it
//
// What goes wrong: a filter is away, hangs, answers out of turn, or claims a
// packet of a gigabyte. Then it counts as unavailable to the end of the session,
// and the default action is its answer.
//
// The package does what Postfix 3.7's milter8.c does, event for event, because a
// filter's verdict must be the one that the primary would have got. Two things
// differ on purpose: an end of waiting for a filter that only reports progress,
// and no filter's edit is applied; they are counted and dropped.
//
// Invariants: no packet is held in memory beyond 64 KiB, whatever length it
// claims; each wait has an end; the message is read once for each filter, in
// pieces.
package milter
