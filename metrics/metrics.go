// Package metrics declares every metric of Understudy, once, and serves them
// over HTTP with the health pages.
//
// Rules: names carry their unit; labels come from closed sets that the code
// spells out, never from an address, a host name or anything a peer sent. A
// gauge that mirrors state is set by its owner or read through a callback in
// constant time; a scrape never walks the queue.
package metrics

import (
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	dto "github.com/prometheus/client_model/go"
)

// Metrics holds all metrics. Other packages receive it and count; none registers.
type Metrics struct {
	reg  prometheus.Registerer
	auto promauto.Factory

	// smtpd
	Sessions         *prometheus.CounterVec // by result: "completed", "aborted", "refused", "timeout", "error"
	SessionsOpen     prometheus.Gauge
	Commands         *prometheus.CounterVec // by verb (closed set, else "other") and reply class
	SMTPLimits       *prometheus.CounterVec // by limit: which of our bounds a client ran into
	TLSHandshakes    *prometheus.CounterVec // by result: "ok", "failed"
	CertReloads      *prometheus.CounterVec // by result
	CertExpiry       prometheus.Gauge       // Unix time of NotAfter
	AcceptDuration   prometheus.Histogram   // end of data to our 250
	Verdicts         *prometheus.CounterVec // by stage, action, rule kind
	Asked            *prometheus.CounterVec // recipients that the primary was to be asked about, by result: "accepted", "refused", "deferred", "unasked"
	Contradicted     *prometheus.CounterVec // recipients whom the primary knows and the policy's lists don't or the reverse, by how it said so ("live", "ask", "relay") and by the lists: "listed", "unlisted"
	Accepted         prometheus.Counter     // messages answered 250 after the synced commit
	AcceptedBytes    prometheus.Counter     // their content
	AcceptedRcpts    prometheus.Counter     // their recipients
	Returned         *prometheus.CounterVec // recipients by who returned them: "queue", "operator"
	Reports          *prometheus.CounterVec // DSNs of ours, by result as RelayReplies
	RelayedTwice     *prometheus.CounterVec // messages that a next hop may have twice, by why: "moved", "unnoted", "doubt"
	RelayReplies     *prometheus.CounterVec // recipients by result: "relayed", "deferred", "held", "expired"
	RelayedBytes     prometheus.Counter     // content of messages that the next hop took
	RelaySessions    *prometheus.CounterVec // sessions to the next hop by result: "ok", "failed"
	RelayDuration    prometheus.Histogram   // one message: MAIL to the final reply
	LiveOpen         prometheus.Gauge       // sessions to the primary for clients' sessions that are played through
	LiveMessages     *prometheus.CounterVec // mail transactions that were played through, by ending
	LiveAgreement    *prometheus.CounterVec // the primary's verdicts compared with the snapshot's, by stage, the snapshot's rule kind and result: "same", "other"
	StandInEnd       prometheus.Gauge       // Unix time
	ShadowAgreement  *prometheus.CounterVec // likewise for the primary's log
	Differences      *prometheus.CounterVec // differences between the primary's verdicts and the snapshot's, by how they were seen ("live", "shadow") and class
	ShadowEvents     *prometheus.CounterVec // what the primary's log held, by result: "judged", "undecided", "dropped", "unreadable"
	PutOff           *prometheus.CounterVec // recipients while the primary is up and wants all senders, by result: "deferred", "taken"
	Greylisted       *prometheus.CounterVec // attempts by what greylisting made of them: "deferred", "passed", "known" (to the primary), "client", "exempt", "learned" (from a live session)
	FilterAnswers    *prometheus.CounterVec // by filter (configured name) and result: "passed", "refused", "discarded", "held", "away", "edit_dropped"
	FilterUp         *prometheus.GaugeVec   // by filter, 1 while it answers
	LiveUnused       *prometheus.CounterVec // mail transactions that weren't played through, by reason
	PrimaryUp        *prometheus.GaugeVec   // by route (configured name)
	OutageStart      *prometheus.GaugeVec   // by route, Unix time, 0 when up
	WithoutXClient   *prometheus.GaugeVec   // by route, 1 while clients should be named to it but can't be
	Probes           *prometheus.CounterVec // by result
	Commits          prometheus.Counter     // synced batches written
	StoreErrors      *prometheus.CounterVec // by operation
	StoreAlarms      *prometheus.CounterVec // by what the store's own log complained about
	Quarantined      prometheus.Counter     // records put aside
	StoreReopens     prometheus.Counter     // reopened after a write error
	FleetMembers     prometheus.Gauge       // that live
	FleetUnheard     prometheus.Gauge       // 1 while the others aren't heard of
	FleetDiffers     prometheus.Gauge       // 1 while another has a newer policy
	FleetAdopted     prometheus.Counter     // messages of dead members
	Fallback         prometheus.Gauge       // 1 while mail is kept on this machine alone
	FallbackMessages prometheus.Gauge       // that are
	DNSLookups       *prometheus.CounterVec // by type and result
	DNSDuration      prometheus.Histogram   // one look-up that was not cached
	DNSFailing       prometheus.Gauge       // 1 while all look-ups fail
	Notices          *prometheus.CounterVec // attempts to tell the operator of an outage, by way ("mail", "webhook") and result ("sent", "failed")
	DNSLists         *prometheus.GaugeVec   // the policy's DNS lists by state
	DNSListsAside    prometheus.Gauge       // of them, those whose look-ups count as failed
	PolicyLoaded     prometheus.Gauge       // Unix time at which the snapshot in force was taken over
	PolicyVersion    prometheus.Gauge       // its version; rises with every change
	PolicyReloads    *prometheus.CounterVec // by result: "changed", "unchanged", "refused"
	PolicyRcpts      prometheus.Gauge       // recipients in the snapshot in force

	// policysync
	SyncAlarms      *prometheus.CounterVec // by alarm: why a follower kept what it had
	SyncApplied     prometheus.Counter     // versions taken into force
	SyncChunks      prometheus.Counter     // fetched and verified
	SyncBytes       prometheus.Counter     // of them, compressed
	PublishVersions prometheus.Counter     // that Publish numbered
	PublishRequests *prometheus.CounterVec // by endpoint and class of the HTTP status
	PublishImports  *prometheus.CounterVec // readings of the policy's sources by result: "ok", "refused"
	PublishRead     prometheus.Gauge       // Unix time of the last reading that was published
	RecipientsAsked *prometheus.CounterVec // by result
	PushRequests    *prometheus.CounterVec // by result
	PublishFailing  prometheus.Gauge       // 1 while the last reading was refused

	follower atomic.Pointer[func() FollowerStats] // what the collectors of Follower read
}

