/* A PKCS#11 module that passes everything on to REAL and spoils single calls,
 * as the file CONTROL says: "function count effect [value]". A function may be
 * followed by a colon and the label of a key, and means calls with that key
 * alone then; "*" means all. A new file (by its inode) starts a new count. Each
 * spoiled call makes the file CONTROL.spoiled one octet longer; each C_Login,
 * C_Initialize and C_OpenSession, spoiled or not, CONTROL.Login and so on. */
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
static volatile CK_SESSION_HANDLE newest, lost; /* they grow until C_Finalize */
static ino_t seen;
static long seen_ns;
static int left;
static volatile CK_RV picky; /* the answer to a ciphertext that begins with zeros */
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
	if (strcmp(function, "*") == 0)
		return 1;
	if (strncmp(function, name, n) != 0)
		return 0;
	if (function[n] == 0)
		return 1;
	return function[n] == ':' && begun[h % 64].session == h && strcmp(function + n + 1, begun[h % 64].label) == 0;
}

static void tally(const char *name)
{
	char path[4096];
	FILE *f;
	snprintf(path, sizeof path, "%s.%s", CONTROL, name);
	f = fopen(path, "a");
	if (f) {
		fputc('.', f);
		fclose(f);
	}
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
				picky = left && strcmp(effect, "picky") == 0 ? strtoul(value, 0, 0) : 0;
				fclose(f);
			}
			seen = st.st_ino;
			seen_ns = st.st_mtim.tv_nsec;
		}
		if (left > 0 && strcmp(effect, "hang") == 0 && access(CONTROL ".hung", F_OK) == 0)
			left = 0; /* another process did, and that is enough */
		if (left > 0 && meant(name, h)) {
			tally("spoiled");
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

/* gone is how a token that was pulled out answers. Its sessions are lost: they are
 * not closed, because other threads are at work in them. */
static CK_RV gone(const char *name)
{
	pthread_mutex_lock(&lock);
	lost = newest;
	pthread_mutex_unlock(&lock);
	return strcmp(name, "GetTokenInfo") == 0 ? CKR_TOKEN_NOT_PRESENT : CKR_DEVICE_REMOVED;
}

/* before returns 1 if the call is over, with its answer in rv; *flip says to
 * spoil the answer. */
static int before(const char *name, CK_SESSION_HANDLE h, int *flip, CK_RV *rv)
{
	struct hit hit;
	struct stat st;
	int i;
	*flip = 0;
	if (!spoiled(name, h, &hit)) {
		if (h == 0 || h > lost)
			return 0;
		*rv = CKR_SESSION_HANDLE_INVALID;
		return 1;
	}
	if (strcmp(hit.how, "rv") == 0) {
		*rv = strtoul(hit.arg, 0, 0);
		return 1;
	}
	if (strcmp(hit.how, "delay") == 0)
		usleep(1000 * strtoul(hit.arg, 0, 0));
	if (strcmp(hit.how, "hang") == 0)
		tally("hung");
	if (strcmp(hit.how, "hold") == 0 || strcmp(hit.how, "hang") == 0)
		for (i = 0; i < 6000; i++) { /* 30 s */
			if (stat(CONTROL, &st) == 0 && (st.st_ino != hit.ino || st.st_mtim.tv_nsec != hit.ns))
				break;
			usleep(5000);
		}
	if (strcmp(hit.how, "flip") == 0)
		*flip = 1;
	if (strcmp(hit.how, "gone") == 0 && strcmp(name, "Initialize") != 0 && strcmp(name, "Finalize") != 0) {
		*rv = gone(name);
		return 1;
	}
	return 0;
}

/* SPOIL is for the functions whose answer is not looked at. */
#define SPOIL(name, session) do { \
	int flip; \
	CK_RV rv; \
	if (before(name, session, &flip, &rv)) \
		return rv; \
} while (0)

static CK_RV initialize(CK_VOID_PTR args)
{
	tally("Initialize");
	SPOIL("Initialize", 0);
	return real->C_Initialize(args);
}

static CK_RV finalize(CK_VOID_PTR p)
{
	SPOIL("Finalize", 0);
	newest = lost = 0;
	return real->C_Finalize(p);
}

