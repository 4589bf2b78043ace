-- Who shares the database, and what each says of itself.
CREATE TABLE understudy.member (
	name text PRIMARY KEY,      -- its spool's, too
	seen timestamptz NOT NULL,  -- by the clock of the database
	says bytea NOT NULL         -- see package fleet
) WITH (fillfactor = 50);
