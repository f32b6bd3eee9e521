// Products of a few rows with a matrix, at the pace at which memory gives the weights.
//
// Weights lie in blocks of COLUMNS outputs, w[n / COLUMNS][k / STEP][n % COLUMNS][k % STEP], so a
// thread reads its part of them as one stream. The sums of a block's outputs for several rows stay in
// registers while a block passes, and a block stays in the cache for the next rows.

#pragma once

#include "cpu_vectors.h"

#include <utility>

constexpr int COLUMNS = 32, VECTORS = COLUMNS / W;
constexpr int MOST_ROWS = W == 16 ? 12 : 2;  // whose sums fit the registers together
static inline int64_t padded(int64_t outputs) { return (outputs + COLUMNS - 1) / COLUMNS * COLUMNS; }
constexpr int64_t AHEAD = 8192;  // bytes that are asked for early: a stream ends at each page

// How the weights of a type are multiplied: STEP inputs of a row (`In`) by as many weights of each of
// W outputs.
template <typename T> struct Weights;

template <> struct Weights<float> {
    using In = float;
    static constexpr int STEP = 1;
    Vec w;
    explicit Weights(const float* p) : w(load(p)) {}
    void add_to(Vec& sums, const float* x) const { sums += x[0] * w; }
};

template <> struct Weights<bf16> {
    static constexpr int STEP = 2;
#if defined(__AVX512BF16__)
    using In = bf16;
    IntVec w;
    explicit Weights(const bf16* p) { std::memcpy(&w, p, sizeof w); }
    void add_to(Vec& sums, const bf16* x) const {
        int32_t both;
        std::memcpy(&both, x, sizeof both);
        sums = (Vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32(both), (__m512bh)w);
    }
#else
    using In = float;
    Vec even, odd;
    explicit Weights(const bf16* p) {
        IntVec w;
        std::memcpy(&w, p, sizeof w);
        even = (Vec)(w << 16);
        odd = (Vec)(w & int32_t(0xffff0000));
    }
    void add_to(Vec& sums, const float* x) const { sums += x[0] * even + x[1] * odd; }
#endif
};

// out[m][n] = (is_added ? out[m][n] : 0) + sum_k x[m][k] w[k][n], for `count` outputs of one block.
template <typename T, int ROWS>
static void multiply_block(const T* w, int64_t depth, const typename Weights<T>::In* x, int64_t width,
                           int64_t count, float* out, bool is_added) {
    constexpr int STEP = Weights<T>::STEP;
    Vec sums[ROWS][VECTORS]{};
    for (int64_t k = 0; k < depth; k += STEP, w += STEP * COLUMNS) {
        for (size_t line = 0; line < STEP * COLUMNS * sizeof(T); line += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(w) + AHEAD + line);
        for (int v = 0; v < VECTORS; v++) {
            const Weights<T> weights(w + v * STEP * W);
            for (int m = 0; m < ROWS; m++) weights.add_to(sums[m][v], x + m * depth + k);
        }
    }
    for (int m = 0; m < ROWS; m++) {
        const float* found = reinterpret_cast<const float*>(sums[m]);
        for (int64_t n = 0; n < count; n++)
            out[m * width + n] = found[n] + (is_added ? out[m * width + n] : 0.0f);
    }
}

template <typename T>
using MultiplyBlock = void (*)(const T*, int64_t, const typename Weights<T>::In*, int64_t, int64_t,
                               float*, bool);

template <typename T, int... ROWS>
static MultiplyBlock<T> multiply_block_of(int64_t rows, std::integer_sequence<int, ROWS...>) {
    constexpr MultiplyBlock<T> of_rows[] = {multiply_block<T, ROWS + 1>...};
    return of_rows[rows - 1];
}

// The outputs of thread `me` of `threads`, for all rows.
template <typename T>
static void multiply_share(const T* w, int64_t depth, int64_t width,
                           const typename Weights<T>::In* x, int64_t num_rows, float* out,
                           bool is_added, int64_t me, int64_t threads) {
    const int64_t blocks = padded(width) / COLUMNS;
    const int64_t groups = (num_rows + MOST_ROWS - 1) / MOST_ROWS;
    for (int64_t block = blocks * me / threads; block < blocks * (me + 1) / threads; block++)
        for (int64_t group = 0; group < groups; group++) {
            const int64_t first = num_rows * group / groups;
            const int64_t rows = num_rows * (group + 1) / groups - first, n = block * COLUMNS;
            multiply_block_of<T>(rows, std::make_integer_sequence<int, MOST_ROWS>{})(
                w + n * depth, depth, x + first * depth, width, std::min<int64_t>(COLUMNS, width - n),
                out + first * width + n, is_added);
        }
}
