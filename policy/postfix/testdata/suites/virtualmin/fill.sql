SELECT name || char(9) || name FROM gen_domain WHERE kind <> 'relay' AND active = 1;
SELECT '@' || name || char(9) || '@' || target FROM gen_domain WHERE kind = 'alias' AND active = 1;
SELECT address || char(9) || 'u' || id FROM gen_mailbox WHERE active = 1 AND address NOT LIKE '% %' AND address NOT LIKE '%"%' AND address NOT LIKE '#%';
SELECT address || char(9) || dest FROM gen_alias WHERE active = 1;
