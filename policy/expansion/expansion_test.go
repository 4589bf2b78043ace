package expansion

import (
	"errors"
	"os"
	"strings"
	"testing"
)

type env map[string]string

func (e env) Variable(name string) (string, bool) { v, ok := e[name]; return v, ok }

func (e env) Lookup(typ, file, key string) (string, bool, error) {
	v, ok := e[typ+";"+file+";"+key]
	return v, ok, nil
}

func (e env) Test(cond, subject, list string) (bool, error) {
	if list != "" {
		return e[cond+" "+subject+" "+list] != "", nil
	}
	return e[cond+" "+subject] != "", nil
}

// TestExpand has what Exim 4.96 says to "exim -be".
func TestExpand(t *testing.T) {
	e := env{"local_part": "Bob", "domain": "example.org", "sender_helo_name": "", "lsearch;/f;bob": "b@x", "exists /f": "yes", "match_domain example.org $a : +b}": "yes", "h_subject": "Hi"}
	for _, c := range []struct{ in, want string }{
		{"a$local_part@${domain}", "aBob@example.org"},
		{`\$x \N$y${z\N`, "$x $y${z"},
		{"${lc:$local_part}", "bob"},
		{"${if def:sender_helo_name {yes}{no}}", "no"},
		{"${if eq{$local_part}{Bob}}", "true"},
		{"${if and{{eq{a}{a}}{!eq{a}{b}}}{1}{0}}", "1"},
		{"${if or{{eq{a}{b}}{<{2}{10}}}{1}{0}}", "1"},
		{`${if match{abc}{\N^a(.)c$\N}{$1}{none}}`, "b"},
		{"${lookup{${lc:$local_part}}lsearch{/f}{<$value>}{none}}", "<b@x>"},
		{"${lookup{nobody}lsearch{/f}{<$value>}{none}}", "none"},
		{"${lookup{bob}lsearch{/f}}", "b@x"},
		{"${extract{2}{:}{a:b:c}}", "b"},
		{"${extract{-1}{:}{a:b:c}}", "c"},
		{"${extract{k}{j=1 k=\"two words\"}}", "two words"},
		{`${sg{a.b.c}{\N\.\N}{-}}`, "a-b-c"},
		{`${sg{abc}{(b)}{<\$1>}}`, "a<b>c"},
		{"${tr{abc}{ac}{13}}", "1b3"},
		{"${eval:2*(3+4)/7}", "2"},
		{"${length_2:abc}", "ab"},
		{"${substr_-2_1:abc}", "b"},
		{"${local_part:x@y} ${domain:x@y}", "x y"},
		{"${quote_sqlite:o'b}", "o''b"},
		{"${if exists{/f}{1}{0}}${if exists{/g}{1}{0}}", "10"},
		{"$h_subject: ${h_subject:}", "Hi Hi"},
		{`${if and{{match_domain{$domain}{$a : +b\}}}{eq{a}{a}}}{1}{0}}`, "1"},
		{"${if inlist{b}{a:b}{1}{0}}${if isip4{192.0.2.1}{1}{0}}${if isip6{192.0.2.1}{1}{0}}", "110"},
		{"${if >{1K}{1000}{1}{0}}", "1"},
		{"${reverse_ip:192.0.2.1} ${mask:192.0.2.77/24}", "1.2.0.192 192.0.2.0/24"},
		{"${listextract{2}{a:b:c}}", "b"},
		{"${eval10:08+1} ${eval10:08K} ${eval:010} ${eval:0x10} ${eval:0x1k} ${eval:-0x10} ${eval:017K}", "9 8192 8 16 1024 -16 15360"},
		{"${eval:-5%3} ${eval:1<<3} ${eval:5/2} ${eval:1G} ${eval:2*-3} ${eval:~5} ${eval:5|2^1&3} ${eval:7>>1} ${eval: (1 + 2)*3 } ${eval:+5} ${eval:1k} ${eval:2M}", "-2 8 2 1073741824 -6 -6 7 3 9 5 1024 2097152"},
		{"${if >{010}{9}{y}{n}}${if ={08}{8}{y}{n}}${if ={1K}{1024}{y}{n}}${if ={ 5 }{5}{y}{n}}${if ={}{0}{y}{n}}${if ={+5}{5}{y}{n}}${if ={-1}{-1}{y}{n}}", "yyyyyyy"},
		{"${if >={2}{10}{y}{n}}${if <={2}{2}{y}{n}}${if =={2}{2}{y}{n}}${if >={3}{2}{y}{n}}${if <{2}{2}{y}{n}}${if >{2}{2}{y}{n}}", "nyyynn"},
	} {
		s, err := Parse(c.in)
		if err != nil {
			t.Errorf("Parse(%q): %v", c.in, err)
			continue
		}
		if got, err := s.Expand(e); err != nil || got != c.want {
			t.Errorf("%q: %q, %v; want %q", c.in, got, err, c.want)
		}
	}
	for in, runs := range map[string]bool{
		"${run{/bin/true}}": true, "${perl{f}}": true, "${readsocket{/x}{y}}": true, "${readfile{/etc/passwd}}": true, "${dlfunc{/x}{f}}": true, "${env{HOME}}": false,
		"$nothing": false, "${nothing{x}}": false, "${nothing:x}": false, "${if nothing{x}}": false,
	} {
		var u *Unsupported
		if _, err := Parse(in); !errors.As(err, &u) || u.Runs != runs {
			t.Errorf("Parse(%q): %v; want it unsupported, running %v", in, err, runs)
		}
	}
	for _, in := range []string{"${if", "${lc:x", "${", "$", "${if eq{a}}", "${if and{{match_domain{a}{${lookup{b}lsearch{/f}}}}{eq{a}{a}}}}"} {
		if _, err := Parse(in); err == nil {
			t.Errorf("Parse(%q) has no error", in)
		}
	}
	for _, in := range []string{
		"${eval:08}", "${eval10:0x10}", "${eval:0b11}", "${eval:0o17}", "${eval:1_000}", "${eval:1T}", "${eval:}", "${eval:1+}", "${eval:1 2}", "${eval:5/0}", "${eval:(1}",
		"${if ={0x10}{16}}", "${if ={5x}{5}}", "${if ={1_0}{10}}", "${if ={1 K}{1024}}", "${if ={--5}{5}}",
	} {
		s, err := Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Expand(e); err == nil {
			t.Errorf("%q: %q; Exim fails", in, got)
		}
	}
	s, err := Parse("${if eq{a}{b}{x}fail}")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Expand(e); !errors.Is(err, ErrForced) {
		t.Errorf("fail: %v; want %v", err, ErrForced)
	}
}

