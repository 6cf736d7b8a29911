// Package preheat owns images that nodes fetch ahead: who asks for one, which
// nodes it is for, how a node hears of its part, and how far it is.
//
// The registry remembers and the nodes do the work. A preheat is one row, and
// one row for each of its nodes, chosen once from those that report at that
// moment; a rule's are written by the transaction of the push that it matched.
// A node asks for its oldest open task by a long poll, says how far it is, and
// asks again when it is over: what it has not said to be over it is told of
// again, so neither end has to remember anything across a restart but what is in
// the database. A node that is not heard of for Expiry fails.
//
// An image of this registry is fixed to its digest when the preheat begins; a
// tag of another registry is what each node finds there.
//
// It refuses an image that this registry does not have, and goes by no clock but
// the database's.
package preheat
