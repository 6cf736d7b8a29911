// Package inuse owns what this node believes about its container runtimes:
// which containers exist, in what state, of which images, which images are
// present, and which content is being pulled right now.
//
// A Source is one runtime; its drivers are in the folders below, and
// inusetest is the suite that drivers and the fake both pass. A Tracker asks
// all sources, listens to their events, and merges the answers to one Usage.
//
// What holds:
//
//   - Unknown is not empty (N3). A source that has not answered, or whose last
//     request failed, is listed in Usage.Unknown, and what it last said stays
//     in Containers and Images.
//   - Runtimes that appear later are tracked from then on, until somebody has one
//     forgotten that is gone for good (N13). Every
//     question is preceded by a look at the places where they appear. A runtime
//     that has appeared is in Usage.Unknown until it has answered, and again when
//     it disappears.
//   - A loss is believed only when a second full reading agrees. Whatever was
//     in the last reading and is missing from the next one stays until a later
//     reading, begun half a second after that one or more and without a failed
//     one in between, does not have it either. What is new is believed at once.
//   - Usage.At is when the oldest answer in it was asked for, so whoever
//     compares it with the time of data knows which data the runtimes cannot
//     have told of yet.
//   - A container's content is never named by a tag, which may have moved: see
//     Container.Digests.
//
// The package refuses to judge: it evicts nothing and knows no cache. It never
// changes anything in a runtime.
package inuse
