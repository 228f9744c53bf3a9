// LayerNorm over a row, a warp a row, the row in registers; also over a head's part of queries and keys.
#include "common.cuh"

#define WARPS 4

// `x_out = x + y` (y may be null), `h = (x_out - mean) * rstd * scale + bias`, stats = (mean, rstd).
// V: groups of 128 values that a row may have.
template <int V>
__device__ void norm_forward(const float* x, const bf16* y, float* x_out, bf16* h16, float* h32, float2* stats,
                             const float* scale, const float* bias, int rows, int d, float eps) {
    const int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const size_t at = (size_t)row * d;
    float4 v[V];
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < V; ++k) {
        const int i = (k * 32 + lane) * 4;
        if (i < d) {
            v[k] = load4(x + at + i);
            if (y) {
                const float4 add = load4(y + at + i);
                v[k].x += add.x; v[k].y += add.y; v[k].z += add.z; v[k].w += add.w;
            }
            if (x_out) store4(x_out + at + i, v[k]);
            sum += v[k].x + v[k].y + v[k].z + v[k].w;
        }
    }
    const float mean = warp_sum(sum) / d;
    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < V; ++k) {
        if ((k * 32 + lane) * 4 < d) {
            const float a = v[k].x - mean, b = v[k].y - mean, c = v[k].z - mean, e = v[k].w - mean;
            squares += a * a + b * b + c * c + e * e;
        }
    }
    const float rstd = rsqrtf(warp_sum(squares) / d + eps);
    if (stats && lane == 0) stats[row] = make_float2(mean, rstd);
    if (!h16 && !h32) return;
#pragma unroll
    for (int k = 0; k < V; ++k) {
        const int i = (k * 32 + lane) * 4;
        if (i < d) {
            const float4 s = load4(scale + i);
            float4 h = make_float4((v[k].x - mean) * rstd * s.x, (v[k].y - mean) * rstd * s.y,
                                   (v[k].z - mean) * rstd * s.z, (v[k].w - mean) * rstd * s.w);
            if (bias) {
                const float4 b = load4(bias + i);
                h.x += b.x; h.y += b.y; h.z += b.z; h.w += b.w;
            }
            if (h16) store4(h16 + at + i, h);
            if (h32) store4(h32 + at + i, h);
        }
    }
}

#define NORM_FORWARD(WIDTH)                                                                                            \
    extern "C" __global__ void norm_forward_##WIDTH(const float* x, const bf16* y, float* x_out, bf16* h16,            \
                                                    float* h32, float2* stats, const float* scale, const float* bias,  \
                                                    int rows, int d, float eps) {                                      \
        norm_forward<WIDTH / 128>(x, y, x_out, h16, h32, stats, scale, bias, rows, d, eps);                            \
    }

NORM_FORWARD(256)
NORM_FORWARD(512)
NORM_FORWARD(768)
NORM_FORWARD(1024)
NORM_FORWARD(2048)

