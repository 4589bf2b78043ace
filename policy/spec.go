package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/table"
)

// SpecVersion is the version of the Spec that this package writes and reads.
const SpecVersion = 1

// Spec is the whole policy as data. Names and meanings are those of Postfix's
// parameters; see postconf(5). NewSpec gives Postfix's defaults.
type Spec struct {
	Version int `json:"version"`

	DelayReject            bool `json:"delay_reject"`
	RelayBeforeRecipient   bool `json:"relay_before_recipient_restrictions"`
	HeloRequired           bool `json:"helo_required"`
	RejectUnlistedSender   bool `json:"reject_unlisted_sender"`
	RejectUnlistedRcpt     bool `json:"reject_unlisted_recipient"`
	AllowUntrustedRouting  bool `json:"allow_untrusted_routing"`
	AccessMatchesSubdomain bool `json:"access_matches_subdomains"` // smtpd_access_maps in parent_domain_matches_subdomains

	SoftBounce        bool     `json:"soft_bounce,omitempty"`
	HideTableNames    bool     `json:"hide_user_unknown_table_name,omitempty"` // show_user_unknown_table_name = no
	NullSenderKey     string   `json:"null_access_lookup_key,omitempty"`       // "" is "<>"
	SenderLogin       []string `json:"sender_login_maps,omitempty"`            // tables; who is in one must log in
	CommandFilter     []string `json:"command_filter,omitempty"`               // tables; see Session.Command
	DomainsIncomplete bool     `json:"domains_incomplete,omitempty"`           // a domain that isn't ours is refused for now only

	// What a temporary DNS failure does: "defer_if_permit" or "defer".
	UnknownAddressTempfail string `json:"unknown_address_tempfail_action"`
	UnknownHeloTempfail    string `json:"unknown_helo_hostname_tempfail_action"`

	Restrictions Restrictions             `json:"restrictions"`
	Classes      map[string][]Restriction `json:"restriction_classes,omitempty"`
	// MyNetworks holds addresses, prefixes, client names and "table:NAME"; "!"
	// excludes, the first match wins.
	MyNetworks             []string `json:"mynetworks,omitempty"`
	NetworksMatchSubdomain bool     `json:"mynetworks_matches_subdomains,omitempty"` // mynetworks in parent_domain_matches_subdomains

	Addresses  Addresses               `json:"addresses"`
	MXBackup   MXBackup                `json:"mx_backup,omitzero"`
	DNSBL      DNSBL                   `json:"dnsbl"`
	Content    ContentChecks           `json:"content,omitzero"`
	Filters    Filters                 `json:"filters,omitzero"`
	Postscreen *Postscreen             `json:"postscreen,omitempty"`
	Limits     Limits                  `json:"limits"`
	Protocol   Protocol                `json:"protocol,omitzero"`
	Codes      Codes                   `json:"codes"`
	Tables     map[string]*table.Table `json:"tables,omitempty"`
	// Learned names tables that can't be listed: they hold the keys that the
	// primary was asked for and has.
	Learned map[string]Learned `json:"learned,omitempty"`

	// NotReplicated names what of the primary's configuration takes part in its
	// decisions and has no place here, such as "smtpd_milters: inet:localhost:11332".
	// Nothing is decided by it: it explains differences.
	NotReplicated []string `json:"not_replicated,omitempty"`

	// ACL decides in place of Restrictions where the primary is an Exim.
	ACL *ACL `json:"acl,omitempty"`
}

// Learned is what is known of a table beside the keys that it holds. A
// recipient whom a key that it neither holds nor lacks could make known is
// refused for now only.
type Learned struct {
	Absent string `json:"absent,omitempty"`     // a set: the keys that it lacks; "" when it holds all that there are
	Whole  bool   `json:"whole_keys,omitempty"` // it is asked whole addresses and names only, as tcp_table(5) is

	// A key with one of these characters may be there although it isn't held,
	// as where a database takes it for a wildcard. "é" stands for all that
	// isn't ASCII.
	Unsure string `json:"unsure,omitempty"`

	Unknown string `json:"unknown,omitempty"` // a set: keys that may be there although they aren't held
	Except  string `json:"except,omitempty"`  // a set: keys that "@domain" doesn't stand for

	// If not "", a key "@domain" stands for the addresses there whose
	// local-part has none of these characters, and is no key itself.
	Unless string `json:"unless,omitempty"`
}

