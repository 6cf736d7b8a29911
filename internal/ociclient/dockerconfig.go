package ociclient

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// login is one entry of a Docker config.json.
type login struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

// ParseDockerConfig reads the auths of a Docker config.json (or Podman's
// auth.json). Credential helpers are programs of a user's session and are not
// run. Errors name the registry of an entry and nothing of its secrets.
func ParseDockerConfig(content []byte) (Credentials, error) {
	var file struct {
		Auths map[string]login `json:"auths"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		return nil, errors.New("it is no valid JSON of the form {\"auths\": {…}}") // the cause may quote a secret
	}
	type pair struct{ user, pass string }
	byHost := make(map[string]pair, len(file.Auths))
	for key, l := range file.Auths {
		user, pass, err := l.read()
		if err != nil {
			return nil, fmt.Errorf("the entry of %q: %w", key, err)
		}
		if pass != "" {
			byHost[configHost(key)] = pair{user, pass}
		}
	}
	return func(host string) (string, string, bool) {
		p, ok := byHost[configHost(host)]
		return p.user, p.pass, ok
	}, nil
}

func (l login) read() (user, pass string, err error) {
	user, pass = l.Username, l.Password
	if l.Auth != "" {
		raw, err := base64.StdEncoding.DecodeString(l.Auth)
		if err != nil {
			return "", "", errors.New("its auth is no base64")
		}
		var ok bool
		if user, pass, ok = strings.Cut(string(raw), ":"); !ok {
			return "", "", errors.New("its auth is not of the form user:password")
		}
		pass = strings.TrimRight(pass, "\x00") // some versions of Docker pad it
	}
	if l.IdentityToken != "" {
		return TokenUser, l.IdentityToken, nil
	}
	return user, pass, nil
}

// configHost brings the names under which one registry appears in such files
// to one: https://index.docker.io/v1/ is what Docker Hub is called there.
func configHost(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, _, _ := strings.Cut(key, "/")
	host = strings.ToLower(host)
	switch host {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}
