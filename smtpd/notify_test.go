package smtpd

import "testing"

// TestParseNotify: what a real Postfix 3.7.11 takes, and what is passed on of it.
func TestParseNotify(t *testing.T) {
	for value, want := range map[string]string{
		"NEVER": "NEVER", "never,NEVER": "NEVER", "NEVER,": "NEVER", "SUCCESS,SUCCESS": "SUCCESS",
		"DELAY,,Failure,delay": "DELAY,FAILURE", "SUCCESS,FAILURE,DELAY": "SUCCESS,FAILURE,DELAY",
		"": "", ",": "", "NEVER,DELAY": "", "SUCCESS,NEVER": "", "ALWAYS": "", "DELAY,X": "",
	} {
		if got := parseNotify(value); got != want {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
	}
}
