-- Requests that wait for an operator, and those that did. What became of an approval
-- stands in its certificate's row.
CREATE TABLE pending (
	seq            INTEGER PRIMARY KEY, -- of the line that made it wait
	digest         TEXT    NOT NULL,
	request        TEXT    NOT NULL UNIQUE,
	profile        TEXT    NOT NULL,
	kind           TEXT    NOT NULL,
	subject        TEXT    NOT NULL,
	names          TEXT    NOT NULL,
	spki           TEXT    NOT NULL,
	transaction_id TEXT    NOT NULL,
	signer         TEXT    NOT NULL,
	csr            TEXT    NOT NULL,
	challenge      TEXT    NOT NULL,
	predecessor    TEXT    NOT NULL,
	source         TEXT    NOT NULL,
	policy         TEXT    NOT NULL,
	created        INTEGER NOT NULL,
	expires        INTEGER NOT NULL,
	facts          TEXT    NOT NULL, -- JSON
	intent_seq     INTEGER NOT NULL DEFAULT 0, -- of the newest approval
	denied_seq     INTEGER NOT NULL DEFAULT 0,
	why            TEXT    NOT NULL DEFAULT ''
) STRICT;

-- PendingOf.
CREATE INDEX pending_transaction ON pending (profile, transaction_id, signer, seq);
-- DeniedBefore.
CREATE INDEX pending_denied ON pending (substr(csr, 1, 16)) WHERE denied_seq > 0;
-- PendingCount.
CREATE INDEX pending_open ON pending (profile, expires) WHERE denied_seq = 0;
