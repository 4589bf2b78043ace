package policy

import (
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/mailauth"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/table"
)

// Corners that the decision tables don't reach, or whose effect they don't tell
// apart from another's.

func TestParseCodes(t *testing.T) {
	for s, good := range map[string]bool{
		"127.0.0.2": true, "127.0.0.[2..5;9]": true, "127.0.0.[0..255]": true,
		"127.0.0.[x..5]": false, "127.0.0.[5..x]": false, "127.0.0.[5..2]": false, "127.0.0.256": false, "127.0.0": false, "127.0.0.2.3": false,
	} {
		if _, err := parseCodes(s); (err == nil) != good {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestPartsOfAddresses(t *testing.T) {
	for _, tt := range []struct {
		addr, suffix string
		has          bool
		want         string
	}{
		{"a@b", "", true, "a@b"}, {"a@b", "_name", true, "a"}, {"a@b", "_domain", true, "b"},
		{"a", "", true, "a"}, {"a", "_name", true, "a"}, {"a", "_domain", true, ""},
		{"", "", true, "<>"}, {"", "_name", true, "<>"}, {"", "_domain", true, ""},
		{"a@b@c", "_name", true, "a@b"}, {"a@b@c", "_domain", true, "c"},
		{"a@b", "", false, ""},
	} {
		if got := part(tt.addr, tt.suffix, tt.has); got != tt.want {
			t.Errorf("%q%s: %q, want %q", tt.addr, tt.suffix, got, tt.want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for _, tt := range []struct {
		s    string
		utf8 bool
		want string
	}{
		{"a ~", false, "a ~"}, {"a\x00\r\n\x7fb", true, "a    b"}, {"aéb", true, "aéb"}, {"aéb", false, "a  b"}, {"a\xffb", true, "a b"}, {"\x1f!", false, " !"},
	} {
		if got := printable(tt.s, tt.utf8); got != tt.want {
			t.Errorf("%q, UTF-8 %v: %q, want %q", tt.s, tt.utf8, got, tt.want)
		}
	}
}

func TestNegativeContentLimits(t *testing.T) {
	for name, spoil := range map[string]func(*Spec){
		"body":     func(s *Spec) { s.Content.BodyLimit = -1 },
		"boundary": func(s *Spec) { s.Content.BoundaryLimit = -1 },
		"nesting":  func(s *Spec) { s.Content.NestingLimit = -1 },
	} {
		spec := NewSpec()
		spoil(spec)
		if _, err := Compile(spec); err == nil || !strings.Contains(err.Error(), "negative") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A policy without a name for its primary has no domain of its own, and no
// address of its own probes.
func TestNoOrigin(t *testing.T) {
	s := &Snapshot{spec: NewSpec()}
	s.spec.Addresses.MyOrigin, s.spec.Addresses.VerifySender = "", ""
	if s.isOrigin("") || s.isOrigin("example.org") {
		t.Error("it is an origin")
	}
	if s.verifies(envelope.ForwardPath{}) || s.verifies(envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "double-bounce"}}) {
		t.Error("it verifies")
	}
	s.spec.Addresses.MyOrigin = "Example.org"
	if !s.isOrigin("example.org") || s.isOrigin("") {
		t.Error("its origin is another")
	}
}

// relaySpec is a policy that relays for example.org and lists nobody there.
func relaySpec(t *testing.T) *Spec {
	spec := NewSpec()
	nobody, err := table.NewSet([]string{"nobody@example.org"})
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables = map[string]*table.Table{"nobody": nobody}
	spec.Addresses.Relay = AddressClass{Domains: []string{"example.org"}, Recipients: []string{"nobody"}}
	spec.Restrictions.Relay = []Restriction{{Kind: "reject_unauth_destination"}}
	return spec
}

// What is only warned about is looked at again where it counts.
func TestUnlistedAfterWarning(t *testing.T) {
	spec := relaySpec(t)
	spec.RejectUnlistedRcpt = false
	unlisted := Restriction{Kind: "reject_unlisted_recipient"}
	for name, tt := range map[string]struct {
		list []Restriction
		code int
	}{
		"not looked at": {nil, 0},
		"warned":        {[]Restriction{{Kind: kindWarn}, unlisted}, 0},
		"both":          {[]Restriction{{Kind: kindWarn}, unlisted, unlisted}, 550},
	} {
		spec.Restrictions.Recipient = tt.list
		if v, _ := judge(t, spec); v.Reply.Code != tt.code {
			t.Errorf("%s: %v", name, v.Reply)
		}
	}
}

// A sender may be listed by each of the tables that Postfix looks into.
func TestListedSender(t *testing.T) {
	for name, list := range map[string]func(*Addresses){
		"sender_canonical": func(a *Addresses) { a.SenderCanonical = []string{"sender"} },
		"canonical":        func(a *Addresses) { a.Canonical = []string{"sender"} },
		"virtual alias":    func(a *Addresses) { a.VirtualAlias = []string{"sender"} },
		"nothing":          func(*Addresses) {},
	} {
		spec := relaySpec(t)
		sender, err := table.NewHash(map[string]string{from.Local + "@" + from.Domain: "x@y.example"})
		if err != nil {
			t.Fatal(err)
		}
		spec.Tables["sender"] = sender
		spec.Addresses.Relay.Domains = append(spec.Addresses.Relay.Domains, from.Domain)
		spec.RejectUnlistedRcpt = false
		spec.Restrictions.Sender = []Restriction{{Kind: "reject_unlisted_sender"}}
		list(&spec.Addresses)
		if v, _ := judge(t, spec); (v.Action == Reject) != (name == "nothing") {
			t.Errorf("%s: %v", name, v)
		}
	}
}

// Of two rules of a stage that want the primary asked, the first is named.
func TestAskNamesTheFirst(t *testing.T) {
	spec := relaySpec(t)
	spec.Addresses.Relay.Recipients = nil
	spec.Restrictions.Recipient = []Restriction{{kindAsk, "first"}, {kindAsk, "second"}}
	if v, _ := judge(t, spec); v.Ask.Key != "first" && !strings.HasSuffix(v.Ask.String(), "first") {
		t.Errorf("%v", v.Ask)
	}
}

// The whole local-part comes before the one without its extension, each with "@".
func TestExtensionInAccessTable(t *testing.T) {
	spec := relaySpec(t)
	spec.Addresses.Relay.Recipients = nil
	spec.Addresses.RecipientDelimiter = "+"
	access, err := table.NewHash(map[string]string{"alice+x@": "REJECT", "alice@": "OK", "bob@": "REJECT", "carol+y@": "OK", "carol@": "REJECT"})
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables["access"] = access
	spec.Restrictions.Recipient = []Restriction{{Kind: "check_recipient_access", Arg: "access"}}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for local, want := range map[string]Action{"alice+x": Reject, "alice+z": Permit, "alice": Permit, "bob+x": Reject, "carol+y": Permit, "carol+z": Reject} {
		s := snap.Session(new(testmx.MapResolver), client)
		s.Connect(t.Context())
		s.Helo(t.Context(), "h.example")
		s.Mail(t.Context(), from, MailParams{})
		if v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: local, Domain: "example.org"}}); v.Action != want {
			t.Errorf("%s: %v", local, v)
		}
		s.Close()
	}
}

// The verdict of postscreen's access list names its table and entry.
func TestScreenAccessRule(t *testing.T) {
	spec := relaySpec(t)
	access, err := table.NewHash(map[string]string{client.Addr.String(): "reject"})
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables["screen"] = access
	spec.Postscreen = &Postscreen{Access: []string{"table:screen"}, DenylistAction: "enforce", GreetAction: "ignore", DNSBLAction: "ignore"}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	s := snap.Session(new(testmx.MapResolver), client)
	defer s.Close()
	s.Screen(t.Context(), false)
	s.Connect(t.Context())
	s.Helo(t.Context(), "h.example")
	s.Mail(t.Context(), from, MailParams{})
	if v := s.Rcpt(t.Context(), to); v.Action != Reject || v.Rule.Table != "screen" || v.Rule.Key != client.Addr.String() {
		t.Errorf("%+v", v)
	}
}

// A reply template that Postfix can't expand gives way to the default one.
func TestExpandFallsBack(t *testing.T) {
	e := &eval{Session: nil}
	vars := map[string]string{"rbl_code": "554", "rbl_class": "Client host", "rbl_what": "192.0.2.1", "rbl_domain": "bl.example"}
	if got := e.expand("$rbl_code ${", vars); !strings.HasPrefix(got, "554") || !strings.Contains(got, "bl.example") {
		t.Errorf("%q", got)
	}
	if got := e.expand("$rbl_code listed", vars); got != "554 listed" {
		t.Errorf("%q", got)
	}
}

// A table in a list of networks is asked for parents as parent_domain_matches_subdomains
// says: by their names, or by names with a dot before them; never by both.
func TestParentsInNetworkTable(t *testing.T) {
	for _, tt := range []struct {
		key        string
		subdomains bool
		want       bool
	}{
		{"example", true, true}, {".example", true, false}, {"sender.example", true, true}, {".sender.example", true, false},
		{"example", false, false}, {".example", false, true}, {"sender.example", false, false}, {".sender.example", false, true},
		{"mail.sender.example", true, true}, {"mail.sender.example", false, true}, {"ender.example", true, false},
	} {
		spec := relaySpec(t)
		networks, err := table.NewHash(map[string]string{tt.key: "x"})
		if err != nil {
			t.Fatal(err)
		}
		spec.Tables["networks"] = networks
		spec.MyNetworks, spec.NetworksMatchSubdomain = []string{"table:networks"}, tt.subdomains
		spec.Restrictions.Recipient = []Restriction{{Kind: "permit_mynetworks"}, {Kind: "reject"}}
		spec.RejectUnlistedRcpt = false
		if v, _ := judge(t, spec); (v.Action == Permit) != tt.want {
			t.Errorf("%q, subdomains %t: %v", tt.key, tt.subdomains, v.Action)
		}
	}
}

// What the HELO name's list would defer is deferred by the recipient's.
func TestDeferIfPermitFromHelo(t *testing.T) {
	spec := relaySpec(t)
	helo, err := table.NewHash(map[string]string{"mail.sender.example": "DEFER_IF_PERMIT later"})
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables["helo"] = helo
	spec.RejectUnlistedRcpt = false
	spec.Restrictions.Helo = []Restriction{{Kind: "check_helo_access", Arg: "helo"}}
	for _, delayed := range []bool{true, false} {
		spec.DelayReject = delayed
		if v, _ := judge(t, spec); v.Action != Defer || v.Rule.Stage != Helo {
			t.Errorf("delayed %t: %+v", delayed, v)
		}
	}
}

// checkReceived plays a message and returns what its header checks say of it.
func checkReceived(t *testing.T, spec *Spec, recipients int, text string) Verdict {
	t.Helper()
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	s := snap.Session(new(testmx.MapResolver), client)
	defer s.Close()
	s.Connect(t.Context())
	s.Helo(t.Context(), "h.example")
	s.Mail(t.Context(), from, MailParams{})
	for range recipients {
		s.Rcpt(t.Context(), to)
	}
	s.Data(t.Context())
	s.Content().Write([]byte(text))
	return s.Message(t.Context(), Message{Size: int64(len(text))})
}

// The primary's own Received field names the recipient only if there is one.
func TestReceivedNamesOneRecipient(t *testing.T) {
	spec := relaySpec(t)
	spec.Addresses.Relay.Recipients = nil
	header, err := table.NewPCRE([][2]string{{"/^Received: .*\\bfor </s", "REJECT"}})
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables["header"] = header
	spec.Content = ContentChecks{Header: []string{"header"}, Hostname: "mx.example"}
	for recipients, want := range map[int]Action{1: Reject, 2: Permit} {
		if v := checkReceived(t, spec, recipients, "Subject: 1\r\n\r\n"); v.Action != want {
			t.Errorf("%d recipients: %+v", recipients, v)
		}
	}
}

// A Received field that is taken out doesn't show the hop limit passed: the next
// that stays does.
func TestIgnoredReceived(t *testing.T) {
	spec := relaySpec(t)
	spec.Addresses.Relay.Recipients = nil
	spec.Limits.Hops = 3
	header, err := table.NewPCRE([][2]string{{"/^Received: from ours/", "IGNORE"}})
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables["header"] = header
	spec.Content = ContentChecks{Header: []string{"header"}}
	const ours, theirs = "Received: from ours\r\n", "Received: from theirs\r\n"
	for _, tt := range []struct {
		text string
		want Action
	}{
		{theirs, Permit},
		{theirs + theirs, Reject},
		{theirs + ours, Permit},
		{ours + ours + ours, Permit},
		{ours + theirs, Reject},
		{ours + ours + theirs, Reject},
	} {
		if v := checkReceived(t, spec, 1, tt.text+"Subject: 1\r\n\r\n"); v.Action != tt.want {
			t.Errorf("%q: %+v", tt.text, v)
		}
	}
}

// A client without a certificate has no part in permit_tls_clientcerts.
func TestNoCertNoDoubt(t *testing.T) {
	spec := relaySpec(t)
	spec.Restrictions.Recipient = []Restriction{{Kind: "permit_tls_clientcerts"}, {Kind: "reject"}}
	if v, _ := judge(t, spec); v.Action != Reject {
		t.Errorf("%v %v", v.Action, v.Reply)
	}
}

// A pattern that takes too long on a line of the content puts the message off,
// also one that was to be held; an empty line is looked for nowhere.
func TestContentLookupFails(t *testing.T) {
	pcre := func(rules ...[2]string) *table.Table {
		p, err := table.NewPCRE(rules)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for name, tt := range map[string]struct {
		text   string
		action Action
		code   int
	}{
		"in time": {"X-Hold: 1\r\n\r\nab!\r\n", Hold, 0},
		"header":  {"X-Hold: 1\r\n" + slow + ": 1\r\n\r\n", Defer, 451},
		"body":    {"X-Hold: 1\r\n\r\n" + slow + "\r\n", Defer, 451},
		"empty":   {"Subject: 1\r\n\r\n\r\nx\r\n\r\n", Permit, 0},
		"first":   {slow + ": 1\r\nSubject: \xfc\r\n", Defer, 451}, // nothing after it counts
		"8 bit":   {"Subject: \xfc\r\n", Reject, 550},
	} {
		spec := relaySpec(t)
		spec.Addresses.Relay.Recipients = nil
		spec.Tables["slow"] = pcre([2]string{"/^X-Hold/", "HOLD"}, [2]string{endless, "WARN"}, [2]string{"/^$/", "REJECT"})
		spec.Content.Header, spec.Content.Body, spec.Content.Strict7BitHeader = []string{"slow"}, []string{"slow"}, true
		if v := checkReceived(t, spec, 1, tt.text); v.Action != tt.action || v.Reply.Code != tt.code {
			t.Errorf("%s: %v %s", name, v.Action, v.Reply)
		}
	}
}

// An answer that no server may give becomes a temporary one.
func TestRejectNow(t *testing.T) {
	for _, tt := range []struct {
		code int
		dsn  string
		want int
	}{{400, "4.7.1", 400}, {599, "5.7.1", 599}, {399, "5.7.1", 450}, {600, "5.7.1", 450}, {550, "nonsense", 450}} {
		e := eval{Session: new(Session)}
		if st := e.rejectNow(Rule{}, tt.code, tt.dsn, "text"); st != refused || e.reply.Code != tt.want || (tt.want == 450) != (e.reply.Text == "Service unavailable") {
			t.Errorf("%d %s: %s", tt.code, tt.dsn, e.reply)
		}
	}
}

// DEFER_IF_REJECT takes the place of a permanent refusal, not of a temporary one.
func TestDeferIfReject(t *testing.T) {
	for action, want := range map[string]string{"550 5.1.9 never": "450 4.7.1", "451 4.1.9 later": "451 4.1.0", "OK": "no reply"} {
		spec := relaySpec(t)
		spec.Addresses.Relay.Recipients = nil
		for name, value := range map[string]string{"first": "DEFER_IF_REJECT first", "second": action} {
			h, err := table.NewHash(map[string]string{"alice@example.org": value})
			if err != nil {
				t.Fatal(err)
			}
			spec.Tables[name] = h
		}
		spec.Restrictions.Recipient = []Restriction{{"check_recipient_access", "first"}, {"check_recipient_access", "second"}}
		if v, _ := judge(t, spec); !strings.HasPrefix(v.Reply.String(), want) {
			t.Errorf("%s: %s, want %s", action, v.Reply, want)
		}
	}
}

// The list of DATA sees the recipient when there is exactly one.
func TestDataSeesOneRecipient(t *testing.T) {
	spec := relaySpec(t)
	spec.Addresses.Relay.Recipients = nil
	h, err := table.NewHash(map[string]string{"alice@example.org": "REJECT"})
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables["rcpt"] = h
	spec.Restrictions.Data = []Restriction{{"check_recipient_access", "rcpt"}}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]Action{1: Reject, 2: Permit, 3: Permit} {
		s := snap.Session(new(testmx.MapResolver), client)
		s.Connect(t.Context())
		s.Helo(t.Context(), "h.example")
		s.Mail(t.Context(), from, MailParams{})
		for range n {
			s.Rcpt(t.Context(), to)
		}
		if v := s.Data(t.Context()); v.Action != want {
			t.Errorf("%d recipients: %v %s", n, v.Action, v.Reply)
		}
		s.Close()
	}
}

// Names and domains are the same in capitals, in tables and in lists of networks.
func TestCapitals(t *testing.T) {
	spec := relaySpec(t)
	spec.Addresses.Relay.Recipients = nil
	h, err := table.NewHash(map[string]string{"bad.example": "REJECT"})
	if err != nil {
		t.Fatal(err)
	}
	spec.Tables["bad"] = h
	spec.AccessMatchesSubdomain = true
	spec.Restrictions.Helo = []Restriction{{"check_helo_access", "bad"}}
	spec.Restrictions.Sender = []Restriction{{"check_sender_access", "bad"}}
	spec.Protocol.BareNewline, spec.Protocol.BareNewlineExclusions = bareReject, []string{"good.example"}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, helo, sender, rcpt string
		want                     Action
	}{
		{"Good.EXAMPLE", "h.example", "Sender.example", "EXAMPLE.org", Permit},
		{"Good.EXAMPLE", "BAD.Example", "sender.example", "example.org", Reject},
		{"Good.EXAMPLE", "mx.Bad.Example", "sender.example", "example.org", Reject},
		{"Good.EXAMPLE", "h.example", "Bad.EXAMPLE", "example.org", Reject},
		{"Good.EXAMPLE", "h.example", "mx.Bad.EXAMPLE", "example.org", Reject},
		{"Good.EXAMPLE", "h.example", "sender.example", "Example.COM", Reject},
	} {
		c := client
		c.Name, c.NameStatus = tt.name, envelope.NameOK
		s := snap.Session(new(testmx.MapResolver), c)
		s.Connect(t.Context())
		s.Helo(t.Context(), tt.helo)
		s.Mail(t.Context(), envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "Joe", Domain: tt.sender}}, MailParams{})
		if v := s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "Alice", Domain: tt.rcpt}}); v.Action != tt.want {
			t.Errorf("%+v: %v %s", tt, v.Action, v.Reply)
		}
		if mode, _ := s.BareNewline(t.Context()); mode != bareNormalize {
			t.Errorf("%s: %s", tt.name, mode)
		}
		s.Close()
	}
}

