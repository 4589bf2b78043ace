INSERT INTO virtual_domains (id, name) SELECT id, name FROM gen_domain WHERE active = 1 AND kind <> 'relay';
INSERT INTO virtual_users (domain_id, password, email) SELECT domain_id, 'x', address FROM gen_mailbox JOIN virtual_domains d ON d.id = domain_id WHERE active = 1;
INSERT INTO virtual_aliases (domain_id, source, destination) SELECT domain_id, address, SUBSTRING_INDEX(dest, ',', 1) FROM gen_alias JOIN virtual_domains d ON d.id = domain_id;
INSERT INTO virtual_aliases (domain_id, source, destination) SELECT domain_id, address, 'second@far.example' FROM gen_alias JOIN virtual_domains d ON d.id = domain_id WHERE kind = 'list';
INSERT INTO virtual_aliases (domain_id, source, destination) SELECT id, CONCAT('@', name), CONCAT('@', target) FROM gen_domain WHERE kind = 'alias' AND active = 1;
