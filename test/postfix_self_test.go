package test

import (
	"testing"
	"time"
)

// TestPostfixAlone proves the harness: what smtp-source sends straight to the
// primary is in the maildir, also after the primary was killed in between.
func TestPostfixAlone(t *testing.T) {
	p := newPostfix(t)
	file := tempDir(t) + "/message"
	write(t, file, "Subject: x\n\nhello\n")
	for range 2 {
		p.start()
		if err := smtpSource(t, p.addr, file, "user@example.org", 5, 2); err != nil {
			t.Fatal(err)
		}
		p.kill()
	}
	p.start()
	eventually(t, 20*time.Second, "10 messages in the maildir", func() bool {
		return len(p.deliveries("primary.example.org")) == 10
	})
}
