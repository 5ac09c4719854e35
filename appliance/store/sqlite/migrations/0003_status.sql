-- When and why a serial was revoked; 0 where it is not, or where no reason is told.
ALTER TABLE certificate ADD COLUMN revoked_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE certificate ADD COLUMN reason     INTEGER NOT NULL DEFAULT 0;

-- Revocations: what an issuer's next list names.
CREATE INDEX certificate_revoked ON certificate (issuer, serial) WHERE revocation_due = 1;

-- The newest list of each issuer.
CREATE TABLE crl (
	issuer      TEXT    PRIMARY KEY,
	number      INTEGER NOT NULL,
	seq         INTEGER NOT NULL UNIQUE, -- of its intent
	this_update INTEGER NOT NULL,
	next_update INTEGER NOT NULL,
	entries     INTEGER NOT NULL,
	sha256      TEXT    NOT NULL DEFAULT '' -- of the signed list; '' while it is not
) STRICT;
