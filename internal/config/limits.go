package config

import (
	"fmt"
	"io"
)

// limit is a bound of the door, as the manual page shows it. Its label is that
// of understudy_smtp_limits_total; smtpd counts it.
type limit struct{ label, bound, reply string }

var limits = []limit{
	{"connections", "max_connections; the last tenth is for clients that brought mail before", "421 4.7.0, hang up; far beyond it hang up only"},
	{"connections_per_client", "max_connections_per_client", "421 4.7.0, hang up"},
	{"connections_per_network", "max_connections_per_network", "421 4.7.0, hang up"},
	{"client_connections", "the policy's limit by client (smtpd_client_connection_count_limit)", "421 4.7.0, hang up"},
	{"client_connection_rate", "likewise for new connections (smtpd_client_connection_rate_limit) within anvil_rate_time_unit, as for the next three", "421 4.7.0, hang up"},
	{"client_messages", "MAIL commands of a client (smtpd_client_message_rate_limit)", "450 4.7.1"},
	{"client_recipients", "RCPT and VRFY commands of a client (smtpd_client_recipient_rate_limit)", "450 4.7.1"},
	{"client_tls_sessions", "TLS handshakes of a client that resume no session (smtpd_client_new_tls_session_rate_limit)", "454 4.7.0; after the handshake 421 4.7.0, hang up"},
	{"stress", "from 80 % of max_connections on, until below 70 %: waits for a client are at most 10 seconds, and a client that a connect rule refuses is disconnected", "421 4.7.0, hang up"},
	{"pregreet", "input before the greeting, with greet_wait", "greet_action: none, 550 5.5.1 at RCPT, or 521 5.5.1, hang up"},
	{"session_time", "an hour, at a command", "421 4.7.0, hang up"},
	{"transactions", "1000 mail transactions in a session", "421 4.7.0, hang up"},
	{"command_timeout", "command_timeout, for a whole line", "421 4.4.2, hang up"},
	{"command_length", "2048 octets; 64 KiB without a line end", "500 5.5.2; 421 4.5.2, hang up"},
	{"data_timeout", "data_timeout for the next piece; 500 octets a second on average", "421 4.4.2, hang up"},
	{"soft_errors", "the policy's soft_error_limit (10); from there on each reply waits error_sleep_time (1s), up to ten seconds", "none: the client waits"},
	{"errors", "the policy's hard_error_limit (20)", "421 4.7.0, hang up"},
	{"unknown_recipients", "20 in a session", "421 4.7.0, hang up"},
	{"recipients", "the policy's recipient_limit (1000)", "452 4.5.3"},
	{"message_size", "the policy's message_size_limit", "552 5.3.4"},
	{"header_size", "512 KiB, all header fields", "552 5.3.4"},
	{"header_fields", "1000 header fields", "552 5.3.4"},
	{"line_length", "10 MiB, a line of the message; lines of any length below are kept as they are", "554 5.6.0"},
	{"loop", "two Received fields of ours", "554 5.4.6"},
	{"bare_newline", "bare_newline", "550 5.6.0, hang up; smtpd_forbid_bare_newline = reject of a primary: its code, 5.5.2"},
	{"bad_octets", "a carriage return alone or a NUL in a message", "550 5.6.0, hang up"},
	{"pipelining", "a command sent ahead of its turn, where the primary forbids that (smtpd_forbid_unauth_pipelining)", "554 5.5.0, hang up"},
	{"starttls_injection", "anything sent after STARTTLS before the handshake", "554 5.5.1, hang up"},
	{"not_smtp", "the first word of HTTP, of a header field or of a binary protocol, or in smtpd_forbidden_commands of the primary", "221 2.7.0, hang up"},
}

// manLimits writes the section on the door's bounds.
func manLimits(w io.Writer) {
	fmt.Fprint(w, ".SH LIMITS OF THE DOOR\n"+
		"Limits on clients, and the replies beyond them. The names are the labels of\n"+
		"the metric understudy_smtp_limits_total.\n")
	for _, l := range limits {
		fmt.Fprintf(w, ".TP\n.B %s\n%s.\n.br\nReply: %s.\n", l.label, Roff(l.bound), Roff(l.reply))
	}
}
