package scep

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"math/big"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/pkcs10"
)

// Bounds on the time that a request takes, together below the listener's bound on
// writing an answer.
const (
	deadline     = 20 * time.Second // for all that it makes the appliance do
	timeToRecord = 5 * time.Second  // for its record, also after the deadline
)

// whyFault stands in the log for a request that the appliance failed to serve.
const whyFault = "fault of the appliance"

// Media types, without parameters, as clients compare them whole (RFC 8894,
// sections 3.5.2, 4.2.1.2, 4.3.1 and 4.7.1).
const (
	typeText    = "text/plain"
	typeCerts   = "application/x-x509-ca-ra-cert"
	typeMessage = "application/x-pki-message"
	typeNextCA  = "application/x-x509-next-ca-cert"
)

// Options are what [NewHandler] needs.
type Options struct {
	Authority protocol.Authority
	Keys      protocol.Keys
	Now       func() time.Time // default time.Now
	Log       *zap.Logger      // default none; gets faults of the appliance, never what a stranger sent
	// DefaultProfile is the profile of paths that name none, such as
	// /cgi-bin/pkiclient.exe; default none: they are not found.
	DefaultProfile string
	// BrokenPerMinute is how many envelopes one source may get wrong in a minute: then
	// it is told to come back later, before the RA key is asked; default 60.
	BrokenPerMinute int
	// Sleep waits for d or until ctx is done; by default with a timer.
	Sleep func(ctx context.Context, d time.Duration)
}

type handler struct {
	authority protocol.Authority
	keys      protocol.Keys
	fallback  string // the profile of paths that name none
	now       func() time.Time
	log       *zap.Logger
	sleep     func(ctx context.Context, d time.Duration)
	own       certificates
	broken    budget
	nextCAs   nextCAs
}

// NewHandler serves SCEP for all profiles of the authority, each under
// /scep/<profile>, and the default profile on the paths of [Serves] too. It wants
// whole paths: nothing before it may strip a prefix.
func NewHandler(o Options) http.Handler {
	h := &handler{authority: o.Authority, keys: o.Keys, fallback: o.DefaultProfile, now: o.Now, log: o.Log, sleep: o.Sleep, nextCAs: newNextCAs()}
	if h.now == nil {
		h.now = time.Now
	}
	if h.log == nil {
		h.log = zap.NewNop()
	}
	if h.broken = (budget{perMinute: o.BrokenPerMinute, now: h.now}); h.broken.perMinute <= 0 {
		h.broken.perMinute = defaultBroken
	}
	if h.sleep == nil {
		h.sleep = sleep
	}
	return h
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// An answer is complete before its first byte is written, so that a fault on the
// way can still become a 503.
type answer struct {
	status      int
	contentType string
	body        []byte
}

// plain answers with fixed words of ours.
func plain(status int) answer {
	return answer{status: status, contentType: typeText, body: []byte(strings.ToLower(http.StatusText(status)) + "\n")}
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), deadline)
	defer cancel()
	h.respond(ctx, w, r).write(w)
}

// respond makes a fault of ours a 503: a device tries again then.
func (h *handler) respond(ctx context.Context, w http.ResponseWriter, r *http.Request) (a answer) {
	x := &exchange{handler: h, record: protocol.Rejected{Protocol: "scep", Source: r.RemoteAddr}}
	defer func() {
		if v := recover(); v != nil {
			h.log.Error("scep: panic", zap.Any("value", v), zap.ByteString("stack", debug.Stack()))
			a = x.fault(ctx)
		}
	}()
	a, err := x.serve(ctx, w, r)
	if err != nil {
		h.log.Error("scep: request not served", zap.String("profile", x.record.Profile), zap.Error(err))
		return x.fault(ctx)
	}
	return a
}

