// The next tokens of many sequences through a whole decoder: what Transformer.decode computes,
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

// Matrices in the order in which products read them; x W' + (x A') B' with an adapter, rank 0 without.
struct Linear {
    const void *weight, *a, *b;
    int64_t rank;
};

struct Layer {
    // With a router, the gate_up and down of all experts, one after another.
    Linear qkv, o, gate_up, down, router, shared_gate_up, shared_down;
    const float *input_norm, *mlp_norm, *q_norm, *k_norm;
    void *keys, *values;  // [slots][K][capacity][H]
};

struct Model {
    int64_t num_layers, hidden, ffn, heads, kv_heads, size, vocab, capacity;
    int64_t id_stride, hidden_stride;  // of the embedding
    int64_t experts, chosen, renormalises, expert_ffn, shared_ffn;  // a row goes to `chosen` experts
    int64_t most_rank;
    float eps;
    const void* embedding;
    Linear head;
    const float *norm, *cos, *sin;
    const Layer* layers;
};

struct Batch {
    int64_t num_rows, num_wanted;
    const int64_t *ids, *positions, *slots;
    const int64_t* wanted;  // the rows whose logits are asked for
};

// The experts of each row: slot m * chosen + s of row m, and each expert's slots together in `order`.
struct Routing {
    int64_t experts, chosen;
    std::vector<int64_t> expert, place, starts;  // of a slot; in the order; of an expert in the order
    std::vector<float> weight;

    void choose(const float* logits, int64_t num_rows, bool renormalises) {
        expert.resize(num_rows * chosen);
        place.resize(num_rows * chosen);
        weight.resize(num_rows * chosen);
        starts.assign(experts + 1, 0);
        std::vector<float> shares(experts);
        for (int64_t m = 0; m < num_rows; m++) {
            const float* row = logits + m * experts;
            const float largest = *std::max_element(row, row + experts);
            float total = 0, taken = 0;
            for (int64_t e = 0; e < experts; e++) total += shares[e] = std::exp(row[e] - largest);
            for (int64_t slot = m * chosen; slot < (m + 1) * chosen; slot++) {
                const auto best = std::max_element(shares.begin(), shares.end());
                expert[slot] = best - shares.begin();
                taken += weight[slot] = *best / total;
                *best = -1;
                starts[expert[slot] + 1]++;
            }
            if (renormalises)
                for (int64_t slot = m * chosen; slot < (m + 1) * chosen; slot++)
                    weight[slot] /= taken + 1e-20f;
        }
        for (int64_t e = 0; e < experts; e++) starts[e + 1] += starts[e];
        std::vector<int64_t> next(starts.begin(), starts.end() - 1);
        for (size_t slot = 0; slot < expert.size(); slot++) place[slot] = next[expert[slot]]++;
    }
};