// Seconds-long waits matter as much as milliseconds here: an fsync takes 0.3
// ms, a primary on a bad day takes a minute.
var durationBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}

// New registers all metrics with reg and returns them.
func New(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "understudy_" + name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: "understudy_" + name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: "understudy_" + name, Help: help})
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Name: "understudy_" + name, Help: help}, labels)
	}
	histogram := func(name, help string) prometheus.Histogram {
		return f.NewHistogram(prometheus.HistogramOpts{
			Name: "understudy_" + name, Help: help, Buckets: durationBuckets,
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		})
	}
	m := &Metrics{
		reg: reg, auto: f,

		Sessions:         counters("smtp_sessions_total", "SMTP sessions that ended, by result.", "result"),
		SessionsOpen:     gauge("smtp_sessions_open", "SMTP sessions open now."),
		Commands:         counters("smtp_commands_total", "SMTP commands answered, by verb and reply class.", "verb", "class"),
		SMTPLimits:       counters("smtp_limits_total", "Times that a client ran into one of our limits, by limit.", "limit"),
		TLSHandshakes:    counters("smtp_tls_handshakes_total", "STARTTLS handshakes, by result.", "result"),
		CertReloads:      counters("smtp_certificate_reloads_total", "Reloads of the TLS certificate, by result.", "result"),
		CertExpiry:       gauge("smtp_certificate_expiry_timestamp_seconds", "Unix time at which the TLS certificate in use expires."),
		AcceptDuration:   histogram("accept_duration_seconds", "Time from the end of data to our 250: policy and synced commit."),
		Verdicts:         counters("policy_verdicts_total", "Policy verdicts, by stage, action and kind of the rule that decided.", "stage", "action", "rule"),
		Asked:            counters("asked_recipients_total", "Recipients about whom the primary was to be asked, by result; \"unasked\" where it couldn't be asked.", "result"),
		Contradicted:     counters("recipients_contradicted_total", "Recipients about whom the primary contradicts the policy's lists, by how it said so (live, ask, relay) and by what the lists say: \"listed\" whom it refused as unknown, \"unlisted\" whom it took.", "by", "lists"),
		Accepted:         counter("accepted_messages_total", "Messages accepted: synced to disk and answered 250."),
		AcceptedBytes:    counter("accepted_bytes_total", "Content octets of the accepted messages."),
		AcceptedRcpts:    counter("accepted_recipients_total", "Recipients of the accepted messages."),
		RelayedTwice:     counters("relayed_twice_messages_total", "Messages that were relayed, and may be at the primary twice, by why: \"moved\", another secondary had taken the message over; \"unnoted\", the outcome couldn't be stored; \"doubt\", the primary may have had it before, from a live session or a spool that was lost.", "why"),
		RelayReplies:     counters("relay_recipients_total", "Recipients settled by an attempt to relay, by result.", "result"),
		Returned:         counters("queue_returned_recipients_total", "Recipients whose message was returned to a sender for whom SPF or DKIM vouched, by who decided: the queue itself or the operator.", "by"),
		Reports:          counters("reports_total", "Attempts to relay DSNs of our own, by result; they aren't counted as relayed recipients.", "result"),
		RelayedBytes:     counter("relayed_bytes_total", "Content octets of messages that the next hop accepted."),
		RelaySessions:    counters("relay_sessions_total", "SMTP sessions to the next hop, by result.", "result"),
		LiveOpen:         gauge("live_sessions_open", "Sessions to the primary open now to play clients' sessions through."),
		LiveMessages:     counters("live_transactions_total", "Mail transactions played through to the primary, by ending: its reply to the message, or where it was lost; after_dot and late are kept and relayed, and may arrive twice.", "ending"),
		LiveAgreement:    counters("live_agreement_total", "Commands decided by the primary in a live session, by stage, by the kind of the snapshot's rule, and by whether the snapshot's decision (accept, defer or refuse) was the same.", "stage", "rule", "result"),
		StandInEnd:       gauge("stand_in_end_timestamp_seconds", "Unix time at which the planned stand-in ends, 0 when there is none."),
		ShadowAgreement:  counters("shadow_agreement_total", "The primary's verdicts in its own log, by stage, by the kind of the snapshot's rule, and by whether the snapshot's decision (accept, defer or refuse) was the same.", "stage", "rule", "result"),
		Differences:      counters("parity_differences_total", "Differences between the primary's verdicts and the snapshot's, by how they were seen (live, shadow) and by class; exact ones are counted after half a minute, or as late when a policy that agrees has come.", "by", "class"),
		ShadowEvents:     counters("shadow_verdicts_total", "The primary's verdicts in its own log, by result: judged beside the snapshot; undecided where the log doesn't have what a rule asks for; dropped when there were too many; unreadable.", "result"),
		Greylisted:       counters("greylist_attempts_total", "Attempts that the policy's greylisting was asked about, by result: deferred; passed after its delay; known to the primary; client known whatever it sends; exempt by a whitelist. A live session in which the primary let in whom greylisting would have deferred counts again, as learned.", "result"),
		PutOff:           counters("put_off_recipients_total", "Recipients that the policy lets in while the primary is up, with while_up = \"defer\", by result: deferred to the primary, or taken since the sender came back again and again.", "result"),
		FilterAnswers:    counters("filter_answers_total", "What filters that stand for the primary's milters said: messages passed, refusals, discards, holds; away, times that one was unavailable and the default action its answer; edit_dropped, changes that it wanted and that weren't made.", "filter", "result"),
		FilterUp:         gauges("filter_up", "1 while a filter that stands for a milter of the primary answers, else 0.", "filter"),
		LiveUnused:       counters("live_unused_total", "Mail transactions judged by the snapshot although live is on, by reason.", "reason"),
		RelayDuration:    histogram("relay_duration_seconds", "Time from MAIL to the next hop's final reply, one message."),
		PrimaryUp:        gauges("primary_up", "Whether the primary answers: 1 or 0, by route.", "route"),
		OutageStart:      gauges("primary_outage_start_timestamp_seconds", "Unix time at which the current outage began, 0 when there is none, by route.", "route"),
		WithoutXClient:   gauges("primary_without_xclient", "1 while the primary doesn't accept XCLIENT from us although [primary] xclient is on, by route.", "route"),
		Probes:           counters("primary_probes_total", "Health probes of the primary, by result.", "result"),
		Commits:          counter("queue_commits_total", "Synced batches written to the queue."),
		StoreErrors:      counters("queue_store_errors_total", "Failed operations of the queue's store, by operation.", "operation"),
		StoreAlarms:      counters("queue_store_alarms_total", "Complaints of the queue's store about its own data, by kind.", "kind"),
		Quarantined:      counter("queue_quarantined_records_total", "Damaged queue records put aside, none deleted."),
		StoreReopens:     counter("queue_store_reopens_total", "Times that the queue's store was reopened after a write error."),
		FleetMembers:     gauge("fleet_members", "Secondaries that share the database and were heard of lately, this one too; 0 without a database."),
		FleetUnheard:     gauge("fleet_unheard", "1 while this secondary can't hear of the others in the database."),
		FleetDiffers:     gauge("fleet_policy_differs", "1 while another secondary that lives has a newer policy, or one of another content, than this one."),
		FleetAdopted:     counter("fleet_adopted_messages_total", "Messages of dead secondaries that were moved into this one's queue."),
		Fallback:         gauge("queue_fallback", "1 while mail is kept on this machine alone, because the database is away or was, else 0."),
		FallbackMessages: gauge("queue_fallback_messages", "Messages that are on this machine alone."),
		DNSLookups:       counters("dns_lookups_total", "DNS look-ups, by type and result; result \"cached\" asked no server.", "type", "result"),
		DNSFailing:       gauge("dns_failing", "1 after several DNS look-ups in a row without an answer or with a server failure, else 0."),
		Notices:          counters("notices_total", "Attempts to tell the operator of an outage, by way (mail, webhook) and result (sent, failed).", "way", "result"),
		DNSLists:         gauges("dnsbl_zones", "DNS lists of the policy, by what their test entries say of them.", "state"),
		DNSListsAside:    gauge("dnsbl_set_aside_zones", "DNS lists whose look-ups count as failed for now, since their answers can't be right."),
		DNSDuration:      histogram("dns_lookup_duration_seconds", "Time of a DNS look-up that was not cached."),
		PolicyLoaded:     gauge("policy_loaded_timestamp_seconds", "Unix time at which the policy in force was loaded, 0 without one."),
		PolicyVersion:    gauge("policy_version", "Version of the policy in force; rises with each change."),
		PolicyReloads:    counters("policy_reloads_total", "Policy reloads, by result.", "result"),
		PolicyRcpts:      gauge("policy_recipients", "Recipients listed in the policy in force."),

		SyncAlarms:      counters("sync_alarms_total", "Times that a follower kept its policy because something was wrong, by alarm.", "alarm"),
		SyncApplied:     counter("sync_applied_versions_total", "Versions of the primary's policy taken into force."),
		SyncChunks:      counter("sync_fetched_chunks_total", "Chunks of policy fetched from the primary."),
		SyncBytes:       counter("sync_fetched_bytes_total", "Octets of these chunks, compressed."),
		PublishVersions: counter("publish_versions_total", "Versions of the policy published."),
		PublishRequests: counters("publish_requests_total", "Requests of followers answered, by endpoint and class of the status.", "endpoint", "class"),
		PublishImports:  counters("publish_imports_total", "Readings of the policy's sources, by result.", "result"),
		PublishRead:     gauge("publish_read_timestamp_seconds", "Unix time of the last complete reading of the policy's sources, 0 before the first."),
		RecipientsAsked: counters("verified_recipients_total", "Recipients whose existence only the primary knows, by result: remembered, or asked about with the answer yes, no or unsure; unasked and limited ones are put off.", "result"),
		PushRequests:    counters("push_requests_total", "Requests to push a list of recipients, by result.", "result"),
		PublishFailing:  gauge("publish_failing", "1 while the policy's sources can't be read and the last good policy stays published, else 0."),
	}
	m.begin()
	m.buildInfo()
	return m
}

