// Attention with an online softmax: no matrix of tokens by tokens leaves the chip.
//
// Queries, keys and values are bf16 rows of a wider matrix: token `i` of example `b`, head `h` begins at
// `base + (b * n + i) * ld + h * W`. Products run on tensor cores (mma m16n8k16) with f32 sums. Logarithms of the softmax's sums are
// kept, base 2, `[batch, heads, n]`.
//
// A pair of which one token is padding has its score swallowed by -1e10 in the stock form: a padded query weighs all keys alike, a
// padded key has no weight. The same here, without the large number.
//
// Sources: Dao 2023, arXiv:2307.08691 (tiles, recomputed scores); the backward pass is two kernels, one by keys and one by queries,
// so that no sum is atomic and all repeat to the bit.
#include "common.cuh"

#define THREADS 128
#define TILE 64
#define MASKED_OUT (-INFINITY)

__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Offset, in values, of a 16-byte chunk of a row, arranged so that eight rows' chunks fall on distinct banks.
template <int W>
__device__ __forceinline__ int place(int row, int chunk) {
    constexpr int CHUNKS = W / 8;
    if (CHUNKS >= 8) return row * W + ((chunk ^ (row & 7)) * 8);
    return row * W + ((chunk ^ ((row >> 1) & 3)) * 8);
}

// TILE rows from `first` on into shared memory; rows beyond `n` are zero.
template <int W, int ROWS>
__device__ __forceinline__ void fetch(bf16* to, const bf16* from, int first, int n, int ld) {
    constexpr int CHUNKS = W / 8;
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool inside = first + row < n;
        const bf16* source = from + (size_t)(inside ? first + row : 0) * ld + chunk * 8;
        const int bytes = inside ? 16 : 0;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to + place<W>(row, chunk))),
                     "l"(source), "r"(bytes));
    }
}

// A tile's logarithms of sums, and its products with the gradient; zeros beyond `n`.
__device__ __forceinline__ void fetch_numbers(float (*to)[TILE], const float* lse, const float* dot, int first, int n) {
    const int which = threadIdx.x / TILE, i = threadIdx.x % TILE;
    const bool inside = first + i < n;
    const float* source = (which ? dot : lse) + (inside ? first + i : 0);
    const int bytes = inside ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(&to[which][i])), "l"(source),
                 "r"(bytes));
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;"); }
template <int N>
__device__ __forceinline__ void wait_for() { asm volatile("cp.async.wait_group %0;" ::"n"(N)); }

__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const bf16* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)));
}
__device__ __forceinline__ void ldmatrix_t(uint32_t (&r)[4], const bf16* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)));
}
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint32_t pack(float x, float y) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<const uint32_t*>(&v);
}

// Left operand: 16 rows from `row` on, 16 columns of chunk pair `k`.
template <int W>
__device__ __forceinline__ void left(uint32_t (&a)[4], const bf16* tile, int row, int k) {
    const int lane = threadIdx.x & 31;
    ldmatrix(a, tile + place<W>(row + (lane & 15), k * 2 + (lane >> 4)));
}
// Right operand, transposed: the product with rows `row .. row + 16` of the tile as columns; two column tiles.
template <int W>
__device__ __forceinline__ void right_rows(uint32_t (&b)[4], const bf16* tile, int row, int k) {
    const int lane = threadIdx.x & 31;
    ldmatrix(b, tile + place<W>(row + (lane & 7) + ((lane >> 4) << 3), k * 2 + ((lane >> 3) & 1)));
}
// Right operand: rows `row .. row + 16` of the tile are summed over; two column tiles from chunk `2 k` on.
template <int W>
__device__ __forceinline__ void right_columns(uint32_t (&b)[4], const bf16* tile, int row, int k) {
    const int lane = threadIdx.x & 31;
    ldmatrix_t(b, tile + place<W>(row + (lane & 15), k * 2 + (lane >> 4)));
}

