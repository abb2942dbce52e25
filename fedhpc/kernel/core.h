// The kernel itself, compiled once for each set of instructions (vaes.c, aesni.c, armv8.c), which say what V and B are.
//
// V is a register of V_BLOCKS AES blocks, B one of 128 bits. Nothing branches on a secret or looks up a table by one:
// AES and carry-less products are instructions, and all other loops run over public sizes. Values go through a local
// tile, so that addresses need no alignment and values and lanes may be the same memory.
#include <math.h>
#include <string.h>

#include "kernel.h"

enum {
    FLIGHT = 8,                          // registers of V in flight: the latency of an AES round is hidden
    GROUP = FLIGHT * V_BLOCKS * 16,      // bytes of stream made at a time
    TILE = 512,                          // lanes; with their values and words they stay in the L1 cache
    WORDS = TILE + 2 * GROUP / 4,
    CHUNK = 8192,                        // bytes between two steps of the two readers in inspect
    DECODE_TILE = 1 << 15,               // lanes between two looks at the range, as in ring.py
    AT_ONCE = GHASH_V * V_BLOCKS,        // blocks of GHASH to one reduction
};

// --- AES-256 -----------------------------------------------------------------------------------------------------

static uint32_t sub_word(uint32_t word) {
    uint32_t columns[4] = {word, word, word, word};  // of equal columns ShiftRows changes nothing
    uint8_t out[sizeof(V)];
    V_STORE(out, V_FINAL(V_BROADCAST((const uint8_t *)columns), V_ZERO));
    memcpy(&word, out, 4);
    return word;
}

static void expand(struct stream *stream, const uint8_t key[32]) {
    uint8_t *round = stream->round[0];
    memcpy(round, key, 32);
    uint32_t rcon = 1;
    for (size_t i = 8; i < 4 * ROUND_KEYS; i++) {
        uint32_t word, before;
        memcpy(&word, round + 4 * (i - 1), 4);
        memcpy(&before, round + 4 * (i - 8), 4);
        if (i % 8 == 0) {
            word = sub_word(word >> 8 | word << 24) ^ rcon;
            rcon <<= 1;
        } else if (i % 8 == 4) {
            word = sub_word(word);
        }
        word ^= before;
        memcpy(round + 4 * i, &word, 4);
    }
}

static inline __attribute__((always_inline)) void encrypt(const struct stream *stream, V *x, size_t count) {
    V key = V_BROADCAST(stream->round[0]);
    UNROLL for (size_t i = 0; i < count; i++) x[i] = V_XOR(x[i], key);
    for (size_t r = 1; r < ROUND_KEYS - 1; r++) {
        key = V_BROADCAST(stream->round[r]);
        UNROLL for (size_t i = 0; i < count; i++) x[i] = V_ROUND(x[i], key);
    }
    key = V_BROADCAST(stream->round[ROUND_KEYS - 1]);
    UNROLL for (size_t i = 0; i < count; i++) x[i] = V_FINAL(x[i], key);
}

// GROUP bytes of a stream from 16-byte block `block` on.
static inline __attribute__((always_inline)) void keystream(const struct stream *stream, uint64_t block, V *x) {
    UNROLL for (size_t i = 0; i < FLIGHT; i++) x[i] = V_COUNTERS(block + i * V_BLOCKS);
    encrypt(stream, x, FLIGHT);
}

#define EACH(OP) UNROLL for (size_t i = 0; i < FLIGHT; i++) sum[i] = OP(sum[i], x[i])

