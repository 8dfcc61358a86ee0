/* Faults at the n-th file system call below a folder: preloaded into a process, armed from it.
 *
 * A call is a write, a rename, an fsync, an unlink, an mkdir or an open for writing. At the n-th of
 * them the process is killed, or that call and those after it fail with an error number.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { KILL = 1, FAIL = 2, COPY = 3 };
enum { MOST_FILES = 65536 };

static char below[PATH_MAX], copies[PATH_MAX];
static long calls, at, every;
static int mode, number;
static unsigned char ours[MOST_FILES]; /* descriptors opened for writing below the folder */
/* Calls below the folder are made one at a time, so that a copy of it is what a kill would leave. */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

/* Count the calls below FOLDER from 1. KILL ends the process at the N-th; FAIL has it and all later
 * ones fail with ERROR; COPY copies the folder into INTO/CALL at it and each STEP-th after it, a
 * write being half done. */
void fault_arm(const char *folder, int do_what, long n, long step, int error, const char *into) {
    pthread_mutex_lock(&turn);
    snprintf(below, sizeof below, "%s/", folder);
    snprintf(copies, sizeof copies, "%s", into);
    calls = 0, at = n, every = step, mode = do_what, number = error;
    pthread_mutex_unlock(&turn);
}

/* Stop counting, and return how many calls there were. */
long fault_disarm(void) {
    pthread_mutex_lock(&turn);
    below[0] = 0;
    pthread_mutex_unlock(&turn);
    return calls;
}

static void copy_folder(void) {
    char command[3 * PATH_MAX];
    snprintf(command, sizeof command, "cp -a '%s' '%s/%ld'", below, copies, calls);
    if (system(command)) abort();
}

static int inside(int folder, const char *path) {
    char whole[PATH_MAX * 2], link[64];
    if (!below[0] || !path) return 0;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        char base[PATH_MAX];
        ssize_t got;
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            if ((got = readlink(link, base, sizeof base - 1)) < 0) return 0;
            base[got] = 0;
        }
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    }
    return strncmp(whole, below, strlen(below)) == 0;
}

enum { PROCEED, REFUSE, HALVE };
enum { ON_NAME = 1, ON_DATA = 2, ON_OPEN = 4, REMOVES = 8 };

/* Count one call, with TURN held, and say what is to become of it. */
static int meets_fault(int kind) {
    ++calls;
    if (at <= 0 || calls < at) return PROCEED;
    if (mode == FAIL) {
        if (number == ENOSPC && (kind & REMOVES)) return PROCEED;
        if (number == EMFILE && !(kind & ON_OPEN)) return PROCEED;
        return REFUSE;
    }
    if (mode == KILL && calls == at) return HALVE;
    if (mode == COPY && (calls - at) % every == 0) return HALVE;
    return PROCEED;
}

/* What a kill or a copy does once half of a write is done, or before any other call. */
static void stop_here(void) {
    if (mode == KILL) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    copy_folder();
}

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static int is_ours(int file) { return below[0] && file >= 0 && file < MOST_FILES && ours[file]; }

#define CALL(kind, type, name, parameters, applies, half, arguments) \
    type name parameters {                                           \
        type result;                                                 \
        int what;                                                    \
        if (!(applies)) return REAL(name) arguments;                 \
        pthread_mutex_lock(&turn);                                   \
        what = below[0] ? meets_fault(kind) : PROCEED;               \
        if (what == REFUSE) {                                        \
            pthread_mutex_unlock(&turn);                             \
            errno = number;                                          \
            return -1;                                               \
        }                                                            \
        result = 0;                                                  \
        if (what == HALVE) {                                         \
            half;                                                    \
            stop_here();                                             \
        }                                                            \
        result = REAL(name) arguments;                               \
        int error = errno;                                           \
        pthread_mutex_unlock(&turn);                                 \
        errno = error;                                               \
        return result;                                               \
    }
#define ON_PATH(kind, name, parameters, folder, path, arguments) \
    CALL(kind, int, name, parameters, inside(folder, path), , arguments)
#define ON_FILE(type, name, parameters, half, arguments) \
    CALL(ON_DATA, type, name, parameters, is_ours(file), half, arguments)

ON_PATH(ON_NAME, rename, (const char *old, const char *new), AT_FDCWD, new, (old, new))
ON_PATH(ON_NAME, renameat, (int a, const char *old, int b, const char *new), b, new,
        (a, old, b, new))
