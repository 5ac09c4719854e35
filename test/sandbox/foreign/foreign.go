// Package foreign makes system calls as other kinds of programs do: from a thread
// that C code started, and as a 32-bit program would.
//
// # What a caller may rely on
//
// A [Thread] is made by pthread_create, and Go's runtime does not know it.
//
// # What it does not protect against
//
// It is for tests alone.
package foreign

/*
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <stdlib.h>
#include <unistd.h>

struct thread { pthread_t id; int ask[2]; int answer[2]; };
struct order { int kind; int family; char path[512]; };

static void *run(void *arg) {
	struct thread *t = arg;
	struct order o;
	while (read(t->ask[0], &o, sizeof o) == sizeof o) {
		int fd = o.kind == 0 ? socket(o.family, SOCK_STREAM, 0) : open(o.path, O_RDONLY | O_CLOEXEC);
		int result = fd < 0 ? errno : 0;
		if (fd >= 0) close(fd);
		if (write(t->answer[1], &result, sizeof result) != sizeof result) break;
	}
	return NULL;
}

static int start(struct thread *t) {
	if (pipe(t->ask) || pipe(t->answer)) return errno;
	return pthread_create(&t->id, NULL, run, t);
}

static int order(struct thread *t, struct order *o) {
	int result;
	if (write(t->ask[1], o, sizeof *o) != sizeof *o || read(t->answer[0], &result, sizeof result) != sizeof result) return -1;
	return result;
}

#if defined(__x86_64__)
static long int80(long number) {
	long result;
	__asm__ volatile ("int $0x80" : "=a"(result) : "a"(number) : "memory", "r8", "r9", "r10", "r11");
	return result;
}
#else
static long int80(long number) { return -ENOSYS; }
#endif
*/
import "C"

import (
	"fmt"
	"syscall"
)

// A Thread waits for orders in C.
type Thread struct{ t *C.struct_thread }

// Start begins one.
func Start() (Thread, error) {
	t := Thread{(*C.struct_thread)(C.calloc(1, C.sizeof_struct_thread))}
	if code := C.start(t.t); code != 0 {
		return t, fmt.Errorf("starting a thread in C: %w", syscall.Errno(code))
	}
	return t, nil
}

// Socket makes a stream socket on the thread, and closes it.
func (t Thread) Socket(family int) syscall.Errno {
	return t.order(C.struct_order{kind: 0, family: C.int(family)})
}

// Open opens a file to read on the thread, and closes it.
func (t Thread) Open(path string) syscall.Errno {
	o := C.struct_order{kind: 1}
	for i := range min(len(path), len(o.path)-1) {
		o.path[i] = C.char(path[i])
	}
	return t.order(o)
}

func (t Thread) order(o C.struct_order) syscall.Errno { return syscall.Errno(C.order(t.t, &o)) }

// Int80 makes a call without arguments as a 32-bit program of amd64 does.
func Int80(number int) int { return int(C.int80(C.long(number))) }
