// The kernel itself, compiled once for each set of instructions. vaes.c, aesni.c and armv8.c say what is special:
// V_BLOCKS, W_BYTES, and macros for AES rounds, carry-less products and the like.
//
// Nothing branches on a secret or looks up a table by one: AES and carry-less products are instructions, and all loops
// run over public sizes. Lanes go through a local tile, so that values and lanes may be the same memory.
#include <math.h>
#include <string.h>

#include "kernel.h"

typedef uint64_t V __attribute__((vector_size(16 * V_BLOCKS)));  // a register of AES blocks
typedef uint8_t V8 __attribute__((vector_size(16 * V_BLOCKS)));
typedef uint16_t V16 __attribute__((vector_size(16 * V_BLOCKS)));
typedef uint32_t V32 __attribute__((vector_size(16 * V_BLOCKS)));
typedef uint64_t B __attribute__((vector_size(16)));  // one block: its low and its high half
typedef uint64_t W __attribute__((vector_size(W_BYTES)));  // a register for the tag
typedef uint32_t HALF __attribute__((vector_size(W_BYTES / 2)));

#define ANYWHERE __attribute__((aligned(1), may_alias))
typedef int8_t I8 ANYWHERE;
typedef int16_t I16 ANYWHERE;
typedef int32_t I32 ANYWHERE;
typedef int64_t I64 ANYWHERE;
typedef float F32 ANYWHERE;
typedef double F64 ANYWHERE;

enum {
    FLIGHT = 8,                       // registers in flight: they hide the latency of an AES round
    GROUP = FLIGHT * V_BLOCKS * 16,   // bytes of stream made at a time
    TILE = 512,                       // lanes; with their values and words they stay in the L1 cache
    WORDS = TILE + 2 * GROUP / 4,
    CHUNK = 8192,                     // bytes between two steps of the two readers in inspect
    DECODE_TILE = 1 << 15,            // lanes between two looks at the range, as in ring.py
    AT_ONCE = FLIGHT * V_BLOCKS * 16, // bytes of GHASH to one reduction
    LAST = FLIGHT * V_BLOCKS - 1,     // where the hash key itself is among its powers
};

#define MIN(A, C) ((A) < (C) ? (A) : (C))
#define INLINE static inline __attribute__((always_inline))
#define EACH(X) UNROLL for (size_t i = 0; i < FLIGHT; i++) X

