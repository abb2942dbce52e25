// fedhpc.kernel._core: what Python calls (extension.py says how). It checks sizes, lets go of the interpreter's lock,
// and holds keys in capsules that wipe them.
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

static const struct path *paths[2];  // that this CPU can run, the best first
static long path_count;
static char path_names[32], flag_names[64];  // separated by spaces

static int flag(const char *name, int has) {
    if (has) strcat(strcat(flag_names, *flag_names ? " " : ""), name);
    return has != 0;
}

static void offer(const struct path *path) {
    strcat(strcat(path_names, path_count ? " " : ""), path->name);
    paths[path_count++] = path;
}

#if defined(__x86_64__)
#include <cpuid.h>
static void find_paths(void) {
    unsigned a, b, c, d, leaf7 = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) leaf7 = c;
    __builtin_cpu_init();  // it knows whether the system keeps wide registers, too
    const int old = flag("aes", __builtin_cpu_supports("aes")) & flag("pclmul", __builtin_cpu_supports("pclmul")) &
                    flag("avx2", __builtin_cpu_supports("avx2"));
    const int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const int new = flag("avx512", wide) & flag("vaes", leaf7 >> 9 & 1) & flag("vpclmulqdq", leaf7 >> 10 & 1);
    if (old && new) offer(&fedhpc_vaes);
    if (old) offer(&fedhpc_aesni);
}
#elif defined(__aarch64__) && defined(__AARCH64EL__) && defined(__linux__)
#include <sys/auxv.h>
static void find_paths(void) {
    const unsigned long has = getauxval(AT_HWCAP);
    if (flag("aes", has >> 3 & 1) & flag("pmull", has >> 4 & 1)) offer(&fedhpc_armv8);
}
#else
static void find_paths(void) {}
#endif

static const struct path *path_of(long index) {
    if (index >= 0 && index < path_count) return paths[index];
    PyErr_SetString(PyExc_ValueError, "no such path");
    return NULL;
}

static const char STREAMS[] = "fedhpc.streams";

void fedhpc_wipe(void *memory, size_t size) {
    volatile uint8_t *byte = memory;  // volatile: a store to memory that is given up next would be left out
    while (size--) *byte++ = 0;
}

static void let_go(PyObject *capsule) {
    struct streams *streams = PyCapsule_GetPointer(capsule, STREAMS);
    fedhpc_wipe(streams->one, streams->count * sizeof *streams->one);
    free(streams);
}

// The streams in a capsule, or NULL for None; 0 for anything else.
static int held(PyObject *capsule, const struct streams **found) {
    *found = capsule == Py_None ? NULL : PyCapsule_GetPointer(capsule, STREAMS);
    return capsule == Py_None || *found != NULL;
}

static int refuse(int wrong, const char *what) {
    if (wrong && !PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, what);
    return wrong;
}

static PyObject *py_streams(PyObject *self, PyObject *args) {
    (void)self;
    long index;
    const char *keys, *signs;
    Py_ssize_t size, count;
    const struct path *path;
    if (!PyArg_ParseTuple(args, "ly#y#", &index, &keys, &size, &signs, &count) || !(path = path_of(index)))
        return NULL;
    if (refuse(size != 32 * count, "keys have 32 bytes")) return NULL;
    struct streams *streams = calloc(1, sizeof *streams + (size_t)count * sizeof *streams->one);
    PyObject *capsule = streams ? PyCapsule_New(streams, STREAMS, let_go) : PyErr_NoMemory();
    if (capsule == NULL) return free(streams), NULL;
    streams->count = (size_t)count;
    for (Py_ssize_t i = 0; i < count; i++) {
        path->expand(&streams->one[i], (const uint8_t *)keys + 32 * i);
        streams->one[i].minus = signs[i] == '-';
    }
    return capsule;
}

static Py_ssize_t bytes_of(int64_t kind) { return kind == FLOAT32 ? 4 : 8; }

static int spans_fit(const struct span *span, Py_ssize_t count, Py_ssize_t size) {
    for (int64_t last = 0; count--; last = (span++)->stop) {
        if (span->start < last || span->start % 16 || span->stop < span->start || span->stop > size) return 0;
        if (span->kind < 0 || span->kind > INT64 || (span->stop - span->start) % bytes_of(span->kind)) return 0;
    }
    return 1;
}

