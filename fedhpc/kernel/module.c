// fedhpc.kernel._core: what Python calls (extension.py says how). It checks sizes, lets go of the interpreter's lock,
// and holds keys in capsules that wipe them.
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

static const struct path *paths[3];  // that this CPU can run, the best first
static long path_count;
static const char *flags[16];
static int flag_count;

static int flag(const char *name, int has) {
    if (has) flags[flag_count++] = name;
    return has != 0;
}

#if defined(__x86_64__)
#include <cpuid.h>
static void find_paths(void) {
    unsigned a, b, c, d, c7 = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) c7 = c;
    __builtin_cpu_init();  // knows whether the system keeps wide registers, too
    const int old = flag("aes", __builtin_cpu_supports("aes")) & flag("pclmul", __builtin_cpu_supports("pclmul")) &
                    flag("avx2", __builtin_cpu_supports("avx2"));
    const int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const int new = flag("avx512", wide) & flag("vaes", c7 >> 9 & 1) & flag("vpclmulqdq", c7 >> 10 & 1);
    if (old && new) paths[path_count++] = &fedhpc_vaes;
    if (old) paths[path_count++] = &fedhpc_aesni;
}
#elif defined(__aarch64__) && defined(__AARCH64EL__) && defined(__linux__)
#include <sys/auxv.h>
static void find_paths(void) {
    const unsigned long has = getauxval(AT_HWCAP);
    if (flag("aes", has >> 3 & 1) & flag("pmull", has >> 4 & 1)) paths[path_count++] = &fedhpc_armv8;
}
#else
static void find_paths(void) {}
#endif

static void wipe(void *memory, size_t size) {
    volatile uint8_t *byte = memory;  // volatile: a store to memory that is freed next would be left out
    while (size--) *byte++ = 0;
}

static const char STREAMS[] = "fedhpc.streams", GMAC[] = "fedhpc.gmac";

static void free_streams(PyObject *capsule) {
    struct streams *streams = PyCapsule_GetPointer(capsule, STREAMS);
    wipe(streams, sizeof *streams + streams->count * sizeof *streams->one);
    free(streams);
}

static void free_gmac(PyObject *capsule) {
    struct gmac_key *gmac = PyCapsule_GetPointer(capsule, GMAC);
    wipe(gmac, sizeof *gmac);
    free(gmac);
}

static const struct path *path_of(long index) {
    if (index >= 0 && index < path_count) return paths[index];
    PyErr_SetString(PyExc_ValueError, "no such path");
    return NULL;
}

static PyObject *refuse(const char *what) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, what);
    return NULL;
}

// The pointer in a capsule; NULL for None. -1 for anything else.
static int held(PyObject *capsule, const char *name, void *found) {
    *(void **)found = capsule == Py_None ? NULL : PyCapsule_GetPointer(capsule, name);
    return capsule != Py_None && *(void **)found == NULL ? -1 : 0;
}

static PyObject *py_names(const char *(*name)(long), long count) {
    PyObject *list = PyList_New(0);
    for (long i = 0; list && i < count; i++) {
        PyObject *text = PyUnicode_FromString(name(i));
        if (text == NULL || PyList_Append(list, text)) Py_CLEAR(list);
        Py_XDECREF(text);
    }
    return list;
}

static const char *path_name(long i) { return paths[i]->name; }
static const char *flag_name(long i) { return flags[i]; }
static PyObject *py_paths(PyObject *self, PyObject *none) { (void)self, (void)none; return py_names(path_name, path_count); }
static PyObject *py_flags(PyObject *self, PyObject *none) { (void)self, (void)none; return py_names(flag_name, flag_count); }

