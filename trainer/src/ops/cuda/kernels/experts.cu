// Expert choice: route, choose, gather for the experts, combine; and back. No sum is atomic.
//
// Of a call's `rows` tokens each expert takes the same number, `slots` in all groups together; slot `e * slots + i` is its `i`-th.
// Source: Zhou et al. 2022, arXiv:2202.09368.
#include "common.cuh"

#define WARPS 4

// `to` `[experts, d]` is the transpose of `from`: a warp then reads an expert's weights side by side.
extern "C" __global__ void transpose(const float* from, float* to, int d, int experts) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < d * experts) to[(i % experts) * d + i / experts] = from[i];
}

// `probs = softmax(LN(x) Wr)` `[rows, experts]` and `lse = logsumexp` `[rows]`, in f32; `router` is `[experts, d]`.
extern "C" __global__ void route(const float* x, const float2* stats, const float* scale, const float* router,
                                 float* probs, float* lse, int rows, int d, int experts) {
    extern __shared__ float shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = blockIdx.x * WARPS + warp;
    float* logits = shared + warp * experts;
    if (row >= rows) return;
    const float2 stat = stats[row];
    const float* from = x + (size_t)row * d;
    for (int first = 0; first < experts; first += 8) {
        float sum[8] = {};
        for (int i = lane * 4; i < d; i += 128) {
            const float4 x = load4(from + i), s = load4(scale + i);
            const float4 h = make_float4((x.x - stat.x) * stat.y * s.x, (x.y - stat.x) * stat.y * s.y,
                                         (x.z - stat.x) * stat.y * s.z, (x.w - stat.x) * stat.y * s.w);
#pragma unroll
            for (int e = 0; e < 8; ++e)
                if (first + e < experts) {
                    const float4 w = load4(router + (size_t)(first + e) * d + i);
                    sum[e] += h.x * w.x + h.y * w.y + h.z * w.z + h.w * w.w;
                }
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            sum[e] = warp_sum(sum[e]);
            if (lane == 0 && first + e < experts) logits[first + e] = sum[e];
        }
    }
    __syncwarp();
    float most = -INFINITY;
    for (int e = lane; e < experts; e += 32) most = fmaxf(most, logits[e]);
    most = warp_max(most);
    float total = 0.0f;
    for (int e = lane; e < experts; e += 32) total += expf(logits[e] - most);
    total = warp_sum(total);
    for (int e = lane; e < experts; e += 32) probs[(size_t)row * experts + e] = expf(logits[e] - most) / total;
    if (lane == 0) lse[row] = most + logf(total);
}

// A block a (group, expert): its `capacity` most probable tokens, equal ones by the lower row. `groups` is `[n, 4]`: first row, rows,
// capacity, first slot. `size` is the power of two that holds the largest group. `slot_of` `[rows, experts]` is -1 before.
extern "C" __global__ void choose(const float* probs, const int* groups, int* row_of, int* slot_of, int experts,
                                  int slots, int size) {
    extern __shared__ unsigned long long keys[];
    const int* group = groups + blockIdx.x * 4;
    const int first = group[0], rows = group[1], capacity = group[2], slot = group[3], expert = blockIdx.y;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        unsigned long long key = 0;
        // Probabilities are not negative, so their bits are in their order.
        if (i < rows) {
            const uint32_t bits = __float_as_uint(probs[(size_t)(first + i) * experts + expert]);
            key = ((unsigned long long)bits << 32) | (0xffffffffu - (uint32_t)i);
        }
        keys[i] = key;
    }
    __syncthreads();
    for (int width = 2; width <= size; width *= 2)
        for (int step = width / 2; step > 0; step /= 2) {
            for (int i = threadIdx.x; i < size / 2; i += blockDim.x) {
                const int a = 2 * i - (i & (step - 1)), b = a + step;
                const bool falling = (a & width) == 0;
                const unsigned long long x = keys[a], y = keys[b];
                if (falling ? x < y : x > y) {
                    keys[a] = y;
                    keys[b] = x;
                }
            }
            __syncthreads();
        }
    for (int i = threadIdx.x; i < capacity; i += blockDim.x) {
        const int row = first + (int)(0xffffffffu - (uint32_t)keys[i]);
        row_of[expert * slots + slot + i] = row;
        slot_of[(size_t)row * experts + expert] = expert * slots + slot + i;
    }
}

// Of each block's rows: sum of lse^2, tokens without an expert, sum of chosen probabilities, then by expert first choices and sum of
// probabilities, `partial[block]` of `3 + 2 experts`.
extern "C" __global__ void routing_stats(const float* probs, const float* lse, const int* slot_of, float* partial,
                                         int rows, int experts) {
    extern __shared__ float shared[];
    const int width = 3 + 2 * experts;
    // Each thread has a line of its own; lines are added in order.
    float* mine = shared + threadIdx.x * width;
    for (int i = 0; i < width; ++i) mine[i] = 0.0f;
    for (int row = blockIdx.x * blockDim.x + threadIdx.x; row < rows; row += gridDim.x * blockDim.x) {
        mine[0] += lse[row] * lse[row];
        bool taken = false;
        int best = 0;
        const float* p = probs + (size_t)row * experts;
        for (int e = 0; e < experts; ++e) {
            if (slot_of[(size_t)row * experts + e] >= 0) {
                taken = true;
                mine[2] += p[e];
            }
            if (p[e] > p[best]) best = e;
            mine[3 + experts + e] += p[e];
        }
        if (!taken) mine[1] += 1.0f;
        mine[3 + best] += 1.0f;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (int t = 0; t < blockDim.x; ++t) sum += shared[t * width + i];
        partial[(size_t)blockIdx.x * width + i] = sum;
    }
}

