package smtpd

import (
	"errors"
	"io"
	"net"
	"runtime/debug"

	"github.com/emersion/go-smtp"
)

// library is a connection as the go-smtp library sees it, and the session that
// it calls back. To go-smtp the client says HELO, MAIL, RCPT, DATA and RSET,
// each when our session has read such a command and let it pass so far; the
// step that the callback takes is the session's. The arguments are made up and
// the replies dropped: docs/decisions/0011-go-smtp.md says why.
type library struct {
	net.Conn // for what else is asked of a connection
	s        *session
	said     string // what go-smtp reads next
	step     func() (passed bool)
}

var (
	errRefused   = errors.New("refused")
	errOutOfStep = errors.New("go-smtp refused a command that the session let pass")
)

// hand lets go-smtp read a command; its callback runs step, if there is one.
func (l *library) hand(command string, step func() bool) {
	l.said, l.step = command+"\r\n", step
}

// Read gives go-smtp its next line, running the session up to there.
func (l *library) Read(p []byte) (n int, err error) {
	defer l.rescue(&err)
	if l.step != nil {
		panic(errOutOfStep)
	}
	for l.said == "" && !l.s.over {
		l.s.next()
	}
	if l.said == "" {
		_ = l.s.conn.flush()
		return 0, io.EOF
	}
	n = copy(p, l.said)
	l.said = l.said[n:]
	return n, nil
}

func (l *library) Write(p []byte) (int, error) { return len(p), nil }

// Close ends the session; go-smtp calls it, maybe more than once.
func (l *library) Close() error {
	l.s.closing.Do(l.s.close)
	return nil
}

// call runs the step that waits for go-smtp's callback.
func (l *library) call() (err error) {
	defer l.rescue(&err)
	step := l.step
	l.step = nil
	if !step() {
		return errRefused
	}
	return nil
}

// rescue ends a session in which a bug of ours showed.
func (l *library) rescue(err *error) {
	r := recover()
	if r == nil {
		return
	}
	s := l.s
	s.srv.Log.Error("smtp session panicked", "client", s.client.Addr, "panic", r, "stack", string(debug.Stack()))
	l.said, l.step = "", nil
	s.dismiss("error", "", "4.3.0", "Error: internal error")
	_ = s.conn.flush()
	*err = io.EOF
}

// Mail, Rcpt and Data are go-smtp's callbacks.
func (l *library) Mail(string, *smtp.MailOptions) error { return l.call() }
func (l *library) Rcpt(string, *smtp.RcptOptions) error { return l.call() }

// Data leaves go-smtp nothing of the message but its end.
func (l *library) Data(io.Reader) error {
	defer func() { l.said = ".\r\n" }()
	return l.call()
}

func (l *library) Reset()        {}
func (l *library) Logout() error { return nil }