// Write `size` bytes of lanes plus the signed streams, added in registers, to `out`; `lanes` has room for whole groups.
static void mask(const struct streams *streams, uint64_t block, uint8_t *lanes, uint8_t *out, size_t size, size_t width) {
    for (size_t at = 0; at < size; at += GROUP, block += GROUP / 16) {
        V sum[FLIGHT], x[FLIGHT];
        UNROLL for (size_t i = 0; i < FLIGHT; i++) sum[i] = V_LOAD(lanes + at + i * sizeof(V));
        for (size_t s = 0; s < streams->count; s++) {
            keystream(&streams->one[s], block, x);
            switch (width * 2 + streams->one[s].minus) {
                case 2: EACH(V_ADD8); break;
                case 3: EACH(V_SUB8); break;
                case 4: EACH(V_ADD16); break;
                case 5: EACH(V_SUB16); break;
                case 8: EACH(V_ADD32); break;
                case 9: EACH(V_SUB32); break;
                case 16: EACH(V_ADD64); break;
                default: EACH(V_SUB64); break;
            }
        }
        uint8_t *to = size - at < GROUP ? lanes + at : out + at;
        UNROLL for (size_t i = 0; i < FLIGHT; i++) V_STORE(to + i * sizeof(V), sum[i]);
    }
    memcpy(out + size / GROUP * GROUP, lanes + size / GROUP * GROUP, size % GROUP);
}

struct words {  // a stream's 32-bit words one after the other, from any word on
    const struct stream *stream;
    uint64_t block;
    size_t held;
    uint32_t word[WORDS];
};

static void more_words(struct words *words, size_t wanted) {
    for (; words->held < wanted; words->held += GROUP / 4, words->block += GROUP / 16) {
        V x[FLIGHT];
        keystream(words->stream, words->block, x);
        UNROLL for (size_t i = 0; i < FLIGHT; i++) V_STORE((uint8_t *)(words->word + words->held) + i * sizeof(V), x[i]);
    }
}

static void drop_words(struct words *words, size_t count) {
    words->held -= count;
    memmove(words->word, words->word + count, words->held * 4);
}

static void begin_words(struct words *words, const struct streams *streams, uint64_t lane) {
    words->stream = streams->one;
    words->block = lane / 4;
    words->held = 0;
    more_words(words, 4);
    drop_words(words, lane % 4);
}

// --- The tag -----------------------------------------------------------------------------------------------------

#define DOT(TYPE)                                                            \
    do {                                                                     \
        TYPE x;                                                              \
        for (; i < count; i++) {                                             \
            memcpy(&x, lanes + i * sizeof x, sizeof x);                      \
            run->narrow += (uint64_t)(int64_t)x * r[i];                      \
        }                                                                    \
    } while (0)

static void tag(struct run *run, const uint8_t *lanes, size_t count, const uint32_t *r) {
    size_t i = 0;
    if (run->width == 8) {
#ifdef V_MUL32
        i = tag_wide(run, lanes, count, r);
#endif
        for (; i < count; i++) {
            int64_t x;
            memcpy(&x, lanes + i * 8, 8);
            run->wide += (unsigned __int128)((__int128)x * r[i]);
        }
    } else if (run->width == 4) {
#ifdef V_MUL32
        i = tag_narrow(run, lanes, count, r);
#endif
        DOT(int32_t);
    } else if (run->width == 2) {
        DOT(int16_t);
    } else {
        DOT(int8_t);
    }
}

// --- Numbers and lanes -------------------------------------------------------------------------------------------

static int is_float32_power(double x) {
    int exponent;
    return frexp(x, &exponent) == 0.5 && exponent >= -125 && exponent <= 128;
}

static void narrow(const int64_t *x, uint8_t *lanes, size_t count, size_t width) {
    if (width == 1) {
        for (size_t i = 0; i < count; i++) lanes[i] = (uint8_t)x[i];
    } else if (width == 2) {
        for (size_t i = 0; i < count; i++) ((uint16_t *)(void *)lanes)[i] = (uint16_t)x[i];
    } else if (width == 4) {
        for (size_t i = 0; i < count; i++) ((uint32_t *)(void *)lanes)[i] = (uint32_t)x[i];
    } else {
        memcpy(lanes, x, count * 8);
    }
}

