package policy

import (
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/table"
)

func contentSnapshot(t testing.TB) *Snapshot {
	t.Helper()
	pcre, err := table.NewPCRE([][2]string{{`/^X-(Bad|Evil):/is`, "REJECT $1"}, {`/click here/is`, "REJECT"}})
	if err != nil {
		t.Fatal(err)
	}
	spec := NewSpec()
	spec.Tables = map[string]*table.Table{"t": pcre}
	spec.Addresses.Relay.Domains = []string{"example.org"}
	spec.Content = ContentChecks{
		Header: []string{"t"}, MIMEHeader: []string{"t"}, NestedHeader: []string{"t"}, Body: []string{"t"},
		RejectOctets: []int{1}, StripOctets: []int{2}, Strict7BitHeader: true, Strict8BitBody: true, StrictEncoding: true,
	}
	snap, err := Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// TestContentOnlyWhereAsked: without a rule about content nobody reads it, and
// a message leaves nothing to the next.
func TestContentOnlyWhereAsked(t *testing.T) {
	s := manyLists(t, 0).Session(&testmx.MapResolver{}, client)
	defer s.Close()
	if w := s.Content(); w != nil {
		t.Errorf("got a writer although there is no rule")
	}
	s = contentSnapshot(t).Session(&testmx.MapResolver{}, client)
	defer s.Close()
	for _, test := range []struct {
		text string
		want Action
	}{{"X-Bad: 1\r\n\r\n", Reject}, {"X-Good: 1\r\n\r\n", Permit}} {
		s.Mail(t.Context(), from, MailParams{})
		s.Rcpt(t.Context(), to)
		s.Data(t.Context())
		s.Content().Write([]byte(test.text))
		if v := s.Message(t.Context(), Message{}); v.Action != test.want {
			t.Errorf("%q: got %v, want %v", test.text, v.Action, test.want)
		}
		s.Reset()
	}
	s.Mail(t.Context(), from, MailParams{})
	s.Rcpt(t.Context(), to)
	s.Content().Write([]byte("X-Bad: 1\r\n\r\n"))
	s.Reset()
	if v := s.Message(t.Context(), Message{}); v.Action != Permit {
		t.Errorf("got %v of a transaction that was reset", v)
	}
}

// FuzzContent: whatever is sent, in whatever pieces, gives one verdict, and
// what is held of it stays within the limits.
func FuzzContent(f *testing.F) {
	corpus(f, "body mime", "body nested", "body comment", "body inner", "body fromline", "body leading")
	f.Add("Content-Type: multipart/x; boundary=\"a\n b\"; boundary=(\\\r\n\r\n--a--\r\nX-Bad : x\n")
	snap := contentSnapshot(f)
	snap.spec.Limits.HeaderBytes, snap.spec.Limits.LineLength = 200, 50
	f.Fuzz(func(t *testing.T, text string) {
		var verdicts [2]Verdict
		for i, piece := range []int{len(text) + 1, 3} {
			s := snap.Session(&testmx.MapResolver{}, client)
			w := s.Content()
			for rest := []byte(text); len(rest) > 0; {
				n := min(piece, len(rest))
				if m, err := w.Write(rest[:n]); m != n || err != nil {
					t.Fatal(m, err)
				}
				rest = rest[n:]
				if c := s.content; len(c.line) > 50 || len(c.kept) > 200 || len(c.header) > 200+60 || len(c.stack) > defaultNesting+2 {
					t.Fatalf("holds %d, %d, %d", len(c.line), len(c.header), len(c.stack))
				}
			}
			verdicts[i] = s.Message(t.Context(), Message{})
			s.Close()
		}
		if verdicts[0].Reply != verdicts[1].Reply {
			t.Errorf("whole: %v, in pieces: %v", verdicts[0], verdicts[1])
		}
	})
}