/* A token that is gone leaves an empty list behind. */
static CK_RV slot_list(CK_BBOOL present, CK_SLOT_ID_PTR list, CK_ULONG_PTR n)
{
	int flip;
	CK_RV rv;
	if (!before("GetSlotList", 0, &flip, &rv))
		return real->C_GetSlotList(present, list, n);
	if (rv != CKR_DEVICE_REMOVED)
		return rv;
	*n = 0;
	return CKR_OK;
}

static CK_RV session_info(CK_SESSION_HANDLE h, CK_SESSION_INFO_PTR info)
{
	SPOIL("GetSessionInfo", h);
	return real->C_GetSessionInfo(h, info);
}

static CK_RV find_init(CK_SESSION_HANDLE h, CK_ATTRIBUTE_PTR a, CK_ULONG n)
{
	SPOIL("FindObjectsInit", h);
	return real->C_FindObjectsInit(h, a, n);
}

static CK_RV get_attribute(CK_SESSION_HANDLE h, CK_OBJECT_HANDLE o, CK_ATTRIBUTE_PTR a, CK_ULONG n)
{
	SPOIL("GetAttributeValue", h);
	return real->C_GetAttributeValue(h, o, a, n);
}

static CK_RV create_object(CK_SESSION_HANDLE h, CK_ATTRIBUTE_PTR a, CK_ULONG n, CK_OBJECT_HANDLE_PTR o)
{
	SPOIL("CreateObject", h);
	return real->C_CreateObject(h, a, n, o);
}

static CK_RV destroy_object(CK_SESSION_HANDLE h, CK_OBJECT_HANDLE o)
{
	SPOIL("DestroyObject", h);
	return real->C_DestroyObject(h, o);
}

static CK_RV random_bytes(CK_SESSION_HANDLE h, CK_BYTE_PTR p, CK_ULONG n)
{
	SPOIL("GenerateRandom", h);
	return real->C_GenerateRandom(h, p, n);
}

static CK_RV sign_init(CK_SESSION_HANDLE h, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k)
{
	begin(h, k);
	SPOIL("SignInit", h);
	return real->C_SignInit(h, m, k);
}

static CK_RV decrypt_init(CK_SESSION_HANDLE h, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k)
{
	begin(h, k);
	SPOIL("DecryptInit", h);
	return real->C_DecryptInit(h, m, k);
}

static CK_RV login(CK_SESSION_HANDLE h, CK_USER_TYPE u, CK_UTF8CHAR_PTR p, CK_ULONG n)
{
	tally("Login");
	SPOIL("Login", h);
	if (strcmp(effect, "hang") == 0 && access(CONTROL ".hung", F_OK) == 0)
		usleep(1000 * strtoul(value, 0, 0)); /* a start that takes its time */
	return real->C_Login(h, u, p, n);
}

static CK_RV open_session(CK_SLOT_ID s, CK_FLAGS f, CK_VOID_PTR app, CK_NOTIFY n, CK_SESSION_HANDLE_PTR h)
{
	CK_RV got;
	tally("OpenSession");
	SPOIL("OpenSession", 0);
	got = real->C_OpenSession(s, f, app, n, h);
	pthread_mutex_lock(&lock);
	if (got == CKR_OK && *h > newest)
		newest = *h;
	pthread_mutex_unlock(&lock);
	return got;
}

static CK_RV token_info(CK_SLOT_ID s, CK_TOKEN_INFO_PTR info)
{
	SPOIL("GetTokenInfo", 0);
	return real->C_GetTokenInfo(s, info);
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
	if (out && picky && n > 4 && memcmp(in, "\0\0\0", 4) == 0)
		return picky;
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
		mine.C_Initialize = initialize;
		mine.C_Finalize = finalize;
		mine.C_GetSlotList = slot_list;
		mine.C_GetSessionInfo = session_info;
		mine.C_FindObjectsInit = find_init;
		mine.C_GetAttributeValue = get_attribute;
		mine.C_CreateObject = create_object;
		mine.C_DestroyObject = destroy_object;
		mine.C_GenerateRandom = random_bytes;
		mine.C_SignInit = sign_init;
		mine.C_Sign = sign;
		mine.C_DecryptInit = decrypt_init;
		mine.C_Decrypt = decrypt;
		mine.C_Login = login;
		mine.C_OpenSession = open_session;
		mine.C_GetTokenInfo = token_info;
		mine.C_GetFunctionList = C_GetFunctionList;
	}
	*list = &mine;
	return CKR_OK;
}
