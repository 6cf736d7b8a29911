package swarm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// minSecret is the least number of bytes of a cluster secret. Its entropy is what
// keeps strangers out: whoever can guess it can test the guess against a handshake.
const minSecret = 16

// Keys are what a node derives from the cluster's secret: the key of the gossip,
// and a certificate signed by an authority that everybody who knows the secret
// can derive. So TLS 1.3 with certificates on both sides proves the secret, and
// crypto/tls does all of the proving.
type Keys struct {
	Gossip []byte // AES-256
	server *tls.Config
	client *tls.Config
}

// NewKeys derives the keys of the node with that name. White space around the
// secret is not part of it.
func NewKeys(secret []byte, name string) (*Keys, error) {
	secret = bytes.TrimSpace(secret)
	if len(secret) < minSecret {
		return nil, fmt.Errorf("the cluster's secret has %d bytes; it needs %d, and should be random", len(secret), minSecret)
	}
	gossip, err := hkdf.Key(sha256.New, secret, nil, "fairway swarm gossip v1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive the key of the gossip: %w", err)
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, "fairway swarm authority v1", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("derive the key of the authority: %w", err)
	}
	authority := ed25519.NewKeyFromSeed(seed)
	root, err := rootOf(authority)
	if err != nil {
		return nil, err
	}
	leaf, err := leafOf(root, authority, name)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	base := tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{*leaf},
		RootCAs:      pool,
		NextProtos:   []string{"http/1.1"},
		// Pieces are long: full records from the first byte cost a quarter of the calls.
		DynamicRecordSizingDisabled: true,
	}
	k := &Keys{Gossip: gossip, client: base.Clone(), server: base.Clone()}
	k.client.ClientSessionCache = tls.NewLRUClientSessionCache(256)
	k.server.ClientAuth, k.server.ClientCAs = tls.RequireAndVerifyClientCert, pool
	return k, nil
}

// certLife is far longer than any node runs; what ends a certificate is a new secret.
const certLife = 50 * 365 * 24 * time.Hour

// rootOf returns the authority's certificate. It does not depend on the clock:
// nodes whose clocks differ have to build the same one.
func rootOf(key ed25519.PrivateKey) (*x509.Certificate, error) {
	epoch := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fairway swarm"},
		NotBefore: epoch, NotAfter: epoch.Add(2 * certLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the authority's certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

func leafOf(root *x509.Certificate, authority ed25519.PrivateKey, name string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the node's key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return nil, fmt.Errorf("make the node's certificate: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{hostOf(plan.Node(name))},
		NotBefore: root.NotBefore, NotAfter: root.NotBefore.Add(certLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, root, key.Public(), authority)
	if err != nil {
		return nil, fmt.Errorf("make the node's certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// hostOf is the name in a node's certificate: node names need not be host names.
func hostOf(n plan.Node) string {
	sum := sha256.Sum256([]byte(n))
	return hex.EncodeToString(sum[:16]) + ".swarm.fairway.internal"
}

// peerOf returns the node that a TLS connection was proven to come from.
func peerOf(state *tls.ConnectionState) (plan.Node, error) {
	if state == nil || len(state.VerifiedChains) == 0 {
		return "", errors.New("the peer did not prove the cluster's secret")
	}
	leaf := state.VerifiedChains[0][0]
	n := plan.Node(leaf.Subject.CommonName)
	if n == "" || n == plan.Origin || leaf.VerifyHostname(hostOf(n)) != nil {
		return "", errors.New("the peer's certificate names no node")
	}
	return n, nil
}

// Server is the configuration of a member's listener.
func (k *Keys) Server() *tls.Config { return k.server.Clone() }

// Client is the configuration with which a member calls others.
func (k *Keys) Client() *tls.Config { return k.client.Clone() }
