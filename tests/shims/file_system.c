/* A file system as clusters have them, for LD_PRELOAD. Each variable holds the error's number that its calls give:
   SHIM_FLOCK, SHIM_LINK, SHIM_SYNC (fsync of folders), and below the folder SHIM_BELOW: SHIM_OPEN (to write, mkdir,
   unlink, rename), SHIM_WRITE (to files). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int wrong(const char *variable) {
    const char *value = getenv(variable);
    if (!value || !*value) return 0;
    errno = atoi(value);
    return 1;
}

static int below(const char *path) {
    const char *folder = getenv("SHIM_BELOW");
    return folder && *folder && path && !strncmp(path, folder, strlen(folder));
}

static int below_open(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

int flock(int fd, int operation) { REAL(flock); return wrong("SHIM_FLOCK") ? -1 : real(fd, operation); }
int link(const char *a, const char *b) { REAL(link); return wrong("SHIM_LINK") ? -1 : real(a, b); }
int linkat(int c, const char *a, int d, const char *b, int f) {
    REAL(linkat); return wrong("SHIM_LINK") ? -1 : real(c, a, d, b, f);
}
int fsync(int fd) {
    REAL(fsync);
    struct stat facts;
    return !fstat(fd, &facts) && S_ISDIR(facts.st_mode) && wrong("SHIM_SYNC") ? -1 : real(fd);
}
ssize_t write(int fd, const void *data, size_t size) {
    REAL(write); return below_open(fd) && wrong("SHIM_WRITE") ? -1 : real(fd, data, size);
}
int mkdir(const char *path, mode_t mode) { REAL(mkdir); return below(path) && wrong("SHIM_OPEN") ? -1 : real(path, mode); }
int unlink(const char *path) { REAL(unlink); return below(path) && wrong("SHIM_OPEN") ? -1 : real(path); }
int rename(const char *a, const char *b) { REAL(rename); return below(b) && wrong("SHIM_OPEN") ? -1 : real(a, b); }

#define OPEN(name)                                                                        \
    int name(const char *path, int flags, ...) {                                          \
        static int (*real)(const char *, int, ...);                                       \
        if (!real) real = dlsym(RTLD_NEXT, #name);                                        \
        va_list more;                                                                     \
        va_start(more, flags);                                                            \
        int mode = va_arg(more, int);                                                     \
        va_end(more);                                                                     \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && below(path) && wrong("SHIM_OPEN")) return -1; \
        return real(path, flags, mode);                                                   \
    }
OPEN(open)
OPEN(open64)