// 2 to the power of x; what is too small for f32's normal numbers is 0.
__device__ __forceinline__ float power(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// One example's flag of a token; all tokens count where there is no mask.
__device__ __forceinline__ bool is_valid(const uint8_t* valid, int i) { return !valid || valid[i]; }

// M: 16-row tiles of queries that a warp has.
template <int W, int M>
__device__ void forward(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, const uint8_t* valid, int n,
                        int heads, int ld_q, int ld_k, int ld_v, int ld_out, float scale) {
    extern __shared__ bf16 memory[];
    constexpr int ROWS = 64 * M;
    bf16* q_tile = memory;
    bf16* k_tiles = q_tile + ROWS * W;
    bf16* v_tiles = k_tiles + 2 * TILE * W;
    const int first = blockIdx.x * ROWS, head = blockIdx.y, item = blockIdx.z;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
    const float factor = scale * 1.4426950408889634f;
    q += (size_t)item * n * ld_q + head * W;
    k += (size_t)item * n * ld_k + head * W;
    v += (size_t)item * n * ld_v + head * W;
    if (valid) valid += (size_t)item * n;
    fetch<W, ROWS>(q_tile, q, first, n, ld_q);
    fetch<W, TILE>(k_tiles, k, 0, n, ld_k);
    commit();
    fetch<W, TILE>(v_tiles, v, 0, n, ld_v);
    commit();
    float o[M][W / 8][4], top[M][2], sum[M][2];
    bool q_valid[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            top[m][half] = MASKED_OUT;
            sum[m][half] = 0.0f;
            const int row = first + (warp * M + m) * 16 + group + half * 8;
            q_valid[m][half] = row < n && is_valid(valid, row);
        }
#pragma unroll
        for (int j = 0; j < W / 8; ++j) o[m][j][0] = o[m][j][1] = o[m][j][2] = o[m][j][3] = 0.0f;
    }
    uint32_t q_left[M][W / 16][4];
    const int tiles = (n + TILE - 1) / TILE;
    for (int tile = 0; tile < tiles; ++tile) {
        const int at = tile & 1;
        const bf16 *k_tile = k_tiles + at * TILE * W, *v_tile = v_tiles + at * TILE * W;
        wait_for<1>();
        __syncthreads();
        if (tile == 0) {
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int c = 0; c < W / 16; ++c) left<W>(q_left[m][c], q_tile, (warp * M + m) * 16, c);
        }
        float s[M][TILE / 8][4];
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int j = 0; j < TILE / 8; ++j) s[m][j][0] = s[m][j][1] = s[m][j][2] = s[m][j][3] = 0.0f;
#pragma unroll
        for (int c = 0; c < W / 16; ++c)
#pragma unroll
            for (int j = 0; j < TILE / 16; ++j) {
                uint32_t b[4];
                right_rows<W>(b, k_tile, j * 16, c);
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    mma(s[m][2 * j], q_left[m][c], b[0], b[1]);
                    mma(s[m][2 * j + 1], q_left[m][c], b[2], b[3]);
                }
            }
        // The next keys arrive while this tile's softmax is done.
        if (tile + 1 < tiles) fetch<W, TILE>(k_tiles + (at ^ 1) * TILE * W, k, (tile + 1) * TILE, n, ld_k);
        commit();
        const bool whole = (tile + 1) * TILE <= n && !valid;
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (!whole) {
#pragma unroll
                    for (int j = 0; j < TILE / 8; ++j)
#pragma unroll
                        for (int x = 0; x < 2; ++x) {
                            float& value = s[m][j][half * 2 + x];
                            const int key = tile * TILE + j * 8 + pair * 2 + x;
                            if (key >= n) value = MASKED_OUT;
                            else if (!q_valid[m][half]) value = 0.0f;
                            else if (!is_valid(valid, key)) value = MASKED_OUT;
                        }
                }
                float most = MASKED_OUT;
#pragma unroll
                for (int j = 0; j < TILE / 8; ++j)
                    most = fmaxf(most, fmaxf(s[m][j][half * 2], s[m][j][half * 2 + 1]));
                // The factor is above 0, so it keeps the order.
                most = fmaxf(top[m][half], most * factor);
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                // A tile may hold only padded keys: nothing is known of the maximum then.
                const float base = most == MASKED_OUT ? 0.0f : most;
                const float shrink = power(top[m][half] - base);
                top[m][half] = most;
                float total = 0.0f;
