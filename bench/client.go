package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// client is one connection that is kept alive. It is leaner than net/http's, so
// that on a small machine it takes less from the server it measures.
type client struct {
	addr string
	conn net.Conn
	r    *bufio.Reader
}

func dial(addr string) (*client, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &client{addr: addr, conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}, nil
}

func (c *client) close() { _ = c.conn.Close() }

type answer struct {
	status   int
	location string // path and query
	body     []byte
}

// do sends a request. header has its lines with CRLF, or is empty.
func (c *client) do(method, path, header string, body []byte) (answer, error) {
	var head bytes.Buffer
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\n%s", method, path, c.addr, header)
	if body != nil || method == http.MethodPost || method == http.MethodPut {
		fmt.Fprintf(&head, "Content-Length: %d\r\n", len(body))
	}
	head.WriteString("\r\n")
	buffers := net.Buffers{head.Bytes(), body}
	if _, err := buffers.WriteTo(c.conn); err != nil {
		return answer{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return c.answer(method, path)
}

func (c *client) answer(method, path string) (answer, error) {
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		return answer{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	b, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return answer{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	a := answer{status: resp.StatusCode, body: b}
	if l := resp.Header.Get("Location"); l != "" {
		u, err := url.Parse(l)
		if err != nil {
			return answer{}, fmt.Errorf("%s %s: %w", method, path, err)
		}
		a.location = u.RequestURI()
	}
	return a, nil
}

// want is do for one expected status.
func (c *client) want(status int, method, path, header string, body []byte) (answer, error) {
	a, err := c.do(method, path, header, body)
	if err == nil && a.status != status {
		err = fmt.Errorf("%s %s: %d %s", method, path, a.status, a.body)
	}
	return a, err
}

const octets = "Content-Type: application/octet-stream\r\n"

func finishing(location string, d digest.Digest) string {
	if strings.Contains(location, "?") {
		return location + "&digest=" + d.String()
	}
	return location + "?digest=" + d.String()
}

// pushBlob does what clients do: is it there, begin, send.
func (c *client) pushBlob(repo string, d digest.Digest, content []byte) error {
	a, err := c.do(http.MethodHead, "/v2/"+repo+"/blobs/"+d.String(), "", nil)
	if err != nil || a.status == http.StatusOK {
		return err
	}
	if a.status != http.StatusNotFound {
		return fmt.Errorf("HEAD %s: %d", d, a.status)
	}
	if a, err = c.want(http.StatusAccepted, http.MethodPost, "/v2/"+repo+"/blobs/uploads/", "", nil); err != nil {
		return err
	}
	_, err = c.want(http.StatusCreated, http.MethodPut, finishing(a.location, d), octets, content)
	return err
}

// image is a small image: a config, a layer, a manifest.
type image struct {
	config, layer             []byte
	configDigest, layerDigest digest.Digest
	manifest                  []byte
	digest                    digest.Digest
}

// newImage makes an image like no other, with a layer of the given size in bytes.
func newImage(layerSize int) image {
	im := image{layer: make([]byte, max(16, layerSize))}
	_, _ = rand.Read(im.layer) // never fails
	im.layerDigest = digest.FromBytes(im.layer)
	im.config = []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + im.layerDigest.String() + `"]}}`)
	im.configDigest = digest.FromBytes(im.config)
	im.manifest = []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest +
		`","config":{"mediaType":"` + v1.MediaTypeImageConfig + `","digest":"` + im.configDigest.String() + `","size":` + strconv.Itoa(len(im.config)) +
		`},"layers":[{"mediaType":"` + v1.MediaTypeImageLayer + `","digest":"` + im.layerDigest.String() + `","size":` + strconv.Itoa(len(im.layer)) + `}]}`)
	im.digest = digest.FromBytes(im.manifest)
	return im
}

const manifestHeader = "Content-Type: " + v1.MediaTypeImageManifest + "\r\n"

// push pushes an image as clients do, manifest last.
func (c *client) push(repo, tag string, im image) error {
	if err := c.pushBlob(repo, im.configDigest, im.config); err != nil {
		return err
	}
	if err := c.pushBlob(repo, im.layerDigest, im.layer); err != nil {
		return err
	}
	_, err := c.want(http.StatusCreated, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, manifestHeader, im.manifest)
	return err
}

func (c *client) delete(repo string, d digest.Digest) error {
	_, err := c.want(http.StatusAccepted, http.MethodDelete, "/v2/"+repo+"/manifests/"+d.String(), "", nil)
	return err
}

func unique() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