// `values` are `count` checked numbers at any address, `lanes` a local tile; `random` words or NULL.
static void encode(const struct run *run, const uint8_t *values, uint8_t *lanes, size_t count, const uint32_t *random) {
    double real[TILE];
    float single[TILE];
    int64_t whole[TILE];
    const double factor = run->factor;
    if (run->kind == INT64) {
        memcpy(whole, values, count * 8);
        narrow(whole, lanes, count, run->width);
        return;
    }
    if (run->kind == FLOAT32) {
        memcpy(single, values, count * 4);
        if (run->width == 4 && random == NULL && is_float32_power(factor)) {  // the product is exact
            const float power = (float)factor;
            for (size_t i = 0; i < count; i++) ((int32_t *)(void *)lanes)[i] = (int32_t)rintf(single[i] * power);
            return;
        }
        for (size_t i = 0; i < count; i++) real[i] = (double)single[i] * factor;
    } else {
        memcpy(real, values, count * 8);
        for (size_t i = 0; i < count; i++) real[i] *= factor;
    }
    if (random == NULL) {
        for (size_t i = 0; i < count; i++) real[i] = rint(real[i]);
    } else {
        for (size_t i = 0; i < count; i++) {
            const double down = floor(real[i]);
            real[i] = down + ((real[i] - down) * 4294967296.0 > (double)random[i] ? 1.0 : 0.0);
        }
    }
    if (run->width == 4) {
        for (size_t i = 0; i < count; i++) ((int32_t *)(void *)lanes)[i] = (int32_t)real[i];
        return;
    }
    TO_INT64(whole, real, count);
    narrow(whole, lanes, count, run->width);
}

static void run(struct run *run) {
    uint8_t lanes[TILE * 8 + GROUP] __attribute__((aligned(64)));
    struct words tags, rounding;
    if (run->tag) begin_words(&tags, run->tag, run->lane);
    if (run->values && run->rounding && run->kind != INT64) begin_words(&rounding, run->rounding, run->lane);
    const size_t step = run->kind == FLOAT32 ? 4 : 8;
    for (size_t at = 0; at < run->count; at += TILE) {
        const size_t count = run->count - at < TILE ? run->count - at : TILE;
        const size_t size = count * run->width;
        uint8_t *home = run->lanes + at * run->width;
        const uint64_t block = run->block + at * run->width / 16;
        if (run->values == NULL) {
            memcpy(lanes, home, size);
        } else if (run->rounding && run->kind != INT64) {
            more_words(&rounding, count);
            encode(run, run->values + at * step, lanes, count, rounding.word);
            drop_words(&rounding, count);
        } else {
            encode(run, run->values + at * step, lanes, count, NULL);
        }
        if (run->tag) more_words(&tags, count);
        if (run->tag && !run->opening) tag(run, lanes, count, tags.word);
        if (run->masks) {
            mask(run->masks, block, lanes, home, size, run->width);
        } else {
            memcpy(home, lanes, size);
        }
        if (run->tag && run->opening) tag(run, home, count, tags.word);
        if (run->tag) drop_words(&tags, count);
    }
}

#define LOAD_LANES(TYPE)                                                     \
    do {                                                                     \
        TYPE lane[TILE];                                                     \
        memcpy(lane, lanes, count * sizeof(TYPE));                           \
        for (size_t i = 0; i < count; i++) whole[i] = lane[i];               \
    } while (0)

static void widen(const uint8_t *lanes, int64_t *whole, size_t count, size_t width) {
    switch (width) {
        case 1: LOAD_LANES(int8_t); break;
        case 2: LOAD_LANES(int16_t); break;
        case 4: LOAD_LANES(int32_t); break;
        default: memcpy(whole, lanes, count * 8);
    }
}

static void decode_tile(const struct sum *sum, const uint8_t *lanes, uint8_t *values, size_t count, int power) {
    int64_t whole[TILE];
    double real[TILE];
    float single[TILE];
    const float quantum = (float)sum->quantum;
    if (power && sum->width == 4) {
        int32_t lane[TILE];
        memcpy(lane, lanes, count * 4);
        for (size_t i = 0; i < count; i++) single[i] = (float)lane[i] * quantum;
        memcpy(values, single, count * 4);
        return;
    }
    widen(lanes, whole, count, sum->width);
    if (sum->kind == INT64) {
        memcpy(values, whole, count * 8);
    } else if (power) {
        for (size_t i = 0; i < count; i++) single[i] = (float)whole[i] * quantum;
        memcpy(values, single, count * 4);
    } else {
        for (size_t i = 0; i < count; i++) real[i] = (double)whole[i] * sum->quantum;
        if (sum->kind == FLOAT64) {
            memcpy(values, real, count * 8);
        } else {
            for (size_t i = 0; i < count; i++) single[i] = (float)real[i];
            memcpy(values, single, count * 4);
        }
    }
}

