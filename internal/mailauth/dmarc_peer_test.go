package mailauth

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// openDMARC runs Debian's opendmarc, with its DNS answers in a file.
func openDMARC(t *testing.T, records map[string][]string, settings ...string) (dir string) {
	dir = t.TempDir()
	var data strings.Builder
	for name, texts := range records {
		fmt.Fprintf(&data, "%s %s\n", name, texts[0])
	}
	data.WriteString("nobody.test x\n")
	conf := write(t, dir, "opendmarc.conf", "AuthservID here.test\nBackground false\nSocket local:"+dir+"/socket\nTestDNSData "+write(t, dir, "dns", data.String())+
		"\nPublicSuffixList /usr/share/publicsuffix/public_suffix_list.dat\nIgnoreHosts "+write(t, dir, "ignored", "203.0.113.9\n")+"\n"+strings.Join(settings, "\n")+"\n")
	peerMilter(t, dir, "/usr/sbin/opendmarc", "-c", conf, "-f")
	return dir
}

// TestOpenDMARC tells Debian's opendmarc what SPF and DKIM said, in every
// combination with policies and alignments, and compares its word with ours.
func TestOpenDMARC(t *testing.T) {
	rng := rand.New(rand.NewPCG(7489, 1))
	seen := map[DMARCPolicy]int{}
	// No label of one letter comes first: libopendmarc loses it where it turns a domain around.
	domains := []string{"example.com", "www.example.com", "sub.www.example.com", "example.co.uk", "mail.example.co.uk", "co.uk", "other.net", "box.other.net", "com", "lab.test", "sub.lab.test"}
	for range 8 {
		records := map[string][]string{}
		for _, d := range domains {
			if rng.IntN(3) > 0 {
				records["_dmarc."+d] = []string{randomDMARC(rng)}
			}
		}
		dir := openDMARC(t, records, "RejectFailures true", "HoldQuarantinedMessages true")
		d := DMARC{Resolver: &testmx.MapResolver{TXT: records}}
		for range 150 {
			author, spf := pick(rng, domains), ""
			message := ""
			if rng.IntN(2) == 0 {
				spf = pick(rng, domains)
				message = "Authentication-Results: here.test; spf=pass smtp.mailfrom=" + spf + "\r\n"
			}
			var dkim []string
			for range rng.IntN(3) {
				dkim = append(dkim, pick(rng, domains))
				message += "Authentication-Results: here.test; dkim=pass header.d=" + dkim[len(dkim)-1] + "\r\n"
			}
			message += "From: <u@" + author + ">\r\nDate: Mon, 2 Nov 2026 10:00:00 +0000\r\n\r\ntext\r\n"
			got := d.Check(t.Context(), author, spf, dkim)
			seen[got.Policy]++
			want := map[DMARCPolicy]string{DMARCReject: "550 5.7.1 rejected by DMARC policy for " + got.Domain, DMARCQuarantine: "quarantine"}[got.Policy]
			if want == "" || got.Percent == 0 {
				want = "accept"
			}
			envelope := "u@" + spf
			if spf == "" {
				envelope = "u@unrelated.test"
			}
			if peer := ask(t, dir, "192.0.2.7", envelope, message); peer != want {
				t.Errorf("opendmarc %q, we %v of %s; author %s, SPF %q, DKIM %q, records %q", peer, got.Policy, got.Domain, author, spf, dkim, records)
			}
		}
	}
	for _, p := range []DMARCPolicy{DMARCAbsent, DMARCPass, DMARCNone, DMARCQuarantine, DMARCReject, DMARCPermError} {
		if seen[p] < 20 {
			t.Errorf("%v only %d times: the records are too tame", p, seen[p])
		}
	}
}

func randomDMARC(rng *rand.Rand) string {
	if rng.IntN(8) == 0 {
		return pick(rng, []string{"v=DMARC1; p=maybe", "v=DMARC2; p=reject", "v=DMARC1", "v=DMARC1; p=reject; pct=101", "v=DMARC1; p=none; adkim=x", "p=reject; v=DMARC1",
			"v=DMARC1; p=reject; ri=x", "v=DMARC1; p=reject; rf=x", "v=DMARC1; p=reject; fo=x", "v=DMARC1; p=reject; rua=mailto:a; rua=mailto:b", "v=DMARC1; p=reject; sp=x", "v=DMARC1; sp=reject"})
	}
	s := "v=DMARC1; p=" + pick(rng, []string{"reject", "reject", "quarantine", "none", "rej", "q"})
	for _, t := range [][]string{{"", "", "sp=reject", "sp=none", "sp=quarantine"}, {"", "", "adkim=s", "adkim=r", "adkim=strict"}, {"", "", "aspf=s", "aspf=relaxed"},
		{"", "", "", "pct=100", "pct=0"}, {"", "", "rua=mailto:a@b.test", "x=y", "fo=1:d"}} {
		if v := pick(rng, t); v != "" {
			s += pick(rng, []string{"; ", ";"}) + v
		}
	}
	return s
}

// FuzzDMARC: a record of anybody's.
func FuzzDMARC(f *testing.F) {
	f.Add("v=DMARC1; p=reject; pct=50; sp=none; aspf=s", "www.example.co.uk", "example.co.uk")
	f.Add("v=DMARC1;p=q;rua=,;fo=1:;ri=1", "com", "")
	f.Fuzz(func(t *testing.T, record, author, spf string) {
		r := &testmx.MapResolver{TXT: map[string][]string{"_dmarc." + strings.ToLower(author): {record}}}
		got := DMARC{Resolver: r}.Check(t.Context(), author, spf, []string{spf})
		if got.Percent < 0 || got.Percent > 100 || got.Policy == DMARCTempError {
			t.Errorf("%+v", got)
		}
		if strings.EqualFold(author, spf) && author != "" && got.Policy > DMARCPass && got.Policy < DMARCPermError {
			t.Errorf("%+v for the author's own domain", got)
		}
	})
}