// `dx (+)= slope of h at x, times dh`; `dx16` gets a copy of the new dx. Each block sums its rows' part of the gradients of
// scale and bias into `partial[block]`: `[2, d]`. A block's rows are fixed by the grid, so sums repeat to the bit.
template <int V, bool BIAS>
__device__ void norm_backward(const bf16* dh16, const float* dh32, const float* x, const float2* stats,
                              const float* scale, float* dx, bf16* dx16, float* partial, int rows, int d, int add) {
    extern __shared__ float shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float4 d_scale[V], d_bias[V];
#pragma unroll
    for (int k = 0; k < V; ++k) d_scale[k] = d_bias[k] = make_float4(0, 0, 0, 0);
    for (int row = blockIdx.x * WARPS + warp; row < rows; row += gridDim.x * WARPS) {
        const size_t at = (size_t)row * d;
        const float2 stat = stats[row];
        float4 xh[V], g[V];
        float c1 = 0.0f, c2 = 0.0f;
#pragma unroll
        for (int k = 0; k < V; ++k) {
            const int i = (k * 32 + lane) * 4;
            if (i < d) {
                const float4 dh = dh16 ? load4(dh16 + at + i) : load4(dh32 + at + i);
                const float4 raw = load4(x + at + i), s = load4(scale + i);
                xh[k] = make_float4((raw.x - stat.x) * stat.y, (raw.y - stat.x) * stat.y, (raw.z - stat.x) * stat.y,
                                    (raw.w - stat.x) * stat.y);
                g[k] = make_float4(dh.x * s.x, dh.y * s.y, dh.z * s.z, dh.w * s.w);
                d_scale[k].x += dh.x * xh[k].x; d_scale[k].y += dh.y * xh[k].y;
                d_scale[k].z += dh.z * xh[k].z; d_scale[k].w += dh.w * xh[k].w;
                if (BIAS) { d_bias[k].x += dh.x; d_bias[k].y += dh.y; d_bias[k].z += dh.z; d_bias[k].w += dh.w; }
                c1 += g[k].x + g[k].y + g[k].z + g[k].w;
                c2 += g[k].x * xh[k].x + g[k].y * xh[k].y + g[k].z * xh[k].z + g[k].w * xh[k].w;
            }
        }
        c1 = warp_sum(c1) / d;
        c2 = warp_sum(c2) / d;
#pragma unroll
        for (int k = 0; k < V; ++k) {
            const int i = (k * 32 + lane) * 4;
            if (i < d) {
                float4 to = make_float4(stat.y * (g[k].x - c1 - xh[k].x * c2), stat.y * (g[k].y - c1 - xh[k].y * c2),
                                        stat.y * (g[k].z - c1 - xh[k].z * c2), stat.y * (g[k].w - c1 - xh[k].w * c2));
                if (add) {
                    const float4 old = load4(dx + at + i);
                    to.x += old.x; to.y += old.y; to.z += old.z; to.w += old.w;
                }
                store4(dx + at + i, to);
                if (dx16) store4(dx16 + at + i, to);
            }
        }
    }
    // The block's warps, one after the other.
    for (int w = 0; w < WARPS; ++w) {
        if (warp == w) {
#pragma unroll
            for (int k = 0; k < V; ++k) {
                const int i = (k * 32 + lane) * 4;
                if (i < d) {
                    float4 s = d_scale[k], b = d_bias[k];
                    if (w > 0) {
                        const float4 s0 = load4(shared + i), b0 = load4(shared + d + i);
                        s.x += s0.x; s.y += s0.y; s.z += s0.z; s.w += s0.w;
                        b.x += b0.x; b.y += b0.y; b.z += b0.z; b.w += b0.w;
                    }
                    store4(shared + i, s);
                    store4(shared + d + i, b);
                }
            }
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < 2 * d; i += blockDim.x) partial[(size_t)blockIdx.x * 2 * d + i] = shared[i];
}

#define NORM_BACKWARD(NAME, WIDTH, BIAS)                                                                               \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, WIDTH <= 768 && !BIAS ? 5 : 1)                            \
        NAME(const bf16* dh16, const float* dh32, const float* x, const float2* stats, const float* scale, float* dx,  \
             bf16* dx16, float* partial, int rows, int d, int add) {                                                   \
        norm_backward<WIDTH / 128, BIAS>(dh16, dh32, x, stats, scale, dx, dx16, partial, rows, d, add);                \
    }

NORM_BACKWARD(norm_backward_256, 256, false)
NORM_BACKWARD(norm_backward_512, 512, false)
NORM_BACKWARD(norm_backward_768, 768, false)
NORM_BACKWARD(norm_backward_1024, 1024, false)
NORM_BACKWARD(norm_backward_2048, 2048, false)
NORM_BACKWARD(norm_backward_bias_256, 256, true)
NORM_BACKWARD(norm_backward_bias_512, 512, true)
NORM_BACKWARD(norm_backward_bias_768, 768, true)
NORM_BACKWARD(norm_backward_bias_1024, 1024, true)
NORM_BACKWARD(norm_backward_bias_2048, 2048, true)

// LayerNorm of queries and keys, head by head: a warp an (item, part, head). `qkv` is `[rows, 3, heads, width]`, `out` `[rows, 2,
// heads, width]`. Width at most 128.
extern "C" __global__ void head_norm_forward(const bf16* qkv, bf16* out, float2* stats, const float* scale_q,
                                             const float* scale_k, int rows, int heads, int width, float eps) {
    const int item = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (item >= rows * 2 * heads) return;
    const int row = item / (2 * heads), part = item / heads % 2, head = item % heads, d = heads * width;
    const bf16* from = qkv + (size_t)row * 3 * d + part * d + head * width;
    bf16* to = out + (size_t)row * 2 * d + part * d + head * width;
    const float* scale = part ? scale_k : scale_q;
    float v[4], sum = 0.0f;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const int i = k * 32 + lane;
        v[k] = i < width ? __bfloat162float(from[i]) : 0.0f;
        sum += v[k];
    }
    const float mean = warp_sum(sum) / width;
    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < 4; ++k) squares += k * 32 + lane < width ? (v[k] - mean) * (v[k] - mean) : 0.0f;
    const float rstd = rsqrtf(warp_sum(squares) / width + eps);
    if (lane == 0) stats[item] = make_float2(mean, rstd);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const int i = k * 32 + lane;
        if (i < width) to[i] = __float2bfloat16((v[k] - mean) * rstd * scale[i]);
    }
}

