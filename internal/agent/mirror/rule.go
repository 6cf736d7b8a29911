package mirror

import "github.com/fairway-registry/fairway/internal/ociclient"

// standing is how much an earlier word of an upstream still counts.
type standing uint8

const (
	never standing = iota
	past           // it is to be confirmed, and counts while the upstream decides nothing
	fresh
)

// facts is all that a decision about a digest depends on.
type facts struct {
	direct standing // the upstream gave this very digest to the asker, or to everybody
	loose  standing // it gave the asker, or everybody, a manifest that names the digest
	heard  bool     // another node says that everybody may have it
	public bool     // the right is everybody's

	present bool // some of the bytes are on this machine
	open    bool // and came without credentials
	origin  bool // and came as content of this upstream
	shares  bool // what is not here may come from another node

	asked   bool // the upstream was asked about the digest just now
	outcome ociclient.Outcome
}

// decision is what to do about a request for a digest.
type decision uint8

const (
	refuse decision = iota // with the upstream's answer
	ask                    // the upstream about this very digest, and decide again
	serve                  // from the nearest place that has it
	relay                  // only what this upstream sends now, verified
)

func (d decision) String() string { return [...]string{"refuse", "ask", "serve", "relay"}[d] }

// decide is the rule of docs/rights.md, and the only place where it is applied.
// Every doubt ends in a question to the upstream or in a refusal.
func decide(f facts) decision {
	if f.asked && f.outcome == ociclient.OK {
		f.direct = fresh
	}
	needed := fresh
	if f.asked {
		if f.outcome == ociclient.Denied || f.outcome == ociclient.NotFound {
			return refuse
		}
		needed = past // an outage is not a verdict
	}
	loose := f.loose
	if f.heard {
		loose = fresh
	}
	switch {
	case f.direct >= needed:
	case loose >= needed && f.present && f.open:
	case loose >= needed && !f.present && (f.asked || f.public || !f.shares):
		// Nothing is here that could be given away. What brings it asks the upstream.
	case f.asked:
		return refuse
	default:
		return ask
	}
	if f.present && !f.open && !f.origin {
		// The upstream says that it has the content, but only bytes prove that.
		return relay
	}
	return serve
}
