-- +goose Up
-- The address of a node's gossip, by which other nodes join the swarm.
ALTER TABLE nodes ADD COLUMN swarm TEXT NOT NULL DEFAULT '';
