INSERT INTO domain (domain, description, transport, backupmx, active)
 SELECT name, '', CASE WHEN kind = 'relay' THEN 'relay:[inner.example]' WHEN transport <> '' THEN transport ELSE 'virtual' END, kind = 'relay', active FROM gen_domain;
INSERT INTO alias_domain (alias_domain, target_domain, active) SELECT name, target, active FROM gen_domain WHERE kind = 'alias';
INSERT INTO mailbox (username, password, name, maildir, local_part, domain, active) SELECT address, 'x', '', maildir, local_part, domain, active FROM gen_mailbox;
INSERT INTO alias (address, goto, domain, active) SELECT address, address, domain, active FROM gen_mailbox;
INSERT IGNORE INTO alias (address, goto, domain, active) SELECT address, dest, domain, active FROM gen_alias;
