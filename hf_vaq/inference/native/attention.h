// Attention on codes: two products, and the softmax between them, head by head.

#pragma once

#include <vector>

#include "product.h"

namespace {

// Memory that is large enough, whatever it holds.
template <class T>
T* grow(std::vector<T>& memory, int64_t size) {
    if ((int64_t)memory.size() < size) memory.resize(size);
    return memory.data();
}

constexpr int CENTER = 128;  // the byte of code zero of queries, keys and values

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
    void* out;           // (batch, tokens, heads, dim)
    int64_t out_stride;  // of its tokens, in elements

    // From (5, heads) scales, of query, key, value, probabilities and output, and the levels of those five.
    void set_scales(const float* scales, const float* qn_qp, bool coded) {
        scale_q = scales, scale_k = scales + heads, scale_v = scales + 2 * heads, scale_p = scales + 3 * heads;
        out_scale = coded ? scales + 4 * heads : nullptr;
        for (int i = 0; i < 8; ++i) levels[i / 2][i % 2] = qn_qp[i];
        out_qn = qn_qp[8], out_qp = qn_qp[9];
    }
};

// Memory of a thread for one head, kept from call to call. What lies beyond the tokens is never looked at.
struct Workspace {
    int64_t dim4, dim16, dim64, tokens16, tokens4;
    std::vector<int8_t> keys, values;
    std::vector<int32_t> start;
    std::vector<uint8_t> queries, probabilities;
    std::vector<float> scores;

    static Workspace& mine(const Attention& a) {
        static thread_local Workspace w;
        w.dim4 = (a.dim + 3) / 4, w.dim16 = (a.dim + 15) / 16, w.dim64 = (a.dim + 63) / 64;
        w.tokens16 = (a.tokens + 15) / 16, w.tokens4 = w.tokens16 * 4;
        grow(w.keys, w.dim4 * w.tokens16 * 64), grow(w.values, w.tokens4 * w.dim16 * 64), grow(w.start, w.tokens16 * 16);
        grow(w.queries, ROWS * w.dim64 * 64), grow(w.probabilities, ROWS * w.tokens16 * 16);
        grow(w.scores, ROWS * w.tokens16 * 16);
        return w;
    }
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

// Scores of `rows` queries from the query codes: sums times scales plus mask.
void score(const Attention& a, int64_t b, int64_t h, int64_t first_row, int rows, Workspace& w) {
    const Clock clock(PRODUCTS);
    const __m512 scale = _mm512_set1_ps(a.scale_q[h] * a.scale_k[h] * a.scaling);
    const float* mask = a.mask ? a.mask + b * a.mask_stride[0] + h * a.mask_stride[1] : nullptr;
    for (int64_t c = 0; c < w.tokens16; c += VECTORS) {
        const int vectors = std::min<int64_t>(VECTORS, w.tokens16 - c);
        __m512i sums[ROWS][VECTORS];
        TILES[rows - 1][vectors - 1](w.queries.data(), w.dim64 * 64, w.keys.data() + c * 64, w.tokens16 * 64, w.dim4,
                                     w.start.data() + c * 16, sums);
        for (int i = 0; i < rows; ++i)
            for (int v = 0; v < vectors; ++v) {
                __m512 s = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][v]), scale);
                const int64_t j = (c + v) * 16;
                if (mask) {
                    const float* m = mask + (first_row + i) * a.mask_stride[2] + j;
                    s = _mm512_add_ps(s, _mm512_maskz_loadu_ps(first(a.tokens - j), m));
                }
                _mm512_storeu_ps(w.scores.data() + i * w.tokens16 * 16 + j, s);
            }
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

// Codes of the probabilities of `rows` queries.
void softmax(const Attention& a, int64_t h, int rows, Workspace& w) {
    const Clock clock(SOFTMAX);
    const int64_t padded = w.tokens16 * 16;
    for (int i = 0; i < rows; ++i)
        softmax_codes(w.scores.data() + i * padded, a.tokens, a.scale_p[h], a.levels[3][1],
                      w.probabilities.data() + i * padded);
}

// Sums of the values by the probabilities.
void mix(const Attention& a, int64_t b, int64_t h, int64_t row, int rows, Workspace& w) {
    const Clock clock(PRODUCTS);
    const int64_t padded = w.tokens16 * 16;
    const __m512 scale = _mm512_set1_ps(a.scale_p[h] * a.scale_v[h]);
    const Quantizer output{a.out_scale ? a.out_scale[h] : 1, 0, a.out_qn, a.out_qp, false};
    for (int64_t d = 0; d < w.dim16; d += VECTORS) {
        const int vectors = std::min<int64_t>(VECTORS, w.dim16 - d);
        __m512i sums[ROWS][VECTORS];
        TILES[rows - 1][vectors - 1](w.probabilities.data(), padded, w.values.data() + d * 64, w.dim16 * 64,
                                     (a.tokens + 3) / 4, nullptr, sums);
        for (int i = 0; i < rows; ++i)
            for (int v = 0; v < vectors; ++v) {
                const int64_t column = (d + v) * 16;
                const __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][v]), scale);
                const int64_t at = (b * a.tokens + row + i) * a.out_stride + h * a.dim + column;
                if (a.out_scale)
                    store_bytes((uint8_t*)a.out + at, output.bytes(y), a.dim - column);
                else
                    _mm512_mask_storeu_ps((float*)a.out + at, first(a.dim - column), y);
            }
    }
}

// `rows` queries, at most ROWS, from the packed keys and values.
void attend(const Attention& a, int64_t b, int64_t h, int64_t row, int rows, Workspace& w) {
    for (int i = 0; i < rows; ++i) {
        const uint8_t* x = a.query + b * a.stride[0][0] + h * a.stride[0][1] + (row + i) * a.stride[0][2];
        for (int64_t d = 0; d < a.dim; d += 64)
            _mm512_storeu_si512(w.queries.data() + i * w.dim64 * 64 + d, clamped(x + d, a.dim - d, a.levels[0]));
    }
    score(a, b, h, row, rows, w);
    softmax(a, h, rows, w);
    mix(a, b, h, row, rows, w);
}

// Queries [begin, end) of one head of one image.
void attend_rows(const Attention& a, int64_t b, int64_t h, int64_t begin, int64_t end) {
    Workspace& w = Workspace::mine(a);
    {
        const Clock clock(PACKING);
        pack_keys(a, b, h, w);
        pack_values(a, b, h, w);
    }
    for (int64_t row = begin; row < end; row += ROWS) attend(a, b, h, row, std::min<int64_t>(ROWS, end - row), w);
}

// Into how many parts the queries of a head are cut: as few as keep all threads equally busy, for each part packs keys
// and values anew.
int64_t parts_of(int64_t heads, int64_t tokens, int64_t threads) {
    int64_t parts = 1;
    while (heads * parts % threads != 0 && heads * parts < 4 * threads && parts * ROWS * 4 < tokens) ++parts;
    return parts;
}

}  // namespace