static int within(const uint8_t *lanes, size_t count, size_t width, int64_t limit) {
    int64_t whole[TILE], high = 0, low = 0;
    for (size_t at = 0; at < count; at += TILE) {
        const size_t n = count - at < TILE ? count - at : TILE;
        widen(lanes + at * width, whole, n, width);
        for (size_t i = 0; i < n; i++) high = whole[i] > high ? whole[i] : high;
        for (size_t i = 0; i < n; i++) low = whole[i] < low ? whole[i] : low;
    }
    return high <= limit && low >= -limit;
}

static size_t decode(const struct sum *sum) {
    const int power = sum->kind == FLOAT32 && sum->width <= 4 && is_float32_power(sum->quantum);
    const size_t step = sum->kind == FLOAT32 ? 4 : 8;
    for (size_t at = 0; at < sum->count; at += TILE) {
        const size_t left = sum->count - at;
        const uint8_t *lanes = sum->lanes + at * sum->width;
        if (at % DECODE_TILE == 0 && !within(lanes, left < DECODE_TILE ? left : DECODE_TILE, sum->width, sum->limit))
            return at;
        decode_tile(sum, lanes, sum->values + at * step, left < TILE ? left : TILE, power);
    }
    return sum->count;
}

// --- The look at the values --------------------------------------------------------------------------------------

// max |x| as its bits: of a float without its sign they rise with |x|, and what is not finite is above all that is.
static uint64_t largest(const uint8_t *values, size_t size, enum kind kind, uint64_t before) {
    if (kind == FLOAT32) {
        int32_t most = (int32_t)before, x[TILE];
        for (size_t at = 0; at < size; at += sizeof x) {
            const size_t n = (size - at < sizeof x ? size - at : sizeof x) / 4;
            memcpy(x, values + at, n * 4);
            for (size_t i = 0; i < n; i++) most = (x[i] & INT32_MAX) > most ? x[i] & INT32_MAX : most;
        }
        return (uint64_t)most;
    }
    // A negative integer by its complement, |x| − 1, so that −2^63 has room; the caller of a whole span adds the 1.
    int64_t most = (int64_t)(before >> (kind == INT64)), x[TILE];
    uint64_t whole = before;
    for (size_t at = 0; at < size; at += sizeof x) {
        const size_t n = (size - at < sizeof x ? size - at : sizeof x) / 8;
        memcpy(x, values + at, n * 8);
        if (kind == FLOAT64) {
            for (size_t i = 0; i < n; i++) most = (x[i] & INT64_MAX) > most ? x[i] & INT64_MAX : most;
            continue;
        }
        int64_t high = 0, low = 0;
        for (size_t i = 0; i < n; i++) high = x[i] > high ? x[i] : high;
        for (size_t i = 0; i < n; i++) low = x[i] < low ? x[i] : low;
        const uint64_t below = 0 - (uint64_t)low;
        whole = (uint64_t)high > whole ? (uint64_t)high : whole;
        whole = below > whole ? below : whole;
    }
    return kind == INT64 ? whole : (uint64_t)most;
}

// GHASH as POLYVAL of reversed bytes (RFC 8452, appendix A), with the reduction of Gueron and Lindell.
static inline B reduce(B low, B middle, B high) {
    const B poly = B_SET(0xC200000000000000, 0);
    low = B_XOR(low, B_UP(middle));
    high = B_XOR(high, B_DOWN(middle));
    low = B_XOR(B_SWAP(low), B_CLMUL(low, poly, 0x10));
    low = B_XOR(B_SWAP(low), B_CLMUL(low, poly, 0x10));
    return B_XOR(low, high);
}

