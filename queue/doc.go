// Package queue owns accepted mail until it is settled: relayed to its next
// hop, or taken out by the operator.
//
// # The promise
//
// When Draft.Commit returns nil, the message MUST survive a power cut: its
// body, its envelope and its place in the line are on stable storage. From
// then on it is relayed, held for the operator, or removed by the operator.
// The commit instant of a message is one synced LevelDB batch; a body above
// 68 KiB lies in a file of its own that was synced, and whose directory was
// synced, before that batch was written. A message is forgotten
// by a synced batch as well, and only then is its body file unlinked. A crash
// between the next hop's 250 and that batch relays twice; nothing relays zero
// times.
//
// # What it does not do
//
// It speaks no SMTP (Relayer does), judges no mail (policy does) and generates
// no DSNs at all in this version: a message that the next hop refuses for good
// after we accepted it is held, counted and shown with the rule that let it in.
// Mail older than Options.MaxAge is held as well when the next hop defers it,
// never returned.
//
// # Layout
//
//	DIR/LOCK           held for the life of a Queue
//	DIR/store/         LevelDB, the queue of record
//	DIR/store.damaged-TIME/  one that Repair replaced, and DIR/body/aside/
//	DIR/body/x/ID      bodies above 68 KiB
//
// Keys in LevelDB; numbers are big-endian, so that they sort:
//
//	f                   format version
//	t                   totals: the next sequence number, counts; in every batch
//	m seq               the record: envelope and state of each recipient
//	b seq               body, up to 68 KiB
//	i id                seq
//	q dest seq          in line for dest, by age; value: whose mail, see clientSum
//	d dest time seq     deferred for dest until time; value: when last tried
//	x seq               quarantined record
//
// Sequence numbers are given by the one goroutine that writes, without gaps.
// Destinations appear only in the index keys q and d, never in a record: they
// are a function of the recipient's domain (Options.Route), evaluated under
// the configuration of this run. At start-up the audit compares a fingerprint
// of the index with the one that the records call for under today's routes,
// and builds the index anew when they differ. So a changed route, a lost index
// entry and an interrupted rebuild have the same cure.
//
// Memory does not grow with the line: each destination keeps a cursor, a
// thousand entries read ahead, and what is in flight.
//
// # After a failed write
//
// One failed write or sync poisons the store (goleveldb would lose the next
// acknowledged batch): everything that waits to be accepted is answered 451,
// the store is closed and opened again before another write. Settles that were
// caught by it are written again afterwards.
//
// RFC 5321 §4.5.4.1 (sending strategy), §4.5.5, §6.1 (responsibility for a message).
package queue
