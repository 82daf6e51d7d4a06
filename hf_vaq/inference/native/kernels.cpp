// Kernels on integer codes for CPUs with AVX-512 and VNNI: what stands between two integer matrix products.
//
// Codes are bytes: a code c of a quantizer with the levels qn..qp is the unsigned byte c - qn. Every quantization is
// round(clamp((x - offset) / scale, qn, qp)), ties to even: the operations of the float simulation in their order.
// Plain C interface, no dependency: loaded with ctypes (loading.py declares the same arguments).

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Quantizer {
    float scale, offset, qn, qp;
    bool has_offset;

    // Codes qn..qp of 16 values.
    __m512i codes(__m512 x) const {
        if (has_offset) x = _mm512_sub_ps(x, _mm512_set1_ps(offset));
        x = _mm512_div_ps(x, _mm512_set1_ps(scale));
        x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(qn)), _mm512_set1_ps(qp));
        return _mm512_cvtps_epi32(x);  // nearest, ties to even
    }

    // The same as bytes 0..qp-qn, one in each of 16 words.
    __m512i bytes(__m512 x) const { return _mm512_sub_epi32(codes(x), _mm512_set1_epi32((int)qn)); }
};

inline __mmask16 first(int64_t count) { return count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1); }

// The low bytes of the first `count` of 16 words. Masked stores of bytes are slow on some processors.
inline void store_bytes(uint8_t* out, __m512i words, int64_t count) {
    const __m128i bytes = _mm512_cvtepi32_epi8(words);
    if (count >= 16) {
        _mm_storeu_si128((__m128i*)out, bytes);
    } else {
        alignas(16) uint8_t buffer[16];
        _mm_store_si128((__m128i*)buffer, bytes);
        std::memcpy(out, buffer, count);
    }
}

void quantize_row(const float* x, int64_t n, const Quantizer& quantizer, uint8_t* out) {
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = first(n - i);
        store_bytes(out + i, quantizer.bytes(_mm512_maskz_loadu_ps(mask, x + i)), n - i);
    }
}

// e^x for x <= 0: 2^k times a polynomial on [-ln 2 / 2, ln 2 / 2], accurate to about one unit in the last place.
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    const __m512 k = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(k, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(k, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, k);
}

// ROWS x VECTORS tile of sums of products: out[i][16 v ..] = start[16 v ..] + sum over t of a[i][4 t ..] . b[t][16 v ..],
// a unsigned bytes, b signed bytes with four consecutive ones of the summed dimension side by side (a word).
template <int ROWS, int VECTORS>
inline void tile(const uint8_t* a, int64_t a_stride, const int8_t* b, int64_t b_stride, int64_t steps,
                 const int32_t* start, __m512i (&out)[ROWS][VECTORS]) {
    __m512i sums[ROWS][VECTORS];  // a local array: it stays in the registers
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
        const __m512i s = start ? _mm512_loadu_si512(start + 16 * v) : _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i) sums[i][v] = s;
    }
    for (int64_t t = 0; t < steps; ++t) {
        __m512i w[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) w[v] = _mm512_loadu_si512(b + t * b_stride + 64 * v);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i) {
            int32_t word;
            std::memcpy(&word, a + i * a_stride + 4 * t, 4);
            const __m512i x = _mm512_set1_epi32(word);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) sums[i][v] = _mm512_dpbusd_epi32(sums[i][v], x, w[v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) out[i][v] = sums[i][v];
}

constexpr int CENTER = 128;  // the byte of code zero of queries, keys and values
constexpr int ROWS = 6;  // queries at once: 6 x 4 vectors of sums fit the registers

struct Attention {
    const uint8_t *query, *key, *value;  // code + CENTER, not yet clamped to the levels
    const float* mask;
    int64_t batch, heads, tokens, dim;
    // Strides in elements: batch, head, token of query, key, value; batch, head, row of the mask.
    int64_t stride[3][3], mask_stride[3];
    const float *scale_q, *scale_k, *scale_v, *scale_p;  // one a head
    float levels[4][2];                                  // qn, qp of query, key, value, probabilities
    float scaling;
    const float* out_scale;  // one a head; none: the output is float
    float out_qn, out_qp;
    void* out;  // (batch, tokens, heads, dim)
};