static B times(B a, B b) {
    return reduce(B_CLMUL(a, b, 0x00), B_XOR(B_CLMUL(a, b, 0x01), B_CLMUL(a, b, 0x10)), B_CLMUL(a, b, 0x11));
}

static B ghash(const struct gmac_key *key, B state, const uint8_t *data, size_t size) {
    for (; size >= AT_ONCE * 16; data += AT_ONCE * 16, size -= AT_ONCE * 16) {
        V low = V_ZERO, middle = V_ZERO, high = V_ZERO;
        UNROLL for (size_t i = 0; i < GHASH_V; i++) {
            V x = V_REVERSE(V_LOAD(data + i * sizeof(V)));
            if (i == 0) x = V_XOR(x, V_FIRST(state));
            const V power = V_LOAD(key->powers[i * V_BLOCKS]), both = V_LOAD(key->sums[i * V_BLOCKS]);
            low = V_XOR(low, V_CLMUL(x, power, 0x00));
            high = V_XOR(high, V_CLMUL(x, power, 0x11));
            middle = V_XOR(middle, V_CLMUL(V_XOR(x, V_SWAP(x)), both, 0x00));  // Karatsuba
        }
        const B a = V_FOLD(low), b = V_FOLD(high);
        state = reduce(a, B_XOR(V_FOLD(middle), B_XOR(a, b)), b);
    }
    for (; size; size -= size < 16 ? size : 16, data += 16) {
        uint8_t block[16] = {0};
        memcpy(block, data, size < 16 ? size : 16);
        state = times(B_XOR(state, B_REVERSE(B_LOAD(block))), B_LOAD(key->powers[AT_ONCE - 1]));
    }
    return state;
}

static B encrypt_block(const struct stream *stream, const uint8_t block[16]) {
    uint8_t out[sizeof(V)];
    V x = V_BROADCAST(block);
    encrypt(stream, &x, 1);
    V_STORE(out, x);
    return B_LOAD(out);
}

static void gmac_key(struct gmac_key *gmac, const uint8_t key[32]) {
    const uint8_t zero[16] = {0};
    uint64_t h[2];
    expand(&gmac->cipher, key);
    B_STORE((uint8_t *)h, B_REVERSE(encrypt_block(&gmac->cipher, zero)));
    const uint64_t carry = 0 - (h[1] >> 63);  // times x, without a branch
    const B first = B_SET((h[1] << 1 | h[0] >> 63) ^ (carry & 0xC200000000000000), h[0] << 1 | (carry & 1));
    B power = first;
    for (size_t i = AT_ONCE; i-- > 0; power = times(power, first)) {
        B_STORE(gmac->powers[i], power);
        B_STORE(gmac->sums[i], B_XOR(power, B_SWAP(power)));
    }
    h[0] = h[1] = 0;
}

static void inspect(const struct gmac_key *gmac, uint64_t number, const uint8_t *block, size_t size, size_t tagged,
                    struct span *spans, size_t count, uint8_t tag[16]) {
    B state = B_SET(0, 0);
    size_t next = 0;
    for (size_t at = 0; at < size; at += CHUNK) {
        const size_t stop = size - at < CHUNK ? size : at + CHUNK;
        if (gmac && at < tagged) state = ghash(gmac, state, block + at, (stop < tagged ? stop : tagged) - at);
        for (; next < count; next++) {
            struct span *span = &spans[next];
            const size_t low = span->start > at ? span->start : at, high = span->stop < stop ? span->stop : stop;
            if (low < high) span->largest = largest(block + low, high - low, span->kind, span->largest);
            if (span->stop > stop) break;
        }
    }
    if (gmac) {
        // The lengths: of the data authenticated first, of the (empty) ciphertext second.
        const uint64_t lengths[2] = {__builtin_bswap64((uint64_t)tagged * 8), 0};
        uint8_t nonce[16] = {[15] = 1};
        memcpy(nonce, &number, 8);
        state = ghash(gmac, state, (const uint8_t *)lengths, 16);
        B_STORE(tag, B_XOR(B_REVERSE(state), encrypt_block(&gmac->cipher, nonce)));
    }
}

const struct path PATH = {NAME, expand, gmac_key, inspect, run, decode};
