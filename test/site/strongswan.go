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
// printed. The site's CA takes the place of the system's bundle, in a mount
// namespace of the script's own. Where nobody may have one, as in most
// containers, the script gets the URL of a proxy on the loopback that speaks TLS
// in its place, and proxied is true.
func (s *Site) StrongSwan(ctx context.Context, dir, profileURL, stdin, script string) (out string, proxied bool, err error) {
	unshare := []string{"unshare", "-m"}
	if os.Getuid() != 0 {
		unshare = []string{"unshare", "-rm"}
	}
	bundle := filepath.Join(dir, "bundle.pem")
	ca, err := os.ReadFile(s.CA())
	if err != nil {
		return "", false, err
	}
	if err := os.WriteFile(bundle, ca, 0o644); err != nil {
		return "", false, err
	}
	mount := []string{"mount", "--bind", bundle, Bundle}
	args := append(unshare, "bash", "-c", `set -e; mount --bind bundle.pem "$BUNDLE"; `+script)
	if _, _, code := Run(ctx, nil, unshare[0], append(unshare[1:], mount...)...); code != 0 {
		end, proxy, err := s.proxy(profileURL)
		if err != nil {
			return "", true, err
		}
		defer end()
		proxied, profileURL, args = true, proxy, []string{"bash", "-c", "set -e; " + script}
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdin = dir, append(os.Environ(), "URL="+profileURL, "BUNDLE="+Bundle), strings.NewReader(stdin)
	b, err := cmd.CombinedOutput()
	return string(b), proxied, err
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
