package mailauth

import (
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// The examples of RFC 6376 appendix A.2 and RFC 8463 appendix A.3, and their keys.
const (
	rsaKey = "v=DKIM1; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7/zYt" +
		"IxN2SnFCjxOCKG9v3b4jYfcTNh5ijSsq631uBItLa7od+v/RtdC2UzJ1lWT947qR+Rcac2gbto/NMqJ0fzfVjH4OuKhi" +
		"tdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB"
	rsaKey8463 = "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/" +
		"J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB"
	rfc6376 = `DKIM-Signature: v=1; a=rsa-sha256; s=brisbane; d=example.com;
      c=simple/simple; q=dns/txt; i=joe@football.example.com;
      h=Received : From : To : Subject : Date : Message-ID;
      bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
      b=AuUoFEfDxTDkHlLXSZEpZj79LICEps6eda7W3deTVFOk4yAUoqOB
      4nujc7YopdG5dWLSdNg6xNAZpOPr+kHxt1IrE+NahM6L/LbvaHut
      KVdkLLkpVaVVQPzeRDI009SO2Il5Lu7rDNH6mZckBdrIx0orEtZV
      4bmp/YzhwvcubU4=;
Received: from client1.football.example.com  [192.0.2.1]
      by submitserver.example.com with SUBMISSION;
      Fri, 11 Jul 2003 21:01:54 -0700 (PDT)
`
	rfc8463 = `DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
`
	joe = `From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game. Are you hungry yet?

Joe.
`
)

func TestRFCExamples(t *testing.T) {
	r := &testmx.MapResolver{TXT: map[string][]string{
		"brisbane._domainkey.example.com":          {rsaKey},
		"test._domainkey.football.example.com":     {rsaKey8463},
		"brisbane._domainkey.football.example.com": {"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="},
	}}
	for _, tt := range []struct {
		name, message string
		want          Status
		signatures    int
	}{
		{"RFC 6376", rfc6376 + joe, Good, 1},
		{"RFC 6376, another body", rfc6376 + joe + "P.S.\n", BadSignature, 1},
		{"RFC 6376, another subject", rfc6376 + strings.Replace(joe, "dinner", "lunch", 1), BadSignature, 1},
		{"RFC 8463", rfc8463 + strings.Replace(joe, "game. Are", "game.  Are", 1), Good, 2},
		{"RFC 8463, a second From", rfc8463 + "From: else@example.org\n" + joe, BadSignature, 2},
		{"none", joe, NoSignature, 0},
	} {
		v := DKIM{Resolver: r, Now: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), MinKeyBits: 1024}.Verify()
		v.Write([]byte(strings.ReplaceAll(tt.message, "\n", "\r\n")))
		got := v.Finish(t.Context())
		if got.Status != tt.want || len(got.Signatures) != tt.signatures || got.Author.Domain != "football.example.com" && tt.signatures < 2 {
			t.Errorf("%s: %v %+v, author %+v; want %v", tt.name, got.Status, got.Signatures, got.Author, tt.want)
		}
		for _, s := range got.Signatures {
			if s.Status != tt.want {
				t.Errorf("%s: %+v, want %v of each", tt.name, s, tt.want)
			}
		}
	}
}

// TestMaxSignatures: the look-ups that a message may cause are bounded.
func TestMaxSignatures(t *testing.T) {
	r := &testmx.MapResolver{}
	v := DKIM{Resolver: r, Now: time.Unix(1e9, 0)}.Verify()
	for range 1000 {
		v.Write([]byte("DKIM-Signature: v=1; a=rsa-sha256; s=s; d=a.test; h=from; bh=x; b=y\r\n"))
	}
	v.Write([]byte("From: a@a.test\r\n\r\n"))
	if v.Finish(t.Context()); r.Asked("txt s._domainkey.a.test") != MaxSignatures {
		t.Errorf("asked %d times, want %d", r.Asked("txt s._domainkey.a.test"), MaxSignatures)
	}
}
