package main

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/nodeapi"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/unit"
)

func (a *app) cacheCommand() *cobra.Command {
	return a.group(&cobra.Command{
		Use:   "cache",
		Short: "Look at a node's cache, evict, pin",
		Example: `  fairway cache ls
  fairway cache gc --dry-run
  fairway cache pin docker.io/library/busybox:latest`,
	}, a.cacheListCommand(), a.cacheExplainCommand(), a.cacheGCCommand(), a.cachePinCommand(), a.cacheUnpinCommand(),
		a.cachePinsCommand(), a.cacheEventsCommand(), a.cacheLimitsCommand())
}

func (a *app) cacheListCommand() *cobra.Command {
	var tier string
	cmd := a.asksNode(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List what the cache has, and what keeps it",
		Long: `List each blob of the cache (layers, configs, manifests and indexes): its size,
the images it belongs to, its tier, when it was last used, and what pins it.
Active blobs never go; of the others the cold go before the warm.`,
		Example: `  fairway cache ls --tier active`,
		Args:    exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		if tier != "" && !slices.Contains([]string{nodeapi.TierActive, nodeapi.TierWarm, nodeapi.TierCold}, tier) {
			return usagef("--tier %q: there are active, warm and cold", tier)
		}
		var list nodeapi.CacheList
		if err := c.Call(cmd.Context(), "GET", "/cache", nil, &list); err != nil {
			return err
		}
		list.Items = slices.DeleteFunc(list.Items, func(i nodeapi.CacheItem) bool { return tier != "" && i.Tier != tier })
		if q.json {
			return a.stdout.json(list)
		}
		a.printCache(list.Items)
		if old := time.Duration(list.RuntimesAge) * time.Second; old >= oldAnswer {
			a.stderr.printf("A runtime does not answer; this goes by what it said %s ago.\n", unit.Duration(old))
		}
		return nil
	})
	cmd.Flags().StringVar(&tier, "tier", "", "only blobs of this `TIER`: active, warm or cold")
	return cmd
}

// oldAnswer is the age of an answer that people are told of. Runtimes are asked
// every 30 s.
const oldAnswer = time.Minute

func (a *app) printCache(items []nodeapi.CacheItem) {
	t := a.stdout
	if len(items) == 0 && t.tty {
		t.printf("The cache is empty.\n")
		return
	}
	var rows [][]string
	for _, i := range items {
		size := t.size(i.SizeBytes)
		if i.PresentBytes < i.SizeBytes && t.tty {
			size = t.size(i.PresentBytes) + " of " + size
		}
		rows = append(rows, []string{
			t.digest(string(i.Digest)), size, i.Tier, i.State, t.when(i.UsedAt),
			t.shortened(t.some(i.Images, ", ")), t.shortened(t.some(i.PinnedBy, "; ")),
		})
	}
	t.table([]string{"DIGEST", "SIZE", "TIER", "STATE", "USED", "IMAGES", "PINNED BY"}, rows)
}

// someMax is how many of a list a person sees in a table.
const someMax = 3

// some joins a list: the beginning of it for a person, all for a program.
func (t *terminal) some(list []string, separator string) string {
	if t.tty && len(list) > someMax+1 {
		return strings.Join(list[:someMax], separator) + fmt.Sprintf(" and %d more", len(list)-someMax)
	}
	return orDash(strings.Join(list, separator))
}

func (a *app) cacheExplainCommand() *cobra.Command {
	return a.asksNode(&cobra.Command{
		Use:   "explain DIGEST",
		Short: "Tell what keeps a blob in the cache, or why it would go",
		Long: `Tell what keeps a blob in the cache, or why it would go in an eviction. The
digest may be cut short, and "sha256:" left out, as long as it is clear which one
is meant.`,
		Example: `  fairway cache explain sha256:0a1b2c3d4e5f`,
		Args:    exactly("DIGEST, as \"fairway cache ls\" lists it"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		digest, err := findCached(cmd, c, args[0])
		if err != nil {
			return err
		}
		var v nodeapi.Verdict
		if err := c.Call(cmd.Context(), "GET", "/cache/explain?"+url.Values{"digest": {digest}}.Encode(), nil, &v); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(v)
		}
		a.printVerdict(v)
		return nil
	})
}

