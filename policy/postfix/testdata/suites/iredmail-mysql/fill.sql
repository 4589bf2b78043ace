INSERT INTO domain (domain, transport, backupmx, active)
 SELECT name, CASE WHEN transport <> '' THEN transport ELSE 'dovecot' END, kind = 'relay', active FROM gen_domain WHERE kind <> 'alias';
INSERT INTO alias_domain (alias_domain, target_domain, active) SELECT name, target, active FROM gen_domain WHERE kind = 'alias';
INSERT INTO mailbox (username, password, storagebasedirectory, storagenode, maildir, domain, transport, enabledeliver, active)
 SELECT address, 'x', '/var/vmail', 'vmail1', maildir, domain, CASE WHEN n % 41 = 0 THEN 'lmtp:inet:far.example:24' ELSE '' END, n % 29 <> 0, active
 FROM gen_mailbox;
INSERT INTO forwardings (address, forwarding, domain, dest_domain, is_forwarding, active) SELECT address, address, domain, domain, 1, active FROM gen_mailbox;
-- a catch-all's address is the domain
INSERT INTO forwardings (address, forwarding, domain, dest_domain, is_alias, active)
 SELECT CASE WHEN kind = 'catchall' THEN domain ELSE address END, dest, domain, 'else.example', kind = 'alias', active FROM gen_alias WHERE kind <> 'list';
-- a list has a row for each member
INSERT INTO forwardings (address, forwarding, domain, dest_domain, is_list, active)
 SELECT a.address, m.address, a.domain, m.domain, 1, a.active FROM gen_alias a, gen_mailbox m
 WHERE a.kind = 'list' AND m.n % 500 = a.n % 500 AND m.address <> a.address ORDER BY a.id, m.id;
INSERT INTO maillists (address, domain, transport, mlid, active)
 SELECT address, domain, CONCAT('mlmmj:', domain, '/', local_part), id, active FROM gen_alias WHERE kind = 'list' AND n % 2 = 0;
