package smtpd

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
)

// TestDialogues plays testdata/dialogues. A file's first line may say what
// the server is like: "# server: xclient tls normalize undelayed".
func TestDialogues(t *testing.T) {
	files, err := filepath.Glob("testdata/dialogues/*.smtp")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dialogues: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".smtp"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(string(b), "\n")
			s, _ := newServer(t)
			words, _ := strings.CutPrefix(first, "# server:")
			if strings.HasPrefix(first, "# server:") {
				for _, word := range strings.Fields(words) {
					equip(t, s, word)
				}
			}
			ln := listen(t)
			stop := serve(t, s, ln)
			c := dial(t, ln)
			testmx.DialogueFile(t, c, file, "LONG", strings.Repeat("x", maxCommand))
			c.Close()
			stop()
		})
	}
}

func equip(t *testing.T, s *Server, word string) {
	change := func(f func(*policy.Spec)) {
		snap := snapshot(t, f)
		s.Policy = func() *policy.Snapshot { return snap }
	}
	switch word {
	case "xclient":
		s.XClientFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	case "tls":
		s.TLS = tlsConfig(t)
	case "normalize":
		s.BareNewline = "normalize"
	case "undelayed":
		change(func(spec *policy.Spec) { spec.DelayReject = false })
	case "helo-required":
		change(func(spec *policy.Spec) { spec.HeloRequired = true })
	case "small":
		change(func(spec *policy.Spec) {
			spec.Limits.MessageSize, spec.Limits.Recipients, spec.Limits.HardErrors, spec.Limits.JunkCommands = 1000, 2, 5, 5
			spec.Limits.Hops, spec.Limits.RcptOvershoot = 5, 1
		})
	case "no-policy":
		s.Policy = func() *policy.Snapshot { return nil }
	default:
		t.Fatalf("unknown server feature %q", word)
	}
}
