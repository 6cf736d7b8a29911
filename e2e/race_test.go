package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// raceWindow is the shortest window of any collection in the race: hardly
// longer than a push takes.
const raceWindow = 4 * time.Second

// race is clients and collections at work on a server that is killed again and
// again.
type race struct {
	s      *server
	ctx    context.Context
	client *http.Client
	pool   map[digest.Digest][]byte // layers and configs
	layers []digest.Digest

	epoch atomic.Int64 // odd while the server is down

	mu     sync.Mutex
	acked  map[raceImage][]digest.Digest // 201 and not deleted since → its blobs
	tried  map[raceImage][]digest.Digest // whatever became of its PUT
	wrong  []string
	relied int // manifests pushed while the window of a HEAD was open
	pushes int
	pulls  int
	runs   int
	freed  int64
}

type raceImage struct {
	repo   string
	digest digest.Digest
}

func newRace(t *testing.T, s *server, rng *rand.Rand) *race {
	r := &race{s: s, pool: map[digest.Digest][]byte{}, acked: map[raceImage][]digest.Digest{}, tried: map[raceImage][]digest.Digest{}}
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	t.Cleanup(transport.CloseIdleConnections)
	r.client = &http.Client{Transport: transport, Timeout: 15 * time.Second}
	for i := range hot + cold {
		limit := 4096
		if i < hot {
			limit = 1 << (8 + i) // to 2 MiB
		}
		b := make([]byte, 1+rng.IntN(limit))
		for j := range b {
			b[j] = byte(rng.Uint32())
		}
		d := digest.FromBytes(b)
		r.pool[d], r.layers = b, append(r.layers, d)
	}
	return r
}

// Layers: some that all use all the time, and many that come back about when
// their window ends.
const (
	hot  = 14
	cold = 300
)

func (r *race) violated(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
}

func (r *race) over() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ctx.Err() != nil || len(r.wrong) > 10
}

