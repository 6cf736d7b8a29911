-- +goose Up
-- The bytes came from a PUT of the whole blob that broke off.
ALTER TABLE uploads ADD COLUMN whole INTEGER NOT NULL DEFAULT 0;
