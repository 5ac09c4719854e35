package sandbox_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"

	_ "github.com/mattn/go-sqlite3"
	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"
)

// jobs are what the roles have to be able to do inside.
func jobs() map[string]func(with, said map[string]string) {
	return map[string]func(with, said map[string]string){
		"gate": gateJob, "authority": authorityJob, "keyholder": keyholderJob, "courier": courierJob,
	}
}

// note keeps how a step ended: "" is well.
func note(said map[string]string, step string, err error) bool {
	if err != nil {
		said[step] = err.Error()
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			said[step] = unix.ErrnoName(errno)
		}
		return false
	}
	said[step] = ""
	return true
}

// gateJob serves TLS on the listener that it inherited, talks over its links, and
// then tries to point a device's connection somewhere else.
func gateJob(with, said map[string]string) {
	link, err := net.FileConn(os.NewFile(4, "link"))
	if note(said, "link", err) {
		_, err = link.Write([]byte("ping"))
		note(said, "write to the link", err)
	}
	if path := with["dial"]; path != "" {
		c, err := new(net.Dialer).DialContext(context.Background(), "unix", path)
		if note(said, "named link", err) {
			_ = c.Close()
		}
	}
	l, err := net.FileListener(os.NewFile(3, "devices"))
	if !note(said, "listener", err) {
		return
	}
	pair, err := tls.X509KeyPair([]byte(with["certificate"]), []byte(with["key"]))
	if !note(said, "certificate", err) {
		return
	}
	raw, done, end := make(chan net.Conn, 1), make(chan bool), make(chan bool)
	defer close(end)
	s := &http.Server{
		ReadHeaderTimeout: 10 * time.Second, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}},
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateNew {
				raw <- c.(*tls.Conn).NetConn()
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "served")
			_ = http.NewResponseController(w).Flush()
			close(done)
			<-end // the connection stays until it was tried
		}),
	}
	go func() { _ = s.ServeTLS(l, "", "") }()
	select {
	case <-done:
		note(said, "serve", nil)
	case <-time.After(20 * time.Second):
		note(said, "serve", errors.New("nobody came"))
		return
	}
	turn((<-raw).(*net.TCPConn), with["elsewhere"], said)
	if t, ok := l.(*net.TCPListener); ok {
		turn(t, with["elsewhere"], said)
	}
}

// turn breaks a socket off its peer and connects it to another: nothing that
// opens a socket is needed for it.
func turn(s syscall.Conn, elsewhere string, said map[string]string) {
	kind := fmt.Sprintf("%T ", s)
	to, err := net.ResolveTCPAddr("tcp", elsewhere)
	if !note(said, kind+"address", err) {
		return
	}
	addr := &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}
	raw, err := s.SyscallConn()
	if !note(said, kind+"descriptor", err) {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		nobody := make([]byte, 16) // AF_UNSPEC
		_, _, _ = unix.Syscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&nobody[0])), 16)
		_ = unix.Shutdown(int(fd), unix.SHUT_RDWR) // a listener ends so too
		err := unix.Sendto(int(fd), []byte("first"), unix.MSG_FASTOPEN|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, addr)
		if errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.EAGAIN) {
			err = nil
		}
		note(said, kind+"first packet", err)
		_, _, _ = unix.Syscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&nobody[0])), 16)
		err = unix.Connect(int(fd), addr)
		if errors.Is(err, unix.EINPROGRESS) {
			err = nil
		}
		note(said, kind+"connect", err)
	})
}

// authorityJob keeps a database and a log in its folder.
func authorityJob(with, said map[string]string) {
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(with["state"], "index.db")+"?_journal_mode=WAL&_synchronous=NORMAL")
	if !note(said, "open", err) {
		return
	}
	for _, q := range []string{"CREATE TABLE t (n)", "INSERT INTO t VALUES (1)", "PRAGMA wal_checkpoint(TRUNCATE)", "CREATE INDEX i ON t (n)", "VACUUM"} {
		_, err := db.ExecContext(context.Background(), q)
		note(said, q, err)
	}
	note(said, "close the database", db.Close())
	note(said, "new folder", os.MkdirAll(filepath.Join(with["state"], "audit", "segments"), 0o700))
	f, err := os.OpenFile(filepath.Join(with["state"], "audit", "new"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if !note(said, "new file", err) {
		return
	}
	_, err = f.WriteString("line\n")
	note(said, "append", err)
	note(said, "reserve", unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20))
	note(said, "fdatasync", unix.Fdatasync(int(f.Fd())))
	note(said, "lock", unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	note(said, "move", os.Rename(f.Name(), filepath.Join(with["state"], "audit", "segments", "0")))
	d, err := os.Open(filepath.Join(with["state"], "audit"))
	note(said, "folder", err)
	note(said, "sync of the folder", d.Sync())
	_, err = os.ReadFile(with["config"])
	note(said, "configuration", err)
}

// keyholderJob loads the module, which reads its settings and tokens, and signs.
func keyholderJob(with, said map[string]string) {
	pin, err := os.ReadFile(with["pin"])
	note(said, "pin", err)
	p := pkcs11.New(with["module"])
	if p == nil {
		said["module"] = "cannot be loaded"
		return
	}
	if !note(said, "initialize", p.Initialize()) {
		return
	}
	slots, err := p.GetSlotList(true)
	note(said, "slots", err)
	for _, slot := range slots {
		info, err := p.GetTokenInfo(slot)
		if err != nil || info.Label != with["label"] {
			continue
		}
		session, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		note(said, "session", err)
		note(said, "login", p.Login(session, pkcs11.CKU_USER, string(pin[:len(pin)-1])))
		_, key, err := p.GenerateKeyPair(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true)},
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_SIGN, true)})
		note(said, "new key", err)
		note(said, "begin to sign", p.SignInit(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}, key))
		_, err = p.Sign(session, make([]byte, 32))
		note(said, "sign", err)
	}
	note(said, "head", os.WriteFile(filepath.Join(with["state"], "head"), []byte("0\n"), 0o600))
}

// courierJob finds a host and talks to it.
func courierJob(with, said map[string]string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	names := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", with["names"])
	}}
	at, err := names.LookupIPAddr(ctx, "outside.example.")
	if note(said, "name", err) {
		said["address"] = at[0].String()
	}
	_, err = net.DefaultResolver.LookupIPAddr(ctx, "localhost") // by the C library
	note(said, "name in C", err)
	_, err = os.ReadFile("/etc/resolv.conf")
	note(said, "resolv.conf", err)
	c, err := new(net.Dialer).DialContext(ctx, "tcp", with["outside"])
	if !note(said, "connect", err) {
		return
	}
	said["heard"], err = bufio.NewReader(c).ReadString('\n')
	note(said, "read", err)
	_, err = new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	note(said, "listen", err)
	note(said, "state", os.WriteFile(filepath.Join(with["state"], "account"), []byte("x"), 0o600))
}