// Restrictions are the ordered lists of restrictions, one for each stage.
type Restrictions struct {
	Client    []Restriction `json:"client,omitempty"`
	Helo      []Restriction `json:"helo,omitempty"`
	Sender    []Restriction `json:"sender,omitempty"`
	Relay     []Restriction `json:"relay,omitempty"`
	Recipient []Restriction `json:"recipient,omitempty"`
	Data      []Restriction `json:"data,omitempty"`
	EndOfData []Restriction `json:"end_of_data,omitempty"`
}

// Restriction is one element of a list: a restriction's name and its argument,
// which is a table, a DNS list with its filter, a number, a note, or nothing. A name
// that isn't a restriction's is a restriction class.
type Restriction struct {
	Kind string
	Arg  string
}

// MarshalText spells the restriction as in main.cf: "kind" or "kind argument".
func (r Restriction) MarshalText() ([]byte, error) {
	if r.Arg == "" {
		return []byte(r.Kind), nil
	}
	return []byte(r.Kind + " " + r.Arg), nil
}

// UnmarshalText reads what MarshalText wrote.
func (r *Restriction) UnmarshalText(b []byte) error {
	r.Kind, r.Arg, _ = strings.Cut(string(b), " ")
	if r.Kind == "" || strings.ContainsAny(r.Arg, " \t\r\n") {
		return fmt.Errorf("restriction %q: want a name and at most one argument", b)
	}
	return nil
}

// Addresses says which addresses exist. A domain belongs to the first class
// that lists it, in the order of the fields.
type Addresses struct {
	RecipientDelimiter  string   `json:"recipient_delimiter,omitempty"` // a set of characters
	OwnerRequestSpecial bool     `json:"owner_request_special"`
	MyOrigin            string   `json:"myorigin,omitempty"`
	RecipientCanonical  []string `json:"recipient_canonical_maps,omitempty"` // tables
	SenderCanonical     []string `json:"sender_canonical_maps,omitempty"`
	Canonical           []string `json:"canonical_maps,omitempty"`
	VirtualAlias        []string `json:"virtual_alias_maps,omitempty"`

	NoPercentHack   bool   `json:"no_percent_hack,omitempty"`     // allow_percent_hack = no
	NoSwapBangpath  bool   `json:"no_swap_bangpath,omitempty"`    // swap_bangpath = no
	AppendDotDomain string `json:"append_dot_mydomain,omitempty"` // appended to domains without a dot: mydomain, or "" for none

	AllowMinUser  bool   `json:"allow_min_user,omitempty"`         // a local-part may begin with "-"
	NumericDomain bool   `json:"resolve_numeric_domain,omitempty"` // user@192.0.2.1 is user@[192.0.2.1]
	KeepQuoted    bool   `json:"keep_quoted,omitempty"`            // resolve_dequoted_address = no
	BareDomain    string `json:"unqualified_domain,omitempty"`     // of addresses without one; "" is MyOrigin: append_at_myorigin = no, then myhostname
	DoubleBounce  string `json:"double_bounce_sender,omitempty"`   // "" is "double-bounce"
	// VerifySender is whom the primary's own probes come from: "<>" is nobody
	// else, "" is DoubleBounce at MyOrigin.
	VerifySender string `json:"address_verify_sender,omitempty"`

	// Transports matter where they are "error:text" or "retry:text".
	TransportMaps             []string `json:"transport_maps,omitempty"`
	TransportMatchesSubdomain bool     `json:"transport_maps_matches_subdomains,omitempty"`
	DefaultTransport          string   `json:"default_transport,omitempty"`
	Relocated                 []string `json:"relocated_maps,omitempty"`
	AliasesIncomplete         bool     `json:"aliases_incomplete,omitempty"` // canonical or alias tables are known in part: nobody is unknown for good

	Local          AddressClass `json:"local"`
	VirtualAliases AddressClass `json:"virtual_alias"`
	VirtualMailbox AddressClass `json:"virtual_mailbox"`
	Relay          AddressClass `json:"relay"`
}

// AddressClass is a set of domains and the tables that list its recipients.
type AddressClass struct {
	Domains    []string `json:"domains,omitempty"`    // sorted; ".example.org" stands for all subdomains
	Recipients []string `json:"recipients,omitempty"` // tables, in look-up order; none: every recipient exists

	Incomplete bool   `json:"incomplete,omitempty"` // the tables are known in part: an unknown recipient is refused for now only
	Transport  string `json:"transport,omitempty"`  // "error:text" or "retry:text" refuses; others don't matter

	// Match decides in place of Domains where it is given, for lists that a
	// set of names can't express. Its elements are domains and "table:NAME";
	// "!" excludes, the first match wins. Domains is then what is known of
	// the outcome, for statistics and guards.
	Match   []string `json:"match,omitempty"`
	Parents string   `json:"parents,omitempty"` // whether an element of Match matches subdomains: "" no, "name" yes, ".name" with a dot
}