// answer is a response that has been read whole.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// ask sends a request. ok is false if a kill came in between; any other failure
// to answer, and any answer of 500 or more, is a violation.
func (r *race) ask(method, path string, header http.Header, body []byte) (a answer, ok bool) {
	r.awaitUp()
	before := r.epoch.Load()
	failed := func(err error) (answer, bool) {
		if before%2 == 0 && before == r.epoch.Load() {
			r.violated("R5: %s %s: %v", method, path, err)
		}
		return answer{}, false
	}
	req, err := http.NewRequest(method, r.s.url+path, bytes.NewReader(body))
	if err != nil {
		return failed(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return failed(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return failed(err)
	}
	if resp.StatusCode >= 500 {
		r.violated("R5: %s %s: %s %s", method, path, resp.Status, b)
	}
	return answer{resp.StatusCode, resp.Header, b}, true
}

// awaitUp keeps clients from spinning while the server is down.
func (r *race) awaitUp() {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for r.epoch.Load()%2 == 1 {
		<-tick.C
	}
}

// racer is one client: it pushes, tags and deletes what is its own.
type racer struct {
	*race
	rng  *rand.Rand
	name string
	n    int
	mine []raceImage
}

func (c *racer) work() {
	for !c.over() {
		if len(c.mine) > 8 || len(c.mine) > 2 && c.rng.IntN(3) == 0 {
			c.remove()
		} else {
			c.push()
		}
	}
}

// obtain has the repository serve a blob; since is when the request was sent
// whose answer promised that.
func (c *racer) obtain(repo string, d digest.Digest) (since time.Time, ok bool) {
	since = time.Now()
	a, ok := c.ask(http.MethodHead, "/v2/"+repo+"/blobs/"+d.String(), nil, nil)
	if !ok || a.status == http.StatusOK {
		return since, ok
	}
	if a.status != http.StatusNotFound {
		c.violated("HEAD of blob %s: %d", d, a.status)
	}
	begin := "/v2/" + repo + "/blobs/uploads/"
	if c.rng.IntN(3) == 0 {
		begin += "?mount=" + url.QueryEscape(d.String())
		if c.rng.IntN(2) == 0 {
			begin += "&from=race/" + []string{"a", "b"}[c.rng.IntN(2)]
		}
	}
	since = time.Now()
	if a, ok = c.ask(http.MethodPost, begin, nil, nil); !ok || a.status == http.StatusCreated {
		return since, ok
	}
	if a.status != http.StatusAccepted {
		c.violated("POST %s: %d %s", begin, a.status, a.body)
		return since, false
	}
	return c.upload(a.header.Get("Location"), d)
}

// upload sends the bytes in one to three requests. An error that is no
// violation is a client that has died: its session is for the collector.
func (c *racer) upload(session string, d digest.Digest) (since time.Time, ok bool) {
	b := c.pool[d]
	from := 0
	for range c.rng.IntN(3) {
		if len(b)-from < 2 {
			break
		}
		to := from + 1 + c.rng.IntN(len(b)-from-1)
		a, ok := c.ask(http.MethodPatch, session, http.Header{"Content-Range": {fmt.Sprintf("%d-%d", from, to-1)}}, b[from:to])
		if !ok {
			return since, false
		}
		if a.status != http.StatusAccepted {
			c.violated("PATCH %s at %d: %d %s", session, from, a.status, a.body)
			return since, false
		}
		session, from = a.header.Get("Location"), to
	}
	since = time.Now()
	a, ok := c.ask(http.MethodPut, session+"?digest="+url.QueryEscape(d.String()), nil, b[from:])
	if ok && a.status != http.StatusCreated {
		c.violated("PUT %s: %d %s", session, a.status, a.body)
	}
	return since, ok && a.status == http.StatusCreated
}

func (c *racer) push() {
	c.n++
	repo := "race/" + []string{"a", "b"}[c.rng.IntN(2)]
	var blobs []digest.Digest
	for range 2 + c.rng.IntN(3) {
		if c.rng.IntN(2) == 0 {
			blobs = append(blobs, c.layers[c.rng.IntN(hot)])
		} else {
			blobs = append(blobs, c.layers[hot+c.rng.IntN(cold)])
		}
	}
	content, d := c.manifest(blobs)
	var first time.Time
	for _, b := range blobs {
		since, ok := c.obtain(repo, b)
		if !ok {
			return // this client has died
		}
		if first.IsZero() || since.Before(first) {
			first = since
		}
	}
	it := raceImage{repo, d}
	c.mu.Lock()
	c.tried[it] = blobs
	c.mu.Unlock()
	ref := d.String()
	if c.rng.IntN(3) > 0 {
		ref = c.name + "-" + strconv.Itoa(c.n%4)
	}
	a, ok := c.ask(http.MethodPut, "/v2/"+repo+"/manifests/"+ref, http.Header{"Content-Type": {"application/vnd.oci.image.manifest.v1+json"}}, content)
	within := time.Since(first) < raceWindow
	switch {
	case !ok:
	case a.status == http.StatusCreated:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.acked[it] = blobs
		c.mine = append(c.mine, it)
		c.pushes++
		if within {
			c.relied++
		}
	case within || a.status != http.StatusBadRequest:
		c.violated("R3: PUT of %s in %s, %v after its first blob was confirmed: %d %s", d, repo, time.Since(first), a.status, a.body)
	}
}

func (c *racer) manifest(blobs []digest.Digest) ([]byte, digest.Digest) {
	descriptor := func(d digest.Digest) map[string]any {
		return map[string]any{"mediaType": "application/octet-stream", "digest": d, "size": len(c.pool[d])}
	}
	layers := []any{}
	for _, b := range blobs[1:] {
		layers = append(layers, descriptor(b))
	}
	content, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "config": descriptor(blobs[0]), "layers": layers,
		"annotations": map[string]string{"by": fmt.Sprintf("%s %d", c.name, c.n)},
	})
	if err != nil {
		panic(err) // strings and numbers only
	}
	return content, digest.FromBytes(content)
}