struct Workspace {
    int64_t dim4, dim16, dim64, tokens16, tokens4;
    std::vector<int8_t> keys, values;
    std::vector<int32_t> start;
    std::vector<uint8_t> queries, probabilities;
    std::vector<float> scores;

    explicit Workspace(const Attention& a)
        : dim4((a.dim + 3) / 4), dim16((a.dim + 15) / 16), dim64((a.dim + 63) / 64), tokens16((a.tokens + 15) / 16), tokens4(tokens16 * 4),
          keys(dim4 * tokens16 * 64), values(tokens4 * dim16 * 64), start(tokens16 * 16),
          queries(ROWS * dim64 * 64), probabilities(ROWS * tokens16 * 16), scores(ROWS * tokens16 * 16) {}
};

// A row of bytes code + 128, clamped to the levels of its quantizer; 64 at a time, the last ones masked.
inline __m512i clamped(const uint8_t* x, int64_t count, const float (&levels)[2]) {
    const __mmask64 mask = count >= 64 ? ~0ull : (1ull << count) - 1;
    const __m512i bytes = _mm512_maskz_loadu_epi8(mask, x);
    const __m512i low = _mm512_set1_epi8((char)((int)levels[0] + CENTER));
    const __m512i high = _mm512_set1_epi8((char)((int)levels[1] + CENTER));
    return _mm512_maskz_mov_epi8(mask, _mm512_min_epu8(_mm512_max_epu8(bytes, low), high));
}

// The same as signed codes; zero beyond the count.
inline __m512i signed_codes(const uint8_t* x, int64_t count, const float (&levels)[2]) {
    const __mmask64 mask = count >= 64 ? ~0ull : (1ull << count) - 1;
    return _mm512_maskz_sub_epi8(mask, clamped(x, count, levels), _mm512_set1_epi8((char)CENTER));
}

// Keys as words of four dimensions, the words of 16 tokens side by side; and what the center of the queries adds.
void pack_keys(const Attention& a, int64_t b, int64_t h, Workspace& w) {
    const int64_t stride = w.tokens16 * 16;
    int32_t* keys = (int32_t*)w.keys.data();
    for (int64_t j = 0; j < a.tokens; ++j) {
        const uint8_t* x = a.key + b * a.stride[1][0] + h * a.stride[1][1] + j * a.stride[1][2];
        for (int64_t d = 0; d < a.dim; d += 64) {
            alignas(64) int32_t row[16];
            _mm512_store_si512(row, signed_codes(x + d, a.dim - d, a.levels[1]));
            const int64_t words = std::min<int64_t>(16, w.dim4 - d / 4);
            for (int64_t t = 0; t < words; ++t) keys[(d / 4 + t) * stride + j] = row[t];
        }
    }
    const __m512i center = _mm512_set1_epi8((char)CENTER);
    for (int64_t j = 0; j < w.tokens16; ++j) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t t = 0; t < w.dim4; ++t)
            sum = _mm512_dpbusd_epi32(sum, center, _mm512_loadu_si512(keys + t * stride + 16 * j));
        _mm512_storeu_si512(w.start.data() + 16 * j, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
    }
}

