/* Fails, or is sent a signal at, the n-th call that concerns one folder: loaded by LD_PRELOAD, armed by arm().

   Counted are the calls by which a writer makes, changes, names, locks, flushes and removes files. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static char folder[PATH_MAX];
static size_t length;
static long made, at;
static int code, lasting;
static char names[1 << 16];

/* From now on, call number `call` fails with `error`, or is made after signal `-error`; all later
   ones fail too if `for_good`. A negative `call` is never made. */
void arm(const char *path, long call, int error, int for_good) {
  length = strlen(path);
  memcpy(folder, path, length + 1);
  made = 0, at = call, code = error, lasting = for_good, names[0] = 0;
}

void disarm(void) { length = 0; }
long calls(void) { return made; }
const char *called(void) { return names; } /* the names of the calls so far */

static int fails(const char *name) {
  pthread_mutex_lock(&turn);
  long number = made++;
  if (strlen(names) + strlen(name) + 2 < sizeof names) strcat(strcat(names, name), " ");
  if (at >= 0 && number == at && code < 0) kill(getpid(), -code);
  pthread_mutex_unlock(&turn);
  int is_hit = at >= 0 && code > 0 && (number == at || (lasting && number > at));
  if (is_hit) errno = code;
  return is_hit;
}

static int is_in(const char *path) {
  char whole[PATH_MAX];
  if (!length || !path) return 0;
  if (path[0] != '/') {
    if (!getcwd(whole, sizeof whole - strlen(path) - 2)) return 0;
    strcat(strcat(whole, "/"), path);
    path = whole;
  }
  return !strncmp(path, folder, length);
}

static int is_of(int number) {
  char link[64], path[PATH_MAX];
  if (!length) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", number);
  ssize_t count = readlink(link, path, sizeof path - 1);
  if (count < 0) return 0;
  path[count] = 0;
  return is_in(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRAP(type, name, arguments, passed, concerned) \
  type name arguments {                                \
    if (concerned && fails(#name)) return -1;          \
    return REAL(name) passed;                          \
  }

WRAP(int, rename, (const char *a, const char *b), (a, b), is_in(b))
WRAP(int, link, (const char *a, const char *b), (a, b), is_in(b))
WRAP(int, unlink, (const char *path), (path), is_in(path))
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), is_in(path))
WRAP(int, rmdir, (const char *path), (path), is_in(path))
WRAP(int, fsync, (int number), (number), is_of(number))
WRAP(int, flock, (int number, int how), (number, how), is_of(number))
WRAP(int, ftruncate, (int number, off_t size), (number, size), is_of(number))
WRAP(int, ftruncate64, (int number, off64_t size), (number, size), is_of(number))
WRAP(ssize_t, write, (int number, const void *data, size_t count), (number, data, count),
     is_of(number))
WRAP(ssize_t, pwrite, (int number, const void *data, size_t count, off_t begin),
     (number, data, count, begin), is_of(number))
WRAP(ssize_t, pwrite64, (int number, const void *data, size_t count, off64_t begin),
     (number, data, count, begin), is_of(number))

/* A file that is closed is closed, whatever close says. */
int close(int number) {
  int is_hit = is_of(number) && fails("close"), error = errno;
  int done = REAL(close)(number);
  if (!is_hit) return done;
  errno = error;
  return -1;
}

#define WRAP_OPEN(name)                                       \
  int name(const char *path, int flags, ...) {                \
    va_list rest;                                             \
    va_start(rest, flags);                                    \
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                             \
    if (is_in(path) && fails(#name)) return -1;               \
    return REAL(name)(path, flags, mode);                     \
  }

WRAP_OPEN(open)
WRAP_OPEN(open64)