// begin exports counters that alerts watch before their first event: Prometheus
// sees no increase in a series that begins with 1.
func (m *Metrics) begin() {
	for _, c := range []struct {
		family *prometheus.CounterVec
		values []string
	}{
		{m.LiveMessages, []string{"accepted", "deferred", "refused", "before_reply", "in_message", "after_dot", "late"}},
		{m.ShadowEvents, []string{"judged", "undecided", "dropped", "unreadable"}},
		{m.RecipientsAsked, []string{"remembered", "yes", "no", "unsure", "unasked", "limited"}},
		{m.PushRequests, []string{"applied", "unchanged", "staged", "refused", "rejected", "denied", "conflict", "limited", "failed", "read"}},
		{m.Asked, []string{"accepted", "refused", "deferred", "unasked"}},
		{m.PolicyReloads, []string{"changed", "unchanged", "refused"}},
		{m.CertReloads, []string{"changed", "unchanged", "refused"}},
		{m.SMTPLimits, []string{"connections", "connections_per_client", "connections_per_network", "stress"}},
		{m.StoreErrors, []string{"write", "read", "reopen", "statfs", "body_create", "body_write", "body_sync", "body_remove"}},
		{m.RelayedTwice, []string{"moved", "unnoted", "doubt"}},
		{m.StoreAlarms, []string{"drop", "skipped", "corrupt", "totals", "missing"}},
	} {
		for _, v := range c.values {
			c.family.WithLabelValues(v)
		}
	}
	m.Contradicted.WithLabelValues("live", "unlisted")
	for _, by := range []string{"live", "ask", "relay"} {
		m.Contradicted.WithLabelValues(by, "listed")
	}
	for _, by := range []string{"live", "shadow"} {
		for _, class := range []string{"exact", "approximated", "not_replicated", "given_dns", "late"} {
			m.Differences.WithLabelValues(by, class)
		}
	}
}

