package site

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Bundle is the only file by which Debian's strongSwan, with its libcurl, trusts
// a server's TLS.
const Bundle = "/etc/ssl/certs/ca-certificates.crt"

// StrongSwan runs a bash script that has pki in the folder dir, with the
// profile's URL in $URL and stdin as its standard input, and returns all that it
// printed. See [Site.Trusting] for what proxied says.
func (s *Site) StrongSwan(ctx context.Context, dir, profileURL, stdin, script string) (out string, proxied bool, err error) {
	prefix, profileURL, end, err := s.Trusting(ctx, dir, profileURL)
	if err != nil {
		return "", prefix == nil, err
	}
	defer end()
	args := append(prefix, "bash", "-c", "set -e; "+script)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdin = dir, append(os.Environ(), "URL="+profileURL), strings.NewReader(stdin)
	b, err := cmd.CombinedOutput()
	return string(b), prefix == nil, err
}

// Trusting gives what to put before a command, so that programs that look at the
// system's bundle alone trust the site: the site's CA takes the bundle's place, in
// a mount namespace of the command's own. Where nobody may have one, as in most
// containers, there is nothing to put before it, and the URL is that of a proxy on
// the loopback that speaks TLS in the command's place, until end is called. The
// file of the bundle is written to the folder dir.
func (s *Site) Trusting(ctx context.Context, dir, profileURL string) (prefix []string, target string, end func(), err error) {
	unshare := []string{"unshare", "-m"}
	if os.Getuid() != 0 {
		unshare = []string{"unshare", "-rm"}
	}
	bundle := filepath.Join(dir, "bundle.pem")
	ca, err := os.ReadFile(s.CA())
	if err != nil {
		return nil, "", nil, err
	}
	if err := os.WriteFile(bundle, ca, 0o644); err != nil {
		return nil, "", nil, err
	}
	if _, _, code := Run(ctx, nil, unshare[0], append(unshare[1:], "mount", "--bind", bundle, Bundle)...); code != 0 {
		end, proxy, err := s.proxy(profileURL)
		return nil, proxy, end, err
	}
	mount := fmt.Sprintf(`mount --bind '%s' '%s'; exec "$@"`, bundle, Bundle)
	return append(unshare, "bash", "-ec", mount, "trusting"), profileURL, func() {}, nil
}

// proxy passes plain HTTP on the loopback on to a profile by TLS, as a segment
// would do whose devices know none.
func (s *Site) proxy(profileURL string) (end func(), proxied string, err error) {
	up, err := url.Parse(profileURL)
	if err != nil {
		return nil, "", err
	}
	h, err := s.HTTP()
	if err != nil {
		return nil, "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", fmt.Errorf("the proxy: %w", err)
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: &httputil.ReverseProxy{
		Transport: h.Transport, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: up.Scheme, Host: up.Host}) },
	}}
	go func() { _ = server.Serve(l) }()
	return func() { _ = server.Close(); h.CloseIdleConnections() }, "http://" + l.Addr().String() + up.Path, nil
}
