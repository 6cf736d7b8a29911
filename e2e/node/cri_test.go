package node

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubelet speaks to the CRI plugin of a containerd as a kubelet does.
type kubelet struct {
	t       testing.TB
	c       *ctrd
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
	pods    int
}

// startKubelet connects and gives the plugin its pause image.
func startKubelet(t testing.TB, c *ctrd, u *upstream) *kubelet {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+c.sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	k := &kubelet{t: t, c: c, runtime: cri.NewRuntimeServiceClient(conn), images: cri.NewImageServiceClient(conn)}
	// Pulled straight from the registry, and nothing in it is of another image: what
	// the runtime has already it does not pull through the agent.
	pause := u.push(buildImage(t, "lib/pause:1", []string{"/bin/sleep", "2147483647"}, pauseLayer(t)))
	c.ctr("k8s.io", "i", "pull", "--plain-http", pause)
	c.ctr("k8s.io", "i", "tag", pause, "localhost/pause:1")
	return k
}

func (k *kubelet) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Minute)
}

// pull pulls an image and returns what CRI calls it by: the digest of its config.
func (k *kubelet) pull(ref string) string {
	k.c.t.Helper()
	ctx, cancel := k.ctx()
	defer cancel()
	r, err := k.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		k.c.t.Fatalf("CRI pull %s: %v", ref, err)
	}
	return r.ImageRef
}

// pod is a sandbox with one container.
type pod struct{ sandbox, container string }

// sandbox makes a pod on the host's network, without containers.
func (k *kubelet) sandbox(name string) (pod, *cri.PodSandboxConfig) {
	k.c.t.Helper()
	ctx, cancel := k.ctx()
	defer cancel()
	k.pods++
	uid := fmt.Sprintf("%s-%d", filepath.Base(k.c.dir), k.pods)
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: uid},
		LogDirectory: filepath.Join(k.c.dir, "logs"),
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
	made, err := k.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		k.c.t.Fatalf("CRI sandbox: %v", err)
	}
	p := pod{sandbox: made.PodSandboxId}
	k.t.Cleanup(func() {
		k.c.t = k.t // a suite may have lent it to a test that has ended
		k.end(p)
	})
	return p, config
}

// create makes a pod with one container that would sleep.
func (k *kubelet) create(name, ref string) pod {
	k.c.t.Helper()
	p, config := k.sandbox(name)
	ctx, cancel := k.ctx()
	defer cancel()
	made, err := k.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: p.sandbox, SandboxConfig: config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: ref},
			Command: []string{"/bin/sleep", "100000"}, LogPath: name + ".log", Linux: &cri.LinuxContainerConfig{},
		},
	})
	if err != nil {
		k.c.t.Fatalf("CRI container: %v", err)
	}
	p.container = made.ContainerId
	return p
}

func (k *kubelet) startContainer(p pod) {
	k.c.t.Helper()
	ctx, cancel := k.ctx()
	defer cancel()
	if _, err := k.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container}); err != nil {
		k.c.t.Fatalf("CRI start: %v", err)
	}
}

func (k *kubelet) run(ref string) pod {
	k.c.t.Helper()
	p := k.create("c", ref)
	k.startContainer(p)
	return p
}

// end removes a pod, which may be gone already.
func (k *kubelet) end(p pod) {
	k.c.t.Helper()
	ctx, cancel := k.ctx()
	defer cancel()
	if _, err := k.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.sandbox}); err != nil && status.Code(err) != codes.NotFound {
		k.c.t.Errorf("CRI stop: %v", err)
	}
	if _, err := k.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.sandbox}); err != nil && status.Code(err) != codes.NotFound {
		k.c.t.Errorf("CRI remove: %v", err)
	}
}
