// Checked views of NumPy arrays, for the bindings of every op.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>

#include "bind/context.hpp"

namespace minicpm4 {

namespace nb = nanobind;

// Read-only arguments also accept arrays mapped from a file; writable ones refuse those.
using Input = nb::ndarray<nb::ro, nb::device::cpu>;
using Output = nb::ndarray<nb::device::cpu>;
using OptionalInput = std::optional<Input>;
using OptionalOutput = std::optional<Output>;

constexpr i64 kAny = -1;  // in an expected shape: any length
// Of any axis, of all elements of an array, of any size that is given as a number: more than memory holds, and few
// enough that what is computed of one (bytes of a row, scratch) does not overflow.
constexpr i64 kMaxSize = i64(1) << 40;

[[noreturn]] inline void fail(const std::string& message) { throw nb::value_error(message.c_str()); }

// A size from outside, before anything is computed with it. Raises ValueError where it is not in [low, high).
inline i64 checked_size(i64 value, const char* name, i64 low = 0, i64 high = kMaxSize) {
    if (value < low || value >= high) {
        fail(std::string(name) + " = " + std::to_string(value) + ", outside " + std::to_string(low) + " to " +
             std::to_string(high - 1));
    }
    return value;
}

// nanobind reads uint16 as unsigned 16-bit, which is how bf16 travels; float16 is its own type.
template <class T>
bool has_type(nb::dlpack::dtype type) {
    return type == nb::dtype<T>();
}

inline bool is_half(nb::dlpack::dtype type) {
    return type.code == static_cast<u8>(nb::dlpack::dtype_code::Float) && type.bits == 16 && type.lanes == 1;
}

template <class Array>
std::string shape_text(const Array& array) {
    std::string text = "(";
    for (size_t i = 0; i < array.ndim(); ++i) {
        text += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
    }
    return text + (array.ndim() == 1 ? ",)" : ")");
}

inline std::string shape_text(std::initializer_list<i64> shape) {
    std::string text = "(";
    for (const i64 size : shape) {
        text += (text.size() == 1 ? "" : ", ") + (size == kAny ? std::string("any") : std::to_string(size));
    }
    return text + (shape.size() == 1 ? ",)" : ")");
}

// The length of axis `axis`; 0 where there is none. Raises ValueError for what no memory holds: arrays without elements
// may have any lengths.
template <class Array>
i64 length(const Array& array, size_t axis, const char* name) {
    if (axis >= array.ndim()) return 0;
    const i64 size = static_cast<i64>(array.shape(axis));
    if (size < 0 || size >= kMaxSize) fail(std::string(name) + " has shape " + shape_text(array) + ", more than memory holds");
    return size;
}

// Raises ValueError unless `array` is C-contiguous, aligned to its type, and of the given shape.
template <class Array>
void check_shape(const Array& array, const char* name, std::initializer_list<i64> shape) {
    bool fits = array.ndim() == shape.size();
    size_t axis = 0;
    i64 step = 1;
    for (const i64 size : shape) {
        if (fits && size != kAny && static_cast<i64>(array.shape(axis)) != size) fits = false;
        ++axis;
    }
    if (!fits) fail(std::string(name) + " has shape " + shape_text(array) + ", expected " + shape_text(shape));
    for (size_t i = array.ndim(); i-- > 0;) {
        const i64 size = length(array, i, name);
        if (size != 1 && array.stride(i) != step) {
            if (array.size() != 0) fail(std::string(name) + " is not C-contiguous");
        }
        if (size > 0 && step > kMaxSize / size) fail(std::string(name) + " has shape " + shape_text(array) + ", more than memory holds");
        step *= size > 0 ? size : 1;
    }
    if (array.size() != 0 && reinterpret_cast<uintptr_t>(array.data()) % array.itemsize() != 0) {
        fail(std::string(name) + " is not aligned to its type: copy it");
    }
}

// Pointer to checked data; ValueError names the argument.
template <class T>
const T* input(const Input& array, const char* name, std::initializer_list<i64> shape) {
    if (!has_type<T>(array.dtype())) fail(std::string(name) + " has the wrong dtype");
    check_shape(array, name, shape);
    return static_cast<const T*>(array.data());
}

template <class T>
T* output(const Output& array, const char* name, std::initializer_list<i64> shape) {
    if (!has_type<T>(array.dtype())) fail(std::string(name) + " has the wrong dtype");
    check_shape(array, name, shape);
    return static_cast<T*>(array.data());
}

// A copy of what kernels index memory with, so that nothing changes it once it is checked: neither another thread nor
// an output that lies over it. Without elements, not C-contiguous, or of more
// than four axes, `array` itself: there is nothing to read, or `input` refuses it.
inline Input copied(const Input& array) {
    size_t shape[4];
    i64 step = 1;
    if (array.ndim() > 4 || array.size() == 0) return array;
    for (size_t i = array.ndim(); i-- > 0; step *= static_cast<i64>(shape[i])) {
        shape[i] = array.shape(i);
        if (shape[i] != 1 && array.stride(i) != step) return array;
    }
    const size_t bytes = array.nbytes();
    std::unique_ptr<char[]> held(new char[bytes]);
    memcpy(held.get(), array.data(), bytes);
    const nb::capsule owner(held.get(), [](void* data) noexcept { delete[] static_cast<char*>(data); });
    return Input(held.release(), array.ndim(), shape, owner, nullptr, array.dtype());
}

// The Python object of what a list holds, to keep while the interpreter's lock is given back: another thread may empty
// the list.
template <class T>
nb::object owner(const T* held) {
    return nb::find(*held);
}

// Raises ValueError unless every value is in [low, high): kernels index memory with them.
inline void check_range(const i32* values, i64 count, i64 low, i64 high, const char* name) {
    for (i64 i = 0; i < count; ++i) {
        if (values[i] < low || values[i] >= high) {
            fail(std::string(name) + " holds " + std::to_string(values[i]) + ", outside " +
                 std::to_string(low) + " to " + std::to_string(high - 1));
        }
    }
}

void bind_ways(nb::module_& module);    // the map of ways to multiply
void bind_weight(nb::module_& module);  // class Weight
// Each adds its methods to Context.
void bind_linear(nb::class_<Context>& context);
void bind_elementwise(nb::class_<Context>& context);
void bind_layer(nb::module_& module, nb::class_<Context>& context);  // also weights of a layer
void bind_attention(nb::module_& module, nb::class_<Context>& context);  // also classes Pages and Rows

}  // namespace minicpm4