#pragma unroll
                for (int j = 0; j < TILE / 8; ++j)
#pragma unroll
                    for (int x = 0; x < 2; ++x) {
                        float& value = s[m][j][half * 2 + x];
                        value = power(fmaf(value, factor, -base));
                        total += value;
                    }
                sum[m][half] = sum[m][half] * shrink + total;
#pragma unroll
                for (int j = 0; j < W / 8; ++j) {
                    o[m][j][half * 2] *= shrink;
                    o[m][j][half * 2 + 1] *= shrink;
                }
            }
        }
        wait_for<1>();
        __syncthreads();
#pragma unroll
        for (int c = 0; c < TILE / 16; ++c) {
            uint32_t p[M][4];
#pragma unroll
            for (int m = 0; m < M; ++m) {
                p[m][0] = pack(s[m][2 * c][0], s[m][2 * c][1]);
                p[m][1] = pack(s[m][2 * c][2], s[m][2 * c][3]);
                p[m][2] = pack(s[m][2 * c + 1][0], s[m][2 * c + 1][1]);
                p[m][3] = pack(s[m][2 * c + 1][2], s[m][2 * c + 1][3]);
            }
#pragma unroll
            for (int j = 0; j < W / 16; ++j) {
                uint32_t b[4];
                right_columns<W>(b, v_tile, c * 16, j);
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    mma(o[m][2 * j], p[m], b[0], b[1]);
                    mma(o[m][2 * j + 1], p[m], b[2], b[3]);
                }
            }
        }
        if (tile + 1 < tiles) fetch<W, TILE>(v_tiles + (at ^ 1) * TILE * W, v, (tile + 1) * TILE, n, ld_v);
        commit();
    }
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float total = sum[m][half];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const int row = first + (warp * M + m) * 16 + group + half * 8;
            if (row >= n) continue;
            const float by = 1.0f / total;
            if (lse && pair == 0) lse[((size_t)item * heads + head) * n + row] = top[m][half] + log2f(total);
            bf16* to = out + ((size_t)item * n + row) * ld_out + head * W + pair * 2;
#pragma unroll
            for (int j = 0; j < W / 8; ++j)
                *reinterpret_cast<uint32_t*>(to + j * 8) = pack(o[m][j][half * 2] * by, o[m][j][half * 2 + 1] * by);
        }
}

