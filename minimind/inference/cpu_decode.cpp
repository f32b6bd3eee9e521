// The next tokens of many sequences through a whole dense decoder: what Transformer.decode computes,
// in one call. In a small model PyTorch's operators cost as much as the products, and its products of
// 2 to 32 rows take twice the time that reading the weights does.
//
// A row is one token of one sequence. Its sums run over the inputs in order, so its result has the
// same bits whoever shares the batch. Letters as in minimind/types.py.

#include "cpu_products.h"

#include <omp.h>
#include <vector>

static float inverse_rms(const float* x, int64_t size, float eps) {
    Vec squares{};
    for (int64_t i = 0; i < size; i += W) squares += load(x + i) * load(x + i);
    return 1.0f / std::sqrt(sum(squares) / float(size) + eps);
}

// out[r] = the norm of row rows[r] of x, or of row r where `rows` is null.
template <typename In>
static void normalise(const float* x_MD, const int64_t* rows, int64_t num_rows, int64_t size,
                      const float* weight, float eps, In* out) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < num_rows; r++) {
        const float* row = x_MD + (rows ? rows[r] : r) * size;
        const float scale = inverse_rms(row, size, eps);
        for (int64_t k = 0; k < size; k += W) {
            const Vec normed = load(row + k) * scale * load(weight + k);
            narrow(out + r * size + k, (const float*)&normed, W);
        }
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
    const void *qkv, *o, *gate_up, *down;  // as products read them
    const float *input_norm, *mlp_norm, *q_norm, *k_norm;
    void *keys, *values;  // [slots][K][capacity][H]
};

struct Model {
    int64_t num_layers, hidden, ffn, heads, kv_heads, size, vocab, capacity;
    int64_t id_stride, hidden_stride;  // of the embedding
    float eps;
    const void *embedding, *head;
    const float *norm, *cos, *sin;
    const Layer* layers;
};

struct Batch {
    int64_t num_rows, num_wanted;
    const int64_t *ids, *positions, *slots;
    const int64_t* wanted;  // the rows whose logits are asked for
};

template <typename T>
static void decode(const Model& model, const Batch& batch, float* logits_RV, int64_t num_threads) {
    using In = typename Weights<T>::In;
    const int64_t hidden = model.hidden, size = model.size, group = model.heads / model.kv_heads;
    const int64_t width = (model.heads + 2 * model.kv_heads) * size, num_rows = batch.num_rows;
    const int64_t widest = std::max({hidden, model.ffn, model.heads * size});
    const int64_t longest = model.capacity + W, together = group % 2 ? 1 : 2;
    const int64_t pairs = num_rows * model.kv_heads;
    const Attend<T> attend = together == 2 ? attend_of<2, T>(size) : attend_of<1, T>(size);
    static thread_local std::vector<float> scratch;  // grows to the largest batch, then stays
    scratch.resize(num_rows * (hidden + width + 2 * model.ffn + widest) +
                   num_threads * together * (longest + size));
    float* residual = scratch.data();
    float* qkv = residual + num_rows * hidden;
    float* gate_up = qkv + num_rows * width;
    In* inputs = reinterpret_cast<In*>(gate_up + num_rows * 2 * model.ffn);
    float* of_threads = gate_up + num_rows * (2 * model.ffn + widest);

#pragma omp parallel num_threads(num_threads)
    {
        float* scores = of_threads + omp_get_thread_num() * together * (longest + size);
        float* attended = scores + together * longest;
        const T* embedding = static_cast<const T*>(model.embedding);
        const auto multiply = [&](const void* weights, int64_t depth, int64_t outputs, int64_t rows,
                                  float* out, bool is_added) {
            multiply_share(static_cast<const T*>(weights), depth, outputs, inputs, rows, out,
                           is_added, omp_get_thread_num(), omp_get_num_threads());
#pragma omp barrier
        };
#pragma omp for schedule(static)
        for (int64_t m = 0; m < num_rows; m++)
            for (int64_t i = 0; i < hidden; i++)
                residual[m * hidden + i] =
                    widen(embedding[batch.ids[m] * model.id_stride + i * model.hidden_stride]);

        for (int64_t l = 0; l < model.num_layers; l++) {
            const Layer& layer = model.layers[l];
            // Where a head's keys or values of a row's sequence begin in the cache.
            const auto first = [&](int64_t m, int64_t kv) {
                return (batch.slots[m] * model.kv_heads + kv) * model.capacity * size;
            };
            normalise(residual, nullptr, num_rows, hidden, layer.input_norm, model.eps, inputs);
            multiply(layer.qkv, hidden, width, num_rows, qkv, false);
#pragma omp for schedule(static)
            for (int64_t pair = 0; pair < pairs; pair++) {
                const int64_t m = pair / model.kv_heads, kv = pair % model.kv_heads;
                const int64_t position = batch.positions[m], at = first(m, kv) + position * size;
                float* k = qkv + m * width + (model.heads + kv) * size;
                turn(k, size, layer.k_norm, model.eps, model.cos + position * (size / 2),
                     model.sin + position * (size / 2));
                narrow(static_cast<T*>(layer.keys) + at, k, size);
                narrow(static_cast<T*>(layer.values) + at, k + model.kv_heads * size, size);
            }
#pragma omp for schedule(dynamic)
            for (int64_t pair = 0; pair < pairs; pair++) {
                const int64_t m = pair / model.kv_heads, kv = pair % model.kv_heads;
                const int64_t position = batch.positions[m];
                const T* keys = static_cast<const T*>(layer.keys) + first(m, kv);
                const T* values = static_cast<const T*>(layer.values) + first(m, kv);
                for (int64_t h = kv * group; h < (kv + 1) * group; h += together) {
                    float* q = qkv + m * width + h * size;
                    for (int64_t i = 0; i < together; i++)
                        turn(q + i * size, size, layer.q_norm, model.eps,
                             model.cos + position * (size / 2), model.sin + position * (size / 2));
                    attend(q, keys, values, position + 1, scores, attended);
                    narrow(inputs + (m * model.heads + h) * size, attended, together * size);
                }
            }
            multiply(layer.o, model.heads * size, hidden, num_rows, residual, true);
            normalise(residual, nullptr, num_rows, hidden, layer.mlp_norm, model.eps, inputs);
            multiply(layer.gate_up, hidden, 2 * model.ffn, num_rows, gate_up, false);
#pragma omp for schedule(static) collapse(2)
            for (int64_t m = 0; m < num_rows; m++)
                for (int64_t i = 0; i < model.ffn; i += W) {
                    const float* gate = gate_up + m * 2 * model.ffn + i;
                    const Vec g = load(gate);
                    const Vec out = g / (1.0f + exponential(-g)) * load(gate + model.ffn);
                    narrow(inputs + m * model.ffn + i, (const float*)&out, W);
                }
            multiply(layer.down, model.ffn, hidden, num_rows, residual, true);
        }
        normalise(residual, batch.wanted, batch.num_wanted, hidden, model.norm, model.eps, inputs);
        multiply(model.head, hidden, model.vocab, batch.num_wanted, logits_RV, false);
    }
}

extern "C" void decode_step(const Model* model, int64_t is_bf16, const Batch* batch,
                            float* logits_RV, int64_t num_threads) {
    (is_bf16 ? decode<bf16> : decode<float>)(*model, *batch, logits_RV, num_threads);
}