// In place: the first two parts of `dqkv` come in as gradients of the normed, and go out as those of what was normed.
// `partial[block]` is `[2, width]`.
extern "C" __global__ void head_norm_backward(const bf16* qkv, bf16* dqkv, const float2* stats, const float* scale_q,
                                              const float* scale_k, float* partial, int rows, int heads, int width) {
    __shared__ float shared[2 * 128];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = heads * width;
    float d_scale[2][4] = {};
    for (int item = blockIdx.x * WARPS + warp; item < rows * 2 * heads; item += gridDim.x * WARPS) {
        const int row = item / (2 * heads), part = item / heads % 2, head = item % heads;
        const size_t at = (size_t)row * 3 * d + part * d + head * width;
        const float* scale = part ? scale_k : scale_q;
        const float2 stat = stats[item];
        float xh[4], g[4], c1 = 0.0f, c2 = 0.0f;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int i = k * 32 + lane;
            xh[k] = g[k] = 0.0f;
            if (i < width) {
                const float dh = __bfloat162float(dqkv[at + i]);
                xh[k] = (__bfloat162float(qkv[at + i]) - stat.x) * stat.y;
                g[k] = dh * scale[i];
                if (part) d_scale[1][k] += dh * xh[k]; else d_scale[0][k] += dh * xh[k];
            }
            c1 += g[k];
            c2 += g[k] * xh[k];
        }
        c1 = warp_sum(c1) / width;
        c2 = warp_sum(c2) / width;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int i = k * 32 + lane;
            if (i < width) dqkv[at + i] = __float2bfloat16(stat.y * (g[k] - c1 - xh[k] * c2));
        }
    }
    for (int w = 0; w < WARPS; ++w) {
        if (warp == w) {
#pragma unroll
            for (int p = 0; p < 2; ++p) {
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const int i = k * 32 + lane;
                    if (i < width) shared[p * 128 + i] = d_scale[p][k] + (w > 0 ? shared[p * 128 + i] : 0.0f);
                }
            }
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < 2 * width; i += blockDim.x)
        partial[(size_t)blockIdx.x * 2 * width + i] = shared[i / width * 128 + i % width];
}
