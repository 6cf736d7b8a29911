-- +goose Up
-- Tags that belong to a manifest by their names (sha256-….sig), which was
-- deleted from their repository.
CREATE TABLE stranded (
    repo_id     INTEGER NOT NULL,
    tag         TEXT    NOT NULL,
    manifest_id INTEGER NOT NULL,
    subject     TEXT    NOT NULL,
    since       INTEGER NOT NULL,
    PRIMARY KEY (repo_id, tag),
    FOREIGN KEY (repo_id, tag) REFERENCES tags (repo_id, name) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX stranded_since    ON stranded (since, repo_id, tag);
CREATE INDEX stranded_subject  ON stranded (repo_id, subject);
CREATE INDEX stranded_manifest ON stranded (manifest_id);

INSERT INTO stranded (repo_id, tag, manifest_id, subject, since)
SELECT t.repo_id, t.name, t.manifest_id, s.subject, max(t.updated_at, (SELECT max(seen) FROM clock))
FROM (SELECT repo_id, name, substr(name, 1, 6) || ':' || substr(name, 8, 64) AS subject FROM tags
        WHERE (name GLOB 'sha256-*' OR name GLOB 'sha512-*') AND substr(name, 8, 64) NOT GLOB '*[^0-9a-f]*' AND length(substr(name, 8, 64)) = 64
            AND substr(name, 72) IN ('', '.sig', '.att', '.sbom')) s
    JOIN tags t ON t.repo_id = s.repo_id AND t.name = s.name JOIN repositories r ON r.id = t.repo_id
WHERE NOT EXISTS (SELECT 1 FROM manifests m WHERE m.repo_id = t.repo_id AND m.digest >= s.subject AND m.digest < s.subject || 'g' AND m.trashed_at IS NULL)
    AND EXISTS (SELECT 1 FROM deletions d WHERE d.digest >= s.subject AND d.digest < s.subject || 'g' AND d.repo = r.name AND d.kind = 'manifest');
