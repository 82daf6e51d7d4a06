// The exact GELU of bfloat16 numbers together with the fake quantizer of its result, and the gradients; on processors
// with AVX-512. Definitions: numerics/traced.py.

#include <vector>

#include "bfloat16.h"

namespace {

constexpr int64_t kParts = 64;  // into which rows are divided at most, where sums are taken

// Probabilities of the normal distribution, and the derivative of GELU. Both are as far below one half on one side of
// zero as they are above it on the other. Errors: 2 10^-7 and 7 10^-7.
const double kDensityAtZero = 1 / std::sqrt(2 * std::acos(-1.0));
double above_half(double x) { return 0.5 * std::erf(x / std::sqrt(2.0)); }
const Cubics kProbability(above_half, 0.5f);
const Cubics kDerivative([](double x) { return above_half(x) + x * kDensityAtZero * std::exp(-0.5 * x * x); }, 0.5f);

inline __m512 on_both_sides(const Cubics& f, const Place& place, __m512 x) {
  const __m512 signs = _mm512_and_ps(x, _mm512_set1_ps(-0.f));
  return _mm512_add_ps(_mm512_set1_ps(0.5f), _mm512_xor_ps(place(f), signs));
}
inline __m512 gelu(const Place& place, __m512 x) { return _mm512_mul_ps(x, on_both_sides(kProbability, place, x)); }

// The argument of GELU.
struct Argument {
  const Half* product;  // (rows, columns)
  const float* bias;    // (columns,), or null
  int64_t columns;

  __m512 operator()(int64_t row, int64_t column, __mmask16 some) const {
    const __m512 x = load(product + row * columns + column, some);
    return bias ? _mm512_add_ps(x, _mm512_maskz_loadu_ps(some, bias + column)) : x;
  }
};

}  // namespace

extern "C" {

// Writes the quantized GELU of product + bias. `bias` and `offset` may be null.
void vaq_quantize_gelu(const Plan* plan, const Half* product, const float* bias, int64_t rows, int64_t columns,
                       const float* scale, const float* offset, Half* result, int threads) {
  const Quantizer16 quantizer(Quantizer(*plan, scale, offset, 0));
  const Argument argument{product, bias, columns};
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++)
    for_columns(columns, [&](int64_t c, __mmask16 some) {
      const __m512 x = argument(row, c, some);
      store(result + row * columns + c, quantizer.quantized(gelu(Place(x), x)), some);
    });
}

// Writes the gradients by the argument, by the bias, by the logarithm of the scale and by the offset, from that of the
// quantized values; but for the first they may be null. Rows are handled in parts, whose number does not depend on that
// of threads; the sums of parts are added in order.
void vaq_differentiate_gelu(const Plan* plan, const Half* grad, const Half* product, const float* bias, int64_t rows,
                            int64_t columns, const float* scale, const float* offset, Half* result, float* by_bias,
                            float* by_scale, float* by_offset, int threads) {
  const Quantizer16 quantizer(Quantizer(*plan, scale, offset, 0));
  const Argument argument{product, bias, columns};
  const int64_t height = (rows + kParts - 1) / kParts;  // of a part
  std::vector<Sums> sums((rows + height - 1) / height);
  std::vector<float> column_sums(sums.size() * columns);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (size_t part = 0; part < sums.size(); part++) {
    float* const of_columns = column_sums.data() + part * columns;
    for (int64_t row = part * height; row < std::min<int64_t>(rows, (part + 1) * height); row++) {
      Sums16 total;
      for_columns(columns, [&](int64_t c, __mmask16 some) {
        const int64_t at = row * columns + c;
        const __m512 x = argument(row, c, some);
        const Place place(x);
        const __m512 value = gelu(place, x), v = quantizer.normalized(value);
        const __m512 passed = total.differentiate<true>(quantizer, value, v, quantizer.level(v), load(grad + at, some));
        const __m512 by_argument = _mm512_mul_ps(passed, on_both_sides(kDerivative, place, x));
        store(result + at, by_argument, some);
        const __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(some, of_columns + c), by_argument);
        _mm512_mask_storeu_ps(of_columns + c, some, sum);
      });
      total.add_to(sums[part]);
    }
  }
  if (by_scale) finish(*plan, scale, sums, by_scale, by_offset);
  if (!by_bias) return;
  std::fill_n(by_bias, columns, 0.f);
  for (size_t part = 0; part < sums.size(); part++)
    for (int64_t c = 0; c < columns; c++) by_bias[c] += column_sums[part * columns + c];
}
}
