// The next token of many sequences through a whole dense decoder: what Transformer.decode computes
// for one token each, in one call. In a small model PyTorch's operators cost as much as the
// products, and its products of 2 to 32 rows take twice the time that reading the weights does.
//
// Matrices lie by columns, w[in][out]. A thread has a stripe of outputs and reads it once for all
// sequences: DEPTH inputs of a few vectors of outputs stay in registers while every sequence adds
// its part to a tile of sums in the first-level cache. A sequence's sums run over the inputs in
// order, so its result has the same bits whoever shares the batch.
// Letters as in minimind/types.py.

#include "cpu_vectors.h"

#include <omp.h>
#include <vector>

constexpr int ROWS = 32;            // sequences that a tile holds
constexpr int TILE_FLOATS = 8192;   // 32 KiB of the first-level cache

struct Share { int64_t first, last; };
static Share share(int64_t count, int64_t unit) {  // this thread's part, in whole units
    const int64_t units = (count + unit - 1) / unit, threads = omp_get_num_threads();
    const int64_t me = omp_get_thread_num();
    return {std::min(count, units * me / threads * unit),
            std::min(count, units * (me + 1) / threads * unit)};
}

// Inputs of a product: element k of sequence m, so that DEPTH inputs of all sequences are together.
struct Inputs {
    float* data;
    int64_t num_rows;
    float* at(int64_t m, int64_t k) const {
        return data + (k / DEPTH * num_rows + m) * DEPTH + k % DEPTH;
    }
};

template <int VECTORS, typename T>
static inline void add_block(const T* __restrict w, int64_t width, const float* __restrict x,
                             float* __restrict tile, int64_t pitch, int64_t rows) {
    Vec block[DEPTH][VECTORS];
    for (int d = 0; d < DEPTH; d++)
        for (int v = 0; v < VECTORS; v++) {
            block[d][v] = load(w + d * width + v * W);
            // The same place of the next inputs: the hardware loses the stripe at each row's end.
            __builtin_prefetch(w + (DEPTH + d) * width + v * W);
        }
    for (int64_t m = 0; m < rows; m++) {
        Vec sums[VECTORS];
        for (int v = 0; v < VECTORS; v++) sums[v] = load(tile + m * pitch + v * W);
        for (int d = 0; d < DEPTH; d++)
            for (int v = 0; v < VECTORS; v++) sums[v] += x[m * DEPTH + d] * block[d][v];
        for (int v = 0; v < VECTORS; v++) store(tile + m * pitch + v * W, sums[v]);
    }
}

// out[m][n] = (is_added ? out[m][n] : 0) + sum_k x[m][k] w[k][n], this thread's n.
template <typename T>
static void multiply(const T* w, int64_t depth, int64_t width, Inputs x, float* out, bool is_added) {
    alignas(64) float tile[TILE_FLOATS];
    const Share mine = share(width, 2 * W);
    const int64_t most = std::min<int64_t>(x.num_rows, ROWS);
    const int64_t chunk = std::max<int64_t>(TILE_FLOATS / most / (2 * W) * (2 * W), 2 * W);
    for (int64_t n = mine.first; n < mine.last; n += chunk) {
        const int64_t count = std::min(chunk, mine.last - n);
        for (int64_t first = 0; first < x.num_rows; first += ROWS) {
            const int64_t rows = std::min<int64_t>(ROWS, x.num_rows - first);
            std::fill(tile, tile + rows * chunk, 0.0f);
            for (int64_t k = 0; k < depth; k += DEPTH) {
                const T* from = w + k * width + n;
                const float* inputs = x.at(first, k);
                int64_t i = 0;
                for (; i + 2 * W <= count; i += 2 * W)
                    add_block<2>(from + i, width, inputs, tile + i, chunk, rows);
                for (; i + W <= count; i += W)
                    add_block<1>(from + i, width, inputs, tile + i, chunk, rows);
                for (; i < count; i++)
                    for (int64_t m = 0; m < rows; m++)
                        for (int d = 0; d < DEPTH; d++)
                            tile[m * chunk + i] += inputs[m * DEPTH + d] * widen(from[d * width + i]);
            }
            for (int64_t m = 0; m < rows; m++) {
                float* to = out + (first + m) * width + n;
                for (int64_t i = 0; i < count; i++)
                    to[i] = tile[m * chunk + i] + (is_added ? to[i] : 0.0f);
            }
        }
    }
}

