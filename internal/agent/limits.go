package agent

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fairway-registry/fairway/internal/agent/evict"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/unit"
)

// Where the settings leave it to the agent: a quota of most of the file system,
// and the margin that a registry keeps.
const (
	// smallQuota is one that was hardly meant.
	smallQuota = 16 << 20 // named by warnOfQuota

	quotaPercent  = 80
	marginMost    = 64 << 20
	marginPercent = 2
)

// limits are l's with r's changes, on a file system of total bytes.
func changed(l piece.Limits, r nodeapi.LimitsRequest, total int64) (piece.Limits, error) {
	if r.QuotaBytes != nil {
		if l.Quota = *r.QuotaBytes; l.Quota == 0 {
			l.Quota = total / 100 * quotaPercent
		}
	}
	if r.MarginBytes != nil {
		if l.MinFree = *r.MarginBytes; l.MinFree == 0 {
			l.MinFree = min(marginMost, total/100*marginPercent)
		}
	}
	if r.HighPercent != nil {
		l.High = unit.Percent(*r.HighPercent).Fraction()
	}
	if r.LowPercent != nil {
		l.Low = unit.Percent(*r.LowPercent).Fraction()
	}
	return l, evict.Limits{Quota: l.Quota, High: l.High, Low: l.Low, MinFree: l.MinFree}.Validate()
}

// fileSystem is the size of the file system that dir is on.
func fileSystem(dir string) (total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	return int64(st.Blocks * uint64(st.Frsize)), nil
}

// Limits are those that hold.
func (a *Agent) Limits() nodeapi.Limits {
	l := a.store.Limits()
	return nodeapi.Limits{QuotaBytes: l.Quota, HighPercent: rounded(l.High), LowPercent: rounded(l.Low), MarginBytes: l.MinFree, Swarm: a.swarm.limits()}
}

// rounded undoes what turning a percentage into a fraction did to it.
func rounded(fraction float64) float64 { return float64(int64(fraction*1e8+0.5)) / 1e6 }

// SetLimits changes limits while the agent runs, until it ends. A cache that is
// over them is evicted from at once, as far as it may be.
func (a *Agent) SetLimits(r nodeapi.LimitsRequest) (nodeapi.Limits, error) {
	a.limiting.Lock()
	defer a.limiting.Unlock()
	total, err := fileSystem(a.cfg.Data)
	if err != nil {
		return nodeapi.Limits{}, err
	}
	l, err := changed(a.store.Limits(), r, total)
	if err != nil {
		return nodeapi.Limits{}, err
	}
	if err := a.swarm.setLimits(r.SwarmLimitsRequest); err != nil {
		return nodeapi.Limits{}, err
	}
	a.store.SetLimits(l)
	a.evictor.Kick()
	a.warnOfQuota(l.Quota)
	a.log.Info("the limits of the cache were set", "quota_bytes", l.Quota, "high", l.High, "low", l.Low, "margin_bytes", l.MinFree)
	return a.Limits(), nil
}

// warnOfQuota warns of a quota that was hardly meant. It is not refused: what does not
// fit is passed on.
func (a *Agent) warnOfQuota(quota int64) {
	if quota < smallQuota {
		a.log.Warn("the quota is smaller than most layers, which are then passed on without being cached; use 16MiB or more. A size without a unit is in bytes: 10GB is ten gigabytes",
			"quota_bytes", quota)
	}
}