static PyObject *py_inspect(PyObject *self, PyObject *args) {
    (void)self;
    long index;
    unsigned long long number;
    Py_ssize_t tagged, size;
    const char *key;
    Py_buffer block, spans;
    char tag[16];
    if (!PyArg_ParseTuple(args, "lz#Ky*nw*", &index, &key, &size, &number, &block, &tagged, &spans)) return NULL;
    const struct path *path = path_of(index);
    const Py_ssize_t count = spans.len / (Py_ssize_t)sizeof(struct span);
    const int wrong = tagged < 0 || tagged > block.len || !spans_fit(spans.buf, count, block.len);
    if (path && !refuse(key && size != 32, "a key has 32 bytes") && !refuse(wrong, "a block's arguments")) {
        Py_BEGIN_ALLOW_THREADS
        path->inspect((const uint8_t *)key, number, block.buf, (size_t)block.len, (size_t)tagged, spans.buf, (size_t)count,
                      (uint8_t *)tag);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&spans);
    PyBuffer_Release(&block);
    return PyErr_Occurred() ? NULL : PyBytes_FromStringAndSize(tag, key ? 16 : 0);
}

static int sizes_match(const Py_buffer *lanes, int width, Py_ssize_t values, int kind) {
    if ((width != 1 && width != 2 && width != 4 && width != 8) || lanes->len % width) return 0;
    return kind >= NO_VALUES && kind <= INT64 && values == (kind < 0 ? 0 : lanes->len / width * bytes_of(kind));
}

static PyObject *py_run(PyObject *self, PyObject *args) {
    (void)self;
    long index;
    PyObject *from, *keys[3];
    Py_buffer lanes, values = {0};
    int kind, width;
    unsigned long long offset, lane;
    struct run run = {0};
    if (!PyArg_ParseTuple(args, "lOiw*idKKOOOp", &index, &from, &kind, &lanes, &width, &run.factor, &offset, &lane,
                          &keys[0], &keys[1], &keys[2], &run.opening))
        return NULL;
    const struct path *path = path_of(index);
    if (path && held(keys[0], &run.rounding) && held(keys[1], &run.masks) && held(keys[2], &run.tag) &&
        (from == Py_None || !PyObject_GetBuffer(from, &values, PyBUF_SIMPLE)) &&
        !refuse(!sizes_match(&lanes, width, values.len, kind) || offset % 16 || (kind >= 0) != (from != Py_None) ||
                    (run.tag && run.tag->count != 1) || (run.rounding && run.rounding->count != 1),
                "a run's arguments")) {
        run.values = values.buf;
        run.lanes = lanes.buf;
        run.count = (size_t)(lanes.len / width);
        run.width = (size_t)width;
        run.kind = kind;
        run.block = offset / 16;
        run.lane = lane;
        Py_BEGIN_ALLOW_THREADS
        path->run(&run);
        Py_END_ALLOW_THREADS
    }
    if (values.obj) PyBuffer_Release(&values);
    PyBuffer_Release(&lanes);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("KKK", run.narrow, (unsigned long long)run.wide, (unsigned long long)(run.wide >> 64));
}

static PyObject *py_decode(PyObject *self, PyObject *args) {
    (void)self;
    long index;
    Py_buffer lanes, values;
    int width, kind;
    long long limit;
    size_t count = 0;
    double quantum;
    if (!PyArg_ParseTuple(args, "ly*iw*idL", &index, &lanes, &width, &values, &kind, &quantum, &limit)) return NULL;
    const struct path *path = path_of(index);
    if (path && !refuse(kind < 0 || limit < 0 || !sizes_match(&lanes, width, values.len, kind), "a sum's arguments")) {
        const struct sum sum = {lanes.buf, values.buf, (size_t)(lanes.len / width), (size_t)width, kind, quantum,
                                limit};
        Py_BEGIN_ALLOW_THREADS
        count = path->decode(&sum);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&lanes);
    return PyErr_Occurred() ? NULL : PyLong_FromSize_t(count);
}

static PyMethodDef methods[] = {
    {"streams", py_streams, METH_VARARGS, NULL}, {"inspect", py_inspect, METH_VARARGS, NULL},
    {"run", py_run, METH_VARARGS, NULL},         {"decode", py_decode, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_core", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__core(void) {
    if (!*flag_names) find_paths();
    PyObject *module = PyModule_Create(&definition);
    if (module && (PyModule_AddStringConstant(module, "PATHS", path_names) ||
                   PyModule_AddStringConstant(module, "FLAGS", flag_names)))
        Py_CLEAR(module);
    return module;
}
