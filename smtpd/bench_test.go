package smtpd

import (
	"io"
	"net"
	"strings"
	"testing"
)

// BenchmarkSession is a session with one message, and one whose recipient is
// refused, a round trip a command, over the loopback: the door without the queue.
func BenchmarkSession(b *testing.B) {
	message := "Subject: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 76)+"\r\n", 52) + ".\r\n"
	for _, bench := range []struct {
		name   string
		script []string
	}{
		{"accept", []string{"", "EHLO client.example\r\n", "MAIL FROM:<bob@sender.example>\r\n", "RCPT TO:<alice@corp.example>\r\n", "DATA\r\n", message, "QUIT\r\n"}},
		{"refuse", []string{"", "EHLO client.example\r\n", "MAIL FROM:<bob@sender.example>\r\n", "RCPT TO:<nobody@corp.example>\r\n", "QUIT\r\n"}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			s, _ := newServer(b)
			s.Keep = Nowhere{}
			ln := listen(b)
			defer serve(b, s, ln)()
			buf := make([]byte, 4096)
			b.ReportAllocs()
			for b.Loop() {
				c, err := net.Dial("tcp", ln.Addr().String())
				if err != nil {
					b.Fatal(err)
				}
				for _, line := range bench.script {
					if _, err := io.WriteString(c, line); err != nil {
						b.Fatal(err)
					}
					if _, err := c.Read(buf); err != nil {
						b.Fatal(err)
					}
				}
				c.Close()
			}
		})
	}
}
