// x86-64 with AES-NI, PCLMULQDQ and AVX2: any cluster's since Haswell and Zen. One block a register.
#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,aes,pclmul"))), apply_to = function)
#else
#pragma GCC target("avx2,aes,pclmul")
#endif
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define V_BLOCKS 1
#define W_BYTES 32
#define UNROLL _Pragma("GCC unroll 8")
#define V_BROADCAST(P) load(P)
#define V_ROUND(X, K) ((V)_mm_aesenc_si128((__m128i)(X), (__m128i)(K)))
#define V_FINAL(X, K) ((V)_mm_aesenclast_si128((__m128i)(X), (__m128i)(K)))
#define BACKWARDS _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#define V_REVERSE(X) ((V)_mm_shuffle_epi8((__m128i)(X), BACKWARDS))
#define V_COUNTERS(N) ((V){0, __builtin_bswap64(N)})
#define V_CLMUL(X, Y, HALVES) ((V)_mm_clmulepi64_si128((__m128i)(X), (__m128i)(Y), HALVES))
#define V_SWAP(X) ((V)_mm_shuffle_epi32((__m128i)(X), 0x4E))
#define B_CLMUL V_CLMUL
#define W_MUL32(X, Y) ((W)_mm256_mul_epu32((__m256i)(X), (__m256i)(Y)))
#define TO_INT64(X) to_int64(X)

// A whole number of at most 63 bits by halves: AVX2 has no conversion for it, and one by one is slow.
static inline int64_t to_int64(double x) {
    const double high = floor(x * 0x1p-32), low = x - high * 0x1p32 + 0x1p52;  // both exact
    uint64_t bits;
    memcpy(&bits, &low, 8);
    return (int64_t)(((uint64_t)(int64_t)(int32_t)high << 32) + (bits - 0x4330000000000000));
}

#define NAME "aesni"
#define PATH fedhpc_aesni
#include "core.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