// `dot[b, h, i] = sum of dout * out` over a head's width; eight lanes a (token, head).
extern "C" __global__ void attention_dot(const bf16* out, const bf16* dout, float* dot, int n, int heads, int width,
                                         size_t items) {
    const size_t item = min(blockIdx.x * (size_t)(blockDim.x / 8) + threadIdx.x / 8, items - 1);
    const int lane = threadIdx.x % 8;
    const size_t token = item / heads;
    const int head = item % heads;
    const size_t at = token * heads * width + (size_t)head * width;
    float sum = 0.0f;
    for (int i = lane * 4; i < width; i += 32) {
        const float4 a = load4(out + at + i), b = load4(dout + at + i);
        sum += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
    }
#pragma unroll
    for (int o = 4; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    if (lane == 0) dot[((token / n) * heads + head) * n + token % n] = sum;
}

// The weight of a pair, from its score times the factor.
__device__ __forceinline__ float weight(float score, float lse, bool inside, bool q_valid, bool k_valid) {
    if (!inside) return 0.0f;
    if (!q_valid) return power(-lse);
    return k_valid ? power(score - lse) : 0.0f;
}

// Gradients of a tile of keys and values; a warp has 16 of them and goes through all queries.
template <int W>
__device__ void backward_keys(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse,
                              const float* dot, bf16* dk, bf16* dv, const uint8_t* valid, int n, int heads, int ld_q,
                              int ld_k, int ld_v, int ld_out, int ld_d, float scale) {
    extern __shared__ bf16 memory[];
    bf16 *q_tiles = memory, *d_tiles = q_tiles + 2 * TILE * W;
    __shared__ float numbers[2][2][TILE];
    const int first = blockIdx.x * TILE, head = blockIdx.y, item = blockIdx.z;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
    const float factor = scale * 1.4426950408889634f;
    q += (size_t)item * n * ld_q + head * W;
    k += (size_t)item * n * ld_k + head * W;
    v += (size_t)item * n * ld_v + head * W;
    dout += (size_t)item * n * ld_out + head * W;
    lse += ((size_t)item * heads + head) * n;
    dot += ((size_t)item * heads + head) * n;
    if (valid) valid += (size_t)item * n;
    // Keys and values pass through the queries' place on their way to registers.
    uint32_t k_left[W / 16][4], v_left[W / 16][4];
    fetch<W, TILE>(q_tiles, k, first, n, ld_k);
    fetch<W, TILE>(d_tiles, v, first, n, ld_v);
    commit();
    wait_for<0>();
    __syncthreads();
#pragma unroll
    for (int c = 0; c < W / 16; ++c) {
        left<W>(k_left[c], q_tiles, warp * 16, c);
        left<W>(v_left[c], d_tiles, warp * 16, c);
    }
    __syncthreads();
    float d_k[W / 8][4], d_v[W / 8][4];
#pragma unroll
    for (int j = 0; j < W / 8; ++j)
#pragma unroll
        for (int x = 0; x < 4; ++x) d_k[j][x] = d_v[j][x] = 0.0f;
    const int key = first + warp * 16 + group;
    const bool key_in[2] = {key < n, key + 8 < n};
    const bool key_ok[2] = {key < n && is_valid(valid, key), key + 8 < n && is_valid(valid, key + 8)};
    const int tiles = (n + TILE - 1) / TILE;
    fetch<W, TILE>(q_tiles, q, 0, n, ld_q);
    fetch<W, TILE>(d_tiles, dout, 0, n, ld_out);
    fetch_numbers(numbers[0], lse, dot, 0, n);
    commit();
    for (int tile = 0; tile < tiles; ++tile) {
        const int at = tile & 1;
        const bf16 *q_tile = q_tiles + at * TILE * W, *d_tile = d_tiles + at * TILE * W;
        if (tile + 1 < tiles) {
            fetch<W, TILE>(q_tiles + (at ^ 1) * TILE * W, q, (tile + 1) * TILE, n, ld_q);
            fetch<W, TILE>(d_tiles + (at ^ 1) * TILE * W, dout, (tile + 1) * TILE, n, ld_out);
            fetch_numbers(numbers[at ^ 1], lse, dot, (tile + 1) * TILE, n);
        }
        commit();
        wait_for<1>();
        __syncthreads();
        // Half a tile of queries at a time keeps everything in registers.
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            float s[4][4], dp[4][4];
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int x = 0; x < 4; ++x) s[j][x] = dp[j][x] = 0.0f;
#pragma unroll
            for (int c = 0; c < W / 16; ++c)
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    uint32_t b[4];
                    right_rows<W>(b, q_tile, part * 32 + j * 16, c);
                    mma(s[2 * j], k_left[c], b[0], b[1]);
                    mma(s[2 * j + 1], k_left[c], b[2], b[3]);
                    right_rows<W>(b, d_tile, part * 32 + j * 16, c);
                    mma(dp[2 * j], v_left[c], b[0], b[1]);
                    mma(dp[2 * j + 1], v_left[c], b[2], b[3]);
                }
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int x = 0; x < 2; ++x) {
                    const int in_tile = part * 32 + j * 8 + pair * 2 + x, query = tile * TILE + in_tile;
                    const bool inside = query < n;
                    const float l = numbers[at][0][in_tile], d = numbers[at][1][in_tile];
                    const bool ok = inside && is_valid(valid, query);
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float p =
                            weight(s[j][half * 2 + x] * factor, l, inside && key_in[half], ok, key_ok[half]);
                        s[j][half * 2 + x] = p;
                        dp[j][half * 2 + x] = p * (dp[j][half * 2 + x] - d);
                    }
                }
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const uint32_t p[4] = {pack(s[2 * c][0], s[2 * c][1]), pack(s[2 * c][2], s[2 * c][3]),
                                       pack(s[2 * c + 1][0], s[2 * c + 1][1]), pack(s[2 * c + 1][2], s[2 * c + 1][3])};
                const uint32_t ds[4] = {pack(dp[2 * c][0], dp[2 * c][1]), pack(dp[2 * c][2], dp[2 * c][3]),
                                        pack(dp[2 * c + 1][0], dp[2 * c + 1][1]),
                                        pack(dp[2 * c + 1][2], dp[2 * c + 1][3])};
