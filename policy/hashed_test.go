package policy

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/table"
)

// hashedSpec is spec with all its sets and hashes hashed, as a publisher does
// it, but that every table keeps its values.
func hashedSpec(t testing.TB, spec *Spec, s *table.Secret) *Spec {
	t.Helper()
	h := *spec
	h.Tables = map[string]*table.Table{}
	for name, was := range spec.Tables {
		if was.Keyed() {
			var err error
			if was, err = was.Hashed(s, true, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		h.Tables[name] = was
	}
	return &h
}

var randomDomains = []string{"local.example", "alias.example", "mailbox.example", "relay.example", "sub.relay.example", "deep.sub.relay.example", "other.example", "Mixed.Example"}

// randomLocal is a local-part of which many are equal but for case, extension
// and quoting.
func randomLocal(r *rand.Rand) string {
	s := []string{"ann", "bob", "owner-list", "list-request", "a", "postmaster", "x y", `q"x`, "äö", "mailer-daemon", "double-bounce", ""}[r.IntN(12)]
	switch r.IntN(6) {
	case 0:
		s += "+" + []string{"ext", "", "a+b", "Ext"}[r.IntN(4)]
	case 1:
		s += "-" + []string{"ext", "request", ""}[r.IntN(3)]
	case 2:
		s = strings.ToUpper(s)
	case 3:
		s = []string{s + "%" + randomDomains[r.IntN(len(randomDomains))], "relay.example!" + s, s + "@other.example"}[r.IntN(3)]
	}
	return s
}

// randomKey is a key that some table may be asked for.
func randomKey(r *rand.Rand) string {
	domain := randomDomains[r.IntN(len(randomDomains))]
	switch local := randomLocal(r); r.IntN(8) {
	case 0:
		return "@" + domain
	case 1:
		return local
	case 2:
		return domain
	case 3:
		return "." + domain
	case 4:
		return local + "@"
	case 5:
		return envelope.Mailbox{Local: local, Domain: domain}.String()
	default:
		return local + "@" + domain
	}
}

// randomHash is a table of n random keys.
func randomHash(t testing.TB, r *rand.Rand, n int, values ...string) *table.Table {
	entries := map[string]string{}
	for range n {
		entries[table.Fold(randomKey(r))] = values[r.IntN(len(values))]
	}
	hash, err := table.NewHash(entries)
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

// randomSpec has each kind of look-up, in random tables.
func randomSpec(t testing.TB, r *rand.Rand) *Spec {
	s := NewSpec()
	set := func(n int) *table.Table {
		keys := map[string]bool{}
		for range n {
			keys[table.Fold(randomKey(r))] = true
		}
		var list []string
		for k := range keys {
			list = append(list, k)
		}
		set, err := table.NewSet(list)
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	pcre, err := table.NewPCRE([][2]string{{"/^pat.*@alias/i", "x@other.example"}})
	if err != nil {
		t.Fatal(err)
	}
	s.Tables = map[string]*table.Table{
		"alias": randomHash(t, r, r.IntN(20), "x@other.example", "y@mailbox.example"), "local": set(r.IntN(10)), "mailbox": set(r.IntN(20)),
		"relay": set(r.IntN(20)), "canonical": randomHash(t, r, r.IntN(3), "z@relay.example"), "login": set(r.IntN(3)),
		"access": randomHash(t, r, r.IntN(8), "REJECT", "OK", "450 later", "DUNNO", "check_recipient_access more"), "more": randomHash(t, r, 4, "REJECT 5.7.9 no", "OK"),
		"transport": randomHash(t, r, r.IntN(4), "error:5.1.1 gone", "smtp:[192.0.2.1]", ":"), "relocated": randomHash(t, r, r.IntN(3), "new@other.example"),
		"patterns": pcre, "both": table.NewUnion([]string{"alias", "patterns"}), "chain": table.NewPipe([]string{"canonical", "alias"}), "match": set(r.IntN(4)),
	}
	a := &s.Addresses
	a.RecipientDelimiter = []string{"", "+", "+-", "-"}[r.IntN(4)]
	a.OwnerRequestSpecial = r.IntN(2) == 0
	a.MyOrigin = []string{"", "local.example", "other.example"}[r.IntN(3)]
	a.VirtualAlias = [][]string{{"alias"}, {"both"}, {"alias", "chain"}}[r.IntN(3)]
	a.RecipientCanonical = []string{"canonical"}
	a.TransportMaps, a.Relocated, s.SenderLogin = []string{"transport"}, []string{"relocated"}, []string{"login"}
	a.Local = AddressClass{Domains: []string{"local.example"}, Recipients: []string{"local"}}
	a.VirtualAliases = AddressClass{Domains: []string{"alias.example"}}
	a.VirtualMailbox = AddressClass{Domains: []string{"mailbox.example", "mixed.example"}, Recipients: []string{"mailbox"}}
	a.Relay = AddressClass{Domains: []string{"relay.example", ".relay.example"}, Recipients: []string{"relay"}}
	if r.IntN(4) == 0 {
		a.Relay.Match, a.Relay.Parents = []string{"!deep.sub.relay.example", "table:match", "relay.example"}, []string{"", "name", ".name"}[r.IntN(3)]
	}
	s.Restrictions.Sender = []Restriction{{"reject_sender_login_mismatch", ""}}
	s.Restrictions.Relay = []Restriction{{"reject_unauth_destination", ""}}
	s.Restrictions.Recipient = []Restriction{{"check_recipient_access", "access"}, {"check_sender_access", "more"}, {"reject_unlisted_recipient", ""}}
	return s
}

// TestHashedDecidesAlike: for random policies a hashed snapshot says to random
// recipients what the plain one says, to the letter and by the same rule.
func TestHashedDecidesAlike(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	secret := table.Secret{1, 2, 3}
	permitted, refused := 0, 0
	for n := range 150 {
		spec := randomSpec(t, r)
		plain, err := Compile(spec)
		if err != nil {
			t.Fatal(err)
		}
		hashed, err := Compile(hashedSpec(t, spec, &secret))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 200 {
			from := envelope.ReversePath{Mailbox: envelope.Mailbox{Local: randomLocal(r), Domain: randomDomains[r.IntN(len(randomDomains))]}}
			to := envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: randomLocal(r), Domain: randomDomains[r.IntN(len(randomDomains))]}}
			want, got := judgeRcpt(t, plain, from, to), judgeRcpt(t, hashed, from, to)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("policy %d, recipient %d: from %v to %v is answered otherwise when hashed:\n%s", n, i, from, to, diff)
			}
			if want.Action == Permit {
				permitted++
			} else {
				refused++
			}
		}
	}
	if permitted < 3000 || refused < 3000 {
		t.Errorf("%d recipients were accepted and %d refused: the test looks at one side only", permitted, refused)
	}
}

func judgeRcpt(t *testing.T, snap *Snapshot, from envelope.ReversePath, to envelope.ForwardPath) Verdict {
	s := snap.Session(&testmx.MapResolver{}, client)
	defer s.Close()
	ctx := context.Background()
	s.Connect(ctx)
	s.Helo(ctx, "mx.sender.example")
	s.Mail(ctx, from, MailParams{UTF8: true})
	return s.Rcpt(ctx, to)
}