func TestValidDSN(t *testing.T) {
	for s, want := range map[string]bool{
		"2.0.0": true, "4.7.1": true, "5.123.123": true,
		"": false, "3.1.1": false, "1.1.1": false, "5": false, "5.1": false, "5.1.": false, "5..1": false, "5.1.1.1": false,
		"5.1234.1": false, "5.1.1234": false, "5.a.1": false, "5.1.a": false, "55.1.1": false,
	} {
		if got := validDSN(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

// A refusal of the content with a status of success is a temporary one, and a
// pattern sees a folded header whole.
func TestContentActions(t *testing.T) {
	header, err := table.NewPCRE([][2]string{{"/^X-A: 1\\n 2$/is", "REJECT 2.7.9 later"}, {"/^X-B:/", "REJECT"}})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"X-A: 1\r\n 2\r\n\r\n": "451 4.7.9 later", "X-A: 1 2\r\n\r\n": "no reply", "X-A: 1\r\n\r\n": "no reply",
		"X-B: 1\r\n\r\n": "550 5.7.1 message content rejected",
	} {
		spec := relaySpec(t)
		spec.Addresses.Relay.Recipients = nil
		spec.Tables["header"], spec.Content.Header = header, []string{"header"}
		if v := checkReceived(t, spec, 1, text); v.Reply.String() != want {
			t.Errorf("%q: %s, want %s", text, v.Reply, want)
		}
	}
}

// A service that isn't there is one mistake.
func TestSPFServiceMissing(t *testing.T) {
	spec := relaySpec(t)
	spec.Restrictions.Recipient = []Restriction{{"check_spf", "nope"}}
	if _, err := Compile(spec); err == nil || !strings.HasSuffix(err.Error(), `filters.policyd_spf has no "nope"`) {
		t.Errorf("got %v", err)
	}
}

// Who tests signatures isn't refused for a bad one.
func TestTestingDKIM(t *testing.T) {
	snap, err := Compile(NewSpec())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		action  string
		testing bool
		st      status
		hold    bool
	}{
		{MilterReject, false, refused, false}, {MilterReject, true, dunno, false},
		{MilterQuarantine, false, dunno, true}, {MilterQuarantine, true, dunno, true},
	} {
		e := &eval{Session: &Session{snap: snap}, inTransaction: true}
		st := e.openDKIM(&DKIMFilter{BadSignature: tt.action, Quarantine: true}, &mailauth.DKIMResult{Status: mailauth.BadSignature, Testing: tt.testing})
		if st != tt.st || e.hold != tt.hold {
			t.Errorf("%+v: %v, hold %v", tt, st, e.hold)
		}
	}
}

func TestEmptyNames(t *testing.T) {
	for _, name := range []string{"", "!"} {
		spec := NewSpec()
		spec.Protocol.NoopCommands = []string{name}
		if _, err := Compile(spec); err == nil || err.Error() != "protocol.noop_commands: an element is empty" {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// The body's limit counts where a line begins; a boundary counts as far as its
// own limit goes.
func TestContentLimits(t *testing.T) {
	body, err := table.NewPCRE([][2]string{{"/^late/", "REJECT"}})
	if err != nil {
		t.Fatal(err)
	}
	mime, err := table.NewPCRE([][2]string{{"/^Content-Type: image/", "REJECT"}})
	if err != nil {
		t.Fatal(err)
	}
	lines := func(octets int) string { return strings.Repeat(strings.Repeat("x", 98)+"\r\n", octets/99) }
	part := func(boundary string) string {
		return "Content-Type: multipart/mixed;\r\n boundary=" + strings.Repeat("b", 3000) + "\r\n\r\n--" + boundary + "\r\nContent-Type: image/png\r\n\r\n"
	}
	for text, want := range map[string]Action{
		"\r\n" + lines(51183) + "0123456789abcde\r\nlate\r\n": Permit, // at 51200, the empty line counted
		"\r\n" + lines(51183) + "0123456789abcd\r\nlate\r\n":  Reject,
		part(strings.Repeat("b", 2047)):                       Permit,
		part(strings.Repeat("b", 2040)):                       Permit,
	} {
		spec := relaySpec(t)
		spec.Addresses.Relay.Recipients = nil
		spec.Tables["body"], spec.Content.Body = body, []string{"body"}
		spec.Tables["mime"], spec.Content.MIMEHeader = mime, []string{"mime"}
		if v := checkReceived(t, spec, 1, text); v.Action != want {
			t.Errorf("%d octets, %.60q: %v", len(text), text, v)
		}
	}
	spec := relaySpec(t)
	spec.Addresses.Relay.Recipients = nil
	spec.Tables["mime"], spec.Content.MIMEHeader, spec.Content.BoundaryLimit = mime, []string{"mime"}, 10
	if v := checkReceived(t, spec, 1, part(strings.Repeat("b", 10))); v.Action != Reject {
		t.Errorf("a boundary cut to 10 octets: %v", v)
	}
}

// The door watches for pipelining wherever a rule asks for it.
func TestMindsPipelining(t *testing.T) {
	rule := []Restriction{{Kind: "reject_unauth_pipelining"}}
	for name, change := range map[string]func(*Spec){
		"client": func(s *Spec) { s.Restrictions.Client = rule }, "helo": func(s *Spec) { s.Restrictions.Helo = rule },
		"sender": func(s *Spec) { s.Restrictions.Sender = rule }, "relay": func(s *Spec) { s.Restrictions.Relay = rule },
		"recipient": func(s *Spec) { s.Restrictions.Recipient = rule }, "data": func(s *Spec) { s.Restrictions.Data = rule },
		"end": func(s *Spec) { s.Restrictions.EndOfData = rule }, "server": func(s *Spec) { s.Protocol.ForbidPipelining = true },
		"class": func(s *Spec) { s.Classes = map[string][]Restriction{"a": {{Kind: "permit"}}, "b": rule} }, "nobody": func(*Spec) {},
	} {
		spec := relaySpec(t)
		change(spec)
		snap, err := Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := snap.MindsPipelining(); got != (name != "nobody") {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// An operator's reply is taken as it is written, or refused.
func TestOperatorsReplies(t *testing.T) {
	for reply, want := range map[string]string{
		"": "REJECT", "Go away": "REJECT Go away", "554 5.7.1 Go away": "554 5.7.1 Go away", "550": "", "250 2.0.0 Welcome": "",
		"two\nlines": "", strings.Repeat("x", 401): "",
	} {
		if got, err := BlockAction(reply); got != want || (err == nil) != (want != "") {
			t.Errorf("block with %q: %q, %v", reply, got, err)
		}
	}
	for reply, want := range map[string]string{
		"listed by $rbl_domain": "$rbl_code listed by $rbl_domain", "$rbl_code listed": "$rbl_code listed", "554 listed": "554 listed",
		"250 welcome": "", "a $ b": "",
	} {
		if got, err := ReplyTemplate(reply); got != want || (err == nil) != (want != "") {
			t.Errorf("a list's reply %q: %q, %v", reply, got, err)
		}
	}
}

// Restrictions under their older names are the same ones.
func TestOlderNames(t *testing.T) {
	for old, name := range aliases {
		if a, b := findKind(strings.ToUpper(old)), findKind(name); a == nil || a != b {
			t.Errorf("%s: %v, %s: %v", old, a, name, b)
		}
	}
}

// A domain whose MX hosts can't be looked up isn't judged by its own address, as one
// without any is.
func TestServersInDoubt(t *testing.T) {
	bad, err := table.NewCIDR([][2]string{{"203.0.113.0/24", "REJECT"}})
	if err != nil {
		t.Fatal(err)
	}
	spec := relaySpec(t)
	spec.Addresses.Relay.Recipients = nil
	spec.Tables["bad"], spec.Restrictions.Sender = bad, []Restriction{{Kind: "check_sender_mx_access", Arg: "bad"}}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	dns := &testmx.MapResolver{IP: map[string][]string{"none.example": {"203.0.113.1"}, "soft.example": {"203.0.113.1"}}, Fail: []string{"mx soft.example"}}
	for domain, want := range map[string]Action{"none.example": Reject, "soft.example": Permit} {
		s := snap.Session(dns, client)
		s.Connect(t.Context())
		s.Helo(t.Context(), "h.example")
		v := s.Mail(t.Context(), envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "x", Domain: domain}}, MailParams{})
		if v.Action == Permit {
			v = s.Rcpt(t.Context(), to)
		}
		if s.Close(); v.Action != want {
			t.Errorf("%s: %v %s", domain, v.Action, v.Reply)
		}
	}
}
