package filters

import (
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/host"
)

// TestContent: what the programs refuse, and what they do after they have taken a
// message.
func TestContent(t *testing.T) {
	for _, tt := range []struct{ name, program, text, refuses, handles, unsure string }{
		{"rspamd", Rspamd, "", "what its rules score too high", "", WhyLive},
		{"clamav-milter by default", ClamAVMilter, "# OnInfected Reject\n", "", "a virus (Quarantine)", ""},
		{"clamav-milter refuses", ClamAVMilter, "OnInfected Reject\nRejectMsg %v\n", "a virus (Reject)", "", WhyLive},
		{"clamav-milter throws away", ClamAVMilter, "OnInfected Blackhole\nOnClean Defer\n", "a clean message (Defer)", "a virus (Blackhole)", WhyLive},
		{"spamass-milter marks", SpamAssMilter, "OPTIONS=\"-u spamass-milter -i 127.0.0.1\"\n#OPTIONS=\"${OPTIONS} -r 15\"\n", "", "", ""},
		{"spamass-milter refuses", SpamAssMilter, "OPTIONS=\"-u x-r 5\"\nOPTIONS=\"${OPTIONS} -r 15\"\n", "spam (-r)", "", WhyLive},
		{"spamass-milter refuses what is marked", SpamAssMilter, "OPTIONS=\"-r -1\"\n", "spam (-r)", "", WhyLive},
		{"amavis by default", Amavis, "use strict;\n#$final_spam_destiny = D_REJECT;\n1;\n", "", "a virus (D_DISCARD), a forbidden attachment (D_DISCARD)", ""},
		{"amavis refuses", Amavis, "$final_spam_destiny = D_BOUNCE;\n  $final_virus_destiny      = D_REJECT;  # at once\n$final_spam_destiny = D_REJECT;\n$final_banned_destiny=D_PASS;\n",
			"a virus (D_REJECT), spam (D_REJECT)", "", WhyLive},
		{"amavis by a bank", Amavis, "\n$policy_bank{'IN'} = { final_spam_destiny => D_REJECT };\n", "", "a virus (D_DISCARD), a forbidden attachment (D_DISCARD)",
			`/f:2: "$policy_bank{'IN'} = { final_spam_destiny => D_REJECT };" isn't a plain assignment`},
		{"clamsmtpd by default", ClamSMTPD, "Listen: 127.0.0.1:10026\n#Action: bounce\n", "", "a virus (drop)", ""},
		{"clamsmtpd refuses", ClamSMTPD, "action: bounce\n", "a virus (bounce)", "", WhyLive},
		{"clamsmtpd of old", ClamSMTPD, "Bounce: on\n", "a virus (bounce)", "", WhyLive},
		{"clamsmtpd passes", ClamSMTPD, "Action: pass\nBounce: on\n", "", "", ""},
		{"spampd", SpamPD, "LISTENPORT=10025\nADDOPTS=\"\"\n", "", "", ""},
		{"spampd refuses", SpamPD, "ADDOPTS=\"--debug --dose\"\n", "a message that SpamAssassin fails on (--dose)", "", WhyLive},
		{"spampd by another file", SpamPD, "\nADDOPTS=\"--config=/etc/spampd.conf\"\n", "", "", `/f:2: "--config=/etc/spampd.conf": that file isn't read`},
		{"dspam", DSPAM, "Preference \"spamAction=quarantine\"\nPreference \"spamAction=tag\"\n", "", "", ""},
		{"dspam by default", DSPAM, "ClamAVResponse reject\n", "", "spam (quarantine)", ""},
		{"dspam with clamd", DSPAM, "ClamAVPort 3310\nClamAVResponse reject\n", "a virus (reject)", "spam (quarantine)", WhyLive},
	} {
		f := read(t, tt.program, tt.text)
		if got := strings.Join(f.Refuses, ", "); got != tt.refuses {
			t.Errorf("%s: refuses %q, want %q", tt.name, got, tt.refuses)
		}
		if got := strings.Join(f.Handles, ", "); got != tt.handles {
			t.Errorf("%s: handles %q, want %q", tt.name, got, tt.handles)
		}
		if got := strings.Join(f.Unsure, ", "); got != tt.unsure {
			t.Errorf("%s: unsure %q, want %q", tt.name, got, tt.unsure)
		}
		if !f.Live || f.Harmless() != (tt.refuses+tt.unsure == "") {
			t.Errorf("%s: live %v, harmless %v", tt.name, f.Live, f.Harmless())
		}
	}
}

