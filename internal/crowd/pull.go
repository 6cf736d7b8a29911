package crowd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Pull is how an image came to a node.
type Pull struct {
	Node  *Node
	Began time.Time
	First time.Duration // from the request for the first layer to its first byte
	Took  time.Duration // of everything
	Tries int
	Err   error
}

// retryPause is how long a client waits before it tries again, as runtimes'
// owners do, though with more patience.
const retryPause = 200 * time.Millisecond

// Pull pulls an image through the node as a runtime does: the tag, the manifest,
// the config, all layers at once; and checks the digest of every byte. What
// breaks is tried again while ctx lasts.
func (n *Node) Pull(ctx context.Context, im Image, user string) Pull {
	p := Pull{Node: n, Began: time.Now()}
	for {
		p.Tries++
		if p.Err = n.pullOnce(ctx, im, user, &p.First); p.Err == nil {
			break
		}
		select {
		case <-ctx.Done():
			p.Took = time.Since(p.Began)
			return p
		case <-time.After(retryPause):
		}
	}
	p.Took = time.Since(p.Began)
	return p
}

// PullOnce is Pull without a second try.
func (n *Node) PullOnce(ctx context.Context, im Image, user string) Pull {
	p := Pull{Node: n, Began: time.Now(), Tries: 1}
	p.Err = n.pullOnce(ctx, im, user, &p.First)
	p.Took = time.Since(p.Began)
	return p
}

func (n *Node) pullOnce(ctx context.Context, im Image, user string, first *time.Duration) error {
	got, _, err := n.fetch(ctx, im, "manifests/"+im.Tag, user, func() {})
	if err != nil {
		return err
	}
	if got != im.Manifest {
		return fmt.Errorf("%s: the manifest is %s, not %s", n.Name, got, im.Manifest)
	}
	var wait sync.WaitGroup
	var once sync.Once
	errs := make([]error, 1+len(im.Layers))
	began := time.Now()
	for i, l := range append([]v1.Descriptor{im.Config}, im.Layers...) {
		wait.Go(func() {
			got, size, err := n.fetch(ctx, im, "blobs/"+l.Digest.String(), user, func() {
				if i > 0 {
					once.Do(func() { *first = time.Since(began) })
				}
			})
			if err == nil && (got != l.Digest || size != l.Size) {
				err = fmt.Errorf("%s: WRONG BYTES: %d of %s are %s", n.Name, size, l.Digest, got)
			}
			errs[i] = err
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}

// fetch gets a part of an image and returns what its bytes are.
func (n *Node) fetch(ctx context.Context, im Image, what, user string, first func()) (digest.Digest, int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Mirror+"/v2/"+im.Repo+"/"+what+"?ns="+n.c.o.Origin.Host, nil)
	if err != nil {
		return "", 0, err
	}
	req.Header.Set("Accept", strings.Join([]string{v1.MediaTypeImageManifest, v1.MediaTypeImageIndex}, ","))
	if user != "" {
		req.SetBasicAuth("someone", user)
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return "", 0, fmt.Errorf("%s: %w", n.Name, err)
	}
	defer func() { _ = resp.Body.Close() }() // reading has told how it ended
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300)) // the status says enough without it
		return "", 0, fmt.Errorf("%s: GET %s: %s: %s", n.Name, what, resp.Status, text)
	}
	d, size, err := sumOf(resp.Body, first)
	if err != nil {
		return d, size, fmt.Errorf("%s: %s after %d bytes: %w", n.Name, what, size, err)
	}
	return d, size, nil
}

// PullAll pulls through several nodes; node i begins when when(i) has passed.
// The results are in the order of the nodes.
func PullAll(ctx context.Context, nodes []*Node, im Image, when func(i int) time.Duration) []Pull {
	pulls := make([]Pull, len(nodes))
	var wait sync.WaitGroup
	for i, n := range nodes {
		wait.Go(func() {
			if when != nil {
				select {
				case <-time.After(when(i)):
				case <-ctx.Done():
				}
			}
			pulls[i] = n.Pull(ctx, im, "")
		})
	}
	wait.Wait()
	return pulls
}