func TestList(t *testing.T) {
	for in, want := range map[string]string{"a : b": "a|b", "::::1 : 2001::db8::::1": "::1|2001:db8::1", "<; a ; b:c": "a|b:c", "": "", " : ": "", "a::b": "a:b"} {
		got := ""
		for i, s := range List(in) {
			if i > 0 {
				got += "|"
			}
			got += s
		}
		if got != want {
			t.Errorf("List(%q) = %q; want %q", in, got, want)
		}
	}
}

// FuzzExpand: no string makes the parser panic or run for long.
func FuzzExpand(f *testing.F) {
	for _, s := range []string{"${if match{a}{^(a)}{$1}fail}", "${lookup{k}lsearch{/f}{$value}}", `\N$\N`, "${eval:1+(2*3)}", "${extract{1}{:}{a:b}}", "${sg{a}{a*}{b}}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := Parse(s); err == nil {
			_, _ = p.Expand(env{"domain": "x"})
		}
	})
}

// TestLikeExim: what Exim says to testdata/exim.txt is said here, or else that it isn't followed.
func TestLikeExim(t *testing.T) {
	b, err := os.ReadFile("testdata/exim.txt")
	if err != nil {
		t.Fatal(err)
	}
	followed := 0
	for line := range strings.Lines(string(b)) {
		in, want, given := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if !given || line[0] == '#' {
			continue
		}
		got := "fails"
		s, err := Parse(in)
		var unsupported *Unsupported
		if errors.As(err, &unsupported) {
			t.Logf("%s: %v", in, err)
			continue
		}
		if err == nil {
			if text, err := s.Expand(env{"primary_hostname": "mx.example.org"}); err == nil {
				got = strings.ReplaceAll(text, "\n", `\n`)
			}
		}
		if followed++; got != want {
			t.Errorf("%s\n got %s\nwant %s", in, got, want)
		}
	}
	if followed < 30 {
		t.Errorf("only %d are followed", followed)
	}
}

// TestSubstitute: work that grows with the square of what a client sends ends, in doubt, and so do
// back references, which are named where they can be seen.
func TestSubstitute(t *testing.T) {
	for name, in := range map[string]string{"matches": "${sg{" + strings.Repeat("x", 60<<10) + "}{x}{y}}", "back reference": `${sg{aabb}{${if eq{}{}{\N(.)\1\N}}}{-}}`} {
		s, err := Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Expand(env{}); !errors.Is(err, ErrDefer) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Parse(`${sg{aabb}{\N(.)\1\N}{-}}`); err == nil || err.Error() != "a back reference in ${sg…} isn't evaluated" {
		t.Errorf("a back reference: %v", err)
	}
}
