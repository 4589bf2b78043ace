package exim

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/expansion"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// str checks a string and lists what it refers to. It returns the string as the Spec
// has it.
func (i *importer) str(s string) (string, error) {
	i.asksDNS, i.refused = false, nil
	for _, rewrite := range []func(string) (string, error){i.rewriteSRS, i.rewritePerl, i.rewriteFiles, i.rewriteStat, i.rewriteQueries} {
		var err error
		if s, err = rewrite(s); err != nil {
			return "", err
		}
	}
	p, err := expansion.Parse(s)
	if err != nil {
		return "", err
	}
	fail := func(e error) {
		if err == nil {
			err = e
		}
	}
	p.Walk(&expansion.Visitor{
		Variable: func(name string) {
			why := i.tainted[name]
			_, scans := why.(scanner)
			switch {
			case scans:
				fail(scanner{fmt.Sprintf("$%s isn't known here: %v", name, why)})
			case why != nil:
				fail(fmt.Errorf("$%s isn't known here: %w", name, why))
			case expansion.Scanned(name) && !i.routing:
				fail(scanner{fmt.Sprintf("$%s is of what looks at the whole message, when it is relayed to the primary", name)})
			}
		},
		Lookup: func(typ string, file, key *expansion.String) { fail(i.lookup(typ, file, key)) },
		Test: func(cond string, subject, list *expansion.String) {
			switch {
			case cond == "exists":
				fail(i.exists(subject))
			case cond == "match_ip":
				fail(i.items(list, "hostlist"))
			case list != nil:
				fail(i.items(list, "domainlist"))
			}
		},
	})
	for _, name := range i.refused { // no table is called so
		s = strings.ReplaceAll(s, "{"+name+"}", "{tainted "+name+"}")
	}
	return s, err
}

// replaceItems puts something in place of each item or condition that begins with
// start; with gets its arguments. braced: a brace ends it.
func replaceItems(s string, start *regexp.Regexp, braced bool, with func(args []string) (string, error)) (string, error) {
	for from := 0; ; {
		m := start.FindStringIndex(s[from:])
		if m == nil {
			return s, nil
		}
		begin, at := from+m[0], from+m[1]
		var args []string
		for {
			for at < len(s) && strings.IndexByte(" \t\n", s[at]) >= 0 {
				at++
			}
			if at == len(s) || s[at] != '{' {
				break
			}
			end := closing(s, at+1)
			if end < 0 {
				return s, nil // Parse says so
			}
			args = append(args, s[at+1:end])
			at = end + 1
		}
		if braced {
			if at == len(s) || s[at] != '}' {
				return s, nil // Parse says so
			}
			at++
		}
		text, err := with(args)
		if err != nil {
			return "", err
		}
		s = s[:begin] + text + s[at:]
		from = begin + len(text)
	}
}

var (
	srsWord  = regexp.MustCompile(`\binbound_srs\b`)
	fileWord = regexp.MustCompile(`\$\{readfile\b`)
	statWord = regexp.MustCompile(`\$\{stat:\s*(/[^${}\\]*)\}`)
	perlWord = regexp.MustCompile(`\$\{perl\b`)
)

// rewriteSRS takes the secret out of the conditions that need it: it stays on the
// primary.
func (i *importer) rewriteSRS(s string) (string, error) {
	return replaceItems(s, srsWord, false, func(args []string) (string, error) {
		if len(args) < 2 {
			return "inbound_srs", nil
		}
		rest := ""
		for _, a := range args[2:] {
			rest += "{" + a + "}"
		}
		if strings.TrimSpace(args[1]) == "" {
			return "inbound_srs {" + args[0] + "}{}" + rest, nil
		}
		options := []string{fidelity.Defer, fidelity.Ignore}
		choice := i.choose("inbound_srs", args[0], options...)
		i.item("inbound_srs", args[0], fidelity.Approximated, i.here+": the secret stays on the primary, so whether it made an address of the form SRS0=… isn't known; other addresses are decided as there", choice, options...)
		if choice == fidelity.Ignore {
			return "bool{no}" + rest, nil
		}
		return "inbound_srs {" + args[0] + "}{-}" + rest, nil
	})
}

// maxReadFile bounds the files that strings have the contents of.
const maxReadFile = 64 << 10

