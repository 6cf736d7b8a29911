package ociclient

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Login is what to log in with; the zero Login is nobody's. The user TokenUser
// says that Pass is an identity token.
type Login struct{ User, Pass string }

// login is one entry of a Docker config.json.
type login struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

// DockerConfig is what a Docker config.json (or Podman's auth.json) says.
type DockerConfig struct {
	logins  map[string]Login  // by HOST[:PORT][/PATH]
	helpers map[string]string // by HOST[:PORT], of credHelpers
	asked   map[string]string // what a helper is asked for, by the same
	store   string            // the helper of all others, of credsStore; "" for none
}

// ParseDockerConfig reads a Docker config.json. Errors name the registry of an
// entry and nothing of its secrets.
func ParseDockerConfig(content []byte) (*DockerConfig, error) {
	var file struct {
		Auths       map[string]login  `json:"auths"`
		CredHelpers map[string]string `json:"credHelpers"`
		CredsStore  string            `json:"credsStore"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		return nil, errors.New("it is not valid JSON of the form {\"auths\": {…}}") // the cause may quote a secret
	}
	c := &DockerConfig{logins: map[string]Login{}, helpers: map[string]string{}, asked: map[string]string{}, store: file.CredsStore}
	for key, l := range file.Auths {
		found, err := l.read()
		if err != nil {
			return nil, fmt.Errorf("the entry of %q: %w", key, err)
		}
		if found.Pass != "" {
			c.logins[configKey(key)] = found
		}
	}
	for key, name := range file.CredHelpers {
		c.helpers[configKey(key)], c.asked[configKey(key)] = name, key
	}
	for _, name := range append([]string{c.store}, mapValues(c.helpers)...) {
		if name != "" && !helperName.MatchString(name) {
			return nil, fmt.Errorf("%q is not the name of a credential helper", name)
		}
	}
	return c, nil
}

func mapValues(m map[string]string) (all []string) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

// helperName is what may follow docker-credential-: the name of a program, and no
// path.
var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func (l login) read() (Login, error) {
	found := Login{l.Username, l.Password}
	if l.Auth != "" {
		raw, err := base64.StdEncoding.DecodeString(l.Auth)
		if err != nil {
			return Login{}, errors.New("its auth is not base64")
		}
		var ok bool
		if found.User, found.Pass, ok = strings.Cut(string(raw), ":"); !ok {
			return Login{}, errors.New("its auth is not of the form user:password")
		}
		found.Pass = strings.TrimRight(found.Pass, "\x00") // some versions of Docker pad it
	}
	if l.IdentityToken != "" {
		return Login{TokenUser, l.IdentityToken}, nil
	}
	return found, nil
}

// configKey brings the names under which one registry, or a path in it, appears in
// such files to one: https://index.docker.io/v1/ is what Docker Hub is called
// there. The path of a URL is the API's and not a repository's.
func configKey(key string) string {
	rest := strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, path, _ := strings.Cut(rest, "/")
	path = strings.Trim(path, "/")
	if rest != key || path == "v1" || path == "v2" {
		path = ""
	}
	host = strings.ToLower(host)
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		host = "docker.io"
	}
	if path != "" {
		return host + "/" + path
	}
	return host
}

// login finds the entry for a repository of a host: the longest path wins, by
// whole components (containers-auth.json(5)).
func (c *DockerConfig) login(host, repo string) (Login, bool) {
	for key := configKey(host) + "/" + repo; ; {
		if l, ok := c.logins[strings.TrimSuffix(key, "/")]; ok {
			return l, true
		}
		i := strings.LastIndexByte(key, '/')
		if i < 0 {
			return Login{}, false
		}
		key = key[:i]
	}
}

// helper is the program that knows the credentials of a host, and what it is asked
// for; "" for none.
func (c *DockerConfig) helper(host string) (name, server string) {
	key := configKey(host)
	if name, ok := c.helpers[key]; ok {
		return name, serverOf(c.asked[key])
	}
	if c.store != "" {
		return c.store, serverOf(key)
	}
	return "", ""
}

// serverOf is what Docker calls a registry towards a helper.
func serverOf(key string) string {
	if configKey(key) == "docker.io" {
		return "https://index.docker.io/v1/"
	}
	return key
}

const (
	helperTimeout = 30 * time.Second
	helperMax     = 1 << 20 // bytes of an answer
	// helperLife is how long an answer of a helper is used.
	helperLife = time.Minute
)

// errNoCredentials is what helpers print where they have none
// (docker/docker-credential-helpers, credentials.errCredentialsNotFound).
const errNoCredentials = "credentials not found in native keychain"

// ask runs a helper as Docker does: docker-credential-NAME get, with the server on
// its standard input. ok is false where it has nothing.
func ask(ctx context.Context, name, server string) (l Login, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	program := "docker-credential-" + name
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(server)
	cmd.WaitDelay = time.Second
	var out limited
	cmd.Stdout = &out
	err = cmd.Run()
	text := strings.TrimSpace(out.String())
	switch {
	case ctx.Err() != nil:
		return l, false, fmt.Errorf("%s did not answer: %w", program, ctx.Err())
	case err != nil && text == errNoCredentials:
		return l, false, nil
	case err != nil:
		return l, false, fmt.Errorf("run %s: %w", program, err) // its output may quote a secret
	case out.over:
		return l, false, fmt.Errorf("%s answers more than %d bytes", program, helperMax)
	}
	var answer struct{ Username, Secret string }
	if json.Unmarshal([]byte(text), &answer) != nil {
		return l, false, fmt.Errorf("%s does not answer as a credential helper does", program)
	}
	return Login{answer.Username, answer.Secret}, answer.Secret != "", nil
}

// limited keeps the beginning of what is written to it.
type limited struct {
	bytes.Buffer
	over bool
}

// Write is of io.Writer, and never fails.
func (l *limited) Write(p []byte) (int, error) {
	room := min(len(p), helperMax-l.Len())
	l.over = l.over || room < len(p)
	_, _ = l.Buffer.Write(p[:room]) // never fails
	return len(p), nil
}

// ReadFrom hides bytes.Buffer's, which knows no limit.
func (l *limited) ReadFrom(r io.Reader) (int64, error) { return io.Copy(struct{ io.Writer }{l}, r) }

// ConfigFile is a Docker config.json that is read again when it has changed.
type ConfigFile struct {
	path string
	log  *slog.Logger
	now  func() time.Time

	mu      sync.Mutex
	config  *DockerConfig
	print   string // of the file that config is of, or that cannot be read
	answers map[string]*answer
}

// answer is one of a helper, or one that is awaited.
type answer struct {
	done  chan struct{}
	login Login
	ok    bool
	err   error
	until time.Time
}

// OpenConfigFile reads the file.
func OpenConfigFile(path string, log *slog.Logger) (*ConfigFile, error) {
	f := &ConfigFile{path: path, log: log, now: time.Now, answers: map[string]*answer{}}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	print, config, err := f.read()
	if err != nil {
		return nil, err
	}
	f.print, f.config = print, config
	return f, nil
}

func (f *ConfigFile) read() (print string, config *DockerConfig, err error) {
	if print, err = f.stat(); err != nil {
		return print, nil, err
	}
	content, err := os.ReadFile(f.path)
	if err != nil {
		return print, nil, err
	}
	if config, err = ParseDockerConfig(content); err != nil {
		return print, nil, fmt.Errorf("%s: %w", f.path, err)
	}
	return print, config, nil
}

// stat tells one content of the file from another.
func (f *ConfigFile) stat() (string, error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return "gone", err
	}
	print := fmt.Sprintf("%d %d", info.ModTime().UnixNano(), info.Size())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		print += fmt.Sprintf(" %d %v", st.Ino, st.Ctim)
	}
	return print, nil
}

// current is what the file says now. While it cannot be read, which includes that
// somebody is writing it, what it said before holds.
func (f *ConfigFile) current() *DockerConfig {
	f.mu.Lock()
	defer f.mu.Unlock()
	if print, _ := f.stat(); print == f.print {
		return f.config
	}
	print, config, err := f.read()
	if err != nil {
		if f.print != print {
			f.log.Warn("the file of credentials cannot be read; what it said before holds", "err", err)
		}
		f.print = print
		return f.config
	}
	f.print, f.config, f.answers = print, config, map[string]*answer{}
	f.log.Info("the file of credentials has changed and was read again", "path", f.path)
	return config
}

// Find is Credentials by the file. A helper comes before the entries of the file.
func (f *ConfigFile) Find(ctx context.Context, host, repo string) (Login, error) {
	config := f.current()
	if name, server := config.helper(host); name != "" {
		l, ok, err := f.helped(ctx, name, server)
		if ok {
			return l, nil
		}
		if l, ok := config.login(host, repo); ok {
			return l, nil
		}
		return Login{}, err
	}
	l, _ := config.login(host, repo)
	return l, nil
}

// helped asks a helper, or waits for whoever asks it the same.
func (f *ConfigFile) helped(ctx context.Context, name, server string) (Login, bool, error) {
	key := name + " " + server
	f.mu.Lock()
	a := f.answers[key]
	if a == nil || !a.until.IsZero() && !f.now().Before(a.until) {
		a = &answer{done: make(chan struct{})}
		f.answers[key] = a
		go func() {
			// Whoever asked first may leave; the others wait for the same answer.
			l, ok, err := ask(context.WithoutCancel(ctx), name, server)
			if err != nil {
				f.log.Warn("a credential helper failed", "helper", name, "registry", server, "err", err)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			a.login, a.ok, a.err, a.until = l, ok, err, f.now().Add(helperLife)
			if err != nil {
				a.until = f.now().Add(helperLife / 10)
			}
			close(a.done)
		}()
	}
	f.mu.Unlock()
	select {
	case <-a.done:
		f.mu.Lock()
		defer f.mu.Unlock()
		return a.login, a.ok, a.err
	case <-ctx.Done():
		return Login{}, false, ctx.Err()
	}
}