// QueueStats is what Queue's callback returns. It must come in constant time.
type QueueStats struct {
	Messages, Held, Deferred int
	Bytes                    int64
	Oldest                   time.Time // acceptance of the oldest message, zero when empty
	FreeBytes                uint64    // space left to the queue's file system
	Damaged                  bool      // the store has a damaged block, and isn't merged
	Away                     bool      // the store can't be written: mail is answered 451
}

// Queue exports the queue's depth by reading stats at each scrape.
func (m *Metrics) Queue(stats func() QueueStats) {
	g := func(name, help string, value func(QueueStats) float64) {
		m.auto.NewGaugeFunc(prometheus.GaugeOpts{Name: "understudy_queue_" + name, Help: help},
			func() float64 { return value(stats()) })
	}
	g("messages", "Messages in the queue, held ones included.", func(s QueueStats) float64 { return float64(s.Messages) })
	g("held_messages", "Messages with a recipient held for the operator.", func(s QueueStats) float64 { return float64(s.Held) })
	g("deferred_messages", "Messages with a recipient that the primary deferred.", func(s QueueStats) float64 { return float64(s.Deferred) })
	g("bytes", "Content octets in the queue.", func(s QueueStats) float64 { return float64(s.Bytes) })
	g("free_bytes", "Space left to the queue's file system.", func(s QueueStats) float64 { return float64(s.FreeBytes) })
	g("store_damaged", "1 while the queue's store isn't merged because of a damaged block, else 0.", func(s QueueStats) float64 { return oneIf(s.Damaged) })
	g("store_away", "1 while the queue's store can't be written and mail is answered 451, else 0.", func(s QueueStats) float64 { return oneIf(s.Away) })
	g("oldest_age_seconds", "Age of the oldest message in the queue, 0 when it is empty.", func(s QueueStats) float64 {
		if s.Oldest.IsZero() {
			return 0
		}
		return max(0, time.Since(s.Oldest).Seconds())
	})
}