// rewriteFiles puts the contents of a file in place of ${readfile{FILE}{EOL}}.
func (i *importer) rewriteFiles(s string) (string, error) {
	return replaceItems(s, fileWord, true, func(args []string) (string, error) {
		if len(args) == 0 || len(args) > 2 {
			return "", fmt.Errorf("${readfile…} has %d arguments", len(args))
		}
		var known [2]string
		for n, a := range args {
			p, err := expansion.Parse(a)
			if err != nil {
				return "", err
			}
			var constant bool
			if known[n], constant = p.Constant(); !constant {
				return "", fmt.Errorf("which file ${readfile…} reads depends on the message")
			}
		}
		file := strings.TrimSpace(known[0])
		b, err := readSmall(file)
		if err != nil {
			return "", err
		}
		i.files[file] = true
		i.item("readfile", file, fidelity.Exact, "", "")
		text := string(b)
		if len(args) == 2 {
			text = strings.ReplaceAll(text, "\n", known[1])
		}
		return expansion.Quote(text), nil
	})
}

// readSmall reads a file of at most maxReadFile octets.
func readSmall(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxReadFile+1))
	if len(b) > maxReadFile {
		err = fmt.Errorf("%s has more than %d octets", file, maxReadFile)
	}
	return b, err
}

// rewriteStat puts what is known of a file in place of ${stat:FILE}: its size and mode,
// and when it was changed.
func (i *importer) rewriteStat(s string) (string, error) {
	var failed error
	s = statWord.ReplaceAllStringFunc(s, func(item string) string {
		file := strings.TrimSpace(statWord.FindStringSubmatch(item)[1])
		st, err := os.Stat(file)
		if err != nil {
			failed = err
			return item
		}
		i.files[file] = true
		return fmt.Sprintf("mode=%04o size=%d mtime=%d", st.Mode().Perm(), st.Size(), st.ModTime().Unix())
	})
	return s, failed
}

// perlFunctions are those of control panels whose part in decisions is known: what
// stands for each with a client that hasn't authenticated; @ETC@ is Source.Etc.
var perlFunctions = map[string]struct{ instead, why string }{
	"check_limits":                        {"yes", "DirectAdmin's counts what its users send"},
	"auth_hit_limit_acl":                  {"no", "DirectAdmin's counts what its users send"},
	"save_virtual_user":                   {"${lookup{$local_part}lsearch{@ETC@/virtual/$domain/passwd}{yes}{no}}", "DirectAdmin's looks the local-part up in the domain's file passwd"},
	"check_outgoing_mail_suspended":       {"no", "cPanel's is about its users' mail"},
	"check_mail_permissions":              {"", "cPanel's is about its users' mail"},
	"check_mail_permissions_results":      {"", "cPanel's is about its users' mail"},
	"checkuserpass":                       {"no", "cPanel's is about its users' mail"},
	"store_recipients_and_sender":         {"", "cPanel's counts what its users send"},
	"checkbx_autowhitelist":               {"no", "cPanel's is about what was delivered"},
	"get_outgoing_mail_suspended_message": {"", "cPanel's is about its users' mail"},
}

// Options for what Perl answers.
const (
	perlPanel = "as-the-panel"
	perlYes   = "yes"
	perlNo    = "no"
)

// rewritePerl puts something in place of calls of Perl, which are never made.
func (i *importer) rewritePerl(s string) (string, error) {
	return replaceItems(s, perlWord, true, func(args []string) (string, error) {
		name := "Perl"
		if len(args) > 0 {
			name = args[0]
		}
		f, known := perlFunctions[name]
		options := []string{fidelity.Defer, perlYes, perlNo}
		class, why := fidelity.NotReplicated, "Perl is never executed"
		if known {
			options = append([]string{perlPanel}, options...)
			class, why = fidelity.Approximated, "Perl is never executed; "+f.why
		}
		choice := i.choose("perl", name, options...)
		i.item("perl", name, class, i.here+": "+why, choice, options...)
		switch choice {
		case fidelity.Defer:
			return "", &expansion.Unsupported{What: "${perl{" + name + "}…}", Runs: true}
		case perlPanel:
			etc := cmp.Or(i.src.Etc, "/etc")
			i.ofPerl = etc + "/virtual/$domain/passwd"
			return strings.ReplaceAll(f.instead, "@ETC@", etc), nil
		}
		return choice, nil
	})
}

// dnsQuery checks a query of the DNS by its constant beginning.
func (i *importer) dnsQuery(query *expansion.String) error {
	i.asksDNS = true
	begin := ""
	if parts := query.Parts(); len(parts) > 0 {
		begin = parts[0].Text
	}
	return policy.CheckDNSQuery(begin)
}
