// One value at a time: casts, GELU, sums of columns, look-ups of pixels, means over tokens, the optimizer's parts.
#include "common.cuh"

extern "C" __global__ void to_bf16(const float* from, bf16* to, size_t n) {
    for (size_t i = (blockIdx.x * (size_t)blockDim.x + threadIdx.x) * 4; i < n; i += (size_t)gridDim.x * blockDim.x * 4) {
        if (i + 4 <= n) {
            store4(to + i, load4(from + i));
        } else {
            for (size_t k = i; k < n; ++k) to[k] = __float2bfloat16(from[k]);
        }
    }
}

// Columns `[0, width)` of rows of `ld` values; width a multiple of four.
extern "C" __global__ void to_bf16_strided(const float* from, bf16* to, int rows, int width, int ld) {
    const size_t n = (size_t)rows * width / 4;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        const size_t row = i * 4 / width, column = i * 4 % width;
        store4(to + row * ld + column, load4(from + i * 4));
    }
}

extern "C" __global__ void gelu_forward(const bf16* u, bf16* g, size_t n) {
    for (size_t i = (blockIdx.x * (size_t)blockDim.x + threadIdx.x) * 4; i < n; i += (size_t)gridDim.x * blockDim.x * 4) {
        const float4 v = load4(u + i);
        store4(g + i, make_float4(gelu(v.x), gelu(v.y), gelu(v.z), gelu(v.w)));
    }
}

// In place: `dg *= slope(u)`.
extern "C" __global__ void gelu_backward(const bf16* u, bf16* dg, size_t n) {
    for (size_t i = (blockIdx.x * (size_t)blockDim.x + threadIdx.x) * 4; i < n; i += (size_t)gridDim.x * blockDim.x * 4) {
        const float4 v = load4(u + i), d = load4(dg + i);
        store4(dg + i, make_float4(d.x * gelu_slope(v.x), d.y * gelu_slope(v.y), d.z * gelu_slope(v.z),
                                   d.w * gelu_slope(v.w)));
    }
}

// `y += bias`, then GELU if `before` is not null; `before` keeps what it was applied to.
extern "C" __global__ void add_bias(float* y, const float* bias, float* before, size_t n, int width) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        const float v = y[i] + (bias ? bias[i % width] : 0.0f);
        if (before) before[i] = v;
        y[i] = before ? gelu(v) : v;
    }
}

// `to = dy * slope(before)` in bf16; `before` may be null.
extern "C" __global__ void through_gelu(const float* dy, const float* before, bf16* to, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        to[i] = __float2bfloat16(before ? dy[i] * gelu_slope(before[i]) : dy[i]);
}

// Columns of bf16 rows, a block's rows in order, into `partial[block, width]`.
extern "C" __global__ void column_sums(const bf16* from, float* partial, int rows, int width) {
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (int row = blockIdx.x; row < rows; row += gridDim.x) sum += __bfloat162float(from[(size_t)row * width + i]);
        partial[(size_t)blockIdx.x * width + i] = sum;
    }
}

// `to[i] += sum over blocks of partial[block * stride + i]`; 32 columns a block, its warps' sums one after the other.
extern "C" __global__ void add_partials(const float* partial, float* to, int blocks, int stride, int width) {
    __shared__ float sums[8][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (i < width)
        for (int b = warp; b < blocks; b += 8) sum += partial[(size_t)b * stride + i];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || i >= width) return;
    for (int w = 1; w < 8; ++w) sum += sums[w][lane];
    to[i] += sum;
}

// The first `width` columns of `from` `[rows, ld]` onto `to` `[rows, width]`.
extern "C" __global__ void add_columns(const float* from, float* to, int rows, int width, int ld) {
    const int n = rows * width;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        to[i] += from[(size_t)(i / width) * ld + i % width];
}

extern "C" __global__ void add_into(const float* from, float* to, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        to[i] += from[i];
}

