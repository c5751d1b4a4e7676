// What the files of the Python face share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// The vector's own memory as an array of T, or of its bytes.
template <typename T, typename Item = T>
py::array_t<Item> to_array(std::vector<T>&& values) {
    auto* kept = new std::vector<T>(std::move(values));
    const py::capsule owner(kept, [](void* vector) { delete static_cast<std::vector<T>*>(vector); });
    return py::array_t<Item>(static_cast<py::ssize_t>(kept->size() * sizeof(T) / sizeof(Item)),
                             reinterpret_cast<const Item*>(kept->data()), owner);
}

// Batches of plans and of exports, and the rows of an export.
void bind_batches(py::module_& m);
