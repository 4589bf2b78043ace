package envelope

import (
	"fmt"
	"strings"
)

// Reply is an SMTP reply, RFC 5321 §4.2, with its RFC 3463 status code.
type Reply struct {
	Code     int    // 200 to 599; 0 in the zero Reply, which means no reply
	Enhanced string // "5.1.1", or "" when there is none
	Text     string // without codes; "\n" separates the lines of a multi-line reply
}

// NewReply returns a reply of one line. The text is ours, or a peer's that was
// cleaned before: it goes out as it is.
func NewReply(code int, enhanced, format string, args ...any) Reply {
	text := format
	if len(args) > 0 {
		text = fmt.Sprintf(format, args...)
	}
	return Reply{Code: code, Enhanced: enhanced, Text: text}
}

// Zero says that there is no reply.
func (r Reply) Zero() bool { return r.Code == 0 }

// Positive says that the reply is a positive completion, 2yz.
func (r Reply) Positive() bool { return r.Code/100 == 2 }

// Temporary says that the reply is a transient negative completion, 4yz.
func (r Reply) Temporary() bool { return r.Code/100 == 4 }

// Permanent says that the reply is a permanent negative completion, 5yz.
func (r Reply) Permanent() bool { return r.Code/100 == 5 }

// UserUnknown says that the reply refuses a recipient for good since there is
// nobody of that name.
func (r Reply) UserUnknown() bool {
	return r.Permanent() && (r.Enhanced == "5.1.1" || r.Enhanced == "" && strings.Contains(strings.ToLower(r.Text), "user unknown"))
}

// Softened is the reply with a permanent refusal made a temporary one, as
// Postfix's soft_bounce has it.
func (r Reply) Softened() Reply {
	if r.Permanent() {
		r.Code -= 100
		if digit, rest, _ := strings.Cut(r.Enhanced, "."); digit == "5" {
			r.Enhanced = "4." + rest
		}
	}
	return r
}

// String prints the reply on one line, for logs and the operator.
func (r Reply) String() string {
	if r.Zero() {
		return "no reply"
	}
	s := fmt.Sprint(r.Code)
	if r.Enhanced != "" {
		s += " " + r.Enhanced
	}
	return s + " " + strings.ReplaceAll(r.Text, "\n", " / ")
}

// ReplyError is an error that names the reply a peer should get. Anything
// else that fails is answered "451 4.3.0" without its text.
type ReplyError struct {
	Reply Reply
	Err   error // the cause, for our log only; may be nil
}

func (e *ReplyError) Error() string {
	if e.Err == nil {
		return e.Reply.String()
	}
	return e.Reply.String() + ": " + e.Err.Error()
}

func (e *ReplyError) Unwrap() error { return e.Err }
