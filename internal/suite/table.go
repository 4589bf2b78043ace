package suite

const (
	rspamd    = "rspamd"
	stillAsks = "ignores it; its primary asks it when mail is handed over. To ask one during an outage, too: [[filter]] on the secondary, docs/FILTERS.md"
	followed  = "follows its configuration"
	limits    = "ignores it: it counts what users send, and who sends from outside isn't one"
	quota     = "ignores it: a full mailbox is known only to the primary, which refuses such mail when it is handed over; then it is held"
)

// Suites are all presets.
var Suites = []Suite{
	{
		Name: "mailcow", Title: "mailcow: dockerized",
		From:       "mailcow/mailcow-dockerized at 06424670fa5d: docker-compose.yml, data/conf/postfix, data/Dockerfiles/postfix",
		Marks:      []string{"/opt/mailcow-dockerized/mailcow.conf"},
		Containers: []Container{{"postfix", "mailcowdockerized-postfix-mailcow-1", "postfix-mailcow", "mailcow/postfix"}},
		Postfix:    "/opt/postfix/conf",
		Prefix:     []string{"docker", "exec", "-i", "{postfix}"},
		Main:       "data/conf/postfix/extra.cf in mailcow's directory, and run docker compose restart postfix-mailcow there",
		Hosts:      []string{"unix:/var/run/mysqld/mysqld.sock=127.0.0.1:13306"},
		Choose: []string{
			"smtpd_milters: inet:rspamd:9900=ignore",
			// Its values are FILTER alone, which refuses nothing.
			"smtpd_recipient_restrictions: check_recipient_mx_access proxy:mysql:/opt/postfix/conf/sql/mysql_mbr_access_maps.cf=ignore",
			"postscreen_access_list: tcp:127.0.0.1:10027=ignore",
		},
		Filters: []Filter{
			{"inet:rspamd:9900", rspamd, stillAsks},
			{"tcp:127.0.0.1:10027", "the list of forwarding hosts", "ignores it: forwarding hosts are tested as strangers are"},
		},
		Notes: []string{
			"The database is asked at the port that mailcow.conf publishes as SQL_PORT, by default 127.0.0.1:13306; for another one: postfix_hosts = [\"unix:/var/run/mysqld/mysqld.sock=127.0.0.1:PORT\"].",
			"mailcow's API isn't used: the tables that Postfix itself asks are listed exactly, a change is noticed within seconds, and no key is needed.",
		},
	},
	{
		Name: "docker-mailserver", Title: "docker-mailserver",
		From:       "docker-mailserver/docker-mailserver at c9b015ddc869: compose.yaml, target/postfix, target/scripts",
		Containers: []Container{{"mailserver", "mailserver", "", "mailserver/docker-mailserver"}},
		Postfix:    "/etc/postfix",
		Prefix:     []string{"docker", "exec", "-i", "{mailserver}"},
		Main:       "postfix-main.cf in the directory that is mounted at /tmp/docker-mailserver, and run docker restart {mailserver}",
		Filters: []Filter{
			{"inet:localhost:8891", "opendkim", followed},
			{"inet:localhost:8893", "opendmarc", followed},
			{"unix:private/policyd-spf", "policyd-spf", followed},
			{"inet:localhost:11332", rspamd, stillAsks},
		},
		Notes: []string{
			"Accounts and aliases are read as the container has made them of postfix-accounts.cf and postfix-virtual.cf: the text tables /etc/postfix/vmailbox and virtual. With LDAP, the directory is asked; its host is named by postfix_hosts where only the container knows it.",
		},
	},
	{
		Name: "mailu", Title: "Mailu",
		From: "Mailu/Mailu at bbb1c206f9c8: setup/flavors/compose, core/postfix, core/admin/mailu/internal/views/postfix.py, models.py, schemas.py",
		Containers: []Container{
			{"smtp", "mailu-smtp-1", "smtp", "mailu/postfix"},
			{"admin", "mailu-admin-1", "admin", "mailu/admin"},
		},
		Postfix: "/etc/postfix",
		Prefix:  []string{"docker", "exec", "-i", "{smtp}"},
		Main:    "overrides/postfix/postfix.cf in Mailu's directory, and run docker restart {smtp}",
		List: []string{
			"socketmap:unix:/tmp/podop.socket:domain=" + mailu("domain"),
			"socketmap:unix:/tmp/podop.socket:mailbox=" + mailu("mailbox"),
			"socketmap:unix:/tmp/podop.socket:alias=" + mailu("alias"),
			"socketmap:unix:/tmp/podop.socket:transport=" + mailu("transport"),
			"socketmap:unix:/tmp/podop.socket:recipientmap=:",
			"socketmap:unix:/tmp/podop.socket:sendermap=:",
		},
		Filters: []Filter{{"inet:antispam:11332", rspamd, stillAsks}},
		Notes: []string{
			"Postfix's tables are a socket there, and nothing can be listed from it. So the administration is asked for its configuration (`flask mailu config-export`, without secrets), and the keys that its socket would answer are made of that. An alias with a wildcard other than \"%\" can't be listed: other addresses are then asked for at the socket, one by one.",
			"Mail from outside comes through Mailu's nginx, which takes no XCLIENT. So let the secondary reach Postfix itself: in docker-compose.override.yml publish a port of the service smtp (`ports: [\"2525:25\"]`), let it through the firewall for the secondary alone, and write mx1.example.org:2525 after --primary. Mailu's Postfix has no certificate: between two sites use a tunnel. Where nginx takes a PROXY header at port 25 (PROXY_PROTOCOL with 25, mail or all), --identity proxy does as well.",
		},
	},
	{
		Name: "iredmail", Title: "iRedMail",
		From:    "iredmail/iRedMail at e0fe4fc27750: samples/postfix, conf/postfix",
		Marks:   []string{"/etc/iredmail-release"},
		Postfix: "/etc/postfix",
		Choose: []string{
			"smtpd_recipient_restrictions: check_policy_service inet:127.0.0.1:7777=ask-else-ignore",
			"smtpd_end_of_data_restrictions: check_policy_service inet:127.0.0.1:7777=ignore",
			"smtpd_recipient_restrictions: check_policy_service inet:127.0.0.1:12340=ignore",
		},
		Filters: []Filter{
			{"inet:127.0.0.1:7777", "iRedAPD", "asks the primary while that is up, and ignores it during an outage"},
			{"inet:127.0.0.1:12340", "Dovecot's quota", quota},
			{"content_filter", "amavis", "isn't concerned: it looks at mail after Postfix has accepted it"},
		},
	},
	{
		Name: "modoboa", Title: "Modoboa",
		From:    "modoboa/modoboa-installer at 00d79f518dc0: modoboa_installer/scripts/files/postfix",
		Marks:   []string{"/srv/modoboa/instance"},
		Postfix: "/etc/postfix",
		Choose:  []string{"smtpd_recipient_restrictions: check_policy_service inet:127.0.0.1:9999=ignore"},
		Filters: []Filter{
			{"inet:127.0.0.1:9999", "Modoboa's policy daemon", limits},
			{"inet:127.0.0.1:12345", "opendkim", followed},
			{"inet:localhost:11332", rspamd, stillAsks},
		},
	},
	{
		Name: "mail-in-a-box", Title: "Mail-in-a-Box",
		From:    "mail-in-a-box/mailinabox at b162b96da2b9: setup/mail-postfix.sh, setup/mail-users.sh, setup/dkim.sh",
		Marks:   []string{"/etc/mailinabox.conf"},
		Postfix: "/etc/postfix",
		Choose:  []string{"smtpd_recipient_restrictions: check_policy_service inet:127.0.0.1:12340=ignore"},
		Filters: []Filter{
			{"inet:127.0.0.1:8891", "opendkim", followed},
			{"inet:127.0.0.1:8893", "opendmarc", followed},
			{"inet:127.0.0.1:10023", "postgrey", "follows it, with whom it knows"},
			{"inet:127.0.0.1:12340", "Dovecot's quota", quota},
		},
		Notes: []string{"The database, /home/user-data/mail/users.sqlite, is read as a file: let the publisher's user read it, and ProtectHome=no in its unit (systemctl edit understudy-publish)."},
	},
	{
		Name: "ispconfig", Title: "ISPConfig",
		From:    "ISPConfig 3.2, by cyberkathosting/ispconfig3 at 47fb178ff7a2: install/tpl, install/lib/installer_base.lib.php",
		Marks:   []string{"/usr/local/ispconfig/server/lib/config.inc.php"},
		Postfix: "/etc/postfix",
		Choose: []string{
			"smtpd_recipient_restrictions: check_policy_service unix:private/quota-status=ignore",
			"smtpd_milters: inet:localhost:11332=ignore",
		},
		Filters: []Filter{
			{"inet:localhost:11332", rspamd, stillAsks},
			{"inet:127.0.0.1:10023", "postgrey", "follows it, with whom it knows"},
			{"unix:private/quota-status", "Dovecot's quota", quota},
		},
	},
	{
		Name: "postfixadmin", Title: "PostfixAdmin",
		From:    "postfixadmin/postfixadmin at 65b10f7285524: DOCUMENTS/POSTFIX_CONF.txt, INSTALL.md, debian",
		Marks:   []string{"/etc/postfixadmin/config.inc.php", "/srv/postfixadmin/config.local.php", "/var/www/html/postfixadmin"},
		Postfix: "/etc/postfix",
		Notes:   []string{"It manages the tables alone; which filters there are is up to you: `understudy publish --check` says what it finds."},
	},
	{
		Name: "virtualmin", Title: "Virtualmin",
		From:    "virtualmin/virtualmin-gpl at 69a9c2af70eb: feature-mail.pl, dkim-lib.pl; virtualmin/Virtualmin-Config at f8c6e2b06fea: Plugin/Postfix.pm",
		Marks:   []string{"/etc/webmin/virtual-server/config"},
		Postfix: "/etc/postfix",
		Filters: []Filter{{"inet:127.0.0.1:8891", "opendkim", followed}},
		Notes:   []string{"Mailboxes are Unix users: the name service must be able to list them (getent passwd)."},
	},
	{
		Name: "froxlor", Title: "Froxlor",
		From:    "Froxlor/Froxlor at b49f20af95eb: lib/configfiles/bookworm.xml",
		Marks:   []string{"/var/www/html/froxlor/lib/userdata.inc.php", "/var/www/froxlor/lib/userdata.inc.php"},
		Postfix: "/etc/postfix",
		Choose:  []string{"smtpd_milters: inet:127.0.0.1:11332=ignore"},
		Filters: []Filter{{"inet:127.0.0.1:11332", rspamd, stillAsks}},
	},
	{
		Name: "ispmail", Title: "ISPmail tutorial (workaround.org)",
		From:    "Signum/ispmail-bookworm-ansible at ffe3cb1d69d2: roles/ispmail-postfix",
		Marks:   []string{"/etc/postfix/mysql-email2email.cf", "/etc/postfix/mysql-virtual-mailbox-maps.cf"},
		Postfix: "/etc/postfix",
		Choose:  []string{"smtpd_milters: inet:127.0.0.1:11332=ignore", "smtpd_recipient_restrictions: check_policy_service unix:private/quota-status=ignore"},
		Filters: []Filter{
			{"inet:127.0.0.1:11332", rspamd, stillAsks},
			{"unix:private/quota-status", "Dovecot's quota", quota},
		},
	},
}