func (c *racer) remove() {
	i := c.rng.IntN(len(c.mine))
	it := c.mine[i]
	c.mine = append(c.mine[:i], c.mine[i+1:]...)
	c.mu.Lock()
	delete(c.acked, it)
	c.mu.Unlock()
	a, ok := c.ask(http.MethodDelete, "/v2/"+it.repo+"/manifests/"+it.digest.String(), nil, nil)
	if ok && a.status != http.StatusAccepted {
		c.violated("R2: DELETE of %s in %s, which was acknowledged: %d %s", it.digest, it.repo, a.status, a.body)
	}
}

// pull pulls an image whole. ok is false if a kill came in between.
func (r *race) pull(it raceImage, blobs []digest.Digest) (problem string, ok bool) {
	a, ok := r.ask(http.MethodGet, "/v2/"+it.repo+"/manifests/"+it.digest.String(), nil, nil)
	if !ok {
		return "", false
	}
	if a.status != http.StatusOK || digest.FromBytes(a.body) != it.digest {
		return fmt.Sprintf("manifest %s of %s: %d, %d bytes", it.digest, it.repo, a.status, len(a.body)), true
	}
	for _, b := range blobs {
		a, ok := r.ask(http.MethodGet, "/v2/"+it.repo+"/blobs/"+b.String(), nil, nil)
		if !ok {
			return "", false
		}
		if a.status != http.StatusOK || digest.FromBytes(a.body) != b {
			return fmt.Sprintf("blob %s of manifest %s of %s: %d, %d bytes", b, it.digest, it.repo, a.status, len(a.body)), true
		}
	}
	return "", true
}

func (r *race) read() {
	for !r.over() {
		r.mu.Lock()
		var it raceImage
		var blobs []digest.Digest
		for it, blobs = range r.acked { // any
			break
		}
		r.mu.Unlock()
		if blobs == nil {
			r.awaitUp()
			continue
		}
		problem, ok := r.pull(it, blobs)
		r.mu.Lock()
		if _, still := r.acked[it]; ok && still && problem != "" {
			r.wrong = append(r.wrong, "R2: an acknowledged image does not pull whole: "+problem)
		}
		if ok {
			r.pulls++
		}
		r.mu.Unlock()
	}
}

// collect runs collections one after another, over what a caller of the admin
// API can choose.
func (r *race) collect(rng *rand.Rand) {
	for !r.over() {
		policy := fmt.Sprintf(`{"window":%q,"trash":"%ds","repository":%q}`, raceWindow, rng.IntN(2), []string{"", "", "race/*"}[rng.IntN(3)])
		a, ok := r.ask(http.MethodPost, "/api/v1/gc/runs", http.Header{"Content-Type": {"application/json"}}, []byte(policy))
		if !ok {
			continue
		}
		var run struct {
			ID    int64  `json:"id"`
			State string `json:"state"`
			Freed int64  `json:"freed_bytes"`
		}
		if err := json.Unmarshal(a.body, &run); err != nil || a.status != http.StatusAccepted {
			r.violated("start a run: %d %s", a.status, a.body)
			continue
		}
		path := "/api/v1/gc/runs/" + strconv.FormatInt(run.ID, 10) + "?wait=5s"
		for ok && run.State == "running" {
			if a, ok = r.ask(http.MethodGet, path, nil, nil); ok {
				if err := json.Unmarshal(a.body, &run); err != nil || a.status != http.StatusOK {
					r.violated("run %d: %d %s", run.ID, a.status, a.body)
					return
				}
			}
		}
		if ok && run.State != "done" && run.State != "interrupted" {
			r.violated("R5: run %d ended as %s", run.ID, a.body)
		}
		r.mu.Lock()
		r.runs++
		r.freed += run.Freed
		r.mu.Unlock()
	}
}

// kill kills the server and starts it again until the time is up.
func (r *race) kill(rng *rand.Rand) (times int) {
	for {
		next := time.NewTimer(time.Duration(2000+rng.IntN(1000)) * time.Millisecond)
		select {
		case <-r.ctx.Done():
			next.Stop()
			return times
		case <-next.C:
		}
		r.epoch.Add(1)
		r.s.proc.Kill()
		r.s.start()
		r.epoch.Add(1)
		times++
	}
}

