// x86-64 with VAES, VPCLMULQDQ and AVX-512: Ice Lake, Zen 4 and newer. Four blocks a register.
#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,aes,pclmul,vaes,vpclmulqdq"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,aes,pclmul,vaes,vpclmulqdq,prefer-vector-width=512")
#endif
#include <immintrin.h>

#define V_BLOCKS 4
#define W_BYTES 64
#define UNROLL _Pragma("GCC unroll 8")
#define V_BROADCAST(P) ((V)_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)(P))))
#define V_ROUND(X, K) ((V)_mm512_aesenc_epi128((__m512i)(X), (__m512i)(K)))
#define V_FINAL(X, K) ((V)_mm512_aesenclast_epi128((__m512i)(X), (__m512i)(K)))
#define BACKWARDS _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#define V_REVERSE(...) ((V)_mm512_shuffle_epi8((__m512i)(__VA_ARGS__), _mm512_broadcast_i32x4(BACKWARDS)))
#define V_COUNTERS(N) V_REVERSE((V)_mm512_maskz_set1_epi64(0x55, (int64_t)(N)) + (V){0, 0, 1, 0, 2, 0, 3, 0})
#define V_CLMUL(X, Y, HALVES) ((V)_mm512_clmulepi64_epi128((__m512i)(X), (__m512i)(Y), HALVES))
#define V_SWAP(X) ((V)_mm512_shuffle_epi32((__m512i)(X), 0x4E))
#define B_CLMUL(X, Y, HALVES) ((B)_mm_clmulepi64_si128((__m128i)(X), (__m128i)(Y), HALVES))
#define W_MUL32(X, Y) ((W)_mm512_mul_epu32((__m512i)(X), (__m512i)(Y)))
#define TO_INT64(X) ((int64_t)(X))

#define NAME "vaes"
#define PATH fedhpc_vaes
#include "core.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
