// Vectors of as many floats as a register of the CPU holds, by the extensions of GCC and Clang, and
// bf16 numbers in and out of them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16;  // floats of a vector
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t IntVec __attribute__((vector_size(4 * W)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * W)));
using bf16 = uint16_t;

static inline Vec load(const float* p) { Vec v; std::memcpy(&v, p, sizeof v); return v; }
static inline Vec load(const bf16* p) {
    HalfVec h;
    std::memcpy(&h, p, sizeof h);
    return (Vec)(__builtin_convertvector(h, IntVec) << 16);
}
static inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
static inline float widen(float x) { return x; }
static inline float widen(bf16 x) {
    const uint32_t bits = uint32_t(x) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}
static void narrow(float* to, const float* from, int64_t size) { std::copy_n(from, size, to); }
static void narrow(bf16* to, const float* from, int64_t size) {  // to nearest, ties to even
    for (int64_t i = 0; i < size; i++) {
        uint32_t bits;
        std::memcpy(&bits, from + i, sizeof bits);
        const bf16 rounded = bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        to[i] = from[i] == from[i] ? rounded : bf16(0x7fc0);
    }
}
static inline float sum(Vec v) {
    typedef float Quad __attribute__((vector_size(16)));
    Quad parts[W / 4];
    std::memcpy(parts, &v, sizeof v);
    for (int half = W / 8; half; half /= 2)
        for (int i = 0; i < half; i++) parts[i] += parts[i + half];
    const Quad x = parts[0];
    return (x[0] + x[2]) + (x[1] + x[3]);
}

// e^x to 2e-7 of it: 2^n times a polynomial of what is left, |r| <= ln(2)/2.
static inline Vec exponential(Vec x) {
    const Vec low = Vec{} - 87.0f, high = Vec{} + 88.0f;
    x = x < low ? low : x > high ? high : x;
    const Vec shift = Vec{} + 12582912.0f;  // 1.5 * 2^23 rounds to whole numbers
    const Vec n = (x * 1.44269504f + shift) - shift;
    const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec p = Vec{} + 1.0f / 720;
    for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + c;
    return p * (Vec)((__builtin_convertvector(n, IntVec) + 127) << 23);
}
