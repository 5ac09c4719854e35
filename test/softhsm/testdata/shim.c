/* A PKCS#11 module that passes everything on to REAL and spoils single calls,
 * as the file CONTROL says: "function count effect [value]". A function may be
 * followed by a colon and the label of a key, and means calls with that key
 * alone then. A new file (by its inode) starts a new count. Each spoiled call
 * makes the file CONTROL.spoiled one octet longer. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CK_PTR *
#define CK_DECLARE_FUNCTION(ret, name) ret name
#define CK_DECLARE_FUNCTION_POINTER(ret, name) ret(*name)
#define CK_CALLBACK_FUNCTION(ret, name) ret(*name)
#ifndef NULL_PTR
#define NULL_PTR 0
#endif
#include "pkcs11.h"

static CK_FUNCTION_LIST mine;
static CK_FUNCTION_LIST_PTR real;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static ino_t seen;
static long seen_ns;
static int left;
static char function[96], effect[32], value[32];

/* What the key is called that an operation of a session began with. */
static struct {
	CK_SESSION_HANDLE session;
	char label[64];
} begun[64];

/* A hit is a call to spoil: how, and by which control file. */
struct hit {
	char how[32], arg[32];
	ino_t ino;
	long ns;
};

static void begin(CK_SESSION_HANDLE h, CK_OBJECT_HANDLE k)
{
	char label[64] = "";
	CK_ATTRIBUTE a = { CKA_LABEL, label, sizeof label - 1 };
	if (real->C_GetAttributeValue(h, k, &a, 1) != CKR_OK)
		label[0] = 0;
	pthread_mutex_lock(&lock);
	begun[h % 64].session = h;
	memcpy(begun[h % 64].label, label, sizeof label);
	pthread_mutex_unlock(&lock);
}

/* meant tells whether the control file means this call. */
static int meant(const char *name, CK_SESSION_HANDLE h)
{
	size_t n = strlen(name);
	if (strncmp(function, name, n) != 0)
		return 0;
	if (function[n] == 0)
		return 1;
	return function[n] == ':' && begun[h % 64].session == h && strcmp(function + n + 1, begun[h % 64].label) == 0;
}

/* spoiled tells whether this call is one to spoil, and takes it off the count. */
static int spoiled(const char *name, CK_SESSION_HANDLE h, struct hit *hit)
{
	struct stat st;
	int found = 0;
	pthread_mutex_lock(&lock);
	if (stat(CONTROL, &st) == 0) {
		if (st.st_ino != seen || st.st_mtim.tv_nsec != seen_ns) {
			FILE *f = fopen(CONTROL, "r");
			value[0] = 0;
			left = 0;
			if (f) {
				if (fscanf(f, "%95s %d %31s %31s", function, &left, effect, value) < 3)
					left = 0;
				fclose(f);
			}
			seen = st.st_ino;
			seen_ns = st.st_mtim.tv_nsec;
		}
		if (left > 0 && meant(name, h)) {
			FILE *f = fopen(CONTROL ".spoiled", "a");
			if (f) {
				fputc('.', f);
				fclose(f);
			}
			left--;
			strcpy(hit->how, effect);
			strcpy(hit->arg, value);
			hit->ino = seen;
			hit->ns = seen_ns;
			found = 1;
		}
	}
	pthread_mutex_unlock(&lock);
	return found;
}

/* before returns 1 if the call is over, with its answer in rv; *flip says to
 * spoil the answer. */
static int before(const char *name, CK_SESSION_HANDLE h, int *flip, CK_RV *rv)
{
	struct hit hit;
	struct stat st;
	int i;
	*flip = 0;
	if (!spoiled(name, h, &hit))
		return 0;
	if (strcmp(hit.how, "rv") == 0) {
		*rv = strtoul(hit.arg, 0, 0);
		return 1;
	}
	if (strcmp(hit.how, "delay") == 0)
		usleep(1000 * strtoul(hit.arg, 0, 0));
	if (strcmp(hit.how, "hold") == 0)
		for (i = 0; i < 6000; i++) { /* 30 s */
			if (stat(CONTROL, &st) == 0 && (st.st_ino != hit.ino || st.st_mtim.tv_nsec != hit.ns))
				break;
			usleep(5000);
		}
	if (strcmp(hit.how, "flip") == 0)
		*flip = 1;
	return 0;
}

static CK_RV sign_init(CK_SESSION_HANDLE h, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k)
{
	int flip;
	CK_RV rv;
	begin(h, k);
	return before("SignInit", h, &flip, &rv) ? rv : real->C_SignInit(h, m, k);
}

static CK_RV decrypt_init(CK_SESSION_HANDLE h, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k)
{
	int flip;
	CK_RV rv;
	begin(h, k);
	return before("DecryptInit", h, &flip, &rv) ? rv : real->C_DecryptInit(h, m, k);
}

static CK_RV login(CK_SESSION_HANDLE h, CK_USER_TYPE u, CK_UTF8CHAR_PTR p, CK_ULONG n)
{
	int flip;
	CK_RV rv;
	return before("Login", h, &flip, &rv) ? rv : real->C_Login(h, u, p, n);
}

/* A call without a buffer only asks for the length. */
static CK_RV sign(CK_SESSION_HANDLE h, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR len)
{
	int flip = 0;
	CK_RV rv;
	if (out && before("Sign", h, &flip, &rv))
		return rv;
	rv = real->C_Sign(h, in, n, out, len);
	if (rv == CKR_OK && flip && *len)
		out[*len - 1] ^= 1;
	return rv;
}

static CK_RV decrypt(CK_SESSION_HANDLE h, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR len)
{
	int flip = 0;
	CK_RV rv;
	if (out && before("Decrypt", h, &flip, &rv))
		return rv;
	rv = real->C_Decrypt(h, in, n, out, len);
	if (rv == CKR_OK && flip && *len)
		out[*len - 1] ^= 1;
	return rv;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list)
{
	if (!real) {
		CK_RV (*get)(CK_FUNCTION_LIST_PTR_PTR);
		void *lib = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
		if (!lib)
			return CKR_GENERAL_ERROR;
		get = (CK_RV(*)(CK_FUNCTION_LIST_PTR_PTR))dlsym(lib, "C_GetFunctionList");
		if (!get || get(&real) != CKR_OK)
			return CKR_GENERAL_ERROR;
		memcpy(&mine, real, sizeof mine);
		mine.C_SignInit = sign_init;
		mine.C_Sign = sign;
		mine.C_DecryptInit = decrypt_init;
		mine.C_Decrypt = decrypt;
		mine.C_Login = login;
		mine.C_GetFunctionList = C_GetFunctionList;
	}
	*list = &mine;
	return CKR_OK;
}
