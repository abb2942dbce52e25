// x86-64 with VAES, VPCLMULQDQ and AVX-512: Ice Lake, Zen 4 and newer. Four blocks a register.
#if defined(__x86_64__)
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,aes,pclmul,vaes,vpclmulqdq"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,aes,pclmul,vaes,vpclmulqdq,prefer-vector-width=512")
#endif

#include <immintrin.h>
#define W __m512i
#define W_SET(X) _mm512_set1_epi64((int64_t)(X))
#define W_LOAD(P) _mm512_loadu_si512((const void *)(P))
#define W_WIDEN(P) _mm512_cvtepu32_epi64(_mm256_loadu_si256((const void *)(P)))
#define W_XOR _mm512_xor_si512
#define W_AND _mm512_and_si512
#define W_ADD _mm512_add_epi64
#define W_DOWN(X) _mm512_srli_epi64(X, 32)
#define V_MUL32 _mm512_mul_epu32
#include "x86.h"

#define V __m512i
#define V_BLOCKS 4
#define GHASH_V 8
#define UNROLL _Pragma("GCC unroll 8")
#define V_ZERO _mm512_setzero_si512()
#define V_LOAD(P) _mm512_loadu_si512((const void *)(P))
#define V_STORE(P, X) _mm512_storeu_si512((void *)(P), X)
#define V_BROADCAST(P) _mm512_broadcast_i32x4(B_LOAD(P))
#define V_XOR _mm512_xor_si512
#define V_ROUND _mm512_aesenc_epi128
#define V_FINAL _mm512_aesenclast_epi128
#define V_REVERSE(X) _mm512_shuffle_epi8(X, _mm512_broadcast_i32x4(REVERSED))
#define V_COUNTERS(N) \
    V_REVERSE(_mm512_add_epi64(_mm512_maskz_set1_epi64(0x55, (int64_t)(N)), _mm512_set_epi64(0, 3, 0, 2, 0, 1, 0, 0)))
#define V_ADD8 _mm512_add_epi8
#define V_SUB8 _mm512_sub_epi8
#define V_ADD16 _mm512_add_epi16
#define V_SUB16 _mm512_sub_epi16
#define V_ADD32 _mm512_add_epi32
#define V_SUB32 _mm512_sub_epi32
#define V_ADD64 _mm512_add_epi64
#define V_SUB64 _mm512_sub_epi64
#define V_CLMUL _mm512_clmulepi64_epi128
#define V_FIRST(X) _mm512_zextsi128_si512(X)

static inline B fold(V x) {
    const __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    return _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
#define V_SWAP(X) _mm512_shuffle_epi32(X, 0x4E)
#define V_FOLD fold
#define TO_INT64(OUT, X, COUNT) for (size_t i = 0; i < (COUNT); i++) (OUT)[i] = (int64_t)(X)[i]

#define NAME "vaes"
#define PATH fedhpc_vaes
#include "core.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