// findCached completes a digest that is cut short.
func findCached(cmd *cobra.Command, c *adminclient.Client, text string) (string, error) {
	if _, err := oci.ParseDigest(text); err == nil {
		return text, nil
	}
	algorithm, hex, given := strings.Cut(text, ":")
	if !given { // as people copy it: the hex alone
		algorithm, hex = "", text
	}
	if given && algorithm != "sha256" && algorithm != "sha512" || !given && (hex == "" || strings.Trim(hex, "0123456789abcdef") != "") {
		return "", usagef("%q is no digest; want sha256:… or sha512:…, or the beginning of what comes after it", text)
	}
	var list nodeapi.CacheList
	if err := c.Call(cmd.Context(), "GET", "/cache", nil, &list); err != nil {
		return "", err
	}
	var found []string
	for _, i := range list.Items {
		if strings.HasPrefix(i.Digest.Encoded(), hex) && (!given || i.Digest.Algorithm().String() == algorithm) {
			found = append(found, string(i.Digest))
		}
	}
	switch len(found) {
	case 0:
		return "", &adminclient.Error{Status: 404, Message: "the cache has no " + text + "; \"fairway cache ls\" lists what it has"}
	case 1:
		return found[0], nil
	}
	return "", usagef("%s could be any of these; name one:\n  %s", text, strings.Join(found, "\n  "))
}

func (a *app) printVerdict(v nodeapi.Verdict) {
	t := a.stdout
	text := t.green("stays")
	if v.Evict {
		text = t.yellow("would go")
	}
	t.printf("%s: %s %s\n", text, t.tier(v.Tier), t.bold(t.digest(string(v.Digest))))
	t.printf("  %s\n", t.shortened(v.Reason))
	for _, p := range v.PinnedBy {
		t.printf("  pinned by %s\n", t.shortened(p))
	}
	for _, i := range v.Images {
		t.printf("  belongs to %s\n", t.shortened(i))
	}
	t.printf("  %s, last used %s\n", unit.Size(v.SizeBytes), t.when(v.UsedAt))
}

// tier paints a tier as safe as it is.
func (t *terminal) tier(tier string) string {
	switch tier {
	case nodeapi.TierActive:
		return t.green(tier)
	case nodeapi.TierWarm:
		return t.yellow(tier)
	}
	return tier
}

func (a *app) cacheGCCommand() *cobra.Command {
	var req nodeapi.GCRequest
	cmd := a.asksNode(&cobra.Command{
		Use:   "gc",
		Short: "Evict what is over the high watermark now",
		Long: `Evict now, if the cache is over its high watermark: cold blobs first, then warm
ones, until it is at its low watermark. The agent does so by itself; nothing that a
container uses goes at any pressure. The exit status is 5 if something could not
be removed.`,
		Example: `  fairway cache gc --dry-run`,
		Args:    exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		if req.DryRun {
			return a.cachePlan(cmd, q, c, req)
		}
		bar := a.newProgress(false)
		bar.wait("evicting")
		var done nodeapi.Evicted
		err := c.Call(cmd.Context(), "POST", "/cache/gc", req, &done)
		bar.clear()
		if err != nil {
			return err
		}
		if q.json {
			err = a.stdout.json(done)
		} else {
			a.printEvicted(done)
		}
		if err == nil && done.Failed > 0 {
			return errPartly
		}
		return err
	})
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "change nothing; tell of each blob whether it would go, and why")
	return cmd
}

