-- server 2 is another machine
INSERT INTO mail_domain (server_id, domain, active) SELECT IF(n % 10 = 0, 2, 1), name, IF(active, 'y', 'n') FROM gen_domain WHERE kind <> 'relay';
INSERT INTO mail_user (server_id, email, login, cc, forward_in_lda, postfix, disabledeliver, disablesmtp, greylisting)
 SELECT IF(n % 37 = 0, 2, 1), address, address, IF(n % 19 = 0, CONCAT('copy', n, '@far.example'), ''), IF(n % 38 = 0, 'y', 'n'), IF(active, 'y', 'n'),
  IF(n % 43 = 0, 'y', 'n'), IF(n % 23 = 0, 'y', 'n'), IF(n % 3 = 0, 'y', 'n') FROM gen_mailbox;
INSERT INTO mail_forwarding (server_id, source, destination, type, active, greylisting)
 SELECT IF(n % 37 = 0, 2, 1), address, dest, CASE kind WHEN 'catchall' THEN 'catchall' WHEN 'list' THEN 'forward' ELSE 'alias' END, IF(active, 'y', 'n'), IF(n % 5 = 0, 'y', 'n') FROM gen_alias;
INSERT INTO mail_forwarding (server_id, source, destination, type, active) SELECT 1, CONCAT('@', name), CONCAT('@', target), 'aliasdomain', IF(active, 'y', 'n') FROM gen_domain WHERE kind = 'alias';
INSERT INTO mail_transport (server_id, domain, transport, active) SELECT 1, destination, nexthop, IF(active, 'y', 'n') FROM gen_transport;
INSERT INTO mail_access (server_id, source, access, type, active) SELECT 1, pattern, action, ELT(1 + n % 3, 'recipient', 'sender', 'client'), IF(active, 'y', 'n') FROM gen_access;
INSERT INTO mail_relay_recipient (server_id, source, active) SELECT 1, CONCAT('in.', id, '@', name), IF(active, 'y', 'n') FROM gen_domain WHERE kind = 'relay';
