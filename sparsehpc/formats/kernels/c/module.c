/* The Python module `_kernels`: numbers and addresses in, no knowledge of torch; the GIL is released. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

#include <stdlib.h>

enum { VERSIONS = 8 };

static int numbers(PyObject *const *args, Py_ssize_t given, Py_ssize_t wanted, int64_t *out) {
    if (given != wanted) {
        PyErr_Format(PyExc_TypeError, "%zd arguments expected, %zd given", wanted, given);
        return -1;
    }
    for (Py_ssize_t i = 0; i < given; i++) {
        /* Addresses are unsigned: the upper half of the address space would overflow a signed conversion. */
        out[i] = (int64_t)PyLong_AsUnsignedLongLongMask(args[i]);
        if (out[i] == -1 && PyErr_Occurred()) return -1;
    }
    return 0;
}

static const void *address(int64_t value) { return (const void *)(uintptr_t)value; }

PyDoc_STRVAR(isas_doc, "isas() -> tuple of the versions this processor runs, best first");
static PyObject *isas(PyObject *self, PyObject *none) {
    (void)self;
    (void)none;
    const sh_kernels *found[VERSIONS];
    int count = sh_available(found, VERSIONS);
    PyObject *names = PyTuple_New(count);
    for (int i = 0; names && i < count; i++) {
        PyObject *name = PyUnicode_FromString(found[i]->name);
        if (!name) {
            Py_CLEAR(names);
            break;
        }
        PyTuple_SET_ITEM(names, i, name);
    }
    return names;
}

/* The first 13 arguments of a call: the version, and the matrix. Returns the version, or NULL with an exception. */
static const sh_kernels *matrix_of(const int64_t *n, sh_matrix *matrix) {
    const sh_kernels *found[VERSIONS];
    int count = sh_available(found, VERSIONS);
    if (n[0] < 0 || n[0] >= count) {
        PyErr_Format(PyExc_ValueError, "no version %lld", (long long)n[0]);
        return NULL;
    }
    static const int types[5][5] = {{1, 1, 1, 1, 1}, {1, 1, 1, 1, 1}, {1, 1, 1, 0, 0}, {1, 1, 1, 0, 0}, {1, 1, 1, 0, 0}};
    if (n[1] < 0 || n[1] > SH_INDEX16 || n[2] < 0 || n[2] > SH_Q4 || !types[n[1]][n[2]]) {
        PyErr_Format(PyExc_ValueError, "no kernel for layout %lld of type %lld", (long long)n[1], (long long)n[2]);
        return NULL;
    }
    if (n[3] < 0 || n[4] < 1 || n[4] > SH_MAX_COLUMNS) {
        PyErr_Format(PyExc_ValueError, "sizes out of range");
        return NULL;
    }
    *matrix = (sh_matrix){.layout = (int32_t)n[1],
                          .type = (int32_t)n[2],
                          .rows = n[3],
                          .columns = n[4],
                          .values = address(n[5]),
                          .mask = address(n[6]),
                          .positions = address(n[7]),
                          .indices = address(n[8]),
                          .offsets = address(n[9]),
                          .scales = address(n[10]),
                          .per_row = n[11],
                          .total = n[12]};
    return found[n[0]];
}

PyDoc_STRVAR(linear_doc,
             "linear(isa, layout, type, rows, columns, values, mask, positions, indices, offsets, scales, per_row, "
             "total, x, x_type, tokens, y, threads, strategy): addresses and sizes of checked, contiguous arrays");