// MXBackup is what the restriction permit_mx_backup has to know of the primary.
type MXBackup struct {
	Addresses      []netip.Addr `json:"addresses,omitempty"` // its own: inet_interfaces and proxy_interfaces
	Networks       []string     `json:"networks,omitempty"`  // as MyNetworks: where the best exchangers must be; none: anywhere
	MatchSubdomain bool         `json:"networks_matches_subdomains,omitempty"`
}

// ContentChecks are what cleanup(8) refuses a message for. The tables are those
// that its headers and lines are looked up in, header_checks(5). Each list stands
// for itself: an empty MIMEHeader doesn't mean Header.
type ContentChecks struct {
	Header       []string `json:"header_checks,omitempty"`
	MIMEHeader   []string `json:"mime_header_checks,omitempty"`
	NestedHeader []string `json:"nested_header_checks,omitempty"`
	Body         []string `json:"body_checks,omitempty"`

	BodyLimit     int64 `json:"body_checks_size_limit,omitempty"`     // octets of a part, 0 is Postfix's default of 51200
	BoundaryLimit int   `json:"mime_boundary_length_limit,omitempty"` // 0 is 2048
	NestingLimit  int   `json:"mime_nesting_limit,omitempty"`         // 0 is 100
	DisableMIME   bool  `json:"disable_mime_input_processing,omitempty"`
	// EnforceNesting refuses what is nested deeper than NestingLimit. So do
	// tables about headers and the switches below, by themselves.
	EnforceNesting   bool `json:"enforce_mime_nesting,omitempty"`
	Strict7BitHeader bool `json:"strict_7bit_headers,omitempty"`         // octets over 127 in headers refuse
	Strict8BitBody   bool `json:"strict_8bitmime_body,omitempty"`        // likewise in bodies that aren't declared to have them
	StrictEncoding   bool `json:"strict_mime_encoding_domain,omitempty"` // messages and multiparts that are encoded as a whole refuse
	// RejectOctets are octets, 0 to 255, that refuse a message wherever they
	// stand in it, but for line ends; StripOctets are taken out before the
	// other checks look.
	RejectOctets []int `json:"message_reject_characters,omitempty"`
	StripOctets  []int `json:"message_strip_characters,omitempty"`
	// Hostname is the primary's name, for the Received field that it would
	// add and look up; "" leaves that field out. Its date and ID are not
	// imitated. With a name Limits.MessageSize is that of Postfix's queue
	// file, which has more in it than the message.
	Hostname string `json:"received_by,omitempty"`
}

// Postscreen is what postscreen(8) does before a client meets the SMTP server.
// Its DNS lists are DNSBL.Sites with DNSBL.Threshold. The actions are "ignore"
// (also ""), "enforce" and "drop".
type Postscreen struct {
	Access             []string `json:"access_list,omitempty"` // "permit_mynetworks" and "table:NAME", whose values are permit, reject or dunno
	DenylistAction     string   `json:"denylist_action,omitempty"`
	DNSBLAction        string   `json:"dnsbl_action,omitempty"`
	DNSBLReply         []string `json:"dnsbl_reply_map,omitempty"`           // tables: the name to show for a DNS list
	AllowlistThreshold int      `json:"dnsbl_allowlist_threshold,omitempty"` // when below 0: a score up to it waives the pregreet test
	GreetAction        string   `json:"greet_action,omitempty"`
	GreetWait          int      `json:"greet_wait,omitempty"` // seconds
	GreetBanner        string   `json:"greet_banner,omitempty"`
	GreetTTL           int      `json:"greet_ttl,omitempty"`    // seconds that who passed the pregreet test is spared it; 0: none
	GreetPassed        []string `json:"greet_passed,omitempty"` // tables: by address, until when the client is spared it, in units of GreetUnit since the epoch
}

// GreetUnit is how exactly Postscreen.GreetPassed says until when, in seconds.
const GreetUnit = 600

