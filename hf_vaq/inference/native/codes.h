// Integer codes and what makes them: quantization, LayerNorm, staircases.
//
// Codes are bytes: a code c of a quantizer with the levels qn..qp is the unsigned byte c - qn. Every quantization is
// round(clamp((x - offset) / scale, qn, qp)), ties to even: the operations of the float simulation in their order. There
// is no code for NaN: what makes codes says whether it met one, and its codes are then of no use.

#pragma once

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

// Where the time of the first thread goes, for profiles: counted if the macro is set, and free if it is not.
enum Work { LAYER, LINEAR, PRODUCTS, SOFTMAX, NORM, PACKING, KINDS };
#ifdef VAQ_CLOCKS
double clocks[KINDS];

struct Clock {
    const Work work;
    const double begin = omp_get_wtime();

    explicit Clock(Work work) : work(work) {}
    ~Clock() {
        if (omp_get_thread_num() == 0) clocks[work] += omp_get_wtime() - begin;
    }
};
#else
struct Clock {
    explicit Clock(Work) {}
};
#endif

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

inline __mmask16 nan_in(__m512 x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }

// Whether there is NaN among them.
bool quantize_row(const float* x, int64_t n, const Quantizer& quantizer, uint8_t* out) {
    __mmask16 nan = 0;
    for (int64_t i = 0; i < n; i += 16) {
        const __m512 numbers = _mm512_maskz_loadu_ps(first(n - i), x + i);
        nan |= nan_in(numbers);
        store_bytes(out + i, quantizer.bytes(numbers), n - i);
    }
    return nan != 0;
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

// Byte codes of LayerNorm of a row of x; whether it is NaN, as that of every row with NaN or infinity is.
struct Norm {
    const float *weight, *bias;
    float epsilon;
    Quantizer quantizer;

    bool row(const float* x, int64_t width, uint8_t* out) const {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 16)
            sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(first(width - i), x + i));
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
        __m512 squares = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += 16) {
            const __mmask16 mask = first(width - i);
            const __m512 d = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, x + i), mean);
            squares = _mm512_fmadd_ps(d, d, squares);
        }
        const float variance = _mm512_reduce_add_ps(squares) / width;
        const __m512 rstd = _mm512_set1_ps(1.0f / std::sqrt(variance + epsilon));
        for (int64_t i = 0; i < width; i += 16) {
            const __mmask16 mask = first(width - i);
            __m512 y = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), mean), rstd);
            y = _mm512_fmadd_ps(y, _mm512_maskz_loadu_ps(mask, weight + i), _mm512_maskz_loadu_ps(mask, bias + i));
            store_bytes(out + i, quantizer.bytes(y), width - i);
        }
        return std::isnan(variance);
    }
};

// A function that is constant between ascending breakpoints: its code is codes[number of breakpoints <= x]. Both arrays
// have SIZE entries; unused breakpoints are infinite.
struct Staircase {
    static constexpr int SIZE = 64;
    const float* breakpoints;
    const int32_t* codes;
    int32_t count;

    // Binary search in 2^BITS - 1 breakpoints that lie in registers.
    template <int BITS>
    struct Search {
        __m512 edges[4];
        __m512i codes[4];

        explicit Search(const Staircase& s) {
            for (int i = 0; i < 4; ++i)
                edges[i] = _mm512_loadu_ps(s.breakpoints + 16 * i), codes[i] = _mm512_loadu_si512(s.codes + 16 * i);
        }

        __m512 edge(__m512i at) const {
            if (BITS <= 4) return _mm512_permutexvar_ps(at, edges[0]);
            const __m512 low = _mm512_permutex2var_ps(edges[0], at, edges[1]);
            if (BITS == 5) return low;
            const __mmask16 high = _mm512_test_epi32_mask(at, _mm512_set1_epi32(32));
            return _mm512_mask_blend_ps(high, low, _mm512_permutex2var_ps(edges[2], at, edges[3]));
        }

        __m512i code(__m512i at) const {
            if (BITS <= 4) return _mm512_permutexvar_epi32(at, codes[0]);
            const __m512i low = _mm512_permutex2var_epi32(codes[0], at, codes[1]);
            if (BITS == 5) return low;
            const __mmask16 high = _mm512_test_epi32_mask(at, _mm512_set1_epi32(32));
            return _mm512_mask_blend_epi32(high, low, _mm512_permutex2var_epi32(codes[2], at, codes[3]));
        }

        __m512i operator()(__m512 x) const {
            __m512i below = _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int step = 1 << (BITS - 1); step > 0; step >>= 1) {
                const __m512 e = edge(_mm512_add_epi32(below, _mm512_set1_epi32(step - 1)));
                const __mmask16 reached = _mm512_cmp_ps_mask(x, e, _CMP_GE_OQ);
                below = _mm512_mask_add_epi32(below, reached, below, _mm512_set1_epi32(step));
            }
            return code(below);
        }
    };

    // Calls `use` with the smallest search that holds all breakpoints.
    template <class Use>
    void with_search(Use use) const {
        if (count < 16)
            use(Search<4>(*this));
        else if (count < 32)
            use(Search<5>(*this));
        else
            use(Search<6>(*this));
    }
};

}  // namespace