// mailu is the command that prints one of Mailu's tables: what its socket answers, as
// core/admin/mailu/internal/views/postfix.py has it, from the exported configuration.
func mailu(table string) string {
	return "docker exec -i {admin} python3 -c '" + mailuScript + "' " + table
}

const mailuScript = `import json, subprocess, sys, idna
out = subprocess.run(["flask", "mailu", "config-export", "--full", "--json", "domain", "user", "alias", "relay"], check=True, stdout=subprocess.PIPE).stdout
x = json.loads(out)
def dom(d):
    try: return idna.encode(d.lower()).decode("ascii")
    except idna.IDNAError: return d.lower()
def adr(a):
    l, d = a.rsplit("@", 1)
    return l.lower(), dom(d)
def name(v): return dom(v["name"] if isinstance(v, dict) else v)
def text(v): return v if isinstance(v, str) else ",".join(v or [])
also = {name(d): [name(d)] + [name(a) for a in d.get("alternatives") or []] for d in x.get("domain") or []}
users = {adr(u["email"]): u for u in x.get("user") or []}
def put(k, v): print(k + "\t" + (v or k))
table = sys.argv[1]
if table == "domain":
    for d, names in also.items():
        for n in names: put(n, d)
elif table == "mailbox":
    for l, d in users: put(l + "@" + d, "")
elif table == "transport":
    for r in x.get("relay") or []: put(name(r), "smtp:")
elif table == "alias":
    seen = set()
    for (l, d), u in users.items():
        for n in also.get(d, [d]):
            seen.add((l, n))
            put(l + "@" + n, text(u.get("forward_destination")) if u.get("forward_enabled") and not u.get("forward_keep") else l + "@" + d)
    for a in x.get("alias") or []:
        l, d = adr(a["email"])
        owner = a.get("owner_email")
        if a.get("disabled") or owner and not users.get(adr(owner), {}).get("enabled"): continue
        for n in also.get(d, [d]):
            if not a.get("wildcard"):
                if (l, n) not in seen: put(l + "@" + n, text(a.get("destination")))
            elif l == "%": put("@" + n, text(a.get("destination")))
            elif "%" in l or "_" in l: print("\tthe alias " + l + "@" + d + " has a wildcard")
            else: put(l + "@" + n, text(a.get("destination")))
    print("@") # its server searches for parts of addresses: extensions, and what has a wildcard
else: sys.exit("no such table")`
