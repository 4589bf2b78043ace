INSERT INTO domains SELECT id, name, kind, target, active FROM gen_domain;
INSERT INTO boxes SELECT id, domain_id, local_part, address, maildir, active FROM gen_mailbox;
INSERT INTO redirects SELECT id, address, CASE WHEN kind = 'catchall' THEN NULL ELSE local_part END, domain, dest, n % 5, active FROM gen_alias;
INSERT INTO redirects SELECT 50000 + id, address, local_part, domain, 'own.' || id || '@far.example', 9, active FROM gen_mailbox WHERE n % 8 = 0;
INSERT INTO odd SELECT id, CASE WHEN id % 3 = 0 THEN address || '  ' ELSE address END, CASE WHEN id % 3 = 0 THEN CAST(address AS BLOB) ELSE address END, CASE WHEN id % 3 = 0 THEN '0' || id ELSE address END, id, maildir FROM gen_mailbox WHERE id % 2 = 0;
