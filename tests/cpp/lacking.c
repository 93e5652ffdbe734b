/* Preloaded: the calls in LACKING ("flock=38,fsync=22", by error number) fail as on a file system without them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

/* The error number that a call must fail with; 0 for none. */
static int lacking(const char *call) {
  const char *listed = getenv("LACKING");
  const size_t length = strlen(call);
  while (listed != NULL && *listed != '\0') {
    if (strncmp(listed, call, length) == 0 && listed[length] == '=') return atoi(listed + length + 1);
    listed = strchr(listed, ',');
    if (listed != NULL) ++listed;
  }
  return 0;
}

#define PASSED_ON(call, types, names)                                 \
  int call types {                                                    \
    int (*real) types = (int (*) types)dlsym(RTLD_NEXT, #call);       \
    const int error = lacking(#call);                                 \
    if (error == 0 && real != NULL) return real names;                \
    errno = error == 0 ? ENOSYS : error;                              \
    return -1;                                                        \
  }

PASSED_ON(flock, (int fd, int operation), (fd, operation))
PASSED_ON(fsync, (int fd), (fd))
PASSED_ON(chmod, (const char *path, mode_t mode), (path, mode))
PASSED_ON(fchmod, (int fd, mode_t mode), (fd, mode))
PASSED_ON(fchmodat, (int dir, const char *path, mode_t mode, int flags), (dir, path, mode, flags))
PASSED_ON(linkat, (int from, const char *old, int to, const char *new, int flags), (from, old, to, new, flags))
PASSED_ON(link, (const char *old, const char *new), (old, new))
PASSED_ON(memfd_create, (const char *name, unsigned flags), (name, flags))
PASSED_ON(renameat2, (int from, const char *old, int to, const char *new, unsigned flags), (from, old, to, new, flags))
PASSED_ON(rename, (const char *old, const char *new), (old, new))