static float inverse_rms(const float* x, int64_t size, float eps) {
    Vec squares{};
    for (int64_t i = 0; i < size; i += W) squares += load(x + i) * load(x + i);
    return 1.0f / std::sqrt(sum(squares) / float(size) + eps);
}

static void normalise(const float* x_MD, int64_t size, const float* weight, float eps, Inputs out) {
#pragma omp for schedule(static)
    for (int64_t m = 0; m < out.num_rows; m++) {
        const float* row = x_MD + m * size;
        const float scale = inverse_rms(row, size, eps);
        for (int64_t k = 0; k < size; k++) *out.at(m, k) = row[k] * scale * weight[k];
    }
}

// One head, in place: normalised where there is a weight, then turned to its position.
static void turn(float* head, int64_t size, const float* weight, float eps, const float* cos,
                 const float* sin) {
    const float scale = weight ? inverse_rms(head, size, eps) : 1.0f;
    if (weight)
        for (int64_t i = 0; i < size; i++) head[i] *= scale * weight[i];
    for (int64_t i = 0; i < size / 2; i++) {
        const float a = head[i], b = head[i + size / 2];
        head[i] = a * cos[i] - b * sin[i];
        head[i + size / 2] = b * cos[i] + a * sin[i];
    }
}

// softmax(q k / sqrt(H)) v of neighbouring query heads of one key head over `length` tokens.
template <int SIZE, int HEADS, typename T>
static void attend(const float* q, const T* keys, const T* values, int64_t length, float* scores,
                   float* out) {
    constexpr int VECTORS = SIZE / W;
    const int64_t pitch = (length + W - 1) / W * W;
    Vec query[HEADS][VECTORS], mean[HEADS][VECTORS];
    float largest[HEADS], total[HEADS];
    for (int h = 0; h < HEADS; h++) {
        largest[h] = -INFINITY;
        total[h] = 0;
        for (int v = 0; v < VECTORS; v++) {
            query[h][v] = load(q + h * SIZE + v * W) / std::sqrt(float(SIZE));
            mean[h][v] = Vec{};
        }
    }
    for (int64_t t = 0; t < length; t++) {
        Vec dots[HEADS]{};
        for (int v = 0; v < VECTORS; v++) {
            const Vec key = load(keys + t * SIZE + v * W);
            for (int h = 0; h < HEADS; h++) dots[h] += query[h][v] * key;
        }
        for (int h = 0; h < HEADS; h++) {
            scores[h * pitch + t] = sum(dots[h]);
            largest[h] = std::max(largest[h], scores[h * pitch + t]);
        }
    }
    for (int h = 0; h < HEADS; h++)
        for (float* at = scores + h * pitch; at < scores + (h + 1) * pitch; at += W)
            store(at, exponential(load(at) - largest[h]));  // what is behind the end is not used
    for (int64_t t = 0; t < length; t++) {
        for (int h = 0; h < HEADS; h++) total[h] += scores[h * pitch + t];
        for (int v = 0; v < VECTORS; v++) {
            const Vec value = load(values + t * SIZE + v * W);
            for (int h = 0; h < HEADS; h++) mean[h][v] += scores[h * pitch + t] * value;
        }
    }
    for (int h = 0; h < HEADS; h++)
        for (int v = 0; v < VECTORS; v++) store(out + h * SIZE + v * W, mean[h][v] / total[h]);
}

template <typename T>
using Attend = void (*)(const float*, const T*, const T*, int64_t, float*, float*);

template <int HEADS, typename T>
static Attend<T> attend_of(int64_t size) {
    constexpr Attend<T> of_sizes[] = {
        attend<16, HEADS, T>, attend<32, HEADS, T>, attend<48, HEADS, T>, attend<64, HEADS, T>,
        attend<80, HEADS, T>, attend<96, HEADS, T>, attend<112, HEADS, T>, attend<128, HEADS, T>};
    return of_sizes[size / 16 - 1];
}

struct Layer {
    const void *qkv, *o, *gate_up, *down;
    const float *input_norm, *mlp_norm, *q_norm, *k_norm;
    void *keys, *values;  // [slots][K][capacity][H]
};

struct Model {
    int64_t num_layers, hidden, ffn, heads, kv_heads, size, vocab, capacity;
    float eps;
    const void *embedding, *head;  // both [D][V]
    const float *norm, *cos, *sin;
    const Layer* layers;
};

