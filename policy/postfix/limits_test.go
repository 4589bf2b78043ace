package postfix_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy"
)

func TestLimits(t *testing.T) {
	usual := policy.NewSpec().Limits
	usual.Stress = policy.StressLimits{HardErrors: 1, JunkCommands: 1}
	usual.Client = policy.ClientLimits{Connections: 50, Exceptions: []string{"127.0.0.0/8"}}
	usual.MessageSize = 10240000
	for _, tt := range []struct {
		name, main, master string
		change             func(l *policy.Limits)
	}{
		{"nothing set", "", "", func(*policy.Limits) {}},
		{"errors", "smtpd_error_sleep_time = 0\nsmtpd_soft_error_limit = ${stress?{2}:{3}}\nsmtpd_hard_error_limit = 7\n", "", func(l *policy.Limits) {
			l.ErrorSleep, l.SoftErrors, l.HardErrors = 0, 3, 7
			l.Stress = policy.StressLimits{SoftErrors: 2, JunkCommands: 1}
		}},
		{"always under stress", "stress = yes\n", "", func(l *policy.Limits) {
			l.HardErrors, l.JunkCommands, l.Stress = 1, 1, policy.StressLimits{}
		}},
		{"never under stress", "", "smtp inet n - y - - smtpd -o stress= -o smtpd_error_sleep_time=2m\n", func(l *policy.Limits) {
			l.Stress, l.ErrorSleep = policy.StressLimits{}, 120
		}},
		{"no limit by client", "smtpd_client_connection_count_limit = 0\nanvil_rate_time_unit = 1h\n", "", func(l *policy.Limits) {
			l.Client = policy.ClientLimits{}
		}},
		{"rates", "smtpd_client_connection_rate_limit = 4\nsmtpd_client_message_rate_limit = 5\nsmtpd_client_recipient_rate_limit = 6\n" +
			"smtpd_client_new_tls_session_rate_limit = 7\nanvil_rate_time_unit = 1h\n" +
			"smtpd_client_event_limit_exceptions = !192.0.2.1, 192.0.2.0/24, .example.net\nparent_domain_matches_subdomains = smtpd_client_event_limit_exceptions\n", "", func(l *policy.Limits) {
			l.Client = policy.ClientLimits{
				Connections: 50, ConnectionRate: 4, MessageRate: 5, RecipientRate: 6, NewTLSRate: 7, RateTime: 3600,
				Exceptions: []string{"!192.0.2.1", "192.0.2.0/24", ".example.net"}, MatchSubdomain: true,
			}
		}},
		{"postscreen", "postscreen_client_connection_count_limit = 8\n", "smtp inet n - y - 1 postscreen\nsmtpd pass - - y - - smtpd -o smtpd_soft_error_limit=4\n", func(l *policy.Limits) {
			l.Client.Connections, l.SoftErrors = 8, 4
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := map[string]string{"main.cf": base + tt.main}
			if tt.master != "" {
				files["master.cf"] = tt.master
			}
			want := usual
			tt.change(&want)
			spec, _ := load(t, install(t, files))
			if diff := cmp.Diff(want, spec.Limits); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