#pragma unroll
                for (int j = 0; j < W / 16; ++j) {
                    uint32_t b[4];
                    right_columns<W>(b, d_tile, part * 32 + c * 16, j);
                    mma(d_v[2 * j], p, b[0], b[1]);
                    mma(d_v[2 * j + 1], p, b[2], b[3]);
                    right_columns<W>(b, q_tile, part * 32 + c * 16, j);
                    mma(d_k[2 * j], ds, b[0], b[1]);
                    mma(d_k[2 * j + 1], ds, b[2], b[3]);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (!key_in[half]) continue;
        const size_t to = ((size_t)item * n + key + half * 8) * ld_d + head * W + pair * 2;
#pragma unroll
        for (int j = 0; j < W / 8; ++j) {
            *reinterpret_cast<uint32_t*>(dk + to + j * 8) = pack(d_k[j][half * 2] * scale, d_k[j][half * 2 + 1] * scale);
            *reinterpret_cast<uint32_t*>(dv + to + j * 8) = pack(d_v[j][half * 2], d_v[j][half * 2 + 1]);
        }
    }
}

// Gradients of a tile of queries; a warp has 16 of them and goes through all keys.
template <int W>
__device__ void backward_queries(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse,
                                 const float* dot, bf16* dq, const uint8_t* valid, int n, int heads, int ld_q, int ld_k,
                                 int ld_v, int ld_out, int ld_d, float scale) {
    extern __shared__ bf16 memory[];
    bf16 *k_tiles = memory, *v_tiles = k_tiles + 2 * TILE * W;
    const int first = blockIdx.x * TILE, head = blockIdx.y, item = blockIdx.z;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
    const float factor = scale * 1.4426950408889634f;
    q += (size_t)item * n * ld_q + head * W;
    k += (size_t)item * n * ld_k + head * W;
    v += (size_t)item * n * ld_v + head * W;
    dout += (size_t)item * n * ld_out + head * W;
    lse += ((size_t)item * heads + head) * n;
    dot += ((size_t)item * heads + head) * n;
    if (valid) valid += (size_t)item * n;
    uint32_t q_left[W / 16][4], d_left[W / 16][4];
    fetch<W, TILE>(k_tiles, q, first, n, ld_q);
    fetch<W, TILE>(v_tiles, dout, first, n, ld_out);
    commit();
    wait_for<0>();
    __syncthreads();
#pragma unroll
    for (int c = 0; c < W / 16; ++c) {
        left<W>(q_left[c], k_tiles, warp * 16, c);
        left<W>(d_left[c], v_tiles, warp * 16, c);
    }
    __syncthreads();
    float d_q[W / 8][4];
#pragma unroll
    for (int j = 0; j < W / 8; ++j)
#pragma unroll
        for (int x = 0; x < 4; ++x) d_q[j][x] = 0.0f;
    float l[2], d[2];
    bool query_in[2], query_ok[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int query = first + warp * 16 + group + half * 8;
        query_in[half] = query < n;
        query_ok[half] = query < n && is_valid(valid, query);
        l[half] = query < n ? lse[query] : 0.0f;
        d[half] = query < n ? dot[query] : 0.0f;
    }
    const int tiles = (n + TILE - 1) / TILE;
    fetch<W, TILE>(k_tiles, k, 0, n, ld_k);
    fetch<W, TILE>(v_tiles, v, 0, n, ld_v);
    commit();
    for (int tile = 0; tile < tiles; ++tile) {
        const int at = tile & 1;
        const bf16 *k_tile = k_tiles + at * TILE * W, *v_tile = v_tiles + at * TILE * W;
        if (tile + 1 < tiles) {
            fetch<W, TILE>(k_tiles + (at ^ 1) * TILE * W, k, (tile + 1) * TILE, n, ld_k);
            fetch<W, TILE>(v_tiles + (at ^ 1) * TILE * W, v, (tile + 1) * TILE, n, ld_v);
        }
        commit();
        wait_for<1>();
        __syncthreads();
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            float s[4][4], dp[4][4];
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int x = 0; x < 4; ++x) s[j][x] = dp[j][x] = 0.0f;
#pragma unroll
            for (int c = 0; c < W / 16; ++c)
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    uint32_t b[4];
                    right_rows<W>(b, k_tile, part * 32 + j * 16, c);
                    mma(s[2 * j], q_left[c], b[0], b[1]);
                    mma(s[2 * j + 1], q_left[c], b[2], b[3]);
                    right_rows<W>(b, v_tile, part * 32 + j * 16, c);
                    mma(dp[2 * j], d_left[c], b[0], b[1]);
                    mma(dp[2 * j + 1], d_left[c], b[2], b[3]);
                }
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int x = 0; x < 2; ++x) {
                    const int key = tile * TILE + part * 32 + j * 8 + pair * 2 + x;
                    const bool ok = key < n && is_valid(valid, key);
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float p = weight(s[j][half * 2 + x] * factor, l[half], key < n && query_in[half],
                                               query_ok[half], ok);
                        dp[j][half * 2 + x] = p * (dp[j][half * 2 + x] - d[half]);
                    }
                }
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const uint32_t ds[4] = {pack(dp[2 * c][0], dp[2 * c][1]), pack(dp[2 * c][2], dp[2 * c][3]),
                                        pack(dp[2 * c + 1][0], dp[2 * c + 1][1]),
                                        pack(dp[2 * c + 1][2], dp[2 * c + 1][3])};