// Greylist exports the size of the greylist's store.
func (m *Metrics) Greylist(stats func() (entries int, octets int64)) {
	m.auto.NewGaugeFunc(prometheus.GaugeOpts{Name: "understudy_greylist_entries", Help: "Clients and triplets that greylisting remembers."}, func() float64 { n, _ := stats(); return float64(n) })
	m.auto.NewGaugeFunc(prometheus.GaugeOpts{Name: "understudy_greylist_bytes", Help: "Octets of what greylisting remembers, before the store compresses them."}, func() float64 { _, n := stats(); return float64(n) })
}

// FollowerStats is what Follower's callback returns. It must come in constant
// time.
type FollowerStats struct {
	State      string // "none", "fresh", "stale"
	Staged     string // "", "pending", "rejected"
	Version    uint64
	Signed     time.Time // when the primary vouched for it last, zero without one
	Changed    time.Time // when its content changed last, zero if that isn't known
	Recipients uint64
	Withdrawn  uint64 // recipients deleted, and not yet believed

	Failing     bool      // the primary can't read a source
	SourcesRead time.Time // when it had read all of them last, zero if that isn't known
}

// Follower exports the state of a secondary's policy. Called again, it takes
// the new stats in place of the old: a secondary can be paired anew.
func (m *Metrics) Follower(stats func() FollowerStats) {
	if m.follower.Swap(&stats) != nil {
		return
	}
	now := func() FollowerStats { return (*m.follower.Load())() }
	g := func(name, help string, value func(FollowerStats) float64) {
		m.auto.NewGaugeFunc(prometheus.GaugeOpts{Name: "understudy_sync_" + name, Help: help},
			func() float64 { return value(now()) })
	}
	oneOf := func(name, help, label string, values []string, value func(FollowerStats) string) {
		m.reg.MustRegister(&oneOf{
			desc:   prometheus.NewDesc("understudy_sync_"+name, help, []string{label}, nil),
			values: values, value: func() string { return value(now()) },
		})
	}
	oneOf("state", "1 for the present state of the primary's policy, by age.", "state",
		[]string{"none", "fresh", "stale"}, func(s FollowerStats) string { return s.State })
	oneOf("staged_deletion", "1 while a mass deletion waits for the operator, or is rejected.", "decision",
		[]string{"pending", "rejected"}, func(s FollowerStats) string { return s.Staged })
	g("version", "Version of the primary's policy that is held.", func(s FollowerStats) float64 { return float64(s.Version) })
	g("signed_timestamp_seconds", "Unix time at which the primary last signed the policy, 0 without one.", func(s FollowerStats) float64 { return unix(s.Signed) })
	g("changed_timestamp_seconds", "Unix time at which the policy's content last changed, 0 if that isn't known.", func(s FollowerStats) float64 { return unix(s.Changed) })
	g("sources_failing", "1 while the primary can't read a source of its policy, else 0.", func(s FollowerStats) float64 { return oneIf(s.Failing) })
	g("sources_read_timestamp_seconds", "Unix time of the primary's last complete reading of its sources, 0 if that isn't known.", func(s FollowerStats) float64 { return unix(s.SourcesRead) })
	g("recipients", "Recipients listed in the primary's policy.", func(s FollowerStats) float64 { return float64(s.Recipients) })
	g("withdrawn_recipients", "Recipients that a staged deletion removes.", func(s FollowerStats) float64 { return float64(s.Withdrawn) })
}