// Values as words of four tokens, the words of all dimensions side by side.
void pack_values(const Attention& a, int64_t b, int64_t h, Workspace& w) {
    const uint8_t* x = a.value + b * a.stride[2][0] + h * a.stride[2][1];
    alignas(64) uint8_t rows[4][64];
    for (int64_t t = 0; t < (a.tokens + 3) / 4; ++t) {
        for (int64_t d = 0; d < a.dim; d += 64) {
            for (int64_t i = 0; i < 4; ++i) {
                const bool inside = 4 * t + i < a.tokens;
                const uint8_t* row = x + (4 * t + i) * a.stride[2][2] + d;
                _mm512_store_si512(rows[i], inside ? signed_codes(row, a.dim - d, a.levels[2]) : _mm512_setzero_si512());
            }
            for (int64_t v = 0; v < std::min<int64_t>(4, w.dim16 - d / 16); ++v) {
                __m128i r[4];
                for (int i = 0; i < 4; ++i) r[i] = _mm_load_si128((const __m128i*)(rows[i] + 16 * v));
                const __m128i low01 = _mm_unpacklo_epi8(r[0], r[1]), high01 = _mm_unpackhi_epi8(r[0], r[1]);
                const __m128i low23 = _mm_unpacklo_epi8(r[2], r[3]), high23 = _mm_unpackhi_epi8(r[2], r[3]);
                __m128i* out = (__m128i*)(w.values.data() + (t * w.dim16 + d / 16 + v) * 64);
                _mm_storeu_si128(out, _mm_unpacklo_epi16(low01, low23));
                _mm_storeu_si128(out + 1, _mm_unpackhi_epi16(low01, low23));
                _mm_storeu_si128(out + 2, _mm_unpacklo_epi16(high01, high23));
                _mm_storeu_si128(out + 3, _mm_unpackhi_epi16(high01, high23));
            }
        }
    }
}

// Scores of N queries from the query codes: sums times scales plus mask.
template <int N>
void score(const Attention& a, int64_t b, int64_t h, int64_t first_row, Workspace& w) {
    const __m512 scale = _mm512_set1_ps(a.scale_q[h] * a.scale_k[h] * a.scaling);
    const float* mask = a.mask ? a.mask + b * a.mask_stride[0] + h * a.mask_stride[1] : nullptr;
    auto write = [&](auto& sums, int64_t column, int vectors) {
        for (int i = 0; i < N; ++i)
            for (int v = 0; v < vectors; ++v) {
                __m512 s = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][v]), scale);
                const int64_t j = column + 16 * v;
                if (mask) {
                    const float* m = mask + (first_row + i) * a.mask_stride[2] + j;
                    s = _mm512_add_ps(s, _mm512_maskz_loadu_ps(first(a.tokens - j), m));
                }
                _mm512_storeu_ps(w.scores.data() + i * w.tokens16 * 16 + j, s);
            }
    };
    const int64_t stride = w.tokens16 * 64, query_stride = w.dim64 * 64;
    int64_t c = 0;
    for (; c + 4 <= w.tokens16; c += 4) {
        __m512i sums[N][4];
        tile<N, 4>(w.queries.data(), query_stride, w.keys.data() + c * 64, stride, w.dim4, w.start.data() + c * 16, sums);
        write(sums, c * 16, 4);
    }
    for (; c < w.tokens16; ++c) {
        __m512i sums[N][1];
        tile<N, 1>(w.queries.data(), query_stride, w.keys.data() + c * 64, stride, w.dim4, w.start.data() + c * 16, sums);
        write(sums, c * 16, 1);
    }
}

// Softmax of one row of scores, as codes.
void softmax_codes(float* s, int64_t n, float scale, float qp, uint8_t* out) {
    const __m512 lowest = _mm512_set1_ps(-INFINITY);
    __m512 top = lowest;
    for (int64_t j = 0; j < n; j += 16) top = _mm512_max_ps(top, _mm512_mask_loadu_ps(lowest, first(n - j), s + j));
    const float top_value = _mm512_reduce_max_ps(top);
    top = _mm512_set1_ps(top_value);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < n; j += 16) {
        const __m512 e = _mm512_maskz_mov_ps(first(n - j), exponential(_mm512_sub_ps(_mm512_loadu_ps(s + j), top)));
        _mm512_storeu_ps(s + j, e);
        sum = _mm512_add_ps(sum, e);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / (_mm512_reduce_add_ps(sum) * scale));
    for (int64_t j = 0; j < n; j += 16) {
        const __m512 p = _mm512_min_ps(_mm512_mul_ps(_mm512_loadu_ps(s + j), factor), _mm512_set1_ps(qp));
        _mm_storeu_si128((__m128i*)(out + j), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(p)));
    }
}

