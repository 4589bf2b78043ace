package policy

import (
	"errors"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/expansion"
)

// redirect reads redirection data: addresses, or a word in colons that decides.
func (r *aclRun) redirect(t *routing, ro *aclRouter) routeResult {
	data, err := r.expand(ro.Options["data"])
	switch {
	case errors.Is(err, expansion.ErrForced):
		return routeDecline
	case err != nil:
		return routeDefer
	}
	text := strings.TrimLeft(stripComments(data), ", \t\r\n")
	if text == "" {
		return routeDecline
	}
	if word, rest, special := specialWord(text); special {
		return r.special(t, ro, word, strings.TrimLeft(rest, " \t\r\n"))
	}
	qualify := r.acl.QualifyRecipient
	if q := ro.Options["qualify_domain"]; q != "" {
		if qualify, err = r.expand(q); err != nil {
			return routeDefer
		}
	}
	if ro.flag("qualify_preserve_domain", false) {
		qualify = t.domain
	}
	parsed := redirection{qualify: qualify, files: r.acl.Files}
	parsed.read(text)
	if parsed.absent || parsed.malformed && !ro.flag("skip_syntax_errors", false) {
		return routeDefer
	}
	children := parsed.all
	if len(children) == 0 {
		return routeDecline
	}
	if ro.flag("check_ancestor", false) {
		for i, c := range children {
			if slices.ContainsFunc(t.parents, func(p routed) bool { return strings.EqualFold(p.address, c) }) {
				children[i] = t.address
			}
		}
	}
	t.children = children
	return routeDone
}

// special is what ":fail: text" and its like come to.
func (r *aclRun) special(t *routing, ro *aclRouter, word, text string) routeResult {
	text = strings.TrimRight(text, " \t\r\n")
	rc := routeFail
	switch word {
	case "blackhole":
		if ro.flag("forbid_blackhole", false) {
			return routeDefer
		}
		return routeDone
	case "unknown":
		return routeDecline
	case "fail":
		if !ro.flag("allow_fail", false) {
			return routeDefer
		}
	case "defer":
		if !ro.flag("allow_defer", false) {
			return routeDefer
		}
		rc = routeDefer
	default:
		return routeDefer
	}
	t.forced = true
	if text != "" {
		if ro.flag("forbid_smtp_code", false) {
			_, text = splitCode(text)
		}
		t.message, t.user, t.pass = text, text, true
	}
	return rc
}

// splitCode cuts a reply's code off a text.
func splitCode(text string) (code, rest string) {
	if len(text) > 4 && allDigits(text[:3]) && text[3] == ' ' {
		rest = text[4:]
		if word, after := cutWord(rest); validDSN(word) {
			rest = strings.TrimLeft(after, " ")
		}
		return text[:3], rest
	}
	return "", text
}

func specialWord(text string) (word, rest string, ok bool) {
	if text[0] != ':' {
		return "", "", false
	}
	word, rest, ok = strings.Cut(text[1:], ":")
	return word, rest, ok && slices.Contains([]string{"fail", "defer", "blackhole", "unknown"}, word)
}

// stripComments takes out what follows "#" at the start of an element.
func stripComments(s string) string {
	var out []string
	for line := range strings.SplitSeq(s, "\n") {
		if !strings.HasPrefix(strings.TrimLeft(line, " \t,"), "#") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// maxIncludes bounds the files of a list, which may include each other.
const maxIncludes = 100

// redirection is a list of addresses, pipes and files.
type redirection struct {
	qualify string
	files   map[string][]string // the lines of "include;FILE"

	all       []string
	included  int
	malformed bool // one can't be read
	absent    bool // a file that it includes isn't there
}

// read splits a text, and those of the files that it includes.
func (d *redirection) read(text string) {
	quoted := false
	start := 0
	for i := range len(text) {
		switch {
		case text[i] == '"':
			quoted = !quoted
		case !quoted && (text[i] == ',' || text[i] == '\n'):
			d.add(strings.TrimSpace(text[start:i]))
			start = i + 1
		}
	}
	d.add(strings.TrimSpace(text[start:]))
}

// add takes one element.
func (d *redirection) add(e string) {
	file, included := strings.CutPrefix(e, ":include:")
	switch {
	case e == "", d.absent, len(d.all) >= maxChildren: // more than one child is all that counts
		return
	case included:
		lines, there := d.files["include;"+strings.TrimSpace(file)]
		if d.included++; !there || d.included > maxIncludes {
			d.absent = true
			return
		}
		d.read(stripComments(strings.Join(lines, "\n")))
		return
	case strings.HasPrefix(e, `"|`), strings.HasPrefix(e, `"/`):
		d.all = append(d.all, strings.Trim(e, `"`))
		return
	case isDelivery(e):
		d.all = append(d.all, e)
		return
	}
	e = strings.TrimPrefix(e, `\`)
	if i := strings.LastIndexByte(e, '<'); i >= 0 && strings.HasSuffix(e, ">") {
		e = e[i+1 : len(e)-1]
	}
	local := e
	if at := strings.LastIndexByte(e, '@'); at >= 0 {
		local = e[:at]
	}
	if !strings.Contains(e, `"`) && (strings.ContainsAny(e, " \t()<>") || strings.ContainsAny(local, ":;")) {
		d.malformed = true
		return
	}
	if !strings.Contains(e, "@") {
		e += "@" + d.qualify
	}
	d.all = append(d.all, strings.ReplaceAll(e, `"`, ""))
}

// isDelivery says that a child is a pipe or a file, not an address: a slash may begin one, too.
func isDelivery(child string) bool {
	at := strings.LastIndexByte(child, '@')
	return strings.HasPrefix(child, "|") || strings.HasPrefix(child, "/") && (at < 0 || !CheckDomain(strings.ToLower(child[at+1:])))
}
