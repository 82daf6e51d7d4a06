// The exact GELU of bfloat16 numbers together with the fake quantizer of its result, and the gradients; on processors with
// AVX-512. Definitions: numerics/traced.py.
//
// A tensor is handled in parts of a fixed size, whose sums are added in order: the number of threads changes no bit.

#include <vector>

#include "bfloat16.h"

namespace {

constexpr int64_t kRows = 16;  // of a part

// Calls f(part, row) for all rows.
template <class F>
void for_rows(int64_t rows, int threads, F f) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t first = 0; first < rows; first += kRows)
    for (int64_t row = first; row < std::min(rows, first + kRows); row++) f(first / kRows, row);
}

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
  for_rows(rows, threads, [&](int64_t, int64_t row) {
    for_columns(columns, [&](int64_t c, __mmask16 some) {
      const __m512 x = argument(row, c, some);
      store(result + row * columns + c, quantizer.quantized(_mm512_mul_ps(x, Normal(x).below)), some);
    });
  });
}

// Writes the gradients by the argument, by the logarithm of the scale and by the offset, from that of the quantized values.
// The last two are null if only the first is wanted.
void vaq_differentiate_gelu(const Plan* plan, const Half* grad, const Half* product, const float* bias, int64_t rows,
                            int64_t columns, const float* scale, const float* offset, Half* result, float* by_scale,
                            float* by_offset, int threads) {
  const Quantizer16 quantizer(Quantizer(*plan, scale, offset, 0));
  const Argument argument{product, bias, columns};
  const __m512 factor = _mm512_set1_ps(0.398942280f);  // 1 / sqrt(2 pi)
  std::vector<Sums> sums((rows + kRows - 1) / kRows);
  for_rows(rows, threads, [&](int64_t part, int64_t row) {
    Sums16 total;
    for_columns(columns, [&](int64_t c, __mmask16 some) {
      const int64_t at = row * columns + c;
      const __m512 x = argument(row, c, some);
      const Normal normal(x);
      const __m512 value = _mm512_mul_ps(x, normal.below), v = quantizer.normalized(value);
      const __m512 passed = total.differentiate(quantizer, value, v, quantizer.level(v), load(grad + at, some));
      const __m512 derivative = _mm512_fmadd_ps(_mm512_mul_ps(x, factor), normal.density, normal.below);
      store(result + at, _mm512_mul_ps(passed, derivative), some);
    });
    total.add_to(sums[part]);
  });
  if (by_scale) finish(*plan, scale, sums, by_scale, by_offset);
}
}
