package policy

import "cmp"

// Postfix's cleanup(8) holds its queue file against message_size_limit, not the
// message alone. Each line of the message and of the envelope is a record there
// (rec_put(3)): a type, a length and the text without its line end.

// LongLine is how many octets a line of n, without its end, takes in a queue file
// beyond n and the two of CRLF: the length of 128 octets and more takes two, and a
// line longer than line_length_limit, 0 for its default, is cut.
func LongLine(n, limit int) int64 {
	if n < 128 {
		return 0
	}
	limit = cmp.Or(limit, 2048)
	long := 3 * (n / limit)
	if n%limit >= 128 {
		long++
	}
	return int64(long)
}

// fixedRecords are the records of a queue file that don't depend on the client, in
// Postfix 3.7's order. The primary's ID, clock, port and address are as short as
// they can be.
var fixedRecords = []string{
	"           1000            1000               1               0            1000               0",
	"1234567890 1", "create_time=1234567890", "log_ident=123456", "rewrite_context=local", "", // the sender
	"log_client_name=", "log_client_address=", "log_client_port=1", "log_message_origin=[]", "log_protocol_name=SMTP",
	"client_name=", "reverse_client_name=", "client_address=", "client_port=1", "server_address=1.2.3.4", "server_port=1",
	"protocol_name=SMTP", "client_address_type=2", "dsn_orig_rcpt=rfc822;", "", "1", // the recipient, and what is made of it
	"", "Received: from  ( [])", "\tby  (Postfix) with SMTP id 123456", "\tThu,  1 Jan 1970 00:00:00 +0000 ()", "", "",
}

// queueFile is the minimum size of the primary's queue file, in octets: it counts
// one recipient and nothing about TLS.
func (s *Session) queueFile(m Message) int64 {
	n := len(s.snap.spec.Content.Hostname) + len(s.sender.raw) + 2*len(s.rcpt.raw)
	for _, r := range fixedRecords {
		n += len(r) + 2
	}
	if s.rcptCount == 1 {
		n += len("for <>; ") + len(s.rcpt.raw)
	}
	cl := &s.client
	n += 4*len(cl.Name) + len(cl.ReverseName) + 4*len(cl.Addr.String())
	if cl.Addr.Is6() {
		n += 2 * len("IPv6:")
	}
	if cl.Helo == "" {
		n += len(cl.Name)
	} else {
		n += len("log_helo_name=") + 2 + len("helo_name=") + 2 + 3*len(cl.Helo)
	}
	return m.Size + m.Long + int64(n)
}
