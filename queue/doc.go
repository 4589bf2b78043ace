// Package queue owns accepted mail until it is settled: relayed to its next
// hop, or taken out by the operator.
//
// A backup MX is a queue with a long wait in it. Mail comes for days while the
// primary is away, and leaves within minutes once it is back:
//
//	d, err := q.Begin(env)         452 here when there is too little room
//	io.Copy(d, body)
//	err = d.Commit(ctx)            nil: now the sender may be told 250
//	                               … the primary is back
//	q.Wake("mx.example.com")       Run relays it, by Options.Relayer
//
// What goes wrong in between is power, disks, a primary that answers 4xx to one
// recipient and 5xx to another, and one message under which every session breaks.
//
// # The promise
//
// When Draft.Commit returns nil, the message MUST survive a power cut: its
// body, its envelope and its place in the line are on stable storage. From
// then on it is relayed, held for the operator, returned to its sender, or removed
// by the operator.
// The commit instant of a message is one batch that the store made durable; a
// body above 68 KiB was made durable before that batch was written. A message is
// forgotten by a durable batch as well, and only then is such a body removed. A
// crash between the next hop's 250 and that batch relays twice; nothing relays
// zero times.
//
// # What it does not do
//
// It speaks no SMTP (Relayer does), judges no mail (policy does) and writes no
// DSNs (dsn does). A message that the next hop refuses for good after we
// accepted it is held, counted and shown with the rule that let it in; so is one
// older than Options.MaxAge when the next hop defers it. Return, or the queue by
// itself with Options.Return, makes a DSN of it if SPF or DKIM vouched for the
// sender when it came: one batch takes the message away and puts the DSN in line.
// It knows files and LevelDB no more than SMTP: whatever keeps octets is a
// store.Store (leveldb.Dir, by default); what is done while no daemon runs is
// package offline's.
//
// # Keys
//
// Numbers are big-endian, so that they sort:
//
//	f                   format version
//	t                   totals: the next sequence number, counts; in every batch
//	m seq               the record: envelope and state of each recipient
//	b seq               body, up to 68 KiB
//	i id                seq
//	q dest seq          in line for dest, by age; value: whose mail, see store.ClientSum
//	d dest time seq     deferred for dest until time; value: when last tried
//	x seq               quarantined record
//	u                   the store's identity, once messages were moved from it or to it
//	o id                a message that was moved: to which store
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
// A write that failed may have reached the disk, or the server, all the same.
// So one failure poisons the store: everything that waits to be accepted is
// answered 451 (452 when room was wanting), and the store is reopened before
// another write. What senders were told is not accepted is looked for by its ID
// and taken back; settles that were caught by it are written again.
//
// RFC 5321 §4.5.4.1 (sending strategy), §4.5.5, §6.1 (responsibility for a message).
package queue
