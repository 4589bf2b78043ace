INSERT INTO panel_customers (customerid, loginname, email, deactivated) SELECT id, CONCAT('web', id), CONCAT('customer@', name), n % 9 = 0 FROM gen_domain;
INSERT INTO panel_domains (id, domain, customerid, isemaildomain, deactivated) SELECT id, name, id, kind <> 'relay', active = 0 FROM gen_domain;
INSERT INTO mail_users (id, email, username, homedir, maildir, postfix, domainid, customerid)
 SELECT id, address, address, '/var/customers/mail/', maildir, IF(active = 1, 'Y', 'N'), domain_id, domain_id FROM gen_mailbox;
INSERT INTO mail_virtual (email, email_full, destination, domainid, customerid, popaccountid) SELECT address, address, CONCAT(address, ' '), domain_id, domain_id, id FROM gen_mailbox;
INSERT INTO mail_virtual (email, email_full, destination, domainid, customerid, iscatchall)
 SELECT address, IF(kind = 'catchall', CONCAT('info', address), address), CASE n % 11 WHEN 0 THEN '' WHEN 1 THEN '  ' WHEN 2 THEN NULL ELSE REPLACE(dest, ',', ' ') END, domain_id, domain_id, kind = 'catchall' FROM gen_alias;
