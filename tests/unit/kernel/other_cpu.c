// One path of the kernel as a process of its own, so that an emulator can run it: calls come by standard input, answers
// go to standard output. other_cpu.py is the other end.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

void fedhpc_wipe(void *memory, size_t size) { memset(memory, 0, size); }  // a process of a test keeps no secrets

static void take(void *to, size_t size) {
    if (fread(to, 1, size, stdin) != size) exit(2);
}

static uint64_t word(void) {
    uint64_t x;
    take(&x, 8);
    return x;
}

static double real(void) {
    double x;
    take(&x, 8);
    return x;
}

static uint8_t *bytes(size_t size) {
    uint8_t *room = malloc(size + 1);
    if (room == NULL) exit(3);
    take(room, size);
    return room;
}

static void give(const void *from, size_t size) {
    if (fwrite(from, 1, size, stdout) != size) exit(4);
}

static struct streams *streams(void) {
    const uint64_t count = word();
    uint8_t key[33];
    if (count > 64) return NULL;  // none
    struct streams *found = calloc(1, sizeof *found + count * sizeof *found->one);
    found->count = count;
    for (uint64_t i = 0; i < count; i++) {
        take(key, 33);
        PATH.expand(&found->one[i], key);
        found->one[i].minus = key[32] == '-';
    }
    return found;
}

static void inspect(void) {
    uint8_t key[32], tag[16] = {0};
    const uint64_t keyed = word(), number = word(), size = word(), tagged = word(), count = word();
    take(key, 32);
    uint8_t *block = bytes(size), *spans = bytes(count * sizeof(struct span));
    PATH.inspect(keyed ? key : NULL, number, block, size, tagged, (void *)spans, count, tag);
    give(spans, count * sizeof(struct span));
    give(tag, 16);
    free(block);
    free(spans);
}

static void run(void) {
    struct run run = {0};
    run.kind = (enum kind)(int64_t)word();
    run.width = word();
    run.count = word();
    run.block = word() / 16;
    run.lane = word();
    run.opening = (int)word();
    run.factor = real();
    struct streams *rounding = streams(), *masks = streams(), *tag = streams();
    run.rounding = rounding, run.masks = masks, run.tag = tag;
    uint8_t *values = bytes(word());
    run.values = run.kind == NO_VALUES ? NULL : values;
    run.lanes = bytes(run.count * run.width);
    PATH.run(&run);
    give(run.lanes, run.count * run.width);
    give(&run.narrow, 8);
    give(&run.wide, 16);
    free(values), free(run.lanes), free(rounding), free(masks), free(tag);
}

static void decode(void) {
    struct sum sum = {0};
    sum.kind = (enum kind)(int64_t)word();
    sum.width = word();
    sum.count = word();
    sum.limit = (int64_t)word();
    sum.quantum = real();
    uint8_t *lanes = bytes(sum.count * sum.width);
    const uint64_t size = word();
    sum.lanes = lanes;
    sum.values = bytes(size);
    const uint64_t done = PATH.decode(&sum);
    give(sum.values, size);
    give(&done, 8);
    free(lanes), free(sum.values);
}

int main(void) {
    for (int call; (call = getchar()) != EOF; fflush(stdout)) {
        if (call == 'i') inspect();
        if (call == 'r') run();
        if (call == 'd') decode();
    }
    return 0;
}
