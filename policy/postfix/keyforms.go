package postfix

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// foldKey is how Postfix folds a key: "ß" becomes "ss".
func foldKey(s string) string {
	if ascii(s) {
		return strings.ToLower(s)
	}
	return cases.Fold().String(s)
}

// keyVariants are a text as a key, and what a database whose collation ignores
// accents may take for the same. The database has the last word.
func keyVariants(s string) []string {
	s = strings.ToLower(strings.TrimSpace(s))
	if s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return nil
	}
	if ascii(s) {
		return []string{s}
	}
	all := []string{foldKey(s)}
	for _, letters := range []*strings.Replacer{oneLetter, twoLetters} {
		if plain := withoutAccents(letters.Replace(s)); plain != all[len(all)-1] {
			all = append(all, plain)
		}
	}
	return all
}

// What isn't a letter with an accent to Unicode, but is to collations.
var (
	oneLetter  = strings.NewReplacer("ß", "s", "ø", "o", "đ", "d", "ł", "l", "ı", "i", "æ", "a", "œ", "o")
	twoLetters = strings.NewReplacer("ß", "ss", "ø", "o", "đ", "d", "ł", "l", "ı", "i", "æ", "ae", "œ", "oe", "þ", "th", "ð", "d")
)

func withoutAccents(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Mn, r) {
			return -1
		}
		return r
	}, norm.NFKD.String(s))
}