#pragma unroll
                for (int j = 0; j < W / 16; ++j) {
                    uint32_t b[4];
                    right_columns<W>(b, k_tile, part * 32 + c * 16, j);
                    mma(d_q[2 * j], ds, b[0], b[1]);
                    mma(d_q[2 * j + 1], ds, b[2], b[3]);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (!query_in[half]) continue;
        const size_t to = ((size_t)item * n + first + warp * 16 + group + half * 8) * ld_d + head * W + pair * 2;
#pragma unroll
        for (int j = 0; j < W / 8; ++j)
            *reinterpret_cast<uint32_t*>(dq + to + j * 8) = pack(d_q[j][half * 2] * scale, d_q[j][half * 2 + 1] * scale);
    }
}

#define HEAD_WIDTH(W, M)                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS, M > 1 || W > 64 ? 2 : 4) attention_forward_##W(               \
        const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, const uint8_t* valid, int n, int heads,    \
        int ld_q, int ld_k, int ld_v, int ld_out, float scale) {                                                       \
        forward<W, M>(q, k, v, out, lse, valid, n, heads, ld_q, ld_k, ld_v, ld_out, scale);                            \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, W > 64 ? 1 : 3) attention_backward_keys_##W(                                       \
        const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* dot, bf16* dk,   \
        bf16* dv, const uint8_t* valid, int n, int heads, int ld_q, int ld_k, int ld_v, int ld_out, int ld_d,          \
        float scale) {                                                                                                 \
        backward_keys<W>(q, k, v, dout, lse, dot, dk, dv, valid, n, heads, ld_q, ld_k, ld_v, ld_out, ld_d, scale);     \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, W > 64 ? 1 : 3) attention_backward_queries_##W(                                 \
        const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* dot, bf16* dq,   \
        const uint8_t* valid, int n, int heads, int ld_q, int ld_k, int ld_v, int ld_out, int ld_d, float scale) {     \
        backward_queries<W>(q, k, v, dout, lse, dot, dq, valid, n, heads, ld_q, ld_k, ld_v, ld_out, ld_d, scale);      \
    }

HEAD_WIDTH(32, 2)
HEAD_WIDTH(64, 1)
HEAD_WIDTH(128, 1)