// `to[slot] = from[row_of[slot]]`.
extern "C" __global__ void gather_rows(const bf16* from, const int* row_of, bf16* to, int n, int d) {
    const int slot = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (slot >= n) return;
    const uint4* source = reinterpret_cast<const uint4*>(from + (size_t)row_of[slot] * d);
    uint4* target = reinterpret_cast<uint4*>(to + (size_t)slot * d);
    for (int i = lane; i < d / 8; i += 32) target[i] = source[i];
}

// `y[row] = sum over the experts that took it of probs[row, e] out[slot]`, experts in order.
extern "C" __global__ void combine(const bf16* out, const int* slot_of, const float* probs, bf16* y, int rows, int d,
                                   int experts) {
    const int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    for (int i = lane * 4; i < d; i += 128) {
        float4 sum = make_float4(0, 0, 0, 0);
        for (int e = 0; e < experts; ++e) {
            const int slot = slot_of[(size_t)row * experts + e];
            if (slot < 0) continue;
            const float p = probs[(size_t)row * experts + e];
            const float4 v = load4(out + (size_t)slot * d + i);
            sum.x += p * v.x; sum.y += p * v.y; sum.z += p * v.z; sum.w += p * v.w;
        }
        store4(y + (size_t)row * d + i, sum);
    }
}

// By slot: `d_out = probs dy`, `d_gate = out . dy`.
extern "C" __global__ void combine_backward(const bf16* dy, const bf16* out, const int* row_of, const float* probs,
                                            bf16* d_out, float* d_gate, int n, int slots, int d, int experts) {
    const int slot = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (slot >= n) return;
    const int row = row_of[slot];
    const float p = probs[(size_t)row * experts + slot / slots];
    float dot = 0.0f;
    for (int i = lane * 4; i < d; i += 128) {
        const float4 g = load4(dy + (size_t)row * d + i), o = load4(out + (size_t)slot * d + i);
        dot += g.x * o.x + g.y * o.y + g.z * o.z + g.w * o.w;
        store4(d_out + (size_t)slot * d + i, make_float4(p * g.x, p * g.y, p * g.z, p * g.w));
    }
    dot = warp_sum(dot);
    if (lane == 0) d_gate[slot] = dot;
}

// By token: what comes back through the experts and the router. `d_loss` is the slope at the router's weighted loss; `first_share`
// `[experts]` or null is the share of first choices (balance loss). `d_logits` `[rows, ld]` has zeros beyond the experts.
extern "C" __global__ void dispatch_backward(const bf16* d_taken, const int* slot_of, const float* d_gate,
                                             const float* probs, const float* lse, const float* router,
                                             const float* d_loss, const float* first_share, bf16* dh, bf16* d_logits,
                                             int rows, int d, int experts, int ld, float z_weight,
                                             float balance_weight) {
    extern __shared__ float shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = blockIdx.x * WARPS + warp;
    if (row >= rows) return;
    float* dl = shared + warp * experts;
    const float* p = probs + (size_t)row * experts;
    const int* slot = slot_of + (size_t)row * experts;
    const float loss = *d_loss, z = loss * z_weight * 2.0f * lse[row] / rows;
    const float balance = first_share ? loss * balance_weight * experts / rows : 0.0f;
    float dot = 0.0f;
    for (int e = lane; e < experts; e += 32) {
        float dp = slot[e] >= 0 ? d_gate[slot[e]] : 0.0f;
        if (first_share) dp += balance * first_share[e];
        dl[e] = dp;
        dot += dp * p[e];
    }
    dot = warp_sum(dot);
    for (int e = lane; e < experts; e += 32) dl[e] = p[e] * (dl[e] - dot) + z * p[e];
    __syncwarp();
    for (int e = lane; e < ld; e += 32)
        d_logits[(size_t)row * ld + e] = __float2bfloat16(e < experts ? dl[e] : 0.0f);
    for (int i = lane * 4; i < d; i += 128) {
        float4 sum = make_float4(0, 0, 0, 0);
        for (int e = 0; e < experts; ++e) {
            const float l = dl[e];
            const float4 w = load4(router + (size_t)e * d + i);
            sum.x += l * w.x; sum.y += l * w.y; sum.z += l * w.z; sum.w += l * w.w;
            if (slot[e] >= 0) {
                const float4 v = load4(d_taken + (size_t)slot[e] * d + i);
                sum.x += v.x; sum.y += v.y; sum.z += v.z; sum.w += v.w;
            }
        }
        store4(dh + (size_t)row * d + i, sum);
    }
}
