/* The Python module `_kernels`: numbers and addresses in, no knowledge of torch; the GIL is released. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

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
    if (n[18] < SH_AUTO || n[18] > SH_TILE || (n[18] == SH_SMALL && n[15] > SH_SMALL_TOKENS) ||
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

static PyMethodDef methods[] = {
    {"isas", isas, METH_NOARGS, isas_doc},
    {"linear", (PyCFunction)(void (*)(void))linear, METH_FASTCALL, linear_doc},
    {"read", (PyCFunction)(void (*)(void))read_bytes, METH_FASTCALL, read_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", "Compiled products of stored weights; see sparsehpc.formats.kernels.", -1,
    methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
