#include "quick_fill.h"

#include <cmath>

#include "../cpu/parallel.h"
#include "fill_one.h"

namespace torchinit {
namespace {

namespace py = pybind11;

// The arguments of set_up_quick_fill; kept forever, like the module.
struct Torch {
  PyObject* plain_types = nullptr;          // types of plain tensors
  PyObject* dtype_numbers = nullptr;        // dict
  PyObject* dispatch_modes = nullptr;       // () -> int
  PyObject* innermost_transform = nullptr;  // () -> object or None
  PyObject* jit_trace = nullptr;            // () -> object or None
  PyObject* dual_level = nullptr;           // module forward_ad, or () -> int
  PyObject* count_writes = nullptr;         // (iterable of tensors)
  PyObject* get_num_threads = nullptr;      // () -> int
  PyObject* check_draw = nullptr;           // (draw, dtype), raises
  PyObject* draw_key_number = nullptr;      // (stream) -> int
  PyObject* make_scratch = nullptr;         // () -> (random_, address, ...)
  PyObject* open_batch = nullptr;           // ContextVar
  PyObject* running_loop = nullptr;         // () -> loop or None
  uintptr_t least_address = 0;
};
Torch torch;

// Names of attributes, and the arguments of random_.
struct Names {
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* is_contiguous = PyUnicode_InternFromString("is_contiguous");
  PyObject* untyped_storage = PyUnicode_InternFromString("untyped_storage");
  PyObject* resizable = PyUnicode_InternFromString("resizable");
  PyObject* is_inference = PyUnicode_InternFromString("is_inference");
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
  PyObject* numel = PyUnicode_InternFromString("numel");
  PyObject* version = PyUnicode_InternFromString("_version");
  PyObject* quick = PyUnicode_InternFromString("quick");
  PyObject* dual_level = PyUnicode_InternFromString("_current_level");
  PyObject* scratch = PyUnicode_InternFromString("torchinit.scratch");
  PyObject* lowest = PyLong_FromLongLong(INT64_MIN);
};
const Names& names() {
  static const Names all;
  return all;
}

// Returns the object, owned; or throws the error that Python has set.
py::object owned(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

// torch raises this if a tensor lacks what was asked for; other errors propagate.
void forget_runtime_error() {
  if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) throw py::error_already_set();
  PyErr_Clear();
}

py::object call(PyObject* callable) { return owned(PyObject_CallNoArgs(callable)); }

py::object call_method(PyObject* object, PyObject* name) {
  PyObject* const arguments[] = {object};
  return owned(
      PyObject_VectorcallMethod(name, arguments, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
}

bool is_true(const py::object& object) { return object.ptr() == Py_True; }

// Whether a level of forward-mode differentiation is open; a variable of torch's module numbers
// them from 0.
bool is_differentiating() {
  if (!PyModule_Check(torch.dual_level)) return read_integer(call(torch.dual_level).ptr()) >= 0;
  return read_integer(owned(PyObject_GetAttr(torch.dual_level, names().dual_level)).ptr()) >= 0;
}

// Whether a mode, tracer, transform or derivative has to see operators.
bool is_observed() {
  return read_integer(call(torch.dispatch_modes).ptr()) != 0 ||
         !call(torch.innermost_transform).is_none() || !call(torch.jit_trace).is_none() ||
         is_differentiating();
}

// Whether every dtype can have the parameters, so that Python need not check them. This holds for
// zero, one and most parameters used in models.
bool are_usual(const Draw& draw) {
  const double* const p = draw.parameters;
  constexpr double infinity = HUGE_VAL, wide = 1e38, narrow = 200;
  switch (static_cast<Distribution>(draw.distribution)) {
    case Distribution::Uniform:
      return -narrow <= p[0] && p[0] <= p[1] && p[1] <= narrow;
    case Distribution::Normal:
      return -wide < p[0] && p[0] < wide && 0 <= p[1] && p[1] < wide;
    case Distribution::TruncatedNormal:
      return -wide < p[0] && p[0] < wide && 0 <= p[1] && p[1] < wide && p[2] <= p[3] &&
             p[2] < infinity && p[3] > -infinity;
    case Distribution::Constant:
      return -narrow <= p[0] && p[0] <= narrow;
    default:
      return false;
  }
}

// The key of a fill, as streams/keys.py draws it.
int64_t draw_key(PyObject* stream) {
  if (stream != Py_None) {
    const py::object key = owned(PyObject_CallOneArg(torch.draw_key_number, stream));
    return read_integer(key.ptr());
  }
  // Each thread has one tensor to draw into; its dictionary drops it when the thread ends.
  PyObject* const of_thread = PyThreadState_GetDict();  // borrowed
  PyObject* scratch = of_thread ? PyDict_GetItemWithError(of_thread, names().scratch) : nullptr;
  if (!scratch) {
    if (PyErr_Occurred()) throw py::error_already_set();
    if (!of_thread) throw std::runtime_error("this thread has no Python state to draw a key in");
    const py::object made = call(torch.make_scratch);
    if (PyDict_SetItem(of_thread, names().scratch, made.ptr())) throw py::error_already_set();
    scratch = made.ptr();  // the dictionary holds it
  }
  PyObject* const arguments[] = {names().lowest, Py_None};
  owned(PyObject_Vectorcall(PyTuple_GET_ITEM(scratch, 0), arguments, 2, nullptr));
  return *static_cast<const int64_t*>(read_address(PyTuple_GET_ITEM(scratch, 1)));
}

// Adds a fill to the columns of the open batch. False if the Python batch must decide.
bool collect(PyObject* columns, PyObject* draw, int64_t distribution, PyObject* number,
             PyObject* tensor, PyObject* address, PyObject* stream) {
  PyObject* const version = PyObject_GetAttr(tensor, names().version);
  if (!version) {  // for an inference tensor, whose writes torch does not count
    forget_runtime_error();
    return false;
  }
  const py::object counted = owned(version);
  const bool is_constant = distribution == static_cast<int64_t>(Distribution::Constant);
  const py::object count = call_method(tensor, names().numel);
  const py::object key = owned(PyLong_FromLongLong(is_constant ? 0 : draw_key(stream)));
  PyObject* const row[] = {draw, number, key.ptr(), tensor, address, counted.ptr(), count.ptr()};
  for (Py_ssize_t i = 0; i < 7; ++i)
    if (PyList_Append(PyTuple_GET_ITEM(columns, i), row[i])) throw py::error_already_set();
  return true;
}

bool quick_fill(PyObject* draw_object, PyObject* tensor, PyObject* stream) {
  if (!torch.plain_types) return false;
  const int plain =
      PySequence_Contains(torch.plain_types, reinterpret_cast<PyObject*>(Py_TYPE(tensor)));
  if (plain < 0) throw py::error_already_set();
  if (!plain || is_observed()) return false;
  if (!is_true(owned(PyObject_GetAttr(tensor, names().is_cpu)))) return false;
  const py::object dtype = owned(PyObject_GetAttr(tensor, names().dtype));
  PyObject* const number = PyDict_GetItemWithError(torch.dtype_numbers, dtype.ptr());  // borrowed
  if (!number) {
    if (PyErr_Occurred()) throw py::error_already_set();
    return false;
  }
  if (!PyTuple_CheckExact(draw_object) || PyTuple_GET_SIZE(draw_object) != 5 ||
      !PyFloat_Check(PyTuple_GET_ITEM(draw_object, 1)))
    return false;
  PyObject* const pointer = [&] {
    PyObject* const arguments[] = {tensor};
    return PyObject_VectorcallMethod(names().data_ptr, arguments,
                                     1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
  }();
  if (!pointer) {  // it has no single address: sparse, or another layout
    forget_runtime_error();
    return false;
  }
  const py::object address = owned(pointer);
  const Draw draw = read_draw(draw_object);

  PyObject* current = nullptr;
  if (PyContextVar_Get(torch.open_batch, Py_None, &current)) throw py::error_already_set();
  const py::object batch = owned(current);
  py::object quick = py::none();  // (thread, columns) of a batch that collects here
  if (!batch.is_none()) {
    quick = owned(PyObject_GetAttr(batch.ptr(), names().quick));
    // The running asyncio task may not be the one that opened the batch: Python checks that.
    if (quick.is_none() || !call(torch.running_loop).is_none()) return false;
    const unsigned long thread = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(quick.ptr(), 0));
    if (thread != PyThread_get_thread_ident()) return false;
  }
  const bool collects = !quick.is_none();
  if (!is_true(call_method(tensor, names().is_contiguous))) return false;
  if (!collects) {
    const uintptr_t place = reinterpret_cast<uintptr_t>(read_address(address.ptr()));
    if (place <= torch.least_address ||
        !is_true(
            call_method(call_method(tensor, names().untyped_storage).ptr(), names().resizable)) ||
        is_true(call_method(tensor, names().is_inference)) ||
        is_true(call_method(tensor, names().is_neg)))
      return false;
  }
  if (!are_usual(draw)) {
    PyObject* const arguments[] = {draw_object, dtype.ptr()};
    owned(PyObject_Vectorcall(torch.check_draw, arguments, 2, nullptr));
  }
  if (collects)
    return collect(PyTuple_GET_ITEM(quick.ptr(), 1), draw_object, draw.distribution, number, tensor,
                   address.ptr(), stream);

  const int64_t count = read_integer(call_method(tensor, names().numel).ptr());
  const int threads = count < cpu::kLeastPerThread
                          ? 1
                          : static_cast<int>(read_integer(call(torch.get_num_threads).ptr()));
  const bool is_constant = draw.distribution == static_cast<int64_t>(Distribution::Constant);
  const int64_t key = is_constant ? 0 : draw_key(stream);
  fill_one(draw, read_integer(number), key,
           reinterpret_cast<uintptr_t>(read_address(address.ptr())), flat_box(count), threads);
  const py::object written = owned(PyTuple_Pack(1, tensor));
  owned(PyObject_CallOneArg(torch.count_writes, written.ptr()));
  return true;
}

// A plain C entry: pybind11's own costs as much as a third of the queries.
PyObject* enter(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 3) {
    PyErr_SetString(PyExc_TypeError, "quick_fill takes (draw, tensor, stream)");
    return nullptr;
  }
  try {
    return PyBool_FromLong(quick_fill(arguments[0], arguments[1], arguments[2]));
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  }
  return nullptr;
}

PyMethodDef entry = {"quick_fill", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&enter)),
                     METH_FASTCALL,
                     "quick_fill(draw, tensor, stream) -> bool\n\n"
                     "Fills, or gives to the open batch, a whole tensor in plain host memory. "
                     "False, and nothing done, where more has to be asked."};

void set_up(const py::dict& given) {
  const auto take = [&](const char* name) {
    if (!given.contains(name)) throw py::key_error(name);
    return py::object(given[name]).release().ptr();
  };
  Torch next;
  next.plain_types = take("plain_types");
  next.dtype_numbers = take("dtype_numbers");
  next.dispatch_modes = take("dispatch_modes");
  next.innermost_transform = take("innermost_transform");
  next.jit_trace = take("jit_trace");
  next.dual_level = take("dual_level");
  next.count_writes = take("count_writes");
  next.get_num_threads = take("get_num_threads");
  next.check_draw = take("check_draw");
  next.draw_key_number = take("draw_key_number");
  next.make_scratch = take("make_scratch");
  next.open_batch = take("open_batch");
  next.running_loop = take("running_loop");
  next.least_address = given["least_address"].cast<uintptr_t>();
  torch = next;
}

}  // namespace

void add_quick_fill(py::module_& module) {
  module.def("set_up_quick_fill", &set_up,
             "Hands over what quick_fill asks of torch (src/torchinit/fill/door.py).");
  module.add_object("quick_fill", owned(PyCFunction_NewEx(&entry, nullptr, nullptr)));
}

}  // namespace torchinit