// oneOf is a gauge that is 1 for the label that holds and 0 for the others.
type oneOf struct {
	desc   *prometheus.Desc
	values []string
	value  func() string
}

func (o *oneOf) Describe(ch chan<- *prometheus.Desc) { ch <- o.desc }

func (o *oneOf) Collect(ch chan<- prometheus.Metric) {
	now := o.value()
	for _, v := range o.values {
		ch <- prometheus.MustNewConstMetric(o.desc, prometheus.GaugeValue, oneIf(v == now), v)
	}
}

// PushStats is the state of the lists of recipients that are pushed.
type PushStats struct{ Stale, Staged, Recipients int }

// Pushed exports that state.
func (m *Metrics) Pushed(stats func() PushStats) {
	g := func(name, help string, value func(PushStats) int) {
		m.auto.NewGaugeFunc(prometheus.GaugeOpts{Name: "understudy_push_" + name, Help: help}, func() float64 { return float64(value(stats())) })
	}
	g("stale_lists", "Domains whose list of recipients wasn't pushed within stale_after, or never; unknown recipients are answered 450.", func(s PushStats) int { return s.Stale })
	g("staged_lists", "Domains whose list of recipients had a mass deletion that waits for the operator.", func(s PushStats) int { return s.Staged })
	g("recipients", "Recipients of the lists that were pushed.", func(s PushStats) int { return s.Recipients })
}

