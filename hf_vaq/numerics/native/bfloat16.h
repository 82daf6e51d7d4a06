// What kernels for bfloat16 tensors share: numbers in memory, functions, and fake quantizers, 16 numbers at a time and
// in float32; for processors with AVX-512.

#pragma once

#include <immintrin.h>

#include <cmath>

#include "quantizer.h"

namespace {

typedef uint16_t Half;  // a bfloat16 number

inline __mmask16 first_of(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : __mmask16((1 << count) - 1); }

inline __m512 load(const Half* from, __mmask16 some) {  // zero beyond
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from)), 16));
}
inline void store(Half* to, __m512 x, __mmask16 some) {
  _mm256_mask_storeu_epi16(to, some, __m256i(_mm512_cvtneps_pbh(x)));
}

inline void store_pair(Half* to, __m512 x, __m512 next) {  // 32 numbers, from a multiple of 64 bytes on
  _mm512_store_si512(to, __m512i(_mm512_cvtne2ps_pbh(next, x)));
}

// Calls f(column, mask) for 16 columns after the other.
template <class F>
void for_columns(int64_t columns, F f) {
  int64_t c = 0;
  for (; c + 16 <= columns; c += 16) f(c, __mmask16(0xffff));
  if (c < columns) f(c, first_of(columns - c));
}

inline __m512 rounded(__m512 x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// Sums of products with powers of `x`, the highest first.
inline __m512 polynomial(__m512, __m512 sum) { return sum; }
template <class... Rest>
__m512 polynomial(__m512 x, __m512 sum, float next, Rest... rest) {
  return polynomial(x, _mm512_fmadd_ps(sum, x, _mm512_set1_ps(next)), rest...);
}

// 2 to the power of `x`, which is not positive; relative error 10^-7.
inline __m512 power_of_two(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200), x);  // of NaN: NaN
  const __m512 whole = rounded(x);
  const __m512 of_fraction = polynomial(_mm512_sub_ps(x, whole), _mm512_set1_ps(1.3276471e-3f), 9.67554133e-3f,
                                        5.55071328e-2f, 2.40221197e-1f, 6.93146967e-1f, 1.00000007f);
  return _mm512_scalef_ps(of_fraction, whole);
}
constexpr float kLog2OfE = 1.44269504f;

// A function on magnitudes up to kEnd: a cubic polynomial about each of 32 places, which a lookup of coefficients in
// registers finds. What is beyond counts as kEnd.
struct Cubics {
  static constexpr int kPlaces = 32, kTerms = 4;
  static constexpr float kEnd = 5.5f;
  alignas(64) float terms[kTerms][kPlaces];

  // Interpolates `f` at the zeros of a Chebyshev polynomial; at the end its value is `last`.
  template <class F>
  Cubics(F f, float last) {
    for (int place = 0; place < kPlaces; place++) {
      double nodes[kTerms], differences[kTerms];  // distances from the place, in distances between places
      for (int i = 0; i < kTerms; i++) {
        nodes[i] = 0.5 * std::cos((2 * i + 1) * std::acos(-1.0) / (2 * kTerms));
        differences[i] = f((place + nodes[i]) * kEnd / (kPlaces - 1));
      }
      for (int order = 1; order < kTerms; order++)
        for (int i = kTerms - 1; i >= order; i--)
          differences[i] = (differences[i] - differences[i - 1]) / (nodes[i] - nodes[i - order]);
      double sums[kTerms] = {differences[kTerms - 1]};  // Newton's form, multiplied out
      for (int i = kTerms - 2; i >= 0; i--) {
        for (int j = kTerms - 1; j > 0; j--) sums[j] = sums[j - 1] - nodes[i] * sums[j];
        sums[0] = differences[i] - nodes[i] * sums[0];
      }
      for (int j = 0; j < kTerms; j++) terms[j][place] = float(sums[j]);
    }
    for (int j = 0; j < kTerms; j++) terms[j][kPlaces - 1] = j ? 0 : last;
  }
};

