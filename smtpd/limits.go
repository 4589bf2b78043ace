package smtpd

import (
	"cmp"
	"time"

	"github.com/understudy-mx/understudy/policy"
)

// counters are what a session has used up.
type counters struct {
	mails     int // mail transactions begun
	errs      int // errors since the last accepted message
	junk      int // NOOPs and their like since then
	unknown   int // recipients refused as unknown
	overshoot int // recipients beyond the limit
}

const maxSlowDown = 10 * time.Second

// limit counts that the client ran into one of our bounds.
func (s *session) limit(name string) { s.srv.Metrics.SMTPLimits.WithLabelValues(name).Inc() }

// tooManyErrors hangs up on a client that makes too many.
func (s *session) tooManyErrors() bool {
	hard := s.limits().HardErrors
	switch {
	case hard > 0 && s.errs >= hard:
		s.dismiss("error", "errors", "4.7.0", "Error: too many errors")
	case s.unknown >= s.srv.MaxUnknownRecipients:
		s.dismiss("error", "unknown_recipients", "4.7.0", "Error: too many unknown recipients")
	}
	return s.over
}

// slowDown makes a client wait for a reply once it has made as many errors as
// the policy's soft limit, as Postfix does: smtpd_error_sleep_time, at most
// maxSlowDown. Under stress nobody is kept that way.
func (s *session) slowDown() {
	limits := s.limits()
	if limits.SoftErrors == 0 || s.errs < limits.SoftErrors || s.lim.ErrorSleep == 0 {
		return
	}
	s.limit("soft_errors")
	if s.srv.crowd.stressed.Load() {
		s.dismiss("error", "", "4.7.0", "Error: too many errors")
		return
	}
	if s.conn.flush() != nil { // what is ready needn't wait
		s.over = true
		return
	}
	t := time.NewTimer(min(time.Duration(s.lim.ErrorSleep)*time.Second, maxSlowDown))
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.ctx.Done():
	}
}

// limits are the policy's of errors, under stress those that it has for then.
func (s *session) limits() policy.StressLimits {
	l := &s.lim
	now := policy.StressLimits{SoftErrors: l.SoftErrors, HardErrors: l.HardErrors, JunkCommands: l.JunkCommands}
	if s.srv.crowd.stressed.Load() {
		now.SoftErrors = cmp.Or(l.Stress.SoftErrors, now.SoftErrors)
		now.HardErrors = cmp.Or(l.Stress.HardErrors, now.HardErrors)
		now.JunkCommands = cmp.Or(l.Stress.JunkCommands, now.JunkCommands)
	}
	return now
}

// junkCommand counts a command that does no work. As in Postfix the first
// beyond the limit is still free.
func (s *session) junkCommand() {
	limit := s.limits().JunkCommands
	if s.junk++; limit > 0 && s.junk > limit+1 {
		s.errs++
	}
}