template <typename T>
static void decode(const Model& model, const Batch& batch, float* logits_RV, int64_t num_threads) {
    using In = typename Weights<T>::In;
    const int64_t hidden = model.hidden, size = model.size, group = model.heads / model.kv_heads;
    const int64_t width = (model.heads + 2 * model.kv_heads) * size, num_rows = batch.num_rows;
    const int64_t slots = num_rows * std::max<int64_t>(model.chosen, 1);
    const int64_t inner = std::max({num_rows * std::max(model.ffn, model.shared_ffn),
                                    slots * model.expert_ffn});
    const int64_t most_inputs = std::max({slots * hidden, inner, num_rows * model.heads * size});
    const int64_t longest = model.capacity + W, together = group % 2 ? 1 : 2;
    const int64_t pairs = num_rows * model.kv_heads;
    const Attend<T> attend = together == 2 ? attend_of<2, T>(size) : attend_of<1, T>(size);
    static thread_local std::vector<float> scratch;  // grows to the largest batch, then stays
    static thread_local Routing routing_of_caller;
    Routing& routing = routing_of_caller;
    routing.experts = model.experts, routing.chosen = model.chosen;
    scratch.resize(num_rows * (2 * hidden + width + model.experts + 2 * model.most_rank) +
                   slots * hidden + 2 * inner + most_inputs +
                   num_threads * together * (longest + size));
    float* residual = scratch.data();
    float* qkv = residual + num_rows * hidden;
    float* router_logits = qkv + num_rows * width;
    float* of_slots = router_logits + num_rows * model.experts;
    float* gate_up = of_slots + slots * hidden;
    In* normed = reinterpret_cast<In*>(gate_up + 2 * inner);
    In* inputs = reinterpret_cast<In*>(gate_up + 2 * inner + num_rows * hidden);
    float* low = gate_up + 2 * inner + num_rows * hidden + most_inputs;
    In* low_inputs = reinterpret_cast<In*>(low + num_rows * model.most_rank);
    float* of_threads = low + 2 * num_rows * model.most_rank;

#pragma omp parallel num_threads(num_threads)
    {
        float* scores = of_threads + omp_get_thread_num() * together * (longest + size);
        float* attended = scores + together * longest;
        const T* embedding = static_cast<const T*>(model.embedding);
        // This thread's part of a product; others may not be done with theirs.
        const auto multiply_part = [&](const void* weights, int64_t depth, int64_t outputs,
                                       const In* from, int64_t rows, float* out, bool is_added) {
            multiply_share(static_cast<const T*>(weights), depth, outputs, from, rows, out, is_added,
                           omp_get_thread_num(), omp_get_num_threads());
        };
        const auto multiply = [&](const Linear& linear, int64_t depth, int64_t outputs,
                                  const In* from, int64_t rows, float* out, bool is_added) {
            multiply_part(linear.weight, depth, outputs, from, rows, out, is_added);
            if (linear.rank) {
                multiply_part(linear.a, depth, linear.rank, from, rows, low, false);
#pragma omp barrier
#pragma omp for schedule(static)
                for (int64_t m = 0; m < rows; m++)
                    narrow(low_inputs + m * linear.rank, low + m * linear.rank, linear.rank);
                multiply_part(linear.b, linear.rank, outputs, low_inputs, rows, out, true);
            }
#pragma omp barrier
        };
        // inputs[r] = silu(gate) * up of row r of the product gate_up.
        const auto activate = [&](int64_t rows, int64_t ffn) {
#pragma omp for schedule(static) collapse(2)
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < ffn; i += W) {
                    const float* gate = gate_up + r * 2 * ffn + i;
                    const Vec g = load(gate);
                    const Vec out = g / (1.0f + exponential(-g)) * load(gate + ffn);
                    narrow(inputs + r * ffn + i, (const float*)&out, W);
                }
        };
        const auto feed_forward = [&](const Linear& in, const Linear& down, int64_t ffn) {
            multiply(in, hidden, 2 * ffn, normed, num_rows, gate_up, false);
            activate(num_rows, ffn);
            multiply(down, ffn, hidden, inputs, num_rows, residual, true);
        };
        const auto experts = [&](const Layer& layer) {
            const int64_t ffn = model.expert_ffn;
            multiply(layer.router, hidden, model.experts, normed, num_rows, router_logits, false);
#pragma omp single
            routing.choose(router_logits, num_rows, model.renormalises);
#pragma omp for schedule(static)
            for (int64_t slot = 0; slot < slots; slot++)
                std::copy_n(normed + slot / model.chosen * hidden, hidden,
                            inputs + routing.place[slot] * hidden);
            // Each expert's part of a product, for the rows that chose it.
            const auto each = [&](const void* weights, int64_t depth, int64_t outputs, float* out) {
                for (int64_t e = 0; e < model.experts; e++) {
                    const int64_t first = routing.starts[e];
                    multiply_part(static_cast<const T*>(weights) + e * padded(outputs) * depth, depth,
                                  outputs, inputs + first * depth, routing.starts[e + 1] - first,
                                  out + first * outputs, false);
                }
#pragma omp barrier
            };
            each(layer.gate_up.weight, hidden, 2 * ffn, gate_up);
            activate(slots, ffn);
            each(layer.down.weight, ffn, hidden, of_slots);
#pragma omp for schedule(static)
            for (int64_t slot = 0; slot < slots; slot += model.chosen)
                for (int64_t i = 0; i < hidden; i++) {
                    float sum = 0;
                    for (int64_t s = slot; s < slot + model.chosen; s++)
                        sum += routing.weight[s] * of_slots[routing.place[s] * hidden + i];
                    residual[slot / model.chosen * hidden + i] += sum;
                }
            if (layer.shared_gate_up.weight)
                feed_forward(layer.shared_gate_up, layer.shared_down, model.shared_ffn);
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
            normalise(residual, nullptr, num_rows, hidden, layer.input_norm, model.eps, normed);
            multiply(layer.qkv, hidden, width, normed, num_rows, qkv, false);
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
            multiply(layer.o, model.heads * size, hidden, inputs, num_rows, residual, true);
            normalise(residual, nullptr, num_rows, hidden, layer.mlp_norm, model.eps, normed);
            if (layer.router.weight)
                experts(layer);
            else
                feed_forward(layer.gate_up, layer.down, model.ffn);
        }
        normalise(residual, batch.wanted, batch.num_wanted, hidden, model.norm, model.eps, normed);
        multiply(model.head, hidden, model.vocab, normed, batch.num_wanted, logits_RV, false);
    }
}

extern "C" void decode_step(const Model* model, int64_t is_bf16, const Batch* batch,
                            float* logits_RV, int64_t num_threads) {
    (is_bf16 ? decode<bf16> : decode<float>)(*model, *batch, logits_RV, num_threads);
}
