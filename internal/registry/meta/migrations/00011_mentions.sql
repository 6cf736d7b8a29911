-- +goose Up
-- Manifests of other types than these may mention digests that earlier versions did
-- not note. The next start reads them again.
CREATE TABLE unread (
    manifest_id INTEGER PRIMARY KEY REFERENCES manifests (id) ON DELETE CASCADE
);
INSERT INTO unread (manifest_id) SELECT id FROM manifests
WHERE media_type NOT IN ('application/vnd.oci.image.manifest.v1+json', 'application/vnd.oci.image.index.v1+json',
        'application/vnd.docker.distribution.manifest.v2+json', 'application/vnd.docker.distribution.manifest.list.v2+json')
    AND id NOT IN (SELECT manifest_id FROM staged);
