package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/fairway-registry/fairway/internal/setting"
)

// socket is a Unix socket that only the agent's user may use.
type socket struct {
	net.Listener
	path string
}

// socketPathMax is what the kernel takes, sockaddr_un(7).
const socketPathMax = 107

// listenSocket makes the socket. One that an agent left behind when it was
// killed is replaced; one that answers is another agent's.
func listenSocket(ctx context.Context, path string) (*socket, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return nil, setting.Errorf("admin_socket", "%s is something else than a socket", path)
		}
		if conn, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
			return nil, errors.Join(setting.Errorf("admin_socket", "another process listens on %s", path), conn.Close())
		}
	}
	// Made where nobody else can go, and moved when its mode is right: between
	// bind and chmod the umask would decide.
	private, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, fmt.Errorf("make the admin socket: %w", err)
	}
	defer func() { _ = os.RemoveAll(private) }() // empty, in the end
	made := filepath.Join(private, "s")
	if len(made) > socketPathMax || len(path) > socketPathMax {
		return nil, setting.Errorf("admin_socket", "%s is too long a path for a socket; choose a shorter one", path)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "unix", made)
	if err != nil {
		return nil, fmt.Errorf("make the admin socket: %w", err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(made, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("make the admin socket: %w", err), ln.Close())
	}
	if err := os.Rename(made, path); err != nil {
		return nil, errors.Join(fmt.Errorf("make the admin socket: %w", err), ln.Close())
	}
	return &socket{Listener: ln, path: path}, nil
}

// Close ends the socket and removes it.
func (s *socket) Close() error {
	err := s.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	if gone := os.Remove(s.path); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}
