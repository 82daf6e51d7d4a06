// What kernels for bfloat16 tensors share: numbers in memory, functions, and fake quantizers, 16 numbers at a time and
// in float32; for processors with AVX-512.

#pragma once

#include <immintrin.h>

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

// The normal distribution at `x`: its density but for the factor 1 / sqrt(2 pi), and the probability of what is below,
// whose error is 10^-7.
struct Normal {
  __m512 density, below;

  explicit Normal(__m512 x) : density(power_of_two(_mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(-kLog2OfE / 2)), x))) {
    // The probability beyond a magnitude, over the density, is a smooth function: a polynomial fitted from 0 to 5.5.
    const __m512 magnitude = _mm512_min_ps(_mm512_set1_ps(5.5f), _mm512_abs_ps(x));
    const __m512 quotient =
        polynomial(magnitude, _mm512_set1_ps(-2.44179433e-7f), 6.28676992e-6f, -7.27611396e-5f, 5.07430124e-4f,
                   -2.42991509e-3f, 8.71680662e-3f, -2.51486838e-2f, 6.17023615e-2f, -1.32719283e-1f, 2.49955676e-1f,
                   -3.98939345e-1f, 4.99999968e-1f);
    const __m512 beyond = _mm512_mul_ps(quotient, density);
    const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
    below = _mm512_mask_sub_ps(beyond, positive, _mm512_set1_ps(1), beyond);
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