// TestFindContent: where the programs listen, by the files of their packages.
func TestFindContent(t *testing.T) {
	for _, tt := range []struct{ name, file, text, at, want string }{
		{"rspamd", "/etc/rspamd/rspamd.conf", "", "inet:127.0.0.1:11332", Rspamd},
		{"rspamd elsewhere", "/etc/rspamd/local.d/worker-proxy.inc", "bind_socket = \"*:11999\";\n", "inet:localhost:11999", Rspamd},
		{"rspamd at a path", "/etc/rspamd/override.d/worker-proxy.inc", "  bind_socket = \"/var/run/rspamd/milter.sock mode=0666 owner=nobody\";\n", "unix:/run/rspamd/milter.sock", Rspamd},
		{"not its other workers", "/etc/rspamd/rspamd.conf", "", "inet:localhost:11333", ""},
		{"clamav-milter", clamFile, "MilterSocket /var/run/clamav/clamav-milter.ctl\n", "unix:/run/clamav/clamav-milter.ctl", ClamAVMilter},
		{"clamav-milter in Postfix's directory", clamFile, "MilterSocket unix:/q/clamav/milter.ctl\n", "unix:clamav/milter.ctl", ClamAVMilter},
		{"clamav-milter by port", clamFile, "MilterSocket inet:7357@localhost\n", "inet:localhost:7357", ClamAVMilter},
		{"spamass-milter", spamassFile, "OPTIONS=\"\"\n# SOCKET=\"/x\"\n", "unix:/var/spool/postfix/spamass/spamass.sock", SpamAssMilter},
		{"spamass-milter elsewhere", spamassFile, "SOCKET=\"/q/sa.sock\"\n", "unix:sa.sock", SpamAssMilter},
		{"amavis", amavisDir + "/20-debian_defaults", "$inet_socket_port = 10024;   # default\n", "inet:[127.0.0.1]:10024", Amavis},
		{"amavis with two ports", amavisDir + "/50-user", "$inet_socket_port = [10024,10026];\n", "inet:localhost:10026", Amavis},
		{"amavis at a path", amavisDir + "/50-user", "$unix_socketname = \"/var/lib/amavis/amavisd.sock\";\n", "unix:/var/lib/amavis/amavisd.sock", Amavis},
		{"not amavis' backups", amavisDir + "/50-user.bak", "$inet_socket_port = 10099;\n", "inet:localhost:10099", ""},
		{"clamsmtpd", clamsmtpd, "Listen: 127.0.0.1:10026\n", "inet:localhost:10026", ClamSMTPD},
		{"clamsmtpd by default", clamsmtpd, "User: clamsmtp\n", "inet:localhost:10025", ClamSMTPD},
		{"spampd", spampdFile, "LISTENHOST=127.0.0.1\nLISTENPORT=10029\n", "inet:localhost:10029", SpamPD},
		{"dspam", dspamFile, "ServerPort 2424\n", "inet:localhost:2424", DSPAM},
		{"dspam at a path", dspamFile, "ServerDomainSocketPath \"/q/dspam.sock\"\n", "unix:dspam.sock", DSPAM},
		{"nobody", clamsmtpd, "Listen: 10026\n", "inet:mail.example.org:10026", ""},
	} {
		files := map[string]string{tt.file: tt.text}
		if strings.HasPrefix(tt.file, "/etc/rspamd/") {
			files["/etc/rspamd/rspamd.conf"] = ""
		}
		place, _, ok := Find(t.Context(), &host.Host{Root: tree(t, files)}, ProxyEndpoint(tt.at, "/q"), "/q")
		if place.Program != tt.want || ok != (tt.want != "") {
			t.Errorf("%s: %v, %v", tt.name, place, ok)
		}
	}
	for in, want := range map[string]Endpoint{"10024": "inet:localhost:10024", ":10024": "inet:localhost:10024", "[127.0.0.1]": "inet:localhost:25", "inet:[::1]:9": "inet:localhost:9",
		"Mail.example:9": "inet:mail.example:9", "unix:a/b": "unix:/q/a/b", "[2001:db8::1]:9": "inet:[2001:db8::1]:9", "": "", "a b:1": ""} {
		if got := ProxyEndpoint(in, "/q"); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