static PyObject *py_streams(PyObject *self, PyObject *args) {
    (void)self;
    long index;
    PyObject *edges;
    const struct path *path;
    if (!PyArg_ParseTuple(args, "lO", &index, &edges) || (path = path_of(index)) == NULL) return NULL;
    const Py_ssize_t count = PyList_Size(edges);
    if (count < 0) return NULL;
    struct streams *streams = calloc(1, sizeof *streams + (size_t)count * sizeof *streams->one);
    if (streams == NULL) return PyErr_NoMemory();
    streams->count = (size_t)count;
    PyObject *capsule = PyCapsule_New(streams, STREAMS, free_streams);
    if (capsule == NULL) return free(streams), NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        const char *key;
        Py_ssize_t size;
        long sign;
        PyObject *edge = PyList_GetItem(edges, i);
        if (edge == NULL || !PyArg_ParseTuple(edge, "y#l", &key, &size, &sign) || size != 32 || (sign != 1 && sign != -1)) {
            Py_DECREF(capsule);
            return refuse("an edge is a key of 32 bytes and a sign");
        }
        path->expand(&streams->one[i], (const uint8_t *)key);
        streams->one[i].minus = sign < 0;
    }
    return capsule;
}

static PyObject *py_gmac_key(PyObject *self, PyObject *args) {
    (void)self;
    long index;
    const char *key;
    Py_ssize_t size;
    const struct path *path;
    if (!PyArg_ParseTuple(args, "ly#", &index, &key, &size) || (path = path_of(index)) == NULL) return NULL;
    if (size != 32) return refuse("a key has 32 bytes");
    struct gmac_key *gmac = calloc(1, sizeof *gmac);
    if (gmac == NULL) return PyErr_NoMemory();
    path->gmac_key(gmac, (const uint8_t *)key);
    PyObject *capsule = PyCapsule_New(gmac, GMAC, free_gmac);
    if (capsule == NULL) {
        wipe(gmac, sizeof *gmac);
        free(gmac);
    }
    return capsule;
}

static PyObject *largest_of(const struct span *span) {
    double wide;
    float single;
    const uint32_t low = (uint32_t)span->largest;
    memcpy(&single, &low, 4);
    memcpy(&wide, &span->largest, 8);
    if (span->kind == INT64) return PyLong_FromUnsignedLongLong(span->largest);
    return PyFloat_FromDouble(span->kind == FLOAT32 ? (double)single : wide);
}

static size_t bytes_of(int kind) { return kind == FLOAT32 ? 4 : 8; }

static PyObject *py_inspect(PyObject *self, PyObject *args) {
    (void)self;
    long index;
    unsigned long long number;
    Py_ssize_t tagged;
    PyObject *key, *list, *found = NULL;
    Py_buffer block;
    const struct gmac_key *gmac;
    uint8_t tag[16];
    if (!PyArg_ParseTuple(args, "lOKy*nO", &index, &key, &number, &block, &tagged, &list)) return NULL;
    const struct path *path = path_of(index);
    const Py_ssize_t count = PyList_Size(list);
    struct span *spans = count < 0 ? NULL : calloc((size_t)count + 1, sizeof *spans);
    if (path == NULL || spans == NULL || held(key, GMAC, &gmac) || tagged < 0 || tagged > block.len) {
        refuse("a block's arguments");
        goto done;
    }
    size_t last = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t start, stop;
        int kind;
        if (!PyArg_ParseTuple(PyList_GetItem(list, i), "nni", &start, &stop, &kind)) goto done;
        spans[i] = (struct span){(size_t)start, (size_t)stop, kind, 0};
        if (start < (Py_ssize_t)last || start % 16 || stop < start || stop > block.len || kind < 0 || kind > INT64 ||
            (size_t)(stop - start) % bytes_of(kind)) {
            refuse("a span's arguments");
            goto done;
        }
        last = (size_t)stop;
    }
    Py_BEGIN_ALLOW_THREADS
    path->inspect(gmac, number, block.buf, (size_t)block.len, (size_t)tagged, spans, (size_t)count, tag);
    Py_END_ALLOW_THREADS
    PyObject *largest = PyList_New(0);
    for (Py_ssize_t i = 0; largest && i < count; i++) {
        PyObject *one = largest_of(&spans[i]);
        if (one == NULL || PyList_Append(largest, one)) Py_CLEAR(largest);
        Py_XDECREF(one);
    }
    if (largest) found = Py_BuildValue("(y#N)", (const char *)tag, (Py_ssize_t)(gmac ? sizeof tag : 0), largest);