ON_PATH(ON_NAME, mkdir, (const char *path, mode_t bits), AT_FDCWD, path, (path, bits))
ON_PATH(ON_NAME, mkdirat, (int a, const char *path, mode_t bits), a, path, (a, path, bits))
ON_PATH(REMOVES, unlink, (const char *path), AT_FDCWD, path, (path))
ON_PATH(REMOVES, unlinkat, (int a, const char *path, int flags), a, path, (a, path, flags))
ON_PATH(REMOVES, rmdir, (const char *path), AT_FDCWD, path, (path))

/* Half of a write that is then done whole: at an offset it may be done twice, at the end it is not. */
#define HALF(name, ...) if (size > 1) REAL(name)(file, data, size / 2, ##__VA_ARGS__)
ssize_t write(int file, const void *data, size_t size) {
    size_t first = 0;
    int what;
    if (!is_ours(file)) return REAL(write)(file, data, size);
    pthread_mutex_lock(&turn);
    what = below[0] ? meets_fault(ON_DATA) : PROCEED;
    if (what == REFUSE) {
        pthread_mutex_unlock(&turn);
        errno = number;
        return -1;
    }
    if (what == HALVE) {
        ssize_t done = size > 1 ? REAL(write)(file, data, size / 2) : 0;
        first = done > 0 ? (size_t)done : 0;
        stop_here();
    }
    ssize_t result = REAL(write)(file, (const char *)data + first, size - first);
    int error = errno;
    pthread_mutex_unlock(&turn);
    errno = error;
    return result < 0 ? result : result + (ssize_t)first;
}

ON_FILE(ssize_t, pwrite, (int file, const void *data, size_t size, off_t to), HALF(pwrite, to),
        (file, data, size, to))
ON_FILE(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t to),
        HALF(pwrite64, to), (file, data, size, to))
ON_FILE(ssize_t, writev, (int file, const struct iovec *parts, int count), , (file, parts, count))
ON_FILE(ssize_t, pwritev, (int file, const struct iovec *parts, int count, off_t to), ,
        (file, parts, count, to))
ON_FILE(ssize_t, pwritev64, (int file, const struct iovec *parts, int count, off64_t to), ,
        (file, parts, count, to))
ON_FILE(int, ftruncate, (int file, off_t size), , (file, size))
ON_FILE(int, ftruncate64, (int file, off64_t size), , (file, size))
ON_FILE(int, fsync, (int file), , (file))
ON_FILE(int, fdatasync, (int file), , (file))

#define WRITES (O_WRONLY | O_RDWR)
#define OPEN(name, parameters, folder, arguments)                                   \
    int name parameters {                                                           \
        mode_t bits = 0;                                                            \
        if (flags & (O_CREAT | O_TMPFILE)) {                                        \
            va_list rest;                                                           \
            va_start(rest, flags);                                                  \
            bits = va_arg(rest, mode_t);                                            \
            va_end(rest);                                                           \
        }                                                                           \
        if (!(flags & WRITES) || !inside(folder, path)) {                           \
            int other = REAL(name) arguments;                                       \
            if (other >= 0 && other < MOST_FILES) ours[other] = 0;                  \
            return other;                                                           \
        }                                                                           \
        pthread_mutex_lock(&turn);                                                  \
        int what = below[0] ? meets_fault(ON_OPEN) : PROCEED;                       \
        if (what == HALVE) stop_here();                                             \
        int file = -1, error = number;                                              \
        if (what != REFUSE) {                                                       \
            file = REAL(name) arguments;                                            \
            error = errno;                                                          \
            if (file >= 0 && file < MOST_FILES) ours[file] = 1;                     \
        }                                                                           \
        pthread_mutex_unlock(&turn);                                                \
        errno = error;                                                              \
        return file;                                                                \
    }

OPEN(open, (const char *path, int flags, ...), AT_FDCWD, (path, flags, bits))
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, (path, flags, bits))
OPEN(openat, (int folder, const char *path, int flags, ...), folder, (folder, path, flags, bits))
OPEN(openat64, (int folder, const char *path, int flags, ...), folder, (folder, path, flags, bits))

int close(int file) {
    if (file >= 0 && file < MOST_FILES) ours[file] = 0;
    return REAL(close)(file);
}
