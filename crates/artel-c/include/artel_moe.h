/* Experts of a mixture-of-experts layer on an NVIDIA GPU, over device memory that the caller owns.
 *
 * From hidden states, expert ids and weights of a router to hidden states:
 *
 *     out[t] = sum over k of topk_weights[t][k] * w2[e] * activation(w13[e] * hidden[t]),
 *              e = topk_ids[t][k]
 *
 * Link with libartel_c.so. Kernels come from kernel packs (`artel kernels build`); nothing is
 * compiled after artel_moe_create. Device pointers are 16-byte aligned. Every function may be
 * called from any thread; no function lets a C++ exception or a panic out.
 */
#ifndef ARTEL_MOE_H
#define ARTEL_MOE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What functions return. Whatever is not ARTEL_MOE_OK left a text in artel_moe_last_error. */
#define ARTEL_MOE_OK 0
#define ARTEL_MOE_INVALID 1     /* an argument is null, out of range, or does not fit the others */
#define ARTEL_MOE_UNAVAILABLE 2 /* no GPU support in this library, no driver, no GPU, no kernel */
#define ARTEL_MOE_GPU 3         /* the GPU or its driver failed, or its memory is too small */
#define ARTEL_MOE_BUG 4         /* the library failed; the handle must only be destroyed */

/* Experts that are ready to run. */
typedef struct artel_moe_experts artel_moe_experts;

/* The matrices [E, N, K] of one product, row-major, expert after expert, on the device. */
typedef struct artel_moe_stack {
    const void *numbers;   /* as the format stores them */
    uint64_t number_bytes; /* bytes behind `numbers`, which must be E * N * K of the format's */
    const float *scales;   /* [E, ceil(N / scale_rows), ceil(K / scale_columns)], or null */
    uint64_t scale_count;  /* floats behind `scales` */
    uint64_t scale_rows;    /* rows that one scale covers: 128 for FP8 blocks, 1 per output feature; */
    uint64_t scale_columns; /* columns: 128, else K. Per matrix I, H of w13 and H, I of w2. 0, 0: none */
} artel_moe_stack;

/* What to compute. Sizes are those of this GPU's part of the layer. */
typedef struct artel_moe_settings {
    uint64_t settings_bytes; /* sizeof(artel_moe_settings) */
    uint64_t num_experts;
    uint64_t top_k;             /* experts of a token */
    uint64_t hidden_size;       /* H */
    uint64_t intermediate_size; /* I */
    /* Larger batches are cut into steps of so many tokens, rounded up to a power of two. Up to 4096
     * a pack for the layer has all kernels. */
    uint64_t tokens_max;
    const char *format; /* "bf16", "f16", "fp8-block128", "fp8-tensor" or "fp8-channel" */
    const char *activation;     /* "silu", ... */
    const char *const *kernel_packs; /* paths; of two that have a kernel the later one counts */
    uint64_t num_kernel_packs;
    uint64_t device;     /* ordinal of the GPU, whose primary context is used */
    uint64_t packed;     /* 1: a call takes packed pairs of id and weight, see below; 0: both apart */
    artel_moe_stack w13; /* [E, 2I, H], gate rows over up rows, as checkpoints concatenate them */
    artel_moe_stack w2;  /* [E, H, I] */
} artel_moe_settings;

/* Version of the library, for example "0.1.0 (cuda)" or "0.1.0 (no GPU support)". Static. */
const char *artel_moe_version(void);

/* Why the last failing call of this thread failed; empty before. The next failure writes over it. */
const char *artel_moe_last_error(void);

/* Plans, loads kernels and allocates the workspace. The weights are neither copied nor changed;
 * they must stay where they are until artel_moe_destroy. On failure *experts is null. */
int32_t artel_moe_create(const artel_moe_settings *settings, artel_moe_experts **experts);

/* Launches on `stream` (a CUstream of the device's primary context, null for the default stream)
 * and returns without waiting; it may be recorded into a CUDA graph. Calls of one handle share a
 * workspace, so they must follow each other: on one stream, or on streams that wait for one another.
 *
 * hidden        [tokens, H], bfloat16 (float16 for experts in float16)
 * topk_ids      [tokens, K], an id below 0 or from E on adds nothing
 * topk_weights  [tokens, K]
 * out           [tokens, H], as hidden; must not overlap it
 *
 * Of experts with `packed` set, topk_ids holds pairs, id << 16 | bits of the weight in bfloat16, and
 * topk_weights is null.
 */
int32_t artel_moe_forward(artel_moe_experts *experts, void *stream, const void *hidden,
                          const int32_t *topk_ids, const float *topk_weights, uint64_t tokens,
                          void *out);

/* Which kernels serve which batch sizes and why, as a table. Valid until artel_moe_destroy;
 * null if `experts` is. */
const char *artel_moe_plan(const artel_moe_experts *experts);

/* Waits for the GPU and frees everything but the weights. Null is allowed. */
void artel_moe_destroy(artel_moe_experts *experts);

#ifdef __cplusplus
}
#endif

#endif