// TestRace_PushDeleteReadCollectAndSIGKILL is R1 to R7 over HTTP, for
// FAIRWAY_RACE_SECONDS. The seed decides what clients do; how that falls
// together is the machine's choice.
func TestRace_PushDeleteReadCollectAndSIGKILL(t *testing.T) {
	number := func(name string, standard int64) int64 {
		n, err := strconv.ParseInt(os.Getenv(name), 10, 64)
		if err != nil {
			return standard
		}
		return n
	}
	seed := uint64(number("FAIRWAY_RACE_SEED", time.Now().UnixNano()%1_000_000))
	t.Logf("FAIRWAY_RACE_SEED=%d", seed)
	source := func(n uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, n)) }
	s := serve(t, "--gc-window", raceWindow.String(), "--gc-trash", "1s", "--gc-interval", "1s")
	r := newRace(t, s, source(0))
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(number("FAIRWAY_RACE_SECONDS", 45))*time.Second)
	defer cancel()
	r.ctx = ctx
	var wg sync.WaitGroup
	for i := range uint64(4) {
		wg.Go((&racer{race: r, rng: source(10 + i), name: fmt.Sprintf("client%d", i)}).work)
	}
	for range 2 {
		wg.Go(r.read)
	}
	wg.Go(func() { r.collect(source(20)) })
	kills := r.kill(source(30))
	wg.Wait()
	t.Logf("%d pushes, %d of them within the window, %d pulls, %d runs that freed %d bytes, %d kills, %d images are left",
		r.pushes, r.relied, r.pulls, r.runs, r.freed, kills, len(r.acked))
	if r.relied == 0 || r.pulls == 0 || r.runs == 0 || r.freed == 0 || kills == 0 {
		t.Error("that proves nothing")
	}
	r.settle(t)
	for _, problem := range r.wrong {
		t.Error(problem)
	}
}

// settle collects until nothing changes and holds the disk to what is needed,
// to the byte; then it deletes all and looks again.
func (r *race) settle(t *testing.T) {
	living := map[raceImage]bool{}
	needed := map[digest.Digest]bool{}
	for it, blobs := range r.tried {
		_, acked := r.acked[it]
		problem, _ := r.pull(it, blobs)
		if acked && problem != "" {
			t.Errorf("R2: after the race an acknowledged image does not pull whole: %s", problem)
		}
		if r.s.status(http.MethodHead, "/v2/"+it.repo+"/manifests/"+it.digest.String()) == http.StatusOK {
			if problem != "" {
				t.Errorf("R2: it answers for a manifest that does not pull whole: %s", problem)
			}
			living[it] = true
			for _, b := range blobs {
				needed[b] = true
			}
		}
	}
	r.rest(t, needed)
	for it := range living {
		if problem, _ := r.pull(it, r.tried[it]); problem != "" {
			t.Errorf("R1: after the collection: %s", problem)
		}
		if got := r.s.status(http.MethodDelete, "/v2/"+it.repo+"/manifests/"+it.digest.String()); got != http.StatusAccepted {
			t.Errorf("DELETE of %s: %d", it.digest, got)
		}
	}
	r.rest(t, nil)
	r.s.cli("check", "--deep", "--grace", "0") // its exit status says whether all is well
}

func (r *race) rest(t *testing.T, needed map[digest.Digest]bool) {
	t.Helper()
	for i := 0; ; i++ {
		if got := r.s.collect(); got.Collected+got.Trashed+got.FreedBytes == 0 {
			break
		}
		if i == 10 {
			t.Error("no leak: ten collections without an end")
			break
		}
	}
	var want int64
	for d := range needed {
		want += int64(len(r.pool[d]))
	}
	if got, objects := r.s.disk(); got != want || objects != len(needed) {
		t.Errorf("no leak: %d bytes in %d objects are on disk, needed are %d in %d", got, objects, want, len(needed))
	}
}
