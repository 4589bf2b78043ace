// Package policysync carries the policy from the primary to its secondaries.
//
// A Publisher, on the primary, cuts a policy into chunks that are named by
// their content, lists them in a signed Head, and answers its followers. A
// Follower, on a secondary, pulls: it waits for a new head, verifies it,
// fetches the chunks that it lacks, stores them, and swaps the snapshot in
// force. docs/PROTOCOL.md describes every byte; the names here are its names.
//
// It doesn't read a Postfix or a database (its caller brings a policy.Spec), judge
// mail (package policy does), or decide where mail goes. A primary, even in the
// wrong hands, can change the recipients and rules of the domains that the
// secondary's own configuration lists, and nothing else.
//
// Invariants:
//   - A snapshot MUST NOT be in force before all of it is verified and synced
//     to the disk. A crash at any moment leaves the old or the new one, whole.
//   - Nothing of a head is looked at before its signature is verified.
//   - (epoch, version) never falls, and names one content only.
//   - The last good snapshot is used indefinitely; as it ages, only its answer
//     to unknown recipients becomes milder (450).
//   - What a peer sends is bounded before it is read, and never in a reply, a
//     metric's label or an unquoted log.
//
// RFC 8446 (TLS 1.3, exporters), RFC 8032 (Ed25519), RFC 9113 (HTTP/2),
// RFC 8878 (Zstandard), RFC 5280 §4.1 (SubjectPublicKeyInfo, for pins).
package policysync