template <typename T>
static void decode(const Model& model, int64_t num_rows, const int64_t* ids, const int64_t* positions,
                   const int64_t* slots, float* logits_MV, int64_t num_threads) {
    const int64_t hidden = model.hidden, size = model.size, group = model.heads / model.kv_heads;
    const int64_t width = (model.heads + 2 * model.kv_heads) * size;
    const int64_t widest = std::max({hidden, model.ffn, model.heads * size});
    const int64_t longest = model.capacity + W, together = group % 2 ? 1 : 2;
    const Attend<T> attend = together == 2 ? attend_of<2, T>(size) : attend_of<1, T>(size);
    static thread_local std::vector<float> scratch;  // grows to the largest batch, then stays
    scratch.resize(num_rows * (hidden + width + 2 * model.ffn + widest) +
                   num_threads * together * (longest + size));
    float* residual = scratch.data();
    float* qkv = residual + num_rows * hidden;
    float* gate_up = qkv + num_rows * width;
    const Inputs inputs{gate_up + num_rows * 2 * model.ffn, num_rows};
    float* of_threads = inputs.data + num_rows * widest;

#pragma omp parallel num_threads(num_threads)
    {
        float* scores = of_threads + omp_get_thread_num() * together * (longest + size);
        float* attended = scores + together * longest;
        const T* embedding = static_cast<const T*>(model.embedding);
#pragma omp for schedule(static)
        for (int64_t m = 0; m < num_rows; m++)
            for (int64_t i = 0; i < hidden; i++)
                residual[m * hidden + i] = widen(embedding[i * model.vocab + ids[m]]);

        for (int64_t l = 0; l < model.num_layers; l++) {
            const Layer& layer = model.layers[l];
            normalise(residual, hidden, layer.input_norm, model.eps, inputs);
            multiply(static_cast<const T*>(layer.qkv), hidden, width, inputs, qkv, false);
#pragma omp barrier
#pragma omp for schedule(dynamic)
            for (int64_t pair = 0; pair < num_rows * model.kv_heads; pair++) {
                const int64_t m = pair / model.kv_heads, kv = pair % model.kv_heads;
                const float* cos = model.cos + positions[m] * (size / 2);
                const float* sin = model.sin + positions[m] * (size / 2);
                const int64_t first = (slots[m] * model.kv_heads + kv) * model.capacity * size;
                T* keys = static_cast<T*>(layer.keys) + first;
                T* values = static_cast<T*>(layer.values) + first;
                float* k = qkv + m * width + (model.heads + kv) * size;
                const float* v = k + model.kv_heads * size;
                turn(k, size, layer.k_norm, model.eps, cos, sin);
                narrow(keys + positions[m] * size, k, size);
                narrow(values + positions[m] * size, v, size);
                for (int64_t h = kv * group; h < (kv + 1) * group; h += together) {
                    float* q = qkv + m * width + h * size;
                    for (int64_t i = 0; i < together; i++)
                        turn(q + i * size, size, layer.q_norm, model.eps, cos, sin);
                    attend(q, keys, values, positions[m] + 1, scores, attended);
                    for (int64_t i = 0; i < together * size; i++)
                        *inputs.at(m, h * size + i) = attended[i];
                }
            }
            multiply(static_cast<const T*>(layer.o), model.heads * size, hidden, inputs, residual,
                     true);
#pragma omp barrier
            normalise(residual, hidden, layer.mlp_norm, model.eps, inputs);
            multiply(static_cast<const T*>(layer.gate_up), hidden, 2 * model.ffn, inputs, gate_up,
                     false);
#pragma omp barrier
#pragma omp for schedule(static) collapse(2)
            for (int64_t m = 0; m < num_rows; m++)
                for (int64_t i = 0; i < model.ffn; i += W) {
                    const float* gate = gate_up + m * 2 * model.ffn + i;
                    const Vec g = load(gate);
                    const Vec out = g / (1.0f + exponential(-g)) * load(gate + model.ffn);
                    for (int j = 0; j < W; j++) *inputs.at(m, i + j) = out[j];
                }
            multiply(static_cast<const T*>(layer.down), model.ffn, hidden, inputs, residual, true);
#pragma omp barrier
        }
        normalise(residual, hidden, model.norm, model.eps, inputs);
        multiply(static_cast<const T*>(model.head), hidden, model.vocab, inputs, logits_MV, false);
    }
}

extern "C" void decode_step(const Model* model, int64_t is_bf16, int64_t num_rows,
                            const int64_t* ids, const int64_t* positions, const int64_t* slots,
                            float* logits_MV, int64_t num_threads) {
    (is_bf16 ? decode<bf16> : decode<float>)(*model, num_rows, ids, positions, slots, logits_MV,
                                             num_threads);
}
