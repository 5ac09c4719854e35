/* A PKCS#11 module that passes everything on to REAL and spoils single calls,
 * as the file CONTROL says: "function count effect [value]". A new file (by its
 * inode) starts a new count. */
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
static char function[32], effect[32], value[32];

/* spoiled tells whether this call is one to spoil, and takes it off the count. */
static int spoiled(const char *name, char *how, char *arg)
{
	struct stat st;
	int hit = 0;
	pthread_mutex_lock(&lock);
	if (stat(CONTROL, &st) == 0) {
		if (st.st_ino != seen || st.st_mtim.tv_nsec != seen_ns) {
			FILE *f = fopen(CONTROL, "r");
			value[0] = 0;
			left = 0;
			if (f) {
				if (fscanf(f, "%31s %d %31s %31s", function, &left, effect, value) < 3)
					left = 0;
				fclose(f);
			}
			seen = st.st_ino;
			seen_ns = st.st_mtim.tv_nsec;
		}
		if (left > 0 && strcmp(function, name) == 0) {
			left--;
			strcpy(how, effect);
			strcpy(arg, value);
			hit = 1;
		}
	}
	pthread_mutex_unlock(&lock);
	return hit;
}

/* before returns 1 if the call is over, with its answer in rv; *flip says to
 * spoil the answer. */
static int before(const char *name, int *flip, CK_RV *rv)
{
	char how[32], arg[32];
	*flip = 0;
	if (!spoiled(name, how, arg))
		return 0;
	if (strcmp(how, "rv") == 0) {
		*rv = strtoul(arg, 0, 0);
		return 1;
	}
	if (strcmp(how, "delay") == 0)
		usleep(1000 * strtoul(arg, 0, 0));
	if (strcmp(how, "flip") == 0)
		*flip = 1;
	return 0;
}

static CK_RV sign_init(CK_SESSION_HANDLE h, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k)
{
	int flip;
	CK_RV rv;
	return before("SignInit", &flip, &rv) ? rv : real->C_SignInit(h, m, k);
}

static CK_RV decrypt_init(CK_SESSION_HANDLE h, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k)
{
	int flip;
	CK_RV rv;
	return before("DecryptInit", &flip, &rv) ? rv : real->C_DecryptInit(h, m, k);
}

static CK_RV login(CK_SESSION_HANDLE h, CK_USER_TYPE u, CK_UTF8CHAR_PTR p, CK_ULONG n)
{
	int flip;
	CK_RV rv;
	return before("Login", &flip, &rv) ? rv : real->C_Login(h, u, p, n);
}

/* A call without a buffer only asks for the length. */
static CK_RV sign(CK_SESSION_HANDLE h, CK_BYTE_PTR in, CK_ULONG n, CK_BYTE_PTR out, CK_ULONG_PTR len)
{
	int flip = 0;
	CK_RV rv;
	if (out && before("Sign", &flip, &rv))
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
	if (out && before("Decrypt", &flip, &rv))
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
