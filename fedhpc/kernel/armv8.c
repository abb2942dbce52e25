// AArch64 with the crypto extensions: Grace, Graviton, Altra. One block a register.
#if defined(__aarch64__) && defined(__AARCH64EL__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("aes"))), apply_to = function)
#else
#pragma GCC target("+crypto")
#endif
#include <arm_neon.h>

#define V uint8x16_t
#define V_BLOCKS 1
#define GHASH_V 8
#define UNROLL _Pragma("GCC unroll 8")
#define V_ZERO vdupq_n_u8(0)
#define V_LOAD(P) vld1q_u8((const uint8_t *)(P))
#define V_STORE(P, X) vst1q_u8((uint8_t *)(P), X)
#define V_BROADCAST V_LOAD
#define V_XOR veorq_u8
#define V_ROUND(X, K) veorq_u8(vaesmcq_u8(vaeseq_u8(X, V_ZERO)), K)  // AESE adds its key first, x86 last
#define V_FINAL(X, K) veorq_u8(vaeseq_u8(X, V_ZERO), K)
#define U64(X) vreinterpretq_u64_u8(X)
#define U8(X) vreinterpretq_u8_u64(X)
#define V_COUNTERS(N) U8(vcombine_u64(vcreate_u64(0), vcreate_u64(__builtin_bswap64(N))))
#define V_ADD8 vaddq_u8
#define V_SUB8 vsubq_u8
#define IN(BITS, OP, A, C) \
    vreinterpretq_u8_u##BITS(OP##q_u##BITS(vreinterpretq_u##BITS##_u8(A), vreinterpretq_u##BITS##_u8(C)))
#define V_ADD16(A, C) IN(16, vadd, A, C)
#define V_SUB16(A, C) IN(16, vsub, A, C)
#define V_ADD32(A, C) IN(32, vadd, A, C)
#define V_SUB32(A, C) IN(32, vsub, A, C)
#define V_ADD64(A, C) IN(64, vadd, A, C)
#define V_SUB64(A, C) IN(64, vsub, A, C)
#define V_CLMUL(A, C, HALVES)                                                                        \
    vreinterpretq_u8_p128(vmull_p64((poly64_t)vgetq_lane_u64(U64(A), (HALVES) & 1),                  \
                                    (poly64_t)vgetq_lane_u64(U64(C), (HALVES) >> 4)))
#define V_FIRST(X) (X)
#define V_SWAP B_SWAP
#define V_FOLD(X) (X)
#define TO_INT64(OUT, X, COUNT) for (size_t i = 0; i < (COUNT); i++) (OUT)[i] = (int64_t)(X)[i]

#define B V
#define B_SET(HIGH, LOW) U8(vcombine_u64(vcreate_u64(LOW), vcreate_u64(HIGH)))
#define B_LOAD V_LOAD
#define B_STORE V_STORE
#define B_XOR V_XOR
#define B_CLMUL V_CLMUL
#define B_UP(X) vextq_u8(V_ZERO, X, 8)
#define B_DOWN(X) vextq_u8(X, V_ZERO, 8)
#define B_SWAP(X) vextq_u8(X, X, 8)
#define B_REVERSE(X) vrev64q_u8(B_SWAP(X))
#define V_REVERSE B_REVERSE

#define NAME "armv8"
#define PATH fedhpc_armv8
#include "core.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