// Tubes of u8 clips `[n, frames, height, width, 3]` as bf16 rows in [-1, 1]; `kept` `[n, tokens]` or null.
extern "C" __global__ void tubes(const uint8_t* pixels, const uint32_t* kept, bf16* to, int n_rows, int n_tokens,
                                 int frames, int height, int width, int dt, int dh, int dw) {
    const int line = dw * 3, per_frame = dh * line, n_values = dt * per_frame;
    const int columns = width / dw, per_place = columns * (height / dh);
    const int row = blockIdx.x;
    if (row >= n_rows) return;
    const int clip = row / n_tokens;
    const int place = kept ? kept[row] : row % n_tokens;
    const int t = place / per_place, h = place / columns % (height / dh), w = place % columns;
    for (int i = threadIdx.x; i < n_values; i += blockDim.x) {
        const int f = i / per_frame, y = i % per_frame / line, x = i % line;
        const int frame = min(t * dt + f, frames - 1);
        const size_t at = (((size_t)clip * frames + frame) * height + h * dh + y) * width * 3 + (size_t)w * line + x;
        to[(size_t)row * n_values + i] = __float2bfloat16(pixels[at] * (2.0f / 255.0f) - 1.0f);
    }
}

// `y[n, d] = sum over tokens of weight[n, t] x[n, t, d]`.
extern "C" __global__ void pool_forward(const float* x, const float* weight, float* y, int tokens, int d) {
    const int example = blockIdx.x;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float sum = 0.0f;
        for (int t = 0; t < tokens; ++t)
            sum += weight[example * tokens + t] * x[((size_t)example * tokens + t) * d + i];
        y[(size_t)example * d + i] = sum;
    }
}

extern "C" __global__ void pool_backward(const float* dy, const float* weight, float* dx, size_t n, int tokens, int d) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        const size_t token = i / d;
        dx[i] += weight[token] * dy[token / tokens * d + i % d];
    }
}

// Rows `place` of `from` `[places, d]` added to `x` `[rows, d]`; `kept` null: places in order, example after example.
extern "C" __global__ void add_places(float* x, const float* from, const uint32_t* kept, size_t n, int places, int d) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        const size_t row = i / d;
        x[i] += from[(size_t)(kept ? kept[row] : row % places) * d + i % d];
    }
}

// What `add_places` takes back, when every example has all places: a block a place, examples in order.
extern "C" __global__ void sum_places(const float* dx, float* to, int examples, int places, int d) {
    const int place = blockIdx.x;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float sum = 0.0f;
        for (int e = 0; e < examples; ++e) sum += dx[((size_t)e * places + place) * d + i];
        to[(size_t)place * d + i] += sum;
    }
}

// As `sum_places`, by a list of each place's rows: `rows[starts[place] .. starts[place + 1]]`.
extern "C" __global__ void sum_listed(const float* dx, float* to, const uint32_t* rows, const uint32_t* starts, int d) {
    const int place = blockIdx.x;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float sum = 0.0f;
        for (uint32_t k = starts[place]; k < starts[place + 1]; ++k) sum += dx[(size_t)rows[k] * d + i];
        to[(size_t)place * d + i] += sum;
    }
}

// Sums of squares in f64, a block's values in a fixed order, into `partial[block]`.
extern "C" __global__ void squares(const float* g, double* partial, size_t n) {
    __shared__ double shared[256];
    double sum = 0.0;
    const size_t fours = n / 4;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < fours; i += (size_t)gridDim.x * blockDim.x) {
        const float4 v = load4(g + i * 4);
        sum += (double)(v.x * v.x + v.y * v.y) + (double)(v.z * v.z + v.w * v.w);
    }
    if (blockIdx.x == 0 && threadIdx.x < n % 4) {
        const float v = g[fours * 4 + threadIdx.x];
        sum += (double)(v * v);
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    for (int o = 128; o > 0; o >>= 1) {
        if (threadIdx.x < o) shared[threadIdx.x] += shared[threadIdx.x + o];
        __syncthreads();
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = shared[0];
}

extern "C" __global__ void scale(float* g, float by, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) g[i] *= by;
}

// `ema = decay * ema + (1 - decay) * p`.
extern "C" __global__ void average(const float* p, float* ema, float decay, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        ema[i] = decay * ema[i] + (1.0f - decay) * p[i];
}
