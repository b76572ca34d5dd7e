// The door's quick path: full tensors in plain host memory in ordinary programs.
//
// For a small fill, Python's steps between queries of the tensor take longer than the fill. Here C
// code makes the queries through Python's own interface, with torch's public methods and the
// functions passed by src/torchinit/fill/door.py, so nothing is linked to torch.
#pragma once

#include <pybind11/pybind11.h>

namespace torchinit {

// Adds quick_fill and set_up_quick_fill to the module.
void add_quick_fill(pybind11::module_& module);

}  // namespace torchinit
