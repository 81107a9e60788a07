/* A disk that goes wrong when told to: preloaded (LD_PRELOAD) into a node's process.
 *
 * AIORAFT_TEST_DISKS names a directory. What a process does to files below a directory in it, say DISKS/node-2, goes as
 * DISKS/node-2.faults says while that file is there. Each of its lines is a fault:
 *
 *     <call> <errno> <after> <name>
 *
 * call   sync (fsync, fdatasync), write, allocate, open (also mkdir), read, or slow (a sync that takes `after` ms)
 * errno  what the call fails with, as a number
 * after  for write: how many bytes are still written before; the last of them by a short write, as on a full disk
 * name   what the path must end in, or * for any
 *
 * Appending the line "hit" to DISKS/node-2.hits says that a fault was met: a test can wait for it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct fault {
    int error;
    long after;
};

static atomic_long written;

/* Finds the fault for a call on a path; errors of the shim's own leave the disk well. */
static int find(const char *call, const char *path, struct fault *fault) {
    const char *disks = getenv("AIORAFT_TEST_DISKS");
    size_t length = disks ? strlen(disks) : 0;
    if (!length || strncmp(path, disks, length) != 0 || path[length] != '/')
        return 0;
    const char *disk = path + length + 1;
    int disk_length = (int)strcspn(disk, "/");
    if (disk_length > 7 && strncmp(disk + disk_length - 7, ".faults", 7) == 0)
        return 0;
    char name[PATH_MAX], text[1024];
    snprintf(name, sizeof name, "%s/%.*s.faults", disks, disk_length, disk);
    long file = syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    long size = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    if (size <= 0)
        return 0;
    text[size] = 0;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char which[16], suffix[256];
        if (sscanf(line, "%15s %d %ld %255s", which, &fault->error, &fault->after, suffix) != 4)
            continue;
        size_t have = strlen(path), want = strlen(suffix);
        int named = strcmp(suffix, "*") == 0 || (have >= want && strcmp(path + have - want, suffix) == 0);
        if (strcmp(which, call) != 0 || !named)
            continue;
        snprintf(name, sizeof name, "%s/%.*s.hits", disks, disk_length, disk);
        long hits = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        if (hits >= 0) {
            syscall(SYS_write, hits, "hit\n", 4);
            syscall(SYS_close, hits);
        }
        return 1;
    }
    return 0;
}

static int find_open(const char *call, int file, struct fault *fault) {
    char link[64], path[PATH_MAX];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    int found = 0;
    if (length > 0) {
        path[length] = 0;
        found = find(call, path, fault);
    }
    errno = before;
    return found;
}

static int fail(int error) {
    errno = error;
    return -1;
}

static int sync_file(int file, const char *name) {
    struct fault fault;
    if (find_open("slow", file, &fault)) {
        struct timespec pause = {fault.after / 1000, fault.after % 1000 * 1000000};
        nanosleep(&pause, NULL);
    }
    if (find_open("sync", file, &fault))
        return fail(fault.error);
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(file);
}

int fsync(int file) { return sync_file(file, "fsync"); }
int fdatasync(int file) { return sync_file(file, "fdatasync"); }

/* How many of `size` bytes there is room for; -1 if none. */
static ssize_t room(int file, size_t size) {
    struct fault fault;
    if (!find_open("write", file, &fault))
        return (ssize_t)size;
    long before = atomic_fetch_add(&written, (long)size);
    if (before + (long)size <= fault.after)
        return (ssize_t)size;
    if (before < fault.after)
        return fault.after - before;
    return fail(fault.error);
}

ssize_t write(int file, const void *bytes, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    ssize_t fits = size ? room(file, size) : 0;
    return fits < 0 ? fits : real(file, bytes, (size_t)fits);
}

ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t at) {
    ssize_t (*real)(int, const void *, size_t, off64_t) =
        (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    ssize_t fits = size ? room(file, size) : 0;
    return fits < 0 ? fits : real(file, bytes, (size_t)fits, at);
}

ssize_t pwrite(int file, const void *bytes, size_t size, off_t at) { return pwrite64(file, bytes, size, at); }

ssize_t pread64(int file, void *bytes, size_t size, off64_t at) {
    struct fault fault;
    if (find_open("read", file, &fault))
        return fail(fault.error);
    ssize_t (*real)(int, void *, size_t, off64_t) =
        (ssize_t(*)(int, void *, size_t, off64_t))dlsym(RTLD_NEXT, "pread64");
    return real(file, bytes, size, at);
}

ssize_t pread(int file, void *bytes, size_t size, off_t at) { return pread64(file, bytes, size, at); }

/* It returns the error instead of setting errno. */
int posix_fallocate64(int file, off64_t at, off64_t size) {
    struct fault fault;
    if (find_open("allocate", file, &fault))
        return fault.error;
    int (*real)(int, off64_t, off64_t) = (int (*)(int, off64_t, off64_t))dlsym(RTLD_NEXT, "posix_fallocate64");
    return real(file, at, size);
}

int posix_fallocate(int file, off_t at, off_t size) { return posix_fallocate64(file, at, size); }

int open64(const char *path, int flags, ...) {
    struct fault fault;
    int before = errno;
    if (find("open", path, &fault))
        return fail(fault.error);
    errno = before;
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return open64(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    struct fault fault;
    int before = errno;
    if (access(path, F_OK) != 0 && find("open", path, &fault)) /* one that is there is said to be there */
        return fail(fault.error);
    errno = before;
    int (*real)(const char *, mode_t) = (int (*)(const char *, mode_t))dlsym(RTLD_NEXT, "mkdir");
    return real(path, mode);
}