INLINE V load(const void *from) {
    V x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE W load_w(const void *from) {
    W x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE B load_b(const void *from) {
    B x;
    memcpy(&x, from, sizeof x);
    return x;
}

// --- AES-256 -----------------------------------------------------------------------------------------------------

static uint32_t sub_word(uint32_t word) {
    const uint32_t columns[4] = {word, word, word, word};  // of equal columns ShiftRows changes nothing
    return (uint32_t)V_FINAL(V_BROADCAST(columns), (V){0})[0];
}

static void expand(struct stream *stream, const uint8_t key[32]) {
    uint8_t *round = stream->round[0];
    uint32_t rcon = 1, word, before;
    memcpy(round, key, 32);
    for (size_t i = 8; i < 4 * ROUND_KEYS; i++) {
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

static B encrypt(const struct stream *stream, B block) {
    V x = V_BROADCAST(&block) ^ V_BROADCAST(stream->round[0]);
    for (size_t r = 1; r < ROUND_KEYS - 1; r++) x = V_ROUND(x, V_BROADCAST(stream->round[r]));
    x = V_FINAL(x, V_BROADCAST(stream->round[ROUND_KEYS - 1]));
    return (B){x[0], x[1]};
}

// GROUP bytes of a stream from block `block` on.
INLINE void keystream(const struct stream *stream, uint64_t block, V *x) {
    V key = V_BROADCAST(stream->round[0]);
    EACH(x[i] = V_COUNTERS(block + i * V_BLOCKS) ^ key);
    for (size_t r = 1; r < ROUND_KEYS - 1; r++) {
        key = V_BROADCAST(stream->round[r]);
        EACH(x[i] = V_ROUND(x[i], key));
    }
    key = V_BROADCAST(stream->round[ROUND_KEYS - 1]);
    EACH(x[i] = V_FINAL(x[i], key));
}

#define ADD(LANES, SIGN) EACH(sum[i] = (V)((LANES)sum[i] SIGN (LANES)x[i])); break

// Write `size` bytes of lanes plus the signed streams, added in registers, to `out`; `lanes` has room for whole groups.
static void mask(const struct streams *streams, uint64_t block, uint8_t *lanes, uint8_t *out, size_t size,
                 size_t width) {
    for (size_t at = 0; at < size; at += GROUP, block += GROUP / 16) {
        V sum[FLIGHT], x[FLIGHT];
        EACH(sum[i] = load(lanes + at + i * sizeof(V)));
        for (size_t s = 0; s < streams->count; s++) {
            keystream(&streams->one[s], block, x);
            switch (width * 2 + streams->one[s].minus) {  // both are public
                case 2: ADD(V8, +);
                case 3: ADD(V8, -);
                case 4: ADD(V16, +);
                case 5: ADD(V16, -);
                case 8: ADD(V32, +);
                case 9: ADD(V32, -);
                case 16: ADD(V, +);
                default: ADD(V, -);
            }
        }
        uint8_t *to = size - at < GROUP ? lanes + at : out + at;
        EACH(memcpy(to + i * sizeof(V), &sum[i], sizeof(V)));
    }
    memcpy(out + size / GROUP * GROUP, lanes + size / GROUP * GROUP, size % GROUP);
}

struct words {  // a stream's 32-bit words one after the other, from any word on
    const struct stream *stream;
    uint64_t block;
    size_t held;
    uint32_t word[WORDS];
};

static const uint32_t *more_words(struct words *words, size_t wanted) {
    for (; words->held < wanted; words->held += GROUP / 4, words->block += GROUP / 16) {
        V x[FLIGHT];
        keystream(words->stream, words->block, x);
        EACH(memcpy((uint8_t *)(words->word + words->held) + i * sizeof(V), &x[i], sizeof(V)));
    }
    return words->word;
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

INLINE uint64_t across(W x) {
    uint64_t sum = 0;
    for (size_t i = 0; i < W_BYTES / 8; i++) sum += x[i];
    return sum;
}

// Σ r·x over 32-bit lanes as Σ r·(x + 2^31) − 2^31·Σ r, so that factors are unsigned. Returns the lanes it did.
static size_t tag_narrow(struct run *run, const uint8_t *lanes, size_t count, const uint32_t *r) {
    W even = {0}, odd = {0}, sum = {0};
    size_t i = 0;
    for (; i + W_BYTES / 4 <= count; i += W_BYTES / 4) {
        const W x = load_w(lanes + 4 * i) ^ 0x8000000080000000, k = load_w(r + i);
        even += W_MUL32(x, k);
        odd += W_MUL32(x >> 32, k >> 32);
        sum += (k & 0xFFFFFFFF) + (k >> 32);
    }
    run->narrow += across(even) + across(odd) - (across(sum) << 31);
    return i;
}

// Σ r·x over 64-bit lanes as Σ r·(x + 2^63) − 2^63·Σ r. Both halves of x give products below 2^64, whose halves add up
// without a wrap over a tile.
static size_t tag_wide(struct run *run, const uint8_t *lanes, size_t count, const uint32_t *r) {
    W bottom = {0}, middle = {0}, top = {0}, sum = {0};
    size_t i = 0;
    for (; i + W_BYTES / 8 <= count; i += W_BYTES / 8) {
        HALF half;
        memcpy(&half, r + i, sizeof half);
        const W x = load_w(lanes + 8 * i) ^ 0x8000000000000000, k = __builtin_convertvector(half, W);
        const W p = W_MUL32(x, k), q = W_MUL32(x >> 32, k);
        bottom += p & 0xFFFFFFFF;
        middle += (p >> 32) + (q & 0xFFFFFFFF);
        top += q >> 32;
        sum += k;
    }
    run->wide += across(bottom) + ((unsigned __int128)across(middle) << 32) + ((unsigned __int128)across(top) << 64);
    run->wide -= (unsigned __int128)across(sum) << 63;
    return i;
}

#define DOT(LANES) for (; i < count; i++) run->narrow += (uint64_t)(int64_t)((const LANES *)lanes)[i] * r[i]; break

static void tag(struct run *run, const uint8_t *lanes, size_t count, const uint32_t *r) {
    size_t i = run->width == 8 ? tag_wide(run, lanes, count, r) : 0;
    switch (run->width) {
        case 1: DOT(I8);
        case 2: DOT(I16);
        case 4: i = tag_narrow(run, lanes, count, r); DOT(I32);
        default: for (; i < count; i++) run->wide += (unsigned __int128)((__int128)((const I64 *)lanes)[i] * r[i]);
    }
}

// --- Numbers and lanes -------------------------------------------------------------------------------------------

static int is_float32_power(double x) {
    int exponent;
    return frexp(x, &exponent) == 0.5 && exponent >= -125 && exponent <= 128;
}

#define ALL(X) for (size_t i = 0; i < count; i++) X

// `count` checked values into a local tile of lanes; `random` words or NULL.
static void encode(const struct run *run, const void *values, void *restrict lanes, size_t count,
                   const uint32_t *random) {
    double real[TILE];
    int64_t buffer[TILE], *whole = run->width == 8 ? lanes : buffer;
    const double factor = run->factor;
    const float power = (float)factor;
    const F32 *single = values;
    if (run->kind == INT64) {
        memcpy(whole, values, count * 8);
    } else if (run->kind == FLOAT32 && run->width == 4 && !random && is_float32_power(factor)) {
        ALL(((I32 *)lanes)[i] = (int32_t)rintf(single[i] * power));  // the product is exact
        return;
    } else {
        if (run->kind == FLOAT32) ALL(real[i] = (double)single[i] * factor);
        else ALL(real[i] = ((const F64 *)values)[i] * factor);
        if (random) {
            for (size_t i = 0; i < count; i++) {
                const double down = floor(real[i]);
                real[i] = down + ((real[i] - down) * 4294967296.0 > (double)random[i] ? 1.0 : 0.0);
            }
        } else {
            ALL(real[i] = rint(real[i]));
        }
        if (run->width == 4) {
            ALL(((I32 *)lanes)[i] = (int32_t)real[i]);
            return;
        }
        ALL(whole[i] = TO_INT64(real[i]));
    }
    if (run->width == 1) ALL(((I8 *)lanes)[i] = (int8_t)whole[i]);
    if (run->width == 2) ALL(((I16 *)lanes)[i] = (int16_t)whole[i]);
    if (run->width == 4) ALL(((I32 *)lanes)[i] = (int32_t)whole[i]);
}

static void run(struct run *run) {
    uint8_t lanes[TILE * 8 + GROUP] __attribute__((aligned(64)));
    struct words tags, rounding;
    const int random = run->values && run->rounding && run->kind != INT64;
    if (run->tag) begin_words(&tags, run->tag, run->lane);
    if (random) begin_words(&rounding, run->rounding, run->lane);
    for (size_t at = 0; at < run->count; at += TILE) {
        const size_t count = MIN(run->count - at, TILE), size = count * run->width;
        uint8_t *home = run->lanes + at * run->width;
        if (run->values) {
            const uint8_t *values = run->values + at * (run->kind == FLOAT32 ? 4 : 8);
            encode(run, values, lanes, count, random ? more_words(&rounding, count) : NULL);
        } else {
            memcpy(lanes, home, size);
        }
        if (random) drop_words(&rounding, count);
        if (run->tag && !run->opening) tag(run, lanes, count, more_words(&tags, count));
        if (run->masks) mask(run->masks, run->block + at * run->width / 16, lanes, home, size, run->width);
        else memcpy(home, lanes, size);
        if (run->tag && run->opening) tag(run, home, count, more_words(&tags, count));
        if (run->tag) drop_words(&tags, count);
    }
}

static void widen(const void *lanes, int64_t *restrict whole, size_t count, size_t width) {
    if (width == 1) ALL(whole[i] = ((const I8 *)lanes)[i]);
    if (width == 2) ALL(whole[i] = ((const I16 *)lanes)[i]);
    if (width == 4) ALL(whole[i] = ((const I32 *)lanes)[i]);
    if (width == 8) memcpy(whole, lanes, count * 8);
}

static void decode_tile(const struct sum *sum, const uint8_t *lanes, void *values, size_t count, int power) {
    int64_t whole[TILE];
    int32_t lane[TILE];
    const double quantum = sum->quantum;
    const float single = (float)quantum;
    if (power && sum->width == 4) {
        memcpy(lane, lanes, count * 4);
        ALL(((F32 *)values)[i] = (float)lane[i] * single);
        return;
    }
    widen(lanes, whole, count, sum->width);
    if (sum->kind == INT64) memcpy(values, whole, count * 8);
    else if (sum->kind == FLOAT64) ALL(((F64 *)values)[i] = (double)whole[i] * quantum);
    else if (power) ALL(((F32 *)values)[i] = (float)whole[i] * single);
    else ALL(((F32 *)values)[i] = (float)((double)whole[i] * quantum));
}

static int within(const uint8_t *lanes, size_t total, size_t width, int64_t limit) {
    int64_t whole[TILE], high = 0, low = 0;
    for (size_t at = 0; at < total; at += TILE) {
        const size_t count = MIN(total - at, TILE);
        widen(lanes + at * width, whole, count, width);
        ALL(high = whole[i] > high ? whole[i] : high);
        ALL(low = whole[i] < low ? whole[i] : low);
    }
    return high <= limit && low >= -limit;
}

static size_t decode(const struct sum *sum) {
    // A lane of at most 32 bits is rounded once on its way to float32, as in ring.py.
    const int power = sum->kind == FLOAT32 && sum->width <= 4 && is_float32_power(sum->quantum);
    for (size_t at = 0; at < sum->count; at += TILE) {
        const size_t left = sum->count - at;
        const uint8_t *lanes = sum->lanes + at * sum->width;
        if (at % DECODE_TILE == 0 && !within(lanes, MIN(left, DECODE_TILE), sum->width, sum->limit)) return at;
        decode_tile(sum, lanes, sum->values + at * (sum->kind == FLOAT32 ? 4 : 8), MIN(left, TILE), power);
    }
    return sum->count;
}

// --- The look at the values --------------------------------------------------------------------------------------

// max |x| as its bits: of a float without its sign they rise with |x|, and what is not finite is above all that is.
static uint64_t largest(const void *values, size_t size, int64_t kind) {
    const I32 *narrow = values;
    const I64 *wide = values;
    const size_t count = size / (kind == FLOAT32 ? 4 : 8);
    int64_t high = 0, low = 0;
    int32_t most = 0;
    if (kind == FLOAT32) {
        ALL(most = (narrow[i] & INT32_MAX) > most ? narrow[i] & INT32_MAX : most);
        return (uint64_t)most;
    }
    if (kind == FLOAT64) {
        ALL(high = (wide[i] & INT64_MAX) > high ? wide[i] & INT64_MAX : high);
        return (uint64_t)high;
    }
    ALL(high = wide[i] > high ? wide[i] : high);
    ALL(low = wide[i] < low ? wide[i] : low);
    return (uint64_t)high > 0 - (uint64_t)low ? (uint64_t)high : 0 - (uint64_t)low;
}

struct gmac_key {
    struct stream cipher;
    uint8_t powers[LAST + 1][16];  // of the hash key, the highest first
    uint8_t sums[LAST + 1][16];    // of the halves of each
};

// GHASH as POLYVAL of reversed bytes (RFC 8452, appendix A), with the reduction of Gueron and Lindell.
INLINE B reduce(B low, B middle, B high) {
    const B poly = {0, 0xC200000000000000};
    middle ^= low ^ high;  // Karatsuba
    low ^= (B){0, middle[0]};
    high ^= (B){middle[1], 0};
    low = (B){low[1], low[0]} ^ B_CLMUL(low, poly, 0x10);
    low = (B){low[1], low[0]} ^ B_CLMUL(low, poly, 0x10);
    return low ^ high;
}

static B times(B a, B b) {
    const B sums = {a[0] ^ a[1], b[0] ^ b[1]};
    return reduce(B_CLMUL(a, b, 0x00), B_CLMUL(sums, sums, 0x10), B_CLMUL(a, b, 0x11));
}

INLINE B fold(V x) {
    B sum = {0};
    UNROLL for (size_t i = 0; i < 2 * V_BLOCKS; i += 2) sum ^= (B){x[i], x[i + 1]};
    return sum;
}

static B reversed(B x) {
    return (B){__builtin_bswap64(x[1]), __builtin_bswap64(x[0])};
}

static B ghash(const struct gmac_key *key, B state, const uint8_t *data, size_t size) {
    for (; size >= AT_ONCE; data += AT_ONCE, size -= AT_ONCE) {
        V low = {0}, middle = {0}, high = {0}, first = {state[0], state[1]};
        UNROLL for (size_t i = 0; i < FLIGHT; i++) {
            const V x = V_REVERSE(load(data + i * sizeof(V))) ^ (i ? (V){0} : first);
            const V power = load(key->powers[i * V_BLOCKS]), both = load(key->sums[i * V_BLOCKS]);
            low ^= V_CLMUL(x, power, 0x00);
            high ^= V_CLMUL(x, power, 0x11);
            middle ^= V_CLMUL(x ^ V_SWAP(x), both, 0x00);
        }
        state = reduce(fold(low), fold(middle), fold(high));
    }
    for (; size; data += MIN(size, 16), size -= MIN(size, 16)) {
        B block = {0};
        memcpy(&block, data, MIN(size, 16));
        state = times(state ^ reversed(block), load_b(key->powers[LAST]));
    }
    return state;
}

static void gmac_key(struct gmac_key *gmac, const uint8_t key[32]) {
    expand(&gmac->cipher, key);
    const B h = reversed(encrypt(&gmac->cipher, (B){0}));
    const uint64_t carry = 0 - (h[1] >> 63);  // times x, without a branch
    const B first = {h[0] << 1 | (carry & 1), (h[1] << 1 | h[0] >> 63) ^ (carry & 0xC200000000000000)};
    B power = first;
    for (size_t i = LAST + 1; i-- > 0; power = times(power, first)) {
        const B sums = {power[0] ^ power[1], power[0] ^ power[1]};
        memcpy(gmac->powers[i], &power, 16);
        memcpy(gmac->sums[i], &sums, 16);
    }
}

static void inspect(const uint8_t *key, uint64_t number, const uint8_t *block, size_t size, size_t tagged,
                    struct span *spans, size_t count, uint8_t tag[16]) {
    B state = {0};
    const struct span *end = spans + count;
    struct gmac_key gmac;
    if (key) gmac_key(&gmac, key);
    for (size_t at = 0; at < size; at += CHUNK) {
        const size_t stop = MIN(size, at + CHUNK);
        if (key && at < tagged) state = ghash(&gmac, state, block + at, MIN(stop, tagged) - at);
        for (; spans < end; spans++) {
            const size_t low = (size_t)spans->start > at ? (size_t)spans->start : at;
            const size_t high = MIN((size_t)spans->stop, stop);
            const uint64_t found = low < high ? largest(block + low, high - low, spans->kind) : 0;
            spans->largest = found > spans->largest ? found : spans->largest;
            if ((size_t)spans->stop > stop) break;
        }
    }
    if (key) {
        const B lengths = {__builtin_bswap64((uint64_t)tagged * 8), 0};  // of the data and of the (empty) ciphertext
        state = ghash(&gmac, state, (const uint8_t *)&lengths, 16);
        state = reversed(state) ^ encrypt(&gmac.cipher, (B){number, (uint64_t)1 << 56});
        memcpy(tag, &state, 16);
        fedhpc_wipe(&gmac, sizeof gmac);
    }
}

const struct path PATH = {NAME, expand, inspect, run, decode};
