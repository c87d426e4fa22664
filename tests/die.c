/* Preloaded into a process (LD_PRELOAD), which then dies by SIGKILL at one chosen write to a file: before it, with half
   of its bytes written, or right after it. Every library's writes go through here,
   SQLite's too.

   DIE_BELOW  folder; calls on files that lie elsewhere are passed on
   DIE_LOG    each call below it is noted here before it is done: "SECONDS CALL PATH", on the monotonic clock
   DIE_AT     "CALL PART NUMBER HOW": the NUMBER-th CALL on a path that holds PART, or ends so if PART ends in $; HOW is
              before, half or after; CALL is write, sync, truncate, rename, unlink or any

   die_at() chooses anew, for processes that fork.  cc -shared -fPIC -o die.so die.c */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const char *below;
static int log_to = -1;
static char call_at[16], part_at[128], how_at[8];
static int number_at, seen;

void die_at(const char *chosen)
{
    number_at = seen = 0;
    if (sscanf(chosen, "%15s %127s %d %7s", call_at, part_at, &number_at, how_at) != 4)
        number_at = 0;
}

__attribute__((constructor)) static void begin(void)
{
    const char *file = getenv("DIE_LOG"), *chosen = getenv("DIE_AT");
    below = getenv("DIE_BELOW");
    if (file)
        log_to = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (chosen)
        die_at(chosen);
}

static void die(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
}

static int fits(const char *path)
{
    size_t part = strlen(part_at), size = strlen(path);
    if (!part || part_at[part - 1] != '$')
        return strstr(path, part_at) != NULL;
    return size >= part - 1 && !strncmp(path + size - (part - 1), part_at, part - 1);
}

/* Notes the call; whether it is the chosen one. */
static int is_chosen(const char *call, const char *path)
{
    char line[PATH_MAX + 64];
    struct timespec now;
    if (!below || strncmp(path, below, strlen(below)))
        return 0;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (log_to >= 0) {
        int size = snprintf(line, sizeof line, "%ld.%06ld %s %s\n", now.tv_sec, now.tv_nsec / 1000, call, path);
        syscall(SYS_write, log_to, line, size);
    }
    if (!number_at || (strcmp(call, call_at) && strcmp(call_at, "any")) || !fits(path) || ++seen != number_at)
        return 0;
    if (!strcmp(how_at, "before"))
        die();
    return 1;
}

static int is_chosen_file(const char *call, int file)
{
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return is_chosen(call, path);
}

static long ended(int chosen, long result)
{
    if (chosen)
        die();
    return result;
}

ssize_t write(int file, const void *bytes, size_t size)
{
    int chosen = is_chosen_file("write", file);
    size_t part = chosen && !strcmp(how_at, "half") ? size / 2 : size;
    return ended(chosen, syscall(SYS_write, file, bytes, part));
}

ssize_t pwrite64(int file, const void *bytes, size_t size, off_t at)
{
    int chosen = is_chosen_file("write", file);
    size_t part = chosen && !strcmp(how_at, "half") ? size / 2 : size;
    return ended(chosen, syscall(SYS_pwrite64, file, bytes, part, at));
}

ssize_t pwrite(int file, const void *bytes, size_t size, off_t at)
{
    return pwrite64(file, bytes, size, at);
}

int fsync(int file)
{
    return ended(is_chosen_file("sync", file), syscall(SYS_fsync, file));
}

int fdatasync(int file)
{
    return ended(is_chosen_file("sync", file), syscall(SYS_fdatasync, file));
}

int ftruncate64(int file, off_t size)
{
    return ended(is_chosen_file("truncate", file), syscall(SYS_ftruncate, file, size));
}

int ftruncate(int file, off_t size)
{
    return ftruncate64(file, size);
}

int rename(const char *from, const char *to)
{
    return ended(is_chosen("rename", to), syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}

int unlink(const char *path)
{
    return ended(is_chosen("unlink", path), syscall(SYS_unlinkat, AT_FDCWD, path, 0));
}