// Protocol is what the SMTP server has to do by itself.
type Protocol struct {
	// StrictEnvelopes refuses paths without angle brackets or with comments
	// (501 5.1.7 and 5.1.3): strict_rfc821_envelopes.
	StrictEnvelopes bool `json:"strict_envelopes,omitempty"`
	// NoUTF8 offers no SMTPUTF8 and takes commands that aren't UTF-8:
	// smtputf8_enable = no.
	NoUTF8 bool `json:"no_smtputf8,omitempty"`
	// StrictUTF8 refuses addresses outside of ASCII without SMTPUTF8
	// (553 5.6.7): strict_smtputf8.
	StrictUTF8 bool `json:"strict_smtputf8,omitempty"`
	// Discard names extensions that are neither offered nor taken: DSN and
	// SMTPUTF8 in smtpd_discard_ehlo_keywords.
	Discard []string `json:"discard_ehlo_keywords,omitempty"`
	// AskCert asks clients for a certificate, for permit_tls_clientcerts and
	// permit_tls_all_clientcerts: smtpd_tls_ask_ccert.
	AskCert bool `json:"tls_ask_ccert,omitempty"`
	// DisableVRFY answers VRFY 502 5.5.1.
	DisableVRFY bool `json:"disable_vrfy,omitempty"`
	// ForbidPipelining answers 554 5.5.0 and hangs up where Session.Pipelined
	// would be called: smtpd_forbid_unauth_pipelining.
	ForbidPipelining bool `json:"forbid_unauth_pipelining,omitempty"`
	// BareNewline says what becomes of a line feed that no carriage return
	// precedes: "reject" or "normalize"; "" says nothing. The server's own
	// configuration may know better: Session.BareNewline.
	// smtpd_forbid_bare_newline.
	BareNewline           string   `json:"forbid_bare_newline,omitempty"`
	BareNewlineCode       int      `json:"forbid_bare_newline_reject_code,omitempty"` // 0 is 550
	BareNewlineExclusions []string `json:"forbid_bare_newline_exclusions,omitempty"`  // as MyNetworks: whom "reject" doesn't concern
	// Words and "table:NAME"; "!" excludes, the first match wins:
	// Session.Forbids and NoOp.
	ForbiddenCommands []string `json:"forbidden_commands,omitempty"`
	NoopCommands      []string `json:"noop_commands,omitempty"`
}

// Offers says whether an extension is for clients to use, as far as the policy
// goes.
func (p *Protocol) Offers(extension string) bool {
	return !slices.Contains(p.Discard, extension) && !(p.NoUTF8 && extension == "SMTPUTF8")
}

// DNSBL configures DNS lists beyond what a restriction's argument says.
type DNSBL struct {
	DefaultReply string            `json:"default_rbl_reply,omitempty"` // template, as in postconf(5)
	Replies      map[string]string `json:"rbl_reply_maps,omitempty"`    // template by zone as a restriction names it, with its filter
	Sites        []DNSBLSite       `json:"sites,omitempty"`             // of the restriction reject_dnsbl_score, and of postscreen
	Threshold    int               `json:"threshold,omitempty"`
}

// DNSBLSite is a DNS list whose listing adds Weight to a client's score.
type DNSBLSite struct {
	Zone   string `json:"zone"` // with its filter: "zen.spamhaus.org=127.0.0.[2..11]"
	Weight int    `json:"weight"`
}

// Limits are the bounds that a client meets. 0 is no limit, unless said
// otherwise.
type Limits struct {
	MessageSize   int64 `json:"message_size_limit"` // octets
	Recipients    int   `json:"recipient_limit"`    // a transaction
	HeaderBytes   int   `json:"header_size_limit"`
	LineLength    int   `json:"line_length_limit"`
	Hops          int   `json:"hopcount_limit"` // Received fields, our own included; 0 is 100
	SoftErrors    int   `json:"soft_error_limit"`
	HardErrors    int   `json:"hard_error_limit"`
	JunkCommands  int   `json:"junk_command_limit"`
	RcptOvershoot int   `json:"recipient_overshoot_limit"`

	// ErrorSleep is how many seconds each reply waits from the moment on when
	// the client has made SoftErrors: smtpd_error_sleep_time.
	ErrorSleep int `json:"error_sleep_time"`
	// Stress takes the place of the limits of the same names while sessions are
	// scarce: what main.cf's ${stress?...} makes of them.
	Stress StressLimits `json:"stress,omitzero"`
	Client ClientLimits `json:"client,omitzero"`
}

// StressLimits are limits under stress; 0 is the usual one.
type StressLimits struct {
	SoftErrors   int `json:"soft_error_limit,omitempty"`
	HardErrors   int `json:"hard_error_limit,omitempty"`
	JunkCommands int `json:"junk_command_limit,omitempty"`
}

