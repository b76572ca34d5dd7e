// The door's quick path: the whole tensors in plain host memory of ordinary programs.
//
// For a small fill, Python's steps from one question about the tensor to the next take longer than
// the fill. Here they are asked through Python's own interface, of torch's public methods and of
// what src/torchinit/fill/door.py hands over: nothing is linked to torch.
#pragma once

#include <pybind11/pybind11.h>

namespace torchinit {

// Adds quick_fill and set_up_quick_fill to the module.
void add_quick_fill(pybind11::module_& module);

}  // namespace torchinit