func (a answer) write(w http.ResponseWriter) {
	header := w.Header()
	header.Set("Content-Type", a.contentType)
	header.Set("Content-Length", strconv.Itoa(len(a.body)))
	// A GET may be a PKIOperation (RFC 8894, section 4.1), and is not idempotent.
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	switch a.status {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		header.Set("Retry-After", retryAfter())
	case http.StatusMethodNotAllowed:
		header.Set("Allow", "GET, POST")
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // a client that went away is told nothing
}

// retryAfter is 5 to 15 seconds, by chance, so that devices that failed together
// do not come back together.
func retryAfter() string {
	n, err := rand.Int(rand.Reader, big.NewInt(11))
	if err != nil {
		return "10"
	}
	return strconv.FormatInt(5+n.Int64(), 10)
}

// Serves reports whether a path, decoded once, is one that the handler knows: below
// /scep/, or one that other servers have and that names no profile (RFC 8894,
// section 4.1; what clients append to a URL is there too).
func Serves(path string) bool {
	return strings.HasPrefix(path, "/scep/") || bare(path)
}

// bare reports whether a path has no profile. No profile's name has a dot or is
// empty.
func bare(path string) bool {
	switch path {
	case "/scep", "/scep/", "/scep/pkiclient.exe", "/scep/mscep.dll", "/cgi-bin/pkiclient.exe",
		"/certsrv/mscep/mscep.dll", "/certsrv/mscep/mscep.dll/pkiclient.exe":
		return true
	default:
		return false
	}
}

// route returns the profile of a path, which was decoded once; "" is the default
// one. Clients append what they know of other servers (RFC 8894, section 4.1 leaves
// the path open), but nothing else is taken: an escaped slash, which filters on the
// way read in different ways, no more than what still looks escaped.
func route(u *url.URL) (profile string, ok bool) {
	if strings.ContainsAny(u.Path, "%\\") || strings.Contains(strings.ToLower(u.EscapedPath()), "%2f") {
		return "", false
	}
	if bare(u.Path) {
		return "", true
	}
	rest, ok := strings.CutPrefix(u.Path, "/scep/")
	if !ok {
		return "", false
	}
	end := strings.IndexByte(rest, '/')
	if end < 0 {
		end = len(rest)
	}
	profile = rest[:end]
	if profile == "" || profile == "." || profile == ".." {
		return "", false
	}
	switch rest[end:] {
	case "", "/", "/pkiclient.exe", "/cgi-bin/pkiclient.exe", "/mscep.dll",
		"/certsrv/mscep/mscep.dll", "/certsrv/mscep/mscep.dll/pkiclient.exe":
		return profile, true
	default:
		return "", false
	}
}

// An exchange is one request on its way.
type exchange struct {
	*handler
	service protocol.Service
	// generation is the one that the message is encrypted to, as far as that is known;
	// nil: not yet.
	generation *protocol.Generation
	record     protocol.Rejected // what the log gets if the message does not become a request
	done       bool              // that it is recorded, here or by the authority
	arrived    time.Time
	message    Message
	digest     crypto.Hash // of the message; 0 if it is not one of ours

	challenge *pkcs10.Password // of the CSR; nil if there is none, or if nobody looked
}

// reject records the message; the id is under which it stands in the log. Who
// hangs up before the answer is recorded all the same.
func (x *exchange) reject(ctx context.Context, r protocol.Rejected) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeToRecord)
	defer cancel()
	x.done = true // or else the fault of recording it would be recorded
	return x.authority.Reject(ctx, r)
}

// refused records the message as refused.
func (x *exchange) refused(ctx context.Context, kind protocol.Kind, why string) (string, error) {
	r := x.record
	r.Kind, r.Why = kind, why
	return x.reject(ctx, r)
}

// fault answers for a fault of ours. If it cannot be recorded either, the
// operators' log has it alone.
func (x *exchange) fault(ctx context.Context) answer {
	if !x.done {
		if _, err := x.refused(ctx, protocol.Unclassified, whyFault); err != nil {
			x.log.Error("scep: fault not recorded", zap.Error(err))
		}
	}
	return plain(http.StatusServiceUnavailable)
}

// refuse records the message, and answers without a CertRep.
func (x *exchange) refuse(ctx context.Context, status int, kind protocol.Kind, why string) (answer, error) {
	if _, err := x.refused(ctx, kind, why); err != nil {
		return answer{}, err
	}
	return plain(status), nil
}

// served records a plain question, and answers it.
func (x *exchange) served(ctx context.Context, contentType string, body []byte) (answer, error) {
	r := x.record
	r.Served = true
	if _, err := x.reject(ctx, r); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, contentType: contentType, body: body}, nil
}

func (x *exchange) serve(ctx context.Context, w http.ResponseWriter, r *http.Request) (answer, error) {
	q, queryOK := parseQuery(r.URL.RawQuery)
	x.record.Operation = q.operation
	profile, ok := route(r.URL)
	if !ok {
		return x.refuse(ctx, http.StatusNotFound, protocol.NotFound, "path")
	}
	if profile == "" {
		if profile = x.fallback; profile == "" {
			return x.refuse(ctx, http.StatusNotFound, protocol.NotFound, "no profile in the path, and no default one")
		}
	}
	x.record.Profile = profile
	var err error
	x.service, err = x.authority.Service(ctx, profile)
	switch {
	case errors.Is(err, protocol.ErrUnknownProfile):
		return x.refuse(ctx, http.StatusNotFound, protocol.NotFound, "unknown profile")
	case err != nil:
		return answer{}, err
	case r.Method != http.MethodGet && r.Method != http.MethodPost:
		return x.refuse(ctx, http.StatusMethodNotAllowed, protocol.Unsupported, "method")
	case !queryOK:
		return x.refuse(ctx, http.StatusBadRequest, protocol.Unsupported, "operation or message twice")
	case r.Method == http.MethodPost:
		return x.post(ctx, w, r, q)
	default:
		return x.get(ctx, r, q)
	}
}