// ClientLimits bound what one client does in all of its sessions: what anvil(8)
// counts. A client is an IP address, or all those of a network as large as the
// prefix lengths say; what follows the limit is Postfix's reply, with its
// $myhostname as HOST, the client's address as ADDR and "name[address]" as NAME.
// Session.Unlimited tells whom they don't concern.
type ClientLimits struct {
	// Connections bounds the sessions at a time, ConnectionRate the new ones:
	// in place of the greeting, 421 4.7.0 HOST Error: too many connections from ADDR
	Connections    int `json:"connection_count_limit,omitempty"`
	ConnectionRate int `json:"connection_rate_limit,omitempty"`
	// MessageRate counts MAIL, also that which is refused, unless for its
	// place in the dialogue: 450 4.7.1 Error: too much mail from ADDR
	MessageRate int `json:"message_rate_limit,omitempty"`
	// RecipientRate counts RCPT and VRFY likewise:
	// 450 4.7.1 Error: too many recipients from ADDR
	RecipientRate int `json:"recipient_rate_limit,omitempty"`
	// NewTLSRate counts handshakes that resume no session. STARTTLS beyond it:
	// 454 4.7.0 Error: too many new TLS sessions from NAME
	// After the handshake that exceeds it, and a hang-up:
	// 421 4.7.0 HOST Error: too many new TLS sessions from NAME
	NewTLSRate int `json:"new_tls_session_rate_limit,omitempty"`

	RateTime       int      `json:"anvil_rate_time_unit,omitempty"`          // seconds that the rates count in; 0 is 60
	IPv4Prefix     int      `json:"client_ipv4_prefix_length,omitempty"`     // 0 is 32
	IPv6Prefix     int      `json:"client_ipv6_prefix_length,omitempty"`     // 0 is 128
	Exceptions     []string `json:"client_event_limit_exceptions,omitempty"` // as MyNetworks: whom the limits don't concern
	MatchSubdomain bool     `json:"client_event_limit_exceptions_matches_subdomains,omitempty"`
}

// Codes are the configured reply codes, by Postfix's parameter names.
type Codes struct {
	AccessMapDefer        int `json:"access_map_defer_code"`
	AccessMapReject       int `json:"access_map_reject_code"`
	Defer                 int `json:"defer_code"`
	InvalidHostname       int `json:"invalid_hostname_reject_code"`
	MapsRBL               int `json:"maps_rbl_reject_code"`
	MultiRecipientBounce  int `json:"multi_recipient_bounce_reject_code"`
	NonFQDN               int `json:"non_fqdn_reject_code"`
	Plaintext             int `json:"plaintext_reject_code"`
	Reject                int `json:"reject_code"`
	RelayDomains          int `json:"relay_domains_reject_code"`
	UnknownAddress        int `json:"unknown_address_reject_code"`
	UnknownClient         int `json:"unknown_client_reject_code"`
	UnknownHostname       int `json:"unknown_hostname_reject_code"`
	UnknownLocalRcpt      int `json:"unknown_local_recipient_reject_code"`
	UnknownRelayRcpt      int `json:"unknown_relay_recipient_reject_code"`
	UnknownVirtualAlias   int `json:"unknown_virtual_alias_reject_code"`
	UnknownVirtualMailbox int `json:"unknown_virtual_mailbox_reject_code"`
}

const defaultRBLReply = "$rbl_code Service unavailable; $rbl_class [$rbl_what] blocked using $rbl_domain${rbl_reason?; $rbl_reason}"

// NewSpec returns a Spec with the defaults of Postfix 3.7 and no restriction,
// domain or table.
func NewSpec() *Spec {
	return &Spec{
		Version:                SpecVersion,
		DelayReject:            true,
		RejectUnlistedRcpt:     true,
		AccessMatchesSubdomain: true,
		UnknownAddressTempfail: actionPermit,
		UnknownHeloTempfail:    actionPermit,
		Addresses:              Addresses{OwnerRequestSpecial: true},
		DNSBL:                  DNSBL{DefaultReply: defaultRBLReply},
		Limits: Limits{
			MessageSize: 10240000, Recipients: 1000, HeaderBytes: 102400, LineLength: 2048, Hops: 50,
			SoftErrors: 10, HardErrors: 20, JunkCommands: 100, RcptOvershoot: 1000, ErrorSleep: 1,
		},
		Codes: Codes{
			AccessMapDefer: 450, AccessMapReject: 554, Defer: 450, InvalidHostname: 501, MapsRBL: 554,
			MultiRecipientBounce: 550, NonFQDN: 504, Plaintext: 450, Reject: 554, RelayDomains: 554,
			UnknownAddress: 450, UnknownClient: 450, UnknownHostname: 450, UnknownLocalRcpt: 550,
			UnknownRelayRcpt: 550, UnknownVirtualAlias: 550, UnknownVirtualMailbox: 550,
		},
	}
}
