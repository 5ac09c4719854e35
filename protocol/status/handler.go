package status

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Bounds of a question over HTTP.
const (
	askWithin = 5 * time.Second
	maxIssuer = 64
	maxPath   = 3 * (MaxRequest*4/3 + 4) // base64, every character of it escaped
	// cacheFor is how long a cache on the way may keep what is good for longer: a
	// revocation should not wait for it.
	cacheFor = 5 * time.Minute
)

// Options are what [NewHandler] needs; every field is required.
type Options struct {
	Source Source
	Now    func() time.Time
	Log    *zap.Logger
}

// A Handler serves GET /crl/ISSUER.crl, POST /ocsp/ISSUER and GET /ocsp/ISSUER/BASE64.
type Handler struct {
	o Options

	mu    sync.Mutex
	lists map[string]kept // by issuer: as many as there are
}

// kept is a list as it goes out.
type kept struct {
	List
	digest [sha256.Size]byte
	etag   string
}

// NewHandler returns the handler.
func NewHandler(o Options) *Handler { return &Handler{o: o, lists: make(map[string]kept)} }

// Serves reports whether a path is one of the handler's.
func Serves(path string) bool {
	return strings.HasPrefix(path, "/crl/") || strings.HasPrefix(path, "/ocsp/")
}

// ServeHTTP answers. What no path or method is gets 404 or 405, a fault of ours 503.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), askWithin)
	defer cancel()
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if rest, ok := strings.CutPrefix(r.URL.Path, "/crl/"); ok {
		name, crl := strings.CutSuffix(rest, ".crl")
		if !crl || !isIssuer(name) {
			http.NotFound(w, r)
			return
		}
		h.list(ctx, w, r, name)
		return
	}
	// The escapes are read here: base64 has slashes of its own.
	name, question, _ := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), "/ocsp/"), "/")
	if !isIssuer(name) {
		http.NotFound(w, r)
		return
	}
	h.ocsp(ctx, w, r, name, question)
}

func isIssuer(name string) bool {
	return name != "" && len(name) <= maxIssuer && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	})
}

func (h *Handler) list(ctx context.Context, w http.ResponseWriter, r *http.Request, name string) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	l, err := h.newest(ctx, name)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	head := w.Header()
	head.Set("Content-Type", "application/pkix-crl")
	h.cache(head, l.Answer, l.etag)
	if r.Header.Get("If-None-Match") == l.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	write(w, r, l.DER)
}

// newest asks for the list every time, and for its octets when they are new.
func (h *Handler) newest(ctx context.Context, name string) (kept, error) {
	h.mu.Lock()
	was := h.lists[name]
	h.mu.Unlock()
	l, err := h.o.Source.List(ctx, name, was.digest)
	if err != nil {
		return kept{}, err
	}
	if l.DER == nil {
		return was, nil
	}
	now := kept{List: l, digest: l.Digest()}
	now.etag = `"` + hex.EncodeToString(now.digest[:]) + `"`
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lists[name] = now
	return now, nil
}

// cache says how long an answer may be kept: never beyond its own end.
func (h *Handler) cache(head http.Header, a Answer, etag string) {
	left := min(a.NextUpdate.Sub(h.o.Now()), cacheFor)
	head.Set("Cache-Control", "public, no-transform, must-revalidate, max-age="+strconv.Itoa(int(max(left, 0)/time.Second)))
	head.Set("Last-Modified", a.ThisUpdate.UTC().Format(http.TimeFormat))
	head.Set("Expires", h.o.Now().Add(max(left, 0)).UTC().Format(http.TimeFormat))
	head.Set("ETag", etag)
}

func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, ErrUnknownIssuer) {
		http.NotFound(w, r)
		return
	}
	h.o.Log.Warn("a question about certificates had no answer", zap.Error(err))
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Retry-After", "5")
	http.Error(w, "try again later", http.StatusServiceUnavailable)
}

func write(w http.ResponseWriter, r *http.Request, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

// The responses without a signature (RFC 6960, section 4.2.1).
var (
	malformed    = [...]byte{0x30, 3, 0x0a, 1, 1}
	tryLater     = [...]byte{0x30, 3, 0x0a, 1, 3}
	unauthorized = [...]byte{0x30, 3, 0x0a, 1, 6}
)

func (h *Handler) ocsp(ctx context.Context, w http.ResponseWriter, r *http.Request, name, escaped string) {
	var der []byte
	var err error
	switch {
	case r.Method == http.MethodPost && escaped == "":
		der, err = io.ReadAll(http.MaxBytesReader(w, r.Body, MaxRequest))
	case (r.Method == http.MethodGet || r.Method == http.MethodHead) && escaped != "":
		der, err = fromPath(escaped)
	default:
		w.Header().Set("Allow", "POST, GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	var id CertID
	if err == nil {
		id, err = ParseRequest(der)
	}
	if err != nil && !errors.Is(err, ErrHash) {
		// The source says whether there is such a responder at all.
		if err := h.o.Source.Malformed(ctx, name); err != nil {
			h.fail(w, r, err)
			return
		}
		refuse(w, r, malformed[:])
		return
	}
	var a Answer
	if err == nil {
		a, err = h.o.Source.Answer(ctx, name, id)
	}
	switch {
	case errors.Is(err, ErrUnknownIssuer):
		http.NotFound(w, r)
	case errors.Is(err, ErrUnauthorized), errors.Is(err, ErrHash):
		refuse(w, r, unauthorized[:])
	case err != nil:
		h.o.Log.Warn("a question about a certificate had no answer", zap.Error(err))
		refuse(w, r, tryLater[:])
	default:
		sum := sha256.Sum256(a.DER)
		w.Header().Set("Content-Type", "application/ocsp-response")
		h.cache(w.Header(), a, `"`+hex.EncodeToString(sum[:])+`"`)
		write(w, r, a.DER)
	}
}

// refuse sends a response that says that there is none.
func refuse(w http.ResponseWriter, r *http.Request, body []byte) {
	w.Header().Set("Content-Type", "application/ocsp-response")
	w.Header().Set("Cache-Control", "no-store")
	write(w, r, body)
}

// fromPath reads the question in a path (RFC 6960, appendix A.1): base64, then escaped
// or, as many do, not.
func fromPath(escaped string) ([]byte, error) {
	if len(escaped) > maxPath {
		return nil, ErrMalformed
	}
	text, err := url.PathUnescape(escaped)
	if err != nil || len(text) > MaxRequest*4/3+4 {
		return nil, ErrMalformed
	}
	return base64.StdEncoding.DecodeString(text)
}