func (a *app) cachePlan(cmd *cobra.Command, q *asking, c *adminclient.Client, req nodeapi.GCRequest) error {
	var plan nodeapi.Plan
	if err := c.Call(cmd.Context(), "POST", "/cache/gc", req, &plan); err != nil {
		return err
	}
	if q.json {
		return a.stdout.json(plan)
	}
	t := a.stdout
	var rows [][]string
	for _, v := range plan.Verdicts {
		act := "stays"
		if v.Evict {
			act = "goes"
		}
		rows = append(rows, []string{act, t.digest(string(v.Digest)), t.size(v.SizeBytes), v.Tier, t.when(v.UsedAt), t.shortened(v.Reason), t.shortened(t.some(v.Images, ", "))})
	}
	if len(rows) > 0 || !t.tty {
		t.table([]string{"VERDICT", "DIGEST", "SIZE", "TIER", "USED", "REASON", "IMAGES"}, rows)
	}
	if t.tty {
		t.printf("%s %s used of %s; %s would be freed.\n", t.bold(plan.Reason+":"), unit.Size(plan.UsedBytes), unit.Size(plan.QuotaBytes), unit.Size(plan.FreeBytes))
		for _, u := range plan.Unknown {
			t.printf("%s\n", t.yellow(u+" does not answer; what it may use stays."))
		}
	}
	return nil
}

func (a *app) printEvicted(done nodeapi.Evicted) {
	t := a.stdout
	t.printf("%s: %s evicted of %d, %s freed, %s used now", t.bold(done.Reason), count(int64(done.Evicted), "blob", "blobs"), done.Examined, unit.Size(done.FreedBytes), unit.Size(done.UsedBytes))
	if done.Failed > 0 {
		t.printf(", %s", t.red(fmt.Sprintf("%d failed", done.Failed)))
	}
	t.printf("\n")
	reasons := make([]string, 0, len(done.Kept))
	for r := range done.Kept {
		reasons = append(reasons, r)
	}
	slices.Sort(reasons)
	for _, r := range reasons {
		t.printf("  kept %d: %s\n", done.Kept[r], r)
	}
}

func (a *app) cachePinCommand() *cobra.Command {
	return a.asksNode(&cobra.Command{
		Use:   "pin REF",
		Short: "Keep an image in the cache",
		Long: `Keep an image in the cache until it is unpinned. REF is a name as the runtime
says it, with the registry, and a tag or a digest, or a bare digest; the image must
have been pulled through this node. What the tag names now is pinned, and stays so
when the tag moves; pin again for the new one.`,
		Example: `  fairway cache pin docker.io/library/busybox:latest
  fairway cache pin 127.0.0.1:5000/team/app@sha256:0a1b…`,
		Args: exactly("REF, such as docker.io/library/busybox:latest"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		var p nodeapi.Pin
		if err := c.Call(cmd.Context(), "PUT", "/pins", nodeapi.PinRequest{Ref: args[0]}, &p); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(p)
		}
		a.stdout.printf("%s %s\n", a.stdout.green("Pinned"), p.Ref)
		for _, d := range p.Digests {
			a.stdout.printf("  %s\n", d)
		}
		return nil
	})
}

func (a *app) cacheUnpinCommand() *cobra.Command {
	return a.asksNode(&cobra.Command{
		Use:     "unpin REF",
		Short:   "Let a pinned image go when it is its turn",
		Example: `  fairway cache unpin docker.io/library/busybox:latest`,
		Args:    exactly("REF, as \"fairway cache pins\" lists it"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		if err := c.Call(cmd.Context(), "DELETE", "/pins?"+url.Values{"ref": {args[0]}}.Encode(), nil, nil); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(nodeapi.PinRequest{Ref: args[0]})
		}
		a.stdout.printf("Unpinned %s\n", args[0])
		return nil
	})
}

func (a *app) cachePinsCommand() *cobra.Command {
	return a.asksNode(&cobra.Command{
		Use:     "pins",
		Short:   "List the pins",
		Example: `  fairway cache pins --json`,
		Args:    exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		var list nodeapi.PinList
		if err := c.Call(cmd.Context(), "GET", "/pins", nil, &list); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(list)
		}
		var rows [][]string
		for _, p := range list.Pins {
			var digests []string
			for _, d := range p.Digests {
				digests = append(digests, a.stdout.digest(string(d)))
			}
			rows = append(rows, []string{p.Ref, strings.Join(digests, ","), a.stdout.when(p.At)})
		}
		a.stdout.table([]string{"REF", "DIGEST", "PINNED"}, rows)
		return nil
	})
}

