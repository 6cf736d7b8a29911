-- +goose Up
-- A blob that is in many repositories: one that serves it is found at once.
DROP INDEX links_blob;
CREATE INDEX links_blob ON links (blob_id, hidden);

-- What a repository has, apart by whether it is in the trash, and what is at risk.
CREATE INDEX manifests_state ON manifests (repo_id, trashed_at);
CREATE INDEX manifests_untagged ON manifests (repo_id, id) WHERE loose_at IS NOT NULL;

CREATE INDEX preheats_age ON preheats (created_at);
CREATE INDEX preheat_nodes_silent ON preheat_nodes (updated_at) WHERE finished_at IS NULL;

-- Children and referrers of a manifest that have yet to be told that it was
-- pushed, restored or deleted: it has too many for one transaction.
CREATE TABLE kin (
    manifest_id INTEGER PRIMARY KEY REFERENCES manifests (id),
    run_id      INTEGER NOT NULL,
    referrers   INTEGER NOT NULL,
    after       TEXT    NOT NULL
);

-- What a node runs may be megabytes, and is read and written apart from the
-- rest. nodes.runs has the first few of it, for lists.
CREATE TABLE node_runs (
    name TEXT PRIMARY KEY REFERENCES nodes (name) ON DELETE CASCADE,
    runs TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO node_runs (name, runs) SELECT name, runs FROM nodes;
ALTER TABLE nodes ADD COLUMN images INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN digests INTEGER NOT NULL DEFAULT 0;
UPDATE nodes SET images = json_array_length(runs),
    runs = (SELECT json_group_array(json(value)) FROM (SELECT value FROM json_each(nodes.runs) LIMIT 5)),
    digests = (SELECT count(*) FROM lease_digests d WHERE d.holder = 'node:' || nodes.name AND d.expires_at >= nodes.kept_until);
CREATE INDEX nodes_fresh ON nodes (fresh_until);
