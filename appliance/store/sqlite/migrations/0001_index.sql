-- What each column means is said beside the types of appliance/store. Times are
-- Unix seconds. An index costs every enrollment a page: each has one reader, named here.

-- The last line that was applied. No row: none was.
CREATE TABLE head (
	one  INTEGER PRIMARY KEY CHECK (one = 1),
	seq  INTEGER NOT NULL,
	hash BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;

CREATE TABLE challenge (
	seq      INTEGER PRIMARY KEY, -- of the line that created it
	id       TEXT    NOT NULL UNIQUE,
	tag      BLOB    NOT NULL UNIQUE CHECK (length(tag) = 32),
	profile  TEXT    NOT NULL,
	names    TEXT    NOT NULL, -- JSON
	created  INTEGER NOT NULL,
	expires  INTEGER NOT NULL,
	state    TEXT    NOT NULL CHECK (state IN ('open', 'spent', 'revoked')),
	refusals INTEGER NOT NULL DEFAULT 0,
	spent_by INTEGER NOT NULL DEFAULT 0,
	lineage  TEXT    NOT NULL DEFAULT ''
) STRICT;

-- Challenges: those that are open, which a start after a crash has to close.
CREATE INDEX challenge_open ON challenge (seq) WHERE state = 'open';

CREATE TABLE certificate (
	intent_seq     INTEGER PRIMARY KEY,
	serial         TEXT    NOT NULL UNIQUE,
	profile        TEXT    NOT NULL,
	issuer         TEXT    NOT NULL,
	request        TEXT    NOT NULL,
	subject        TEXT    NOT NULL,
	names          TEXT    NOT NULL,
	spki           TEXT    NOT NULL,
	not_before     INTEGER NOT NULL,
	not_after      INTEGER NOT NULL,
	lineage        TEXT    NOT NULL,
	generation     INTEGER NOT NULL,
	lineage_from   INTEGER NOT NULL,
	predecessor    TEXT    NOT NULL,
	challenge      TEXT    NOT NULL,
	transaction_id TEXT    NOT NULL,
	signer         TEXT    NOT NULL,
	csr            TEXT    NOT NULL,
	state          TEXT    NOT NULL CHECK (state IN ('intended', 'issued', 'failed', 'unknown')),
	result_seq     INTEGER NOT NULL DEFAULT 0,
	revocation_due INTEGER NOT NULL DEFAULT 0,
	der            BLOB,
	CHECK ((state = 'issued') = (der IS NOT NULL)),
	CHECK ((state = 'intended') = (result_seq = 0))
) STRICT;

-- The digests are hex, of which 64 bits find a row among billions; whole, these
-- three indexes would be three times as large.

-- Transaction and RenewalOf.
CREATE INDEX certificate_csr ON certificate (substr(csr, 1, 16));
-- InUse: certificates of a name.
CREATE INDEX certificate_names ON certificate (substr(names, 1, 16), not_after);
-- InUse: certificates of a key.
CREATE INDEX certificate_spki ON certificate (substr(spki, 1, 16));
-- LineageRenewals.
CREATE INDEX certificate_lineage ON certificate (lineage, generation);
-- InUse: what was renewed.
CREATE INDEX certificate_predecessor ON certificate (predecessor) WHERE predecessor <> '';
-- OpenIntents.
CREATE INDEX certificate_intended ON certificate (intent_seq) WHERE state = 'intended';
