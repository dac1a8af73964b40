// CUDA's half precision type for a C++ compiler: a value and its conversions, rounded to nearest even.
#pragma once

struct __half {
    _Float16 value;
    __half() = default;
    __half(float v) : value(static_cast<_Float16>(v)) {}
    __half(double v) : value(static_cast<_Float16>(v)) {}
    operator float() const { return static_cast<float>(value); }
};
static_assert(sizeof(__half) == 2, "half has two bytes");