done:
    free(spans);
    PyBuffer_Release(&block);
    return found;
}

static int sizes_match(const Py_buffer *lanes, int width, const Py_buffer *values, int kind) {
    const size_t count = (size_t)lanes->len / (size_t)(width > 0 ? width : 1);
    return (width == 1 || width == 2 || width == 4 || width == 8) && lanes->len % width == 0 &&
           (kind == NO_VALUES || (kind >= 0 && kind <= INT64 && (size_t)values->len == count * bytes_of(kind)));
}

static PyObject *py_run(PyObject *self, PyObject *args) {
    (void)self;
    long index;
    PyObject *from, *rounding, *masks, *tag, *found = NULL;
    Py_buffer lanes, values = {0};
    int kind, width, opening;
    unsigned long long offset, lane;
    struct run run = {0};
    if (!PyArg_ParseTuple(args, "lOiw*idKKOOOp", &index, &from, &kind, &lanes, &width, &run.factor, &offset, &lane,
                          &rounding, &masks, &tag, &opening))
        return NULL;
    const struct path *path = path_of(index);
    if (path == NULL || held(rounding, STREAMS, &run.rounding) || held(masks, STREAMS, &run.masks) ||
        held(tag, STREAMS, &run.tag) || (from != Py_None && PyObject_GetBuffer(from, &values, PyBUF_SIMPLE)))
        goto done;
    if (!sizes_match(&lanes, width, &values, kind) || offset % 16 || (kind >= 0) != (from != Py_None) ||
        (run.tag && run.tag->count != 1) || (run.rounding && run.rounding->count != 1)) {
        refuse("a run's arguments");
        goto done;
    }
    run.values = values.buf;
    run.lanes = lanes.buf;
    run.count = (size_t)lanes.len / (size_t)width;
    run.width = (size_t)width;
    run.kind = kind;
    run.block = offset / 16;
    run.lane = lane;
    run.opening = opening;
    Py_BEGIN_ALLOW_THREADS
    path->run(&run);
    Py_END_ALLOW_THREADS
    found = Py_BuildValue("(KKK)", run.narrow, (unsigned long long)run.wide, (unsigned long long)(run.wide >> 64));
done:
    if (values.obj) PyBuffer_Release(&values);
    PyBuffer_Release(&lanes);
    return found;
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
    if (path && (kind < 0 || limit < 0 || !sizes_match(&lanes, width, &values, kind))) refuse("a sum's arguments");
    if (!PyErr_Occurred()) {
        const struct sum sum = {lanes.buf, values.buf, (size_t)(lanes.len / width), (size_t)width, kind, quantum, limit};
        Py_BEGIN_ALLOW_THREADS
        count = path->decode(&sum);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&lanes);
    return PyErr_Occurred() ? NULL : PyLong_FromSize_t(count);
}

static PyMethodDef methods[] = {
    {"paths", py_paths, METH_NOARGS, NULL},       {"flags", py_flags, METH_NOARGS, NULL},
    {"streams", py_streams, METH_VARARGS, NULL},  {"gmac_key", py_gmac_key, METH_VARARGS, NULL},
    {"inspect", py_inspect, METH_VARARGS, NULL},  {"run", py_run, METH_VARARGS, NULL},
    {"decode", py_decode, METH_VARARGS, NULL},    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_core", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__core(void) {
    if (path_count == 0 && flag_count == 0) find_paths();
    return PyModule_Create(&definition);
}
