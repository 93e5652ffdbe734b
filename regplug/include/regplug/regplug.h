/* Opens a bundle and runs its AOTInductor program, from C and from every language that can call C.
 *
 * The functions are in libregplug, which needs no libtorch. Build it with
 *   cmake -S "$(regplug cmake-dir)/share/regplug-runtime" -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build
 *
 * A program is code from the maker of the bundle: pass the digest of the one you know. All functions may be called from
 * any thread. None throws. A function that fails returns null or another code than 0, and regplug_last_error says why:
 * one line of at most 400 characters, the same that Python and C++ give. */
#ifndef REGPLUG_REGPLUG_H
#define REGPLUG_REGPLUG_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define REGPLUG_API __attribute__((visibility("default")))
#else
#define REGPLUG_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. It grows with each addition; what is here keeps its meaning. */
#define REGPLUG_ABI 2 /* 2: several inputs */
REGPLUG_API int32_t regplug_abi(void);         /* of the library that is loaded */
REGPLUG_API const char* regplug_version(void); /* of the library: "0.1.0" */

/* Why the last call in this thread failed; "" when none did. Valid until the next call that fails. */
REGPLUG_API const char* regplug_last_error(void);

enum {
  REGPLUG_FLOAT64 = 0,
  REGPLUG_FLOAT32 = 1,
  REGPLUG_FLOAT16 = 2,
  REGPLUG_BFLOAT16 = 3,
  REGPLUG_INT64 = 4,
  REGPLUG_INT32 = 5,
  REGPLUG_INT16 = 6,
  REGPLUG_INT8 = 7,
  REGPLUG_UINT8 = 8,
  REGPLUG_BOOL = 9
};

/* A tensor in CPU memory. It owns nothing. */
typedef struct regplug_tensor {
  const char* name; /* as the manifest has it; null is allowed for an input that is the only one */
  int32_t dtype;
  uint32_t rank;
  const int64_t* sizes;
  const int64_t* strides; /* in items; null: C order */
  const void* data;
} regplug_tensor;

typedef struct regplug_bundle regplug_bundle;
typedef struct regplug_outputs regplug_outputs;

#define REGPLUG_FOLLOW_LINKS 1u /* read the bundle's files through symbolic links, as in hub caches */

/* Checks the whole folder, picks the best program for this CPU, loads it, and compares one golden case.
 * `digest`: the digest that the bundle must have; null: any. `flags`: 0, or REGPLUG_FOLLOW_LINKS. */
REGPLUG_API regplug_bundle* regplug_open(const char* directory, const char* digest, uint32_t flags);

/* No call with the bundle may be running. Outputs stay valid. Null is allowed. */
REGPLUG_API void regplug_close(regplug_bundle* bundle);

/* A JSON object: holds, strategy, cond_dim, isa, digest, and the inputs and outputs with name, dtype and shape, where
 * "B" and "T" are sizes that may differ between calls. Valid until the bundle is closed. */
REGPLUG_API const char* regplug_describe(const regplug_bundle* bundle);

/* Runs the program: registers [B, R, D], tokens [B, T, D] or images [B, C, H, W] -> conditioning [B, cond_dim], or
 * gamma_0, beta_0, gamma_1, ... for a conditioner. Some bundles take more inputs: a mask [B, T] of REGPLUG_BOOL, whose
 * bytes are 0 and 1, and vectors [B, width]. Give all that regplug_describe lists, in any order. Null on failure. */
REGPLUG_API regplug_outputs* regplug_run(const regplug_bundle* bundle, const regplug_tensor* inputs, size_t count);
REGPLUG_API size_t regplug_num_outputs(const regplug_outputs* outputs);

/* One output, in C order; it is valid until its outputs are freed. */
REGPLUG_API int32_t regplug_output(const regplug_outputs* outputs, size_t index, regplug_tensor* output);
REGPLUG_API void regplug_free_outputs(regplug_outputs* outputs); /* null is allowed */

/* Loads the weights of a safetensors file: all, or none if they do not fit. Calls that are running end with the old. */
REGPLUG_API int32_t regplug_reload(regplug_bundle* bundle, const char* weights);

#ifdef __cplusplus
}
#endif

#endif