template <int N>
void attend(const Attention& a, int64_t b, int64_t h, int64_t row, Workspace& w) {
    for (int i = 0; i < N; ++i) {
        const uint8_t* x = a.query + b * a.stride[0][0] + h * a.stride[0][1] + (row + i) * a.stride[0][2];
        for (int64_t d = 0; d < a.dim; d += 64)
            _mm512_storeu_si512(w.queries.data() + i * w.dim64 * 64 + d, clamped(x + d, a.dim - d, a.levels[0]));
    }
    score<N>(a, b, h, row, w);
    for (int i = 0; i < N; ++i)
        softmax_codes(w.scores.data() + i * w.tokens16 * 16, a.tokens, a.scale_p[h], a.levels[3][1],
                      w.probabilities.data() + i * w.tokens16 * 16);
    const __m512 scale = _mm512_set1_ps(a.scale_p[h] * a.scale_v[h]);
    Quantizer output{1, 0, a.out_qn, a.out_qp, false};
    if (a.out_scale) output.scale = a.out_scale[h];
    auto write = [&](auto& sums, int64_t d, int vectors) {
        for (int i = 0; i < N; ++i)
            for (int v = 0; v < vectors; ++v) {
                const int64_t column = d + 16 * v;
                const __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][v]), scale);
                const int64_t at = ((b * a.tokens + row + i) * a.heads + h) * a.dim + column;
                if (a.out_scale)
                    store_bytes((uint8_t*)a.out + at, output.bytes(y), a.dim - column);
                else
                    _mm512_mask_storeu_ps((float*)a.out + at, first(a.dim - column), y);
            }
    };
    const int64_t stride = w.dim16 * 64, steps = (a.tokens + 3) / 4;
    int64_t d = 0;
    for (; d + 4 <= w.dim16; d += 4) {
        __m512i sums[N][4];
        tile<N, 4>(w.probabilities.data(), w.tokens16 * 16, w.values.data() + d * 64, stride, steps, nullptr, sums);
        write(sums, d * 16, 4);
    }
    for (; d + 2 <= w.dim16; d += 2) {
        __m512i sums[N][2];
        tile<N, 2>(w.probabilities.data(), w.tokens16 * 16, w.values.data() + d * 64, stride, steps, nullptr, sums);
        write(sums, d * 16, 2);
    }
    for (; d < w.dim16; ++d) {
        __m512i sums[N][1];
        tile<N, 1>(w.probabilities.data(), w.tokens16 * 16, w.values.data() + d * 64, stride, steps, nullptr, sums);
        write(sums, d * 16, 1);
    }
}

void attend_rows(const Attention& a, int64_t b, int64_t h, int64_t begin, int64_t end, Workspace& w) {
    pack_keys(a, b, h, w);
    pack_values(a, b, h, w);
    int64_t row = begin;
    for (; row + ROWS <= end; row += ROWS) attend<ROWS>(a, b, h, row, w);
    switch (end - row) {
        case 5: return attend<5>(a, b, h, row, w);
        case 4: return attend<4>(a, b, h, row, w);
        case 3: return attend<3>(a, b, h, row, w);
        case 2: return attend<2>(a, b, h, row, w);
        case 1: return attend<1>(a, b, h, row, w);
    }
}

}  // namespace

