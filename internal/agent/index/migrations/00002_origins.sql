-- +goose Up
CREATE TABLE origins (
    digest    TEXT NOT NULL,
    namespace TEXT NOT NULL,
    PRIMARY KEY (digest, namespace)
) WITHOUT ROWID;

CREATE INDEX grants_repository ON grants (namespace, repository);
