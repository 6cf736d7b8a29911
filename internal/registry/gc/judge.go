package gc

import (
	"fmt"
	"time"

	"github.com/fairway-registry/fairway/internal/registry/meta"
)

// Reasons for which things are kept; they are keys of a run's "kept" map.
const (
	KeptTag        = "tag"        // a tag names it
	KeptIndex      = "index"      // a living index names it
	KeptSubject    = "subject"    // it refers to a living subject
	KeptLease      = "lease"      // somebody holds a lease on it or on what is above it
	KeptWindow     = "window"     // confirmed, or bereft of its last reference, within the window
	KeptGrace      = "grace"      // untagged, but not for long enough
	KeptTrash      = "trash"      // a manifest in the trash may want it back, or it is there and not expired
	KeptReferenced = "referenced" // a living manifest needs it
	KeptLinked     = "linked"     // a repository serves it
	KeptBusy       = "busy"       // an upload with a request in progress
	KeptPolicy     = "policy"     // nothing says that it should go
	KeptStranded   = "stranded"   // a signature whose image is gone, and that the policy keeps
	KeptRaced      = "raced"      // it changed between judgement and claim
)

// Limits are a policy's durations in milliseconds, with the time of judgement.
type Limits struct {
	Now                              int64
	Window, Trash, Untagged, Uploads int64
	Stranded                         int64
}

// LimitsOf applies a policy at a time, in ms.
func LimitsOf(p meta.Policy, now int64) Limits {
	l := Limits{
		Now:      now,
		Window:   time.Duration(p.Window).Milliseconds(),
		Trash:    time.Duration(p.Trash).Milliseconds(),
		Untagged: time.Duration(p.Untagged).Milliseconds(),
		Uploads:  time.Duration(p.Uploads).Milliseconds(),
		Stranded: time.Duration(p.Stranded).Milliseconds(),
	}
	if l.Uploads == 0 {
		l.Uploads = l.Window
	}
	return l
}

// cutoff is the latest time of a last touch that is due. A duration of 0 means
// no protection by time at all.
func (l Limits) cutoff(d int64) int64 {
	if d == 0 {
		return meta.NoLimit
	}
	return l.Now - d
}

// untagged is how long a manifest that nothing keeps stays, where such manifests
// go at all. It is never shorter than the window: a client that was told of a
// manifest may be about to push an index that names it (R3).
func (l Limits) untagged() int64 { return max(l.Untagged, l.Window) }

// stranded is how long a signature whose image is gone stays, where such
// signatures go at all. It is never shorter than the window.
func (l Limits) stranded() int64 { return max(l.Stranded, l.Window) }

// due reports whether something touched at that time is out of its time.
func (l Limits) due(touched, d int64) bool { return touched <= l.cutoff(d) }

// Verdict is what a judge says of one thing.
type Verdict struct {
	Go     bool   // to the trash, or for good
	Kept   string // why not, one of the Kept… constants
	Holder string // of the lease, where that is why
	Reason string // one sentence for people: why it goes or stays
	// Again is when the same judge may say otherwise though nothing happens, in
	// ms; 0: not before an event.
	Again int64
}

func keep(why string, again int64, format string, args ...any) Verdict {
	return Verdict{Kept: why, Again: again, Reason: fmt.Sprintf(format, args...)}
}

