package mirror

import (
	"fmt"
	"sync"
	"time"

	"github.com/fairway-registry/fairway/internal/oci"
)

// oversized remembers which blobs the owner has been told of that are larger than
// the whole cache: no eviction makes room for them, so the evictor is not asked,
// and has nothing to tell.
type oversized struct {
	mu   sync.Mutex
	last map[oci.Digest]time.Time // told, or wanted again since
}

const (
	// oversizedAgain ends an episode: nobody has wanted the blob for that long.
	oversizedAgain = time.Hour
	oversizedMax   = 1000
)

// begins reports that an episode begins with this request.
func (o *oversized) begins(d oci.Digest, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	last, told := o.last[d]
	if o.last == nil || len(o.last) >= oversizedMax {
		o.last = map[oci.Digest]time.Time{}
	}
	o.last[d] = now
	return !told || now.Sub(last).Abs() > oversizedAgain
}

// tellOversized tells of a blob that was refused by the cache, if that is because
// it could never fit.
func (p *pull) tellOversized() {
	quota := p.m.o.Store.Usage().Quota
	if quota == 0 || p.want.Size <= quota {
		return
	}
	p.m.metrics.oversized.Inc()
	if p.m.oversized.begins(p.want.Digest, p.m.o.Now()) {
		p.m.o.Log.Warn("a blob is larger than the whole cache, and is passed on without being cached; a larger quota would keep it",
			"repository", p.want.Repo, "err", fmt.Errorf("%s of %s has %d bytes, and the quota is %d", p.want.Digest, p.want.Repo, p.want.Size, quota))
	}
}
