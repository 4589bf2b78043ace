INSERT INTO admin_domain (id, name, enabled, type) SELECT id, name, active = 1, CASE kind WHEN 'relay' THEN 'relaydomain' ELSE 'domain' END FROM gen_domain WHERE kind <> 'alias';
INSERT INTO admin_domainalias (name, target_id, enabled) SELECT a.name, d.id, a.active = 1 FROM gen_domain a JOIN admin_domain d ON d.name = a.target WHERE a.kind = 'alias';
INSERT INTO core_user (id, username, email, is_active) SELECT id, address, address, active = 1 FROM gen_mailbox;
INSERT INTO admin_mailbox (id, address, domain_id, user_id) SELECT id, local_part, domain_id, id FROM gen_mailbox;
INSERT INTO core_user (id, username, email, is_active) SELECT 100000 + id, 'in.' || id || '@' || name, 'in.' || id || '@' || name, n % 4 <> 0 FROM gen_domain WHERE kind = 'relay';
INSERT INTO admin_mailbox (id, address, domain_id, user_id) SELECT 100000 + id, 'in.' || id, id, 100000 + id FROM gen_domain WHERE kind = 'relay';
INSERT INTO admin_mailboxoperation (mailbox_id, type, argument) SELECT id, 'rename', '' FROM gen_mailbox WHERE n % 97 = 0;
-- a mailbox has an alias of its own
INSERT INTO admin_alias (id, address, domain_id, enabled, internal) SELECT id, address, domain_id, active = 1, true FROM gen_mailbox;
INSERT INTO modoboa_admin_aliasrecipient (address, alias_id, r_mailbox_id) SELECT address, id, id FROM gen_mailbox;
INSERT INTO admin_alias (id, address, domain_id, enabled, expire_at)
 SELECT 10000 + id, address, domain_id, active = 1, CASE expires WHEN 0 THEN NULL ELSE now() + expires * interval '10 days' END FROM gen_alias;
INSERT INTO modoboa_admin_aliasrecipient (address, alias_id) SELECT trim(d), 10000 + id FROM gen_alias, unnest(string_to_array(dest, ',')) AS d;
-- alias domains: "@alias" to "@target"
INSERT INTO admin_alias (id, address, enabled, internal) SELECT 20000 + id, '@' || name, active = 1, true FROM gen_domain WHERE kind = 'alias';
INSERT INTO modoboa_admin_aliasrecipient (address, alias_id) SELECT '@' || target, 20000 + id FROM gen_domain WHERE kind = 'alias';
INSERT INTO transport_transport (pattern, service, next_hop) SELECT name, 'relay', '[inner.example]:25' FROM gen_domain WHERE kind = 'relay';
INSERT INTO relaydomains_recipientaccess (pattern, action) SELECT name, 'reject_unverified_recipient' FROM gen_domain WHERE kind = 'relay' AND n % 2 = 0;