// some renders a number with the words for one or for more.
func some(n int64, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

// leased reports a lease that is in force, or has ended within the window.
func leased(h meta.LeaseHold, l Limits) bool { return h.Held() && h.ExpiresAt > l.Now-l.Window }

// lease is the verdict on what a lease keeps, or has kept until within the
// window: its end is an event like the loss of a reference.
func lease(h meta.LeaseHold, l Limits) Verdict {
	node, ofNode := meta.NodeOf(h.Holder)
	switch {
	case h.ExpiresAt <= l.Now && ofNode:
		return keep(KeptWindow, h.ExpiresAt+l.Window, "it or what is above it was in use on node %s within the window", node)
	case h.ExpiresAt <= l.Now:
		return keep(KeptWindow, h.ExpiresAt+l.Window, "the lease of %s on it or on what is above it ended within the window", h.Holder)
	}
	v := keep(KeptLease, h.ExpiresAt+l.Window, "%s holds a lease on it or on what is above it", h.Holder)
	if ofNode {
		v.Reason = fmt.Sprintf("it or what is above it is in use on node %s", node)
	}
	v.Holder = h.Holder
	return v
}

// JudgeManifest decides whether a living manifest goes to the trash.
func JudgeManifest(f meta.ManifestFacts, l Limits) Verdict {
	switch {
	case f.Tags > 0:
		return keep(KeptTag, 0, "%s it", some(f.Tags, "tag names", "tags name"))
	case f.Parents > 0:
		return keep(KeptIndex, 0, "%s it", some(f.Parents, "index names", "indexes name"))
	case f.Subjects > 0:
		return keep(KeptSubject, 0, "it refers to a manifest that is there")
	case leased(f.Lease, l):
		return lease(f.Lease, l)
	}
	if f.OrphanedAt != 0 {
		last := max(f.OrphanedAt, f.LooseAt, f.TouchedAt)
		if !l.due(last, l.Window) {
			return keep(KeptWindow, last+l.Window, "its index or subject was deleted, or a client was told of it, within the window")
		}
		return Verdict{Go: true, Reason: fmt.Sprintf("its index or subject %s was deleted and nothing else keeps it", f.OrphanOf)}
	}
	if l.Untagged == 0 {
		return keep(KeptPolicy, 0, "no tag keeps it, but untagged manifests are kept")
	}
	last := max(f.LooseAt, f.TouchedAt)
	switch {
	case !l.due(last, l.Untagged):
		return keep(KeptGrace, last+l.untagged(), "it is untagged, but not for long enough")
	case !l.due(last, l.Window):
		return keep(KeptWindow, last+l.Window, "it is untagged, but a client was told of it, or its last tag, index or subject went, within the window")
	}
	return Verdict{Go: true, Reason: fmt.Sprintf("no tag, index or subject has kept it for %s", time.Duration(l.untagged())*time.Millisecond)}
}

// JudgeStranded decides whether a signature, or an index of referrers, goes to
// the trash whose tag is named after a manifest that is gone.
func JudgeStranded(f meta.StrandedFacts, l Limits) Verdict {
	switch {
	case f.InTrash:
		return keep(KeptTrash, 0, "it belongs to %s, which was deleted and can be restored", f.Subject)
	case f.OtherTags > 0:
		return keep(KeptTag, 0, "%s it besides that of its subject, which is gone", some(f.OtherTags, "tag names", "tags name"))
	case f.Parents > 0:
		return keep(KeptIndex, 0, "%s it", some(f.Parents, "index names", "indexes name"))
	case f.Subjects > 0:
		return keep(KeptSubject, 0, "it refers to a manifest that is there")
	case leased(f.Lease, l):
		return lease(f.Lease, l)
	case l.Stranded == 0:
		return keep(KeptStranded, 0, "it belongs to %s, which is gone, but stranded signatures are kept", f.Subject)
	}
	last := max(f.Since, f.TouchedAt)
	switch {
	case !l.due(last, l.Stranded):
		return keep(KeptGrace, last+l.stranded(), "it belongs to %s, which is gone, but not for long enough", f.Subject)
	case !l.due(last, l.Window):
		return keep(KeptWindow, last+l.Window, "it belongs to %s, which is gone, but a client was told of it, or of that one's end, within the window", f.Subject)
	}
	return Verdict{Go: true, Reason: fmt.Sprintf("it belongs to %s, which is gone", f.Subject)}
}

// JudgeTrash decides whether a manifest leaves the trash for good.
func JudgeTrash(f meta.TrashFacts, l Limits) Verdict {
	v := Verdict{Go: true, Reason: "its time in the trash was over"}
	switch {
	case f.Indexed:
		return keep(KeptIndex, 0, "it was deleted, but an index that may want it back is there")
	case leased(f.Lease, l):
		v = lease(f.Lease, l)
	}
	if !l.due(f.TrashedAt, l.Trash) {
		if v.Kept != KeptLease {
			v = keep(KeptTrash, v.Again, "it is in the trash and can be restored")
		}
		v.Again = max(v.Again, f.TrashedAt+l.Trash)
	}
	return v
}

// JudgeLink decides whether a repository serves a blob no longer.
func JudgeLink(f meta.LinkFacts, l Limits) Verdict {
	switch {
	case f.Living > 0:
		return keep(KeptReferenced, 0, "%s it", some(f.Living, "manifest needs", "manifests need"))
	case f.Trashed > 0:
		return keep(KeptTrash, 0, "%s in the trash may want it back", some(f.Trashed, "manifest", "manifests"))
	case leased(f.Lease, l):
		return lease(f.Lease, l)
	case !l.due(f.TouchedAt, l.Window):
		return keep(KeptWindow, f.TouchedAt+l.Window, "a client was told of it, or its last manifest went, within the window")
	}
	return Verdict{Go: true, Reason: "no manifest of the repository needs it"}
}

// JudgeBlob decides whether a blob goes for good.
func JudgeBlob(f meta.BlobFacts, l Limits) Verdict {
	switch {
	case f.Links > 0:
		return keep(KeptLinked, 0, "%s it", some(f.Links, "repository has", "repositories have"))
	case leased(f.Lease, l):
		return lease(f.Lease, l)
	case !l.due(f.TouchedAt, l.Window):
		return keep(KeptWindow, f.TouchedAt+l.Window, "a client was told of it within the window")
	}
	return Verdict{Go: true, Reason: "no repository has it any more"}
}

// JudgeUpload decides whether an upload session is abandoned. busy says that a
// request of it is in progress.
func JudgeUpload(f meta.UploadFacts, busy bool, l Limits) Verdict {
	switch {
	case busy:
		return keep(KeptBusy, 0, "a request is in progress")
	case !l.due(f.TouchedAt, l.Uploads):
		return keep(KeptWindow, f.TouchedAt+l.Uploads, "it was in use within the window")
	}
	return Verdict{Go: true, Reason: "nobody went on with the upload"}
}