extern "C" {

// Attention on codes, see Attention. Tasks are heads of images, cut into parts of the queries if there are few.
void vaq_attention(const uint8_t* query, const uint8_t* key, const uint8_t* value, const float* mask,
                   const int64_t* sizes, const int64_t* strides, const float* scales, const float* levels, float scaling, int has_out_scale,
                   void* out, int threads) {
    Attention a;
    a.query = query, a.key = key, a.value = value, a.mask = mask;
    a.batch = sizes[0], a.heads = sizes[1], a.tokens = sizes[2], a.dim = sizes[3];
    for (int i = 0; i < 9; ++i) a.stride[i / 3][i % 3] = strides[i];
    for (int i = 0; i < 3; ++i) a.mask_stride[i] = strides[9 + i];
    a.scale_q = scales, a.scale_k = scales + a.heads, a.scale_v = scales + 2 * a.heads, a.scale_p = scales + 3 * a.heads;
    a.out_scale = has_out_scale ? scales + 4 * a.heads : nullptr;
    for (int i = 0; i < 8; ++i) a.levels[i / 2][i % 2] = levels[i];
    a.out_qn = levels[8], a.out_qp = levels[9];
    a.scaling = scaling, a.out = out;
    const int64_t pairs = a.batch * a.heads;
    int64_t parts = 1;
    while (pairs * parts < 4 * threads && parts * ROWS * 4 < a.tokens) ++parts;
    const int64_t rows = ((a.tokens + parts - 1) / parts + ROWS - 1) / ROWS * ROWS;
#pragma omp parallel num_threads(threads)
    {
        Workspace w(a);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < pairs * parts; ++task) {
            const int64_t pair = task / parts, begin = task % parts * rows;
            if (begin < a.tokens)
                attend_rows(a, pair / a.heads, pair % a.heads, begin, std::min(a.tokens, begin + rows), w);
        }
    }
}

// Byte codes of n values with one scale.
void vaq_quantize(const float* x, int64_t n, float scale, float offset, int has_offset, float qn, float qp, uint8_t* out,
                  int threads) {
    const Quantizer quantizer{scale, offset, qn, qp, has_offset != 0};
    constexpr int64_t block = 1 << 13;
#pragma omp parallel for num_threads(threads) schedule(static) if (n > 2 * block)
    for (int64_t i = 0; i < n; i += block) quantize_row(x + i, std::min(block, n - i), quantizer, out + i);
}

// Byte codes of a function of n values that is constant between breakpoints: start + sum of steps at breakpoints <= x.
void vaq_step_codes(const float* x, int64_t n, int start, const float* breakpoints, const int32_t* steps, int count,
                    uint8_t* out, int threads) {
    constexpr int64_t block = 1 << 13;
#pragma omp parallel for num_threads(threads) schedule(static) if (n > 2 * block)
    for (int64_t i = 0; i < n; i += block)
        for (int64_t j = i; j < std::min(i + block, n); j += 16) {
            const __mmask16 mask = first(n - j);
            const __m512 values = _mm512_maskz_loadu_ps(mask, x + j);
            __m512i code = _mm512_set1_epi32(start);
            for (int k = 0; k < count; ++k) {
                const __mmask16 above = _mm512_cmp_ps_mask(values, _mm512_set1_ps(breakpoints[k]), _CMP_GE_OQ);
                code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(steps[k]));
            }
            store_bytes(out + j, code, n - j);
        }
}

// Byte codes of LayerNorm of each row of x, (rows, width).
void vaq_layer_norm_codes(const float* x, int64_t rows, int64_t width, const float* weight, const float* bias,
                          float epsilon, float scale, float qn, float qp, uint8_t* out, int threads) {
    const Quantizer quantizer{scale, 0, qn, qp, false};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
        const float* row = x + r * width;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 16) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(first(width - i), row + i));
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
        __m512 squares = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 16) {
            const __mmask16 mask = first(width - i);
            const __m512 d = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, row + i), mean);
            squares = _mm512_fmadd_ps(d, d, squares);
        }
        const __m512 rstd = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + epsilon));
        for (int64_t i = 0; i < width; i += 16) {
            const __mmask16 mask = first(width - i);
            __m512 y = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, row + i), mean), rstd);
            y = _mm512_fmadd_ps(y, _mm512_maskz_loadu_ps(mask, weight + i), _mm512_maskz_loadu_ps(mask, bias + i));
            store_bytes(out + r * width + i, quantizer.bytes(y), width - i);
        }
    }
}

}  // extern "C"
