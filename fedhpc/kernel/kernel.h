// What module.c calls: one `struct path` for each set of instructions. README.md explains the whole.
#ifndef FEDHPC_KERNEL_H
#define FEDHPC_KERNEL_H

#include <stddef.h>
#include <stdint.h>

enum kind { NO_VALUES = -1, FLOAT32, FLOAT64, INT64 };

enum { ROUND_KEYS = 15 };

struct stream {  // one AES-256 key, expanded
    uint8_t round[ROUND_KEYS][16];
    uint64_t minus;  // 1: its words are subtracted
};

struct streams {
    size_t count;
    struct stream one[];
};

struct span {  // one tensor's values in a block
    int64_t start, stop, kind;
    uint64_t largest;  // out: bits of max |x|, an integer for INT64
};

struct run {  // of one tensor's lanes
    const uint8_t *values;  // or NULL: `lanes` hold lanes already
    uint8_t *lanes;
    size_t count, width;  // lanes, and bytes of one
    enum kind kind;
    double factor;
    uint64_t block, lane;  // of 16 bytes in the mask streams; the first lane's number
    const struct streams *rounding, *masks, *tag;  // or NULL
    int opening;  // masks first, then the tag
    uint64_t narrow;  // out: added to φ
    unsigned __int128 wide;  // out: added to φ′
};

struct sum {  // lanes to be decoded
    const uint8_t *lanes;
    uint8_t *values;
    size_t count, width;
    enum kind kind;
    double quantum;
    int64_t limit;
};

void fedhpc_wipe(void *memory, size_t size);

struct path {
    const char *name;
    void (*expand)(struct stream *stream, const uint8_t key[32]);
    void (*inspect)(const uint8_t *key, uint64_t number, const uint8_t *block, size_t size, size_t tagged,
                    struct span *spans, size_t count, uint8_t tag[16]);  // `key` or NULL
    void (*run)(struct run *run);
    size_t (*decode)(const struct sum *sum);  // lanes done before one was beyond the limit
};

extern const struct path fedhpc_vaes, fedhpc_aesni, fedhpc_armv8;

#endif
