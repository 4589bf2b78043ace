package mailauth

import (
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestVouchesSound: a good signature vouches only if nobody can put something else
// behind or under it.
func TestVouchesSound(t *testing.T) {
	s := newSigner(t)
	r := &testmx.MapResolver{TXT: map[string][]string{}}
	for _, line := range s.zone {
		name, text, _ := strings.Cut(line, ". 60 TXT ")
		r.TXT[name] = append(r.TXT[name], strings.ReplaceAll(strings.Trim(text, `"`), `" "`, ""))
	}
	for _, tt := range []struct {
		name, tags string
		vouches    bool
	}{
		{"sound", "v=1; a=rsa-sha256; c=relaxed/relaxed; d=sig.test; s=one; h=from; bh=; b=", true},
		{"Ed25519", "v=1; a=ed25519-sha256; c=relaxed/relaxed; d=sig.test; s=ed; h=from; bh=; b=", true},
		{"SHA-1", "v=1; a=rsa-sha1; c=relaxed/relaxed; d=sig.test; s=one; h=from; bh=; b=", false},
		{"a part", "v=1; a=rsa-sha256; c=relaxed/relaxed; d=sig.test; s=one; h=from; l=3; bh=; b=", false},
		{"a testing key", "v=1; a=rsa-sha256; c=relaxed/relaxed; d=sig.test; s=onetest; h=from; bh=; b=", false},
	} {
		text := s.sign(t, "From: a@sig.test\r\n\r\ntext\r\n", tt.tags)
		v := DKIM{Resolver: r, Now: s.now}.Verify()
		v.Write([]byte(text))
		got := v.Finish(t.Context())
		if got.Status != Good {
			t.Errorf("%s: %v: the test proves nothing", tt.name, got.Status)
		}
		if got.Vouches("a", "sig.test") != tt.vouches {
			t.Errorf("%s: %+v vouches: %v", tt.name, got, !tt.vouches)
		}
	}
}