static PyObject *linear(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t n[19];
    if (numbers(args, given, 19, n)) return NULL;
    sh_matrix matrix;
    const sh_kernels *isa = matrix_of(n, &matrix);
    if (!isa) return NULL;
    if (n[15] < 0 || n[14] < SH_F32 || n[14] > SH_F16) return PyErr_Format(PyExc_ValueError, "sizes out of range");
    if (n[18] < SH_AUTO || n[18] > SH_TILE || (n[18] == SH_SMALL && n[15] > SH_SMALL_MOST) ||
        (n[18] == SH_LANES && n[1] == SH_DENSE))
        return PyErr_Format(PyExc_ValueError, "strategy %lld does not serve this", (long long)n[18]);
    int failed = 0;
    if (n[3] > 0 && n[15] > 0) {
        Py_BEGIN_ALLOW_THREADS
        failed = sh_linear(isa, &matrix, address(n[13]), (int)n[14], n[15], (void *)(uintptr_t)n[16], (int)n[17],
                           (int)n[18]);
        Py_END_ALLOW_THREADS
    }
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(read_doc, "read(address, bytes, threads) -> exclusive or of the 64-bit words: a streamed read, for benchmarks");
static PyObject *read_bytes(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    (void)self;
    int64_t n[3];
    if (numbers(args, given, 3, n)) return NULL;
    uint64_t sum;
    Py_BEGIN_ALLOW_THREADS
    sum = sh_read(address(n[0]), n[1], n[2] < 1 ? 1 : (int)n[2]);
    Py_END_ALLOW_THREADS
    return PyLong_FromUnsignedLongLong(sum);
}

/* A matrix (13 numbers, see matrix_of) and the address of its bias; all zeros: none. */
enum { PART_NUMBERS = 14, PARTS = 7, LAYER_NUMBERS = PARTS * PART_NUMBERS + 4, DECODER_NUMBERS = 10 + PART_NUMBERS };

static int part_of(const int64_t *n, const sh_kernels **isa, sh_linear_part *part) {
    static const uint64_t nothing[16];
    if (!n[3]) {
        *part = (sh_linear_part){.bias = NULL};
        return 0;
    }
    const sh_kernels *found = matrix_of(n, &part->matrix);
    if (!found) return -1;
    if (*isa && found != *isa) {
        PyErr_SetString(PyExc_ValueError, "matrices of two instruction sets");
        return -1;
    }
    *isa = found;
    if (!part->matrix.values) part->matrix.values = nothing;
    if (!part->matrix.indices) part->matrix.indices = (const uint16_t *)nothing;
    part->bias = address(n[13]);
    return 0;
}

static const char decoder_name[] = "sparsehpc.decoder";

static void free_decoder(PyObject *capsule) {
    sh_decoder *decoder = PyCapsule_GetPointer(capsule, decoder_name);
    free(decoder->layer);
    free(decoder);
}

PyDoc_STRVAR(decoder_doc,
             "decoder(numbers, eps): a Llama-like decoder from the address of its numbers, which are read once: layers, "
             "hidden, heads, key_value_heads, head_dim, wide, max_tokens, norm, cosines, sines, head, then of every layer "
             "7 matrices with biases (query or all three, key, value, output, gate or both, up, down), norms, keys, values");
static PyObject *decoder(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long where;
    double eps;
    if (!PyArg_ParseTuple(args, "Kd", &where, &eps)) return NULL;
    const int64_t *n = (const int64_t *)(uintptr_t)where;
    for (int i = 0; i < 7; i++)
        if (n[i] < 1 || n[i] > SH_MAX_COLUMNS * 16) return PyErr_Format(PyExc_ValueError, "sizes out of range");
    if (n[2] % n[3] || n[4] % 2) return PyErr_Format(PyExc_ValueError, "heads that do not fit each other");
    sh_decoder *made = malloc(sizeof *made);
    sh_layer *layers = malloc((size_t)n[0] * sizeof *layers);
    if (!made || !layers) {
        free(made);
        free(layers);
        return PyErr_NoMemory();
    }
    *made = (sh_decoder){.layers = n[0], .hidden = n[1], .heads = n[2], .key_value_heads = n[3], .head_dim = n[4],
                         .wide = n[5], .max_tokens = n[6], .eps = (float)eps, .norm = address(n[7]),
                         .cosines = address(n[8]), .sines = address(n[9]), .layer = layers};
    int failed = part_of(n + 10, &made->isa, &made->head);
    n += DECODER_NUMBERS;
    for (int64_t i = 0; !failed && i < made->layers; i++, n += LAYER_NUMBERS) {
        sh_layer *layer = layers + i;
        sh_linear_part *parts[PARTS] = {layer->query_key_value, layer->query_key_value + 1, layer->query_key_value + 2,
                                        &layer->output, layer->gate_up, layer->gate_up + 1, &layer->down};
        for (int p = 0; !failed && p < PARTS; p++) failed = part_of(n + p * PART_NUMBERS, &made->isa, parts[p]);
        const int64_t *rest = n + PARTS * PART_NUMBERS;
        layer->input_norm = address(rest[0]);
        layer->post_norm = address(rest[1]);
        layer->keys = (float *)(uintptr_t)rest[2];
        layer->values = (float *)(uintptr_t)rest[3];
    }
    PyObject *capsule = failed ? NULL : PyCapsule_New(made, decoder_name, free_decoder);
    if (!capsule) {
        free(made);
        free(layers);
    }
    return capsule;
}

PyDoc_STRVAR(decode_doc, "decode(decoder, embedded, position, logits, threads): logits after one more token");
static PyObject *decode(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *capsule;
    unsigned long long embedded, logits;
    long long position;
    int threads;
    if (!PyArg_ParseTuple(args, "OKLKi", &capsule, &embedded, &position, &logits, &threads)) return NULL;
    const sh_decoder *made = PyCapsule_GetPointer(capsule, decoder_name);
    if (!made) return NULL;
    if (position < 0 || position >= made->max_tokens)
        return PyErr_Format(PyExc_ValueError, "no room for a token at position %lld", position);
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = sh_decode(made, (const float *)(uintptr_t)embedded, position, (float *)(uintptr_t)logits, threads);
    Py_END_ALLOW_THREADS
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"isas", isas, METH_NOARGS, isas_doc},
    {"linear", (PyCFunction)(void (*)(void))linear, METH_FASTCALL, linear_doc},
    {"decoder", decoder, METH_VARARGS, decoder_doc},
    {"decode", decode, METH_VARARGS, decode_doc},
    {"read", (PyCFunction)(void (*)(void))read_bytes, METH_FASTCALL, read_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", "Compiled products of stored weights; see sparsehpc.formats.kernels.", -1,
    methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
