-- +goose Up
-- What is left to do with the children and referrers of a manifest, by repository:
-- until it is done, nothing leaves the repository's trash. mode 0: they are brought
-- in line with what the manifest is; 1: those in the trash stay there longer; 2, 3:
-- its children, or its referrers too, come back from the trash.
ALTER TABLE kin ADD COLUMN repo_id    INTEGER NOT NULL DEFAULT 0;
ALTER TABLE kin ADD COLUMN mode       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE kin ADD COLUMN root       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE kin ADD COLUMN renewed_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE kin ADD COLUMN actor      TEXT    NOT NULL DEFAULT '';
UPDATE kin SET repo_id = (SELECT repo_id FROM manifests m WHERE m.id = manifest_id);
CREATE INDEX kin_repo ON kin (repo_id);
CREATE INDEX kin_root ON kin (root, manifest_id);

-- Manifests that name too much for one transaction, on their way in. Each has a row
-- in manifests that is not served and not in the trash.
CREATE TABLE staged (
    manifest_id INTEGER PRIMARY KEY REFERENCES manifests (id)
);

CREATE INDEX blobs_lost ON blobs (lost_at) WHERE lost_at IS NOT NULL;
