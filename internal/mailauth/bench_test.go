package mailauth

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

var clientAddr = netip.MustParseAddr("192.0.2.1")

// BenchmarkMessage is SPF, DKIM and DMARC of one message, the DNS warm.
func BenchmarkMessage(b *testing.B) {
	r := &testmx.MapResolver{TXT: map[string][]string{
		"brisbane._domainkey.example.com": {rsaKey}, "example.com": {"v=spf1 ip4:192.0.2.0/24 -all"}, "_dmarc.example.com": {"v=DMARC1; p=reject"},
	}}
	for _, size := range []int{4 << 10, 1 << 20} {
		text := []byte(strings.ReplaceAll(rfc6376+joe, "\n", "\r\n") + strings.Repeat(strings.Repeat("x", 76)+"\r\n", size/78))
		b.Run(map[int]string{4 << 10: "4KiB", 1 << 20: "1MiB"}[size], func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				v := DKIM{Resolver: r, Now: time.Unix(1e9, 0), MinKeyBits: 1024}.Verify()
				for p := text; len(p) > 0; p = p[min(len(p), 32<<10):] {
					v.Write(p[:min(len(p), 32<<10)])
				}
				got := v.Finish(b.Context())
				SPF{r, DefaultVoidLookups}.Check(b.Context(), clientAddr, "mx.example.com", "joe@example.com")
				DMARC{Resolver: r}.Check(b.Context(), got.Author.Domain, "example.com", nil)
			}
		})
	}
}