// PublisherStats is what Publisher's callback returns. It must come in
// constant time.
type PublisherStats struct {
	Version   uint64
	Signed    time.Time // zero before the first version
	Changed   time.Time // when its content changed last, zero if that isn't known
	Peers     int       // paired followers
	Following int       // of them, those that asked within five minutes
	Alarmed   int       // of them, those whose last report names an alarm
	Wrong     int       // tables whose listing the database contradicts
}

// Publisher exports the state of a primary's publisher.
func (m *Metrics) Publisher(stats func() PublisherStats) {
	g := func(name, help string, value func(PublisherStats) float64) {
		m.auto.NewGaugeFunc(prometheus.GaugeOpts{Name: "understudy_publish_" + name, Help: help},
			func() float64 { return value(stats()) })
	}
	g("version", "Version of the policy that is published.", func(s PublisherStats) float64 { return float64(s.Version) })
	g("signed_timestamp_seconds", "Unix time at which the published policy was last signed, 0 before the first.", func(s PublisherStats) float64 { return unix(s.Signed) })
	g("changed_timestamp_seconds", "Unix time at which the published policy's content last changed, 0 if that isn't known.", func(s PublisherStats) float64 { return unix(s.Changed) })
	g("peers", "Followers that are paired.", func(s PublisherStats) float64 { return float64(s.Peers) })
	g("following_peers", "Paired followers that asked within the last five minutes.", func(s PublisherStats) float64 { return float64(s.Following) })
	g("alarmed_peers", "Paired followers whose last report names an alarm of the policy channel.", func(s PublisherStats) float64 { return float64(s.Alarmed) })
	g("tables_wrong", "Tables whose listing is contradicted by their database; recipients that it may lack are answered 450.", func(s PublisherStats) float64 { return float64(s.Wrong) })
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}

func (m *Metrics) buildInfo() {
	version, goVersion := "unknown", "unknown"
	if bi, ok := debug.ReadBuildInfo(); ok {
		version, goVersion = bi.Main.Version, bi.GoVersion
	}
	m.auto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "understudy_build_info", Help: "1, labelled with the version of this build.",
	}, []string{"version", "goversion"}).WithLabelValues(version, goVersion).Set(1)
}

// Counts sums a family of counters by one of its labels, over the children
// whose labels are as where says.
func Counts(family *prometheus.CounterVec, by string, where map[string]string) map[string]uint64 {
	children := make(chan prometheus.Metric)
	go func() {
		family.Collect(children)
		close(children)
	}()
	sums := map[string]uint64{}
	for c := range children {
		var m dto.Metric
		if c.Write(&m) != nil {
			continue // a counter can always be written
		}
		key, fits := "", true
		for _, l := range m.Label {
			if l.GetName() == by {
				key = l.GetValue()
			}
			if want, ok := where[l.GetName()]; ok && want != l.GetValue() {
				fits = false
			}
		}
		if fits {
			sums[key] += uint64(m.Counter.GetValue())
		}
	}
	return sums
}
