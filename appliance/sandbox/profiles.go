package sandbox

import (
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Gate is what a gate keeps: the sockets that it was given, and Unix sockets. dial
// is the named sockets that it calls, the service manager's among them, or empty where its links
// were inherited: it can then connect to nothing at all. certificates are
// the folders that its TLS certificate is read again from, if files hold it. Its
// listener has to be plain TCP; see the package comment.
func Gate(name string, dial, certificates []string) Profile {
	return Profile{
		Name: name, Read: certificates, Dial: dial,
		Sockets: []int{unix.AF_UNIX}, Connect: len(dial) > 0,
	}
}

// Authority is what the authority keeps: its own folder, with the log and the index,
// and read those files and folders that it looks into again, its configuration among
// them. With a database server, network is true: it may then make TCP and UDP sockets,
// and read what finds a host.
func Authority(state string, read, dial []string, network bool) Profile {
	p := Profile{
		Name: "authority", Read: read, Write: []string{state}, Dial: dial,
		Sockets: []int{unix.AF_UNIX}, Connect: network || len(dial) > 0,
	}
	if network {
		p.Sockets = append(p.Sockets, unix.AF_INET, unix.AF_INET6)
		p.ReadIf = resolver()
	}
	return p
}

// Keys is what the keyholder's module needs.
type Keys struct {
	State   string   // the folder of its own head file
	Secrets []string // files or folders that the PIN is read from again when the token comes back
	Modules []string // the PKCS#11 libraries
	Tokens  []string // folders where the module keeps tokens or locks; device files
	Read    []string // more that a vendor's module reads: its settings, say
	Dial    []string // the named sockets that it or the module connects to
	Sockets []int    // more address families: unix.AF_INET for a network HSM
	Exec    bool     // the module starts a program
}

// Keyholder is what the keyholder keeps. It is entered before the module is loaded,
// so that every thread of the module is bound from its first instruction. The log's folder
// is in none of it.
func Keyholder(k Keys) Profile {
	p := Profile{
		Name: "keyholder", Read: slices.Concat(k.Secrets, k.Read), Write: []string{k.State}, Dial: k.Dial,
		ReadIf: append(libraries(), "/etc/ssl/openssl.cnf", "/etc/pkcs11", "/usr/share/p11-kit", "/dev/urandom"), WriteIf: append([]string{"/dev/null"}, k.Tokens...),
		Sockets: append([]int{unix.AF_UNIX}, k.Sockets...), Exec: k.Exec,
	}
	for _, m := range k.Modules { // with what lies beside it
		p.Read = append(p.Read, filepath.Dir(m))
	}
	if p.inet() {
		p.ReadIf = append(p.ReadIf, resolver()...)
	}
	p.Connect = len(k.Dial)+len(k.Sockets) > 0
	return p
}

// Courier is what the courier keeps: its own folder, and the network, to connect
// and not to listen.
func Courier(state string, read, dial []string) Profile {
	return Profile{
		Name: "courier", Read: read, Write: []string{state}, Dial: dial,
		ReadIf:  slices.Concat(resolver(), []string{"/etc/ssl", "/etc/pki/tls", "/etc/pki/ca-trust", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"}),
		Sockets: []int{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6}, Connect: true,
	}
}

// libraries is where a C library loads what it needs only later.
func libraries() []string {
	return []string{"/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"}
}

// resolver is what finds a host by its name, in Go and in C. A rule holds a file, not
// its name: where the list of name servers is a link into a folder of
// its own the folder is named, so that a list that is put in its place is seen.
// A list in /etc itself that is replaced is seen after the next start.
func resolver() []string {
	list := "/etc/resolv.conf"
	if to, err := filepath.EvalSymlinks(list); err == nil && filepath.Dir(to) != "/etc" && filepath.Dir(to) != "/" {
		list = filepath.Dir(to)
	}
	return append(libraries(), list, "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services", "/etc/protocols")
}

// Manager is the socket on which the service manager is told how a role is, for the
// profiles' dial; empty without one.
func Manager() []string {
	if path := os.Getenv("NOTIFY_SOCKET"); filepath.IsAbs(path) {
		return []string{path}
	}
	return nil
}