func (a *app) cacheEventsCommand() *cobra.Command {
	var n int
	cmd := a.asksNode(&cobra.Command{
		Use:     "events",
		Short:   "List what happened at the node, newest first",
		Example: `  fairway cache events -n 5`,
		Args:    exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		var list nodeapi.EventList
		if err := c.Call(cmd.Context(), "GET", "/events?n="+strconv.Itoa(n), nil, &list); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(list)
		}
		var rows [][]string
		for _, e := range list.Events {
			rows = append(rows, []string{e.At.UTC().Format(time.RFC3339), e.Level, e.Kind, e.Text})
		}
		a.stdout.table([]string{"AT", "LEVEL", "KIND", "TEXT"}, rows)
		return nil
	})
	cmd.Flags().IntVarP(&n, "number", "n", 50, "show at most this many")
	return cmd
}

func (a *app) cacheLimitsCommand() *cobra.Command {
	var quota, margin, up, down, peerUp, peerDown unit.Size
	var high, low unit.Percent
	cmd := a.asksNode(&cobra.Command{
		Use:   "limits",
		Short: "Show the limits of the cache, or change them until the agent ends",
		Long: `Show the limits of the cache, or change those that are given. They hold at once,
and until the agent is started again or reads its settings again on SIGHUP. A
quota below what is used starts an eviction, which takes nothing that is in use. The
rates are of a swarm, and shown and set only where the node is in one.`,
		Example: `  fairway cache limits
  fairway cache limits --quota 50MB`,
		Args: exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		var req nodeapi.LimitsRequest
		changed := cmd.Flags().Changed
		given(changed("quota"), &req.QuotaBytes, int64(quota))
		given(changed("margin"), &req.MarginBytes, int64(margin))
		given(changed("high"), &req.HighPercent, float64(high))
		given(changed("low"), &req.LowPercent, float64(low))
		given(changed("upload"), &req.Upload, int64(up))
		given(changed("download"), &req.Download, int64(down))
		given(changed("peer-upload"), &req.PeerUpload, int64(peerUp))
		given(changed("peer-download"), &req.PeerDownload, int64(peerDown))
		method, in := "GET", any(nil)
		if req != (nodeapi.LimitsRequest{}) {
			method, in = "PUT", req
		}
		var l nodeapi.Limits
		if err := c.Call(cmd.Context(), method, "/limits", in, &l); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(l)
		}
		t := a.stdout
		t.fields([][2]string{
			{"quota", t.size(l.QuotaBytes)},
			{"high", unit.Percent(l.HighPercent).String()},
			{"low", unit.Percent(l.LowPercent).String()},
			{"margin", t.size(l.MarginBytes)},
		}...)
		if s := l.Swarm; s != nil {
			t.fields([][2]string{{"upload", rate(t, s.Upload)}, {"download", rate(t, s.Download)}, {"peer upload", rate(t, s.PeerUpload)}, {"peer download", rate(t, s.PeerDownload)}}...)
		}
		return nil
	})
	f := cmd.Flags()
	f.Var(&quota, "quota", "how much the cache may keep; 0 for a share of the file system")
	f.Var(&high, "high", "start to evict when it is this full")
	f.Var(&low, "low", "end when it is only this full")
	f.Var(&margin, "margin", "space to keep free on the file system")
	f.Var(&up, "upload", "a second to other nodes, all together; 0 for no limit")
	f.Var(&down, "download", "a second by the swarm, from nodes and upstreams; 0 for no limit")
	f.Var(&peerUp, "peer-upload", "a second to one other node; 0 for no limit")
	f.Var(&peerDown, "peer-download", "a second from one other node; 0 for no limit")
	return cmd
}

// rate is a limit of the swarm.
func rate(t *terminal, bytes int64) string {
	if bytes == 0 && t.tty {
		return "no limit"
	}
	return t.size(bytes)
}

// given sets an optional field of a request to what a flag says.
func given[T any](yes bool, field **T, v T) {
	if yes {
		*field = &v
	}
}
