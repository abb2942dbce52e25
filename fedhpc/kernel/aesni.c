// x86-64 with AES-NI, PCLMULQDQ and AVX2: any cluster's since Haswell and Zen. One block a register.
#if defined(__x86_64__)
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,aes,pclmul"))), apply_to = function)
#else
#pragma GCC target("avx2,aes,pclmul")
#endif

#include <immintrin.h>
#define W __m256i
#define W_SET(X) _mm256_set1_epi64x((int64_t)(X))
#define W_LOAD(P) _mm256_loadu_si256((const void *)(P))
#define W_WIDEN(P) _mm256_cvtepu32_epi64(_mm_loadu_si128((const void *)(P)))
#define W_XOR _mm256_xor_si256
#define W_AND _mm256_and_si256
#define W_ADD _mm256_add_epi64
#define W_DOWN(X) _mm256_srli_epi64(X, 32)
#define V_MUL32 _mm256_mul_epu32
#include "x86.h"

#define V __m128i
#define V_BLOCKS 1
#define GHASH_V 8
#define UNROLL _Pragma("GCC unroll 8")
#define V_ZERO _mm_setzero_si128()
#define V_LOAD B_LOAD
#define V_STORE B_STORE
#define V_BROADCAST B_LOAD
#define V_XOR _mm_xor_si128
#define V_ROUND _mm_aesenc_si128
#define V_FINAL _mm_aesenclast_si128
#define V_REVERSE B_REVERSE
#define V_COUNTERS(N) _mm_set_epi64x((int64_t)__builtin_bswap64(N), 0)
#define V_ADD8 _mm_add_epi8
#define V_SUB8 _mm_sub_epi8
#define V_ADD16 _mm_add_epi16
#define V_SUB16 _mm_sub_epi16
#define V_ADD32 _mm_add_epi32
#define V_SUB32 _mm_sub_epi32
#define V_ADD64 _mm_add_epi64
#define V_SUB64 _mm_sub_epi64
#define V_CLMUL _mm_clmulepi64_si128
#define V_FIRST(X) (X)
#define V_SWAP B_SWAP
#define V_FOLD(X) (X)
#define TO_INT64(OUT, X, COUNT) for (size_t i = 0; i < (COUNT); i++) (OUT)[i] = (int64_t)(X)[i]

#define NAME "aesni"
#define PATH fedhpc_aesni
#include "core.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
