INSERT INTO domain (domain, backupmx, relay_all_recipients, relay_unknown_only, active)
 SELECT name, kind = 'relay', kind = 'relay' AND n % 2 = 0, kind = 'relay' AND n % 3 = 0, active FROM gen_domain WHERE kind <> 'alias';
INSERT INTO alias_domain (alias_domain, target_domain, active) SELECT name, target, active FROM gen_domain WHERE kind = 'alias';
-- active is 2 for a mailbox that may receive and not log in
INSERT INTO mailbox (username, password, local_part, domain, attributes, kind, active)
 SELECT address, 'x', local_part, domain,
  JSON_OBJECT('mailbox_format', IF(n % 5 = 0, 'mdbox:', 'maildir:'), 'tls_enforce_in', IF(n % 7 = 0, '1', '0')),
  CASE n % 50 WHEN 1 THEN 'location' WHEN 2 THEN 'thing' WHEN 3 THEN 'group' ELSE '' END, IF(active = 0 AND n % 2 = 0, 2, active)
 FROM gen_mailbox;
INSERT INTO alias (address, goto, domain, active) SELECT address, address, domain, active FROM gen_mailbox;
INSERT IGNORE INTO alias (address, goto, domain, active) SELECT address, dest, domain, IF(active = 0 AND n % 2 = 0, 2, active) FROM gen_alias;
INSERT INTO alias (address, goto, domain, active) SELECT CONCAT('in.', id, '@', name), 'relayed@far.example', name, 1 FROM gen_domain WHERE kind = 'relay';
INSERT IGNORE INTO spamalias (address, goto, description, validity, permanent)
 SELECT CONCAT('spam.', local_part, '@', domain), dest, '', CASE expires WHEN 0 THEN NULL ELSE UNIX_TIMESTAMP() + expires * 864000 END, expires = 0 AND n % 2 = 0
 FROM gen_alias WHERE kind = 'alias' AND n % 3 = 0;
INSERT INTO recipient_maps (old_dest, new_dest, active) SELECT CONCAT('old.', local_part, '@', domain), dest, active FROM gen_alias WHERE n % 17 = 0;
INSERT INTO recipient_maps (old_dest, new_dest, active) SELECT CONCAT('@moved', id, '.example'), CONCAT('@', name), active FROM gen_domain WHERE n % 9 = 0;
INSERT INTO transports (destination, nexthop, active) SELECT destination, nexthop, active FROM gen_transport;
INSERT INTO transports (destination, nexthop, is_mx_based, active) SELECT CONCAT('^mx[0-9]+[.]hop', n, '[.]example$'), nexthop, 1, active FROM gen_transport WHERE n % 4 = 0;