// Where magnitudes of 16 numbers are among the places of `Cubics`.
struct Place {
  __m512i index;
  __m512 distance;

  explicit Place(__m512 x) {  // of NaN: a distance of NaN
    const __m512 magnitude = _mm512_min_ps(_mm512_set1_ps(Cubics::kEnd), _mm512_abs_ps(x));
    const __m512 density = _mm512_set1_ps((Cubics::kPlaces - 1) / Cubics::kEnd), large = _mm512_set1_ps(12582912);
    const __m512 shifted = _mm512_fmadd_ps(magnitude, density, large);  // its last bits are the integer
    index = _mm512_castps_si512(shifted);
    distance = _mm512_fmsub_ps(magnitude, density, _mm512_sub_ps(shifted, large));
  }

  __m512 operator()(const Cubics& f) const {
    const auto term = [&](int i) {
      return _mm512_permutex2var_ps(_mm512_load_ps(f.terms[i]), index, _mm512_load_ps(f.terms[i] + 16));
    };
    __m512 sum = term(3);
    for (int i = 2; i >= 0; i--) sum = _mm512_fmadd_ps(sum, distance, term(i));
    return sum;
  }
};

// A quantizer.
struct Quantizer16 {
  __m512 scale, reciprocal, offset, lowest, highest;

  explicit Quantizer16(const Quantizer& q)
      : scale(_mm512_set1_ps(q.scale)), reciprocal(_mm512_set1_ps(1 / q.scale)), offset(_mm512_set1_ps(q.offset)),
        lowest(_mm512_set1_ps(q.lowest)), highest(_mm512_set1_ps(q.highest)) {}

  // The quotient by the scale, as division rounds it; a division takes as long as ten other operations. The remainder
  // of the first quotient is exact.
  __m512 normalized(__m512 x) const {
    x = _mm512_sub_ps(x, offset);
    const __m512 quotient = _mm512_mul_ps(x, reciprocal);
    return _mm512_fmadd_ps(_mm512_fnmadd_ps(quotient, scale, x), reciprocal, quotient);
  }
  __m512 level(__m512 v) const {  // of NaN: NaN
    return rounded(_mm512_min_ps(highest, _mm512_max_ps(lowest, v)));
  }
  __m512 code(__m512 x) const { return level(normalized(x)); }
  __m512 quantized(__m512 x) const { return _mm512_fmadd_ps(code(x), scale, offset); }
};

// What is summed over a part: see `Sums`.
struct Sums16 {
  __m512 by_scale = _mm512_setzero_ps(), clipped = _mm512_setzero_ps(), magnitudes = _mm512_setzero_ps();

  // The gradient by values `x`, from that of the quantized ones; `v`, `level`: see Quantizer16.
  template <bool kOffset>
  __m512 differentiate(const Quantizer16& q, __m512 x, __m512 v, __m512 level, __m512 grad) {
    const __mmask16 above = _mm512_cmp_ps_mask(v, q.lowest, _CMP_GT_OQ);
    const __mmask16 inside = _mm512_mask_cmp_ps_mask(above, v, q.highest, _CMP_LT_OQ);
    by_scale = _mm512_fmadd_ps(_mm512_mask_sub_ps(level, inside, level, v), grad, by_scale);
    if (kOffset) clipped = _mm512_mask_add_ps(clipped, __mmask16(~inside), clipped, grad);
    magnitudes = _mm512_add_ps(magnitudes, _mm512_abs_ps(x));
    return _mm512_maskz_mov_ps(inside, grad);
  }

  void add_to(Sums& sums) const {
    sums.by_scale += _mm512_reduce_add_ps(by_scale);
    sums.clipped += _mm512_reduce_add_ps(clipped);
    sums.magnitudes += _mm512_reduce_add_ps(magnitudes);
  }
};

}  // namespace
