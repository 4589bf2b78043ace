package policy

// Filters are what decides on the primary besides Postfix itself: its policy
// services and milters, as far as they can be followed.
type Filters struct {
	// SPF are policyd-spf's settings by the name that the restriction check_spf
	// gives.
	SPF     map[string]SPFService `json:"policyd_spf,omitempty"`
	Milters []Milter              `json:"milters,omitempty"` // in the order in which they are asked
	// Greylists are postgrey's settings by the name that the restriction
	// check_greylist gives.
	Greylists map[string]Greylist `json:"postgrey,omitempty"`
	// MilterMaps are tables with other milters for some clients, by address, as
	// smtpd_milter_maps: a list, or DISABLE.
	MilterMaps []string        `json:"milter_maps,omitempty"`
	Asking     *MilterSettings `json:"milter_settings,omitempty"` // how milters are asked
}

// Milter is one of the primary's milters. At most one of DKIM and DMARC is set;
// a milter with neither is followed where a filter of the secondary stands for
// it.
type Milter struct {
	// Where is the element of smtpd_milters: an endpoint, or one in braces with
	// settings of its own.
	Where   string       `json:"where,omitempty"`
	Program string       `json:"program,omitempty"` // that listens there, "" when that isn't known
	DKIM    *DKIMFilter  `json:"opendkim,omitempty"`
	DMARC   *DMARCFilter `json:"opendmarc,omitempty"`
	// Defer says that mail is deferred by defer_unfiltered where no filter stands
	// for it.
	Defer bool `json:"defer,omitempty"`
	// Greylist is that of an rspamd which isn't followed: whom it never puts off.
	Greylist *RspamdGreylist `json:"greylist,omitempty"`
}

// MilterSettings are the primary's milter_* parameters.
type MilterSettings struct {
	Hostname       string `json:"myhostname,omitempty"`
	Protocol       string `json:"protocol,omitempty"`       // "" is 6
	DefaultAction  string `json:"default_action,omitempty"` // "" is tempfail
	ConnectTimeout int    `json:"connect_timeout"`          // seconds, as the next
	CommandTimeout int    `json:"command_timeout"`
	ContentTimeout int    `json:"content_timeout"`
	HeaderSize     int    `json:"header_size_limit,omitempty"`
	// Macros are names by event: connect, helo, mail, rcpt, data, end_of_header,
	// end_of_data, unknown_command.
	Macros map[string][]string `json:"macros,omitempty"`
	// Values are those of v and daemon_name, Defaults those of macros that have
	// none.
	Values   map[string]string `json:"values,omitempty"`
	Defaults map[string]string `json:"macro_defaults,omitempty"`
}

// SPFService is policyd-spf's configuration; see policyd-spf.conf(5). A list of
// names matches as there.
type SPFService struct {
	HELO      string `json:"helo_reject"`      // "Fail", "Softfail", "SPF_Not_Pass", "Null", "False" or "No_Check"
	MailFrom  string `json:"mail_from_reject"` // the same without "Null"
	PermError bool   `json:"permerror_reject,omitempty"`
	TempError bool   `json:"temperror_defer,omitempty"`
	NoMail    bool   `json:"no_mail,omitempty"` // only "v=spf1 -all" refuses

	NotPass      []string `json:"reject_not_pass_domains,omitempty"`
	Skip         []string `json:"skip_addresses,omitempty"` // prefixes
	Allow        []string `json:"whitelist,omitempty"`      // prefixes
	AllowHELO    []string `json:"helo_whitelist,omitempty"`
	AllowDomains []string `json:"domain_whitelist,omitempty"`
	AllowPTR     []string `json:"domain_whitelist_ptr,omitempty"`

	VoidLookups int    `json:"void_limit"`
	Seconds     int    `json:"lookup_time"`
	Message     string `json:"reason_message"` // with {rejectdefer}, {spf} and {url}
	OldCodes    bool   `json:"no_enhanced_status_codes,omitempty"`
	HideRcpt    bool   `json:"hide_receiver,omitempty"`
	// Header says what it tells the filters after it: "SPF", "AR" or "None".
	Header string `json:"header_type,omitempty"`
}

// What a DKIMFilter does with a message.
const (
	MilterAccept     = "accept"
	MilterDiscard    = "discard"
	MilterQuarantine = "quarantine"
	MilterReject     = "reject"
	MilterTempfail   = "tempfail"
)

// DKIMFilter is opendkim's configuration as a verifier; see opendkim.conf(5).
type DKIMFilter struct {
	BadSignature string `json:"on_bad_signature"` // one of the Milter constants, as the next
	NoSignature  string `json:"on_no_signature"`
	KeyNotFound  string `json:"on_key_not_found"`
	Security     string `json:"on_security"`
	Quarantine   bool   `json:"quarantine,omitempty"` // without it, MilterQuarantine accepts

	MaxSignatures int  `json:"maximum_signatures_to_verify"`
	MinKeyBits    int  `json:"minimum_key_bits"`
	MaxHeader     int  `json:"maximum_headers"` // octets, 0: no limit
	ClockDrift    int  `json:"clock_drift"`     // seconds
	Signs         bool `json:"signs,omitempty"` // mode s beside v
	AlwaysAddsAR  bool `json:"always_add_ar_header,omitempty"`

	Peers  []string `json:"peer_list,omitempty"`      // as MyNetworks: whom it doesn't look at
	Exempt []string `json:"exempt_domains,omitempty"` // of authors
}

// DMARCFilter is opendmarc's configuration; see opendmarc.conf(5).
type DMARCFilter struct {
	RejectFailures  bool   `json:"reject_failures,omitempty"`
	RequiredHeaders bool   `json:"required_headers,omitempty"`
	Quarantine      bool   `json:"hold_quarantined_messages,omitempty"`
	RejectMultiFrom bool   `json:"reject_multi_value_from,omitempty"`
	RejectString    string `json:"reject_string,omitempty"` // with %s; "" is the program's own
	NoSuffixes      bool   `json:"no_public_suffix_list,omitempty"`

	IgnoreHosts   []string `json:"ignore_hosts,omitempty"` // as MyNetworks
	IgnoreDomains []string `json:"ignore_mail_from,omitempty"`

	// What it hears from the filters before it: DKIM's results, and SPF's from
	// the service of that name. With SelfSPF it checks SPF itself where no
	// service has spoken.
	DKIM    bool   `json:"dkim,omitempty"`
	SPF     string `json:"spf,omitempty"`
	SelfSPF bool   `json:"spf_self_validate,omitempty"`
}
