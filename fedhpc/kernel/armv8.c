// AArch64 with the crypto extensions: Grace, Graviton, Altra. One block a register.
#if defined(__aarch64__) && defined(__AARCH64EL__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("aes"))), apply_to = function)
#else
#pragma GCC target("+crypto")
#endif
#include <arm_neon.h>

#define V_BLOCKS 1
#define W_BYTES 16
#define UNROLL _Pragma("GCC unroll 8")
#define V_BROADCAST(P) load(P)
#define V_FINAL(X, K) ((V)vaeseq_u8((uint8x16_t)(X), vdupq_n_u8(0)) ^ (K))  // AESE adds its key first, x86 last
#define V_ROUND(X, K) ((V)vaesmcq_u8(vaeseq_u8((uint8x16_t)(X), vdupq_n_u8(0))) ^ (K))
#define V_SWAP(X) ((V)vextq_u8((uint8x16_t)(X), (uint8x16_t)(X), 8))
#define V_REVERSE(X) ((V)vrev64q_u8((uint8x16_t)V_SWAP(X)))
#define V_COUNTERS(N) ((V){0, __builtin_bswap64(N)})
#define V_CLMUL(X, Y, HALVES) ((V)vmull_p64((X)[(HALVES) & 1], (Y)[(HALVES) >> 4]))
#define B_CLMUL V_CLMUL
#define W_MUL32(X, Y) ((W)vmull_u32(vmovn_u64((uint64x2_t)(X)), vmovn_u64((uint64x2_t)(Y))))
#define TO_INT64(X) ((int64_t)(X))

#define NAME "armv8"
#define PATH fedhpc_armv8
#include "core.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
