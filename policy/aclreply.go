package policy

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// Texts of Exim's own.
const (
	textProhibited = "Administrative prohibition"
	textTemporary  = "Temporary local problem - please try later"
)

// verdict is a list's outcome as a reply.
func (r *aclRun) verdict(rc outcome) Verdict {
	v := Verdict{Rule: r.rule}
	switch rc {
	case aclOK:
		if r.ask.Kind != "" {
			v.Ask, v.Rule = r.ask, r.ask
		}
		return v
	case aclDiscard:
		v.Action = Discard
		return v
	case aclFail, aclDrop:
		v.Reply = coded(550, split(r.user), textProhibited)
		if v.Reply.Code >= 500 && r.failed != nil && !r.aclState.told[r.failed.address] && (r.failed.user != "" || r.failed.forced) {
			reason := r.failed.user
			if reason != "" {
				reason += "\n"
			}
			v.Reply.Text = fmt.Sprintf("Verification failed for <%s>\n%s%s", r.failed.address, reason, v.Reply.Text)
		}
		v.Close = rc == aclDrop || r.stage == Connect
	default:
		text := ""
		if r.details && rc == aclDefer {
			text = split(r.user)
		}
		v.Reply = coded(451, text, textTemporary)
		if text != "" && r.acl.Details && r.failed != nil && r.failed.message != "" {
			v.Reply.Text = lines(r.failed.message) + "\n" + v.Reply.Text
		}
	}
	if r.failed != nil {
		r.aclState.told[r.failed.address] = true
	}
	v.Action = Defer
	if v.Reply.Permanent() {
		v.Action = Reject
	}
	return v
}

// coded is a reply in an operator's words, which may begin with a code of the same
// class.
func coded(code int, text, otherwise string) envelope.Reply {
	dsn := ""
	if len(text) > 3 && allDigits(text[:3]) && strings.IndexByte(" \t\n", text[3]) >= 0 {
		own := int(text[0]-'0')*100 + int(text[1]-'0')*10 + int(text[2]-'0')
		rest := text[4:]
		word, after := cutWord(rest)
		if validDSN(word) && after != rest {
			if own/100 == code/100 && word[0] == text[0] {
				dsn = word
			}
			rest = strings.TrimLeft(after, " ")
		}
		if own/100 == code/100 {
			code = own
		}
		text = rest
	} else if text == "" {
		text = otherwise
	}
	return envelope.Reply{Code: code, Enhanced: dsn, Text: lines(text)}
}

// split breaks a long text into lines as Exim does: after at most 75 octets, at a
// space, that after a colon first.
func split(text string) string {
	const long, short = 75, 35
	b := []byte(text)
	if len(b) <= long {
		return text
	}
	for start, i := 0, 0; ; {
		for n := 0; n < long && i < len(b) && b[i] != '\n'; n++ {
			i++
		}
		if i == len(b) {
			return string(b)
		}
		if b[i] == '\n' {
			i++
			start = i
			continue
		}
		at := -1
		for t := i; t > start+short; t-- {
			if b[t] != ' ' {
				continue
			}
			if b[t-1] == ':' {
				at = t
				break
			}
			if at < 0 {
				at = t
			}
		}
		if at < 0 {
			n := bytes.IndexAny(b[i+1:], " \n")
			if n < 0 {
				return string(b)
			}
			at = i + 1 + n
		}
		b[at] = '\n'
		start, i = at+1, at+1
	}
}

// lines bounds a text, and leaves nothing in it that a reply can't contain.
func lines(text string) string {
	var all []string
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		if len(all) == 20 {
			break
		}
		if len(all) > 0 {
			line = strings.TrimLeft(line, cSpace)
		}
		line = printable(line, true)
		all = append(all, line[:min(len(line), 400)])
	}
	return strings.Join(all, "\n")
}
