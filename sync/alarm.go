package policysync

import (
	"errors"
	"fmt"
	"time"
)

// Alarm names what is wrong, of a closed set: a metric's label and a word to
// search the manual for.
type Alarm string

// The alarms. Each of them leaves the last good snapshot in force.
const (
	AlarmUnreachable Alarm = "unreachable"    // no connection, or no answer
	AlarmPin         Alarm = "pin"            // the peer showed another key than the paired one
	AlarmRefused     Alarm = "refused"        // the primary doesn't know us (revoked)
	AlarmProtocol    Alarm = "protocol"       // an answer that the protocol doesn't allow
	AlarmSignature   Alarm = "signature"      // a head that no paired key signed
	AlarmHead        Alarm = "head"           // a signed head that can't be read
	AlarmStream      Alarm = "stream"         // another publisher's head
	AlarmAudience    Alarm = "audience"       // another follower's head
	AlarmRollback    Alarm = "rollback"       // an older version
	AlarmReplay      Alarm = "replay"         // an older signature of the version held
	AlarmEquivocal   Alarm = "equivocation"   // two contents under one version
	AlarmFork        Alarm = "fork"           // a version that doesn't follow from the one held
	AlarmFastForward Alarm = "fast_forward"   // a version or epoch that time can't have reached
	AlarmExpired     Alarm = "expired"        // signed too long ago, or a clock is wrong
	AlarmFuture      Alarm = "future"         // signed in the future: a clock is wrong
	AlarmLifetime    Alarm = "lifetime"       // valid for longer than a head may be
	AlarmSize        Alarm = "size"           // more than we are willing to hold
	AlarmContent     Alarm = "content"        // a chunk or index that is not what the head promised
	AlarmPolicy      Alarm = "policy"         // a policy that doesn't compile
	AlarmDomain      Alarm = "foreign_domain" // a domain that isn't on our own list
	AlarmDeletion    Alarm = "mass_deletion"  // staged until the operator decides
	AlarmStore       Alarm = "store"          // our own disk
	AlarmSecret      Alarm = "secret"         // recipients hashed under a secret of another pairing
)

// Alarms lists them all.
func Alarms() []Alarm {
	return []Alarm{AlarmUnreachable, AlarmPin, AlarmRefused, AlarmProtocol, AlarmSignature, AlarmHead,
		AlarmStream, AlarmAudience, AlarmRollback, AlarmReplay, AlarmEquivocal, AlarmFork, AlarmFastForward,
		AlarmExpired, AlarmFuture, AlarmLifetime, AlarmSize, AlarmContent, AlarmPolicy, AlarmDomain,
		AlarmDeletion, AlarmStore, AlarmSecret}
}

// AlarmError is a failure with the name of its alarm.
type AlarmError struct {
	Alarm Alarm
	Err   error
}

func (e *AlarmError) Error() string { return string(e.Alarm) + ": " + e.Err.Error() }

func (e *AlarmError) Unwrap() error { return e.Err }

func alarm(a Alarm, format string, args ...any) error {
	return &AlarmError{a, fmt.Errorf(format, args...)}
}

// alarmOf names err's alarm, def when it has none.
func alarmOf(err error, def Alarm) Alarm {
	var a *AlarmError
	if errors.As(err, &a) {
		return a.Alarm
	}
	return def
}

const (
	// maxSkew is how far the clocks of primary and secondary may differ.
	maxSkew = 5 * time.Minute
	// maxLifetime bounds how long a captured head can pass for new.
	maxLifetime = time.Hour
	// burst is how many versions a publisher may be ahead of one a second.
	burst = 1 << 16
)

// judge decides whether a verified head may follow last, the newest one held
// (nil: none), at now. It is pure, so that each rule is a row of a table test.
func judge(last, h *Head, stream [16]byte, self Pin, now time.Time) error {
	switch {
	case h.Stream != stream:
		return alarm(AlarmStream, "the head is of stream %x, paired is %x", h.Stream[:4], stream[:4])
	case h.Audience != [32]byte{} && h.Audience != self:
		return alarm(AlarmAudience, "the head is meant for the follower with key %x", h.Audience[:4])
	}
	if err := judgeTimes(h, now); err != nil {
		return err
	}
	if last == nil {
		return nil
	}
	switch {
	case h.Epoch < last.Epoch, h.Epoch == last.Epoch && h.Version < last.Version:
		return alarm(AlarmRollback, "version %d.%d is older than %d.%d, which is held", h.Epoch, h.Version, last.Epoch, last.Version)
	case h.Epoch > last.Epoch: // it follows from nothing that is held
	case h.Version == last.Version && h.identity != last.identity && !h.renewedSecret(last):
		return alarm(AlarmEquivocal, "version %d.%d exists with two contents, %x and %x", h.Epoch, h.Version, last.identity[:8], h.identity[:8])
	case h.Created.Before(last.Created):
		return alarm(AlarmReplay, "version %d.%d was signed at %s, before what is held (%s)", h.Epoch, h.Version, stamp(h.Created), stamp(last.Created))
	case h.Version == last.Version+1 && !h.follows(last):
		return alarm(AlarmFork, "version %d.%d follows from %x, held is %x", h.Epoch, h.Version, h.Prev[:8], last.identity[:8])
	}
	return nil
}

// judgeTimes compares the head's clock with ours and with itself. Time bounds
// epochs and versions, so that a thief of the key can't push them to where no
// later head can follow.
func judgeTimes(h *Head, now time.Time) error {
	const remedy = "compare the clocks of primary and secondary (timedatectl)"
	age, seconds := now.Sub(h.Created), uint64(max(0, h.Created.Unix()))
	switch {
	case h.Version == 0 || h.Version == 1 && h.Prev != hash{}:
		return alarm(AlarmFork, "version %d.%d can't be the first", h.Epoch, h.Version)
	case !h.Expires.After(h.Created) || h.Expires.Sub(h.Created) > maxLifetime:
		return alarm(AlarmLifetime, "the head is valid from %s to %s; at most %s is taken", stamp(h.Created), stamp(h.Expires), maxLifetime)
	case age < -maxSkew:
		return alarm(AlarmFuture, "the head was signed at %s, %s from now: %s", stamp(h.Created), -age.Round(time.Second), remedy)
	case now.After(h.Expires.Add(maxSkew)):
		return alarm(AlarmExpired, "the head was signed at %s and expired at %s: %s, or the primary's publisher hangs", stamp(h.Created), stamp(h.Expires), remedy)
	case h.Epoch > seconds:
		return alarm(AlarmFastForward, "epoch %d lies after the signature's time %d", h.Epoch, seconds)
	case h.Version > burst && h.Version-burst > seconds-h.Epoch:
		return alarm(AlarmFastForward, "version %d is more than %d seconds can have made", h.Version, seconds-h.Epoch)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
