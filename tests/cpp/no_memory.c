/* Preloaded: allocation number FAILED of the process gets no memory. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

extern void* __libc_malloc(size_t size);
extern void* __libc_calloc(size_t count, size_t size);
extern void* __libc_realloc(void* memory, size_t size);
extern void* __libc_memalign(size_t alignment, size_t size);

static int is_refused(void) {
  static long failed = -1;
  static long counted = 0;
  if (failed < 0) failed = atol(getenv("FAILED"));
  if (++counted != failed) return 0;
  errno = ENOMEM;
  return 1;
}

void* malloc(size_t size) { return is_refused() ? NULL : __libc_malloc(size); }
void* calloc(size_t count, size_t size) { return is_refused() ? NULL : __libc_calloc(count, size); }
void* realloc(void* memory, size_t size) { return is_refused() ? NULL : __libc_realloc(memory, size); }
void* aligned_alloc(size_t alignment, size_t size) { return is_refused() ? NULL : __libc_memalign(alignment, size); }
