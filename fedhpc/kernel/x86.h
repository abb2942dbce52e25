// What the two x86-64 paths have in common: registers of 128 bits, and the tag by products of 32 bits.
#include <immintrin.h>

#define B __m128i
#define B_SET(HIGH, LOW) _mm_set_epi64x((int64_t)(HIGH), (int64_t)(LOW))
#define B_LOAD(P) _mm_loadu_si128((const void *)(P))
#define B_STORE(P, X) _mm_storeu_si128((void *)(P), X)
#define B_XOR _mm_xor_si128
#define B_CLMUL _mm_clmulepi64_si128
#define B_UP(X) _mm_slli_si128(X, 8)
#define B_DOWN(X) _mm_srli_si128(X, 8)
#define B_SWAP(X) _mm_shuffle_epi32(X, 0x4E)
#define REVERSED _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#define B_REVERSE(X) _mm_shuffle_epi8(X, REVERSED)

#include "kernel.h"

// W is a register of W_WORDS 64-bit words for the tag.
static inline uint64_t w_sum(W x) {
    uint64_t word[sizeof(W) / 8], sum = 0;
    memcpy(word, &x, sizeof x);
    for (size_t i = 0; i < sizeof(W) / 8; i++) sum += word[i];
    return sum;
}

// Σ r·x over 32-bit lanes as Σ r·(x + 2^31) − 2^31·Σ r, so that factors are unsigned; the lanes it did.
static size_t tag_narrow(struct run *run, const uint8_t *lanes, size_t count, const uint32_t *r) {
    const W bias = W_SET(0x8000000080000000), low = W_SET(0xFFFFFFFF);
    W even = W_SET(0), odd = W_SET(0), sum = W_SET(0);
    size_t i = 0;
    for (; i + sizeof(W) / 4 <= count; i += sizeof(W) / 4) {
        const W x = W_XOR(W_LOAD(lanes + 4 * i), bias), k = W_LOAD(r + i), up = W_DOWN(k);
        even = W_ADD(even, V_MUL32(x, k));
        odd = W_ADD(odd, V_MUL32(W_DOWN(x), up));
        sum = W_ADD(sum, W_ADD(W_AND(k, low), up));
    }
    run->narrow += w_sum(even) + w_sum(odd) - (w_sum(sum) << 31);
    return i;
}

// Σ r·x over 64-bit lanes as Σ r·(x + 2^63) − 2^63·Σ r. Both halves of x give products below 2^64, whose halves add up
// without a wrap over a tile.
static size_t tag_wide(struct run *run, const uint8_t *lanes, size_t count, const uint32_t *r) {
    const W bias = W_SET(0x8000000000000000), low = W_SET(0xFFFFFFFF);
    W bottom = W_SET(0), middle = W_SET(0), top = W_SET(0), sum = W_SET(0);
    size_t i = 0;
    for (; i + sizeof(W) / 8 <= count; i += sizeof(W) / 8) {
        const W x = W_XOR(W_LOAD(lanes + 8 * i), bias), k = W_WIDEN(r + i);
        const W p = V_MUL32(x, k), q = V_MUL32(W_DOWN(x), k);
        bottom = W_ADD(bottom, W_AND(p, low));
        middle = W_ADD(middle, W_ADD(W_DOWN(p), W_AND(q, low)));
        top = W_ADD(top, W_DOWN(q));
        sum = W_ADD(sum, k);
    }
    run->wide += w_sum(bottom) + ((unsigned __int128)w_sum(middle) << 32) + ((unsigned __int128)w_sum(top) << 64);
    run->wide -= (unsigned __int128)w_sum(sum) << 63;
    return i;
}
