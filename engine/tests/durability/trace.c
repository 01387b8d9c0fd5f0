/* Writes a line to the file named by DORMOUSE_TRACE for each call that durability rests on:
 * after it has returned where it asks the kernel for something, before it is made where it tells
 * somebody else. Loaded before libc (LD_PRELOAD); see main.rs for the lines. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static void line(const char *format, ...) {
    static int trace = -2;
    if (trace == -2) {
        const char *path = getenv("DORMOUSE_TRACE");
        trace = path ? (int)syscall(SYS_openat, AT_FDCWD, path,
                                    O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    }
    if (trace < 0) return;
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    int bytes = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (bytes > 0) syscall(SYS_write, trace, text, (size_t)bytes);
}

static int opened(const char *path, int flags, int fd) {
    int kept = errno;
    if (fd >= 0) line("open %d %s %s\n", fd, (flags & O_DSYNC) ? "dsync" : "plain", path);
    errno = kept;
    return fd;
}

int open64(const char *path, int flags, ...) {
    REAL(int, "open64", const char *, int, ...);
    va_list arguments;
    va_start(arguments, flags);
    int mode = (flags & O_CREAT) ? va_arg(arguments, int) : 0;
    va_end(arguments);
    return opened(path, flags, real(path, flags, mode));
}

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    int mode = (flags & O_CREAT) ? va_arg(arguments, int) : 0;
    va_end(arguments);
    return open64(path, flags, mode);
}

ssize_t pwrite64(int fd, const void *from, size_t count, off64_t offset) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    ssize_t done = real(fd, from, count, offset);
    int kept = errno;
    char marks[3072] = "";
    size_t used = 0;
    const char *at = from, *end = at + (done > 0 ? done : 0);
    /* A mark is "MARK:" and eight digits. */
    while ((at = memmem(at, (size_t)(end - at), "MARK:", 5)) && end - at >= 13 &&
           used < sizeof marks - 16) {
        used += (size_t)snprintf(marks + used, sizeof marks - used, " %.8s", at + 5);
        at += 13;
    }
    line("write %d %zd of %zu%s\n", fd, done, count, marks);
    errno = kept;
    return done;
}

static int synced(int fd, int done) {
    int kept = errno;
    if (done == 0) line("sync %d\n", fd);
    errno = kept;
    return done;
}

int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    return synced(fd, real(fd));
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    return synced(fd, real(fd));
}

int close(int fd) {
    REAL(int, "close", int);
    line("close %d\n", fd);
    return real(fd);
}

ssize_t write(int fd, const void *from, size_t count) {
    REAL(ssize_t, "write", int, const void *, size_t);
    const char *text = from;
    if (fd == STDOUT_FILENO && count >= 12 && !memcmp(text, "ack ", 4)) {
        line("ack %.8s\n", text + 4);
    }
    return real(fd, from, count);
}
