// Products of float32 gradients with quantized matrices, for the backward passes of linear layers; see tiles.h.
//
// An element of a result is computed by one thread, in an order that depends on sizes only: the number of threads
// changes no bit.

#include <vector>

#include "quantizer.h"
#include "tiles.h"

namespace {

constexpr int64_t kSteps = 4;           // after which a block of a gradient by a weight goes back to memory
constexpr int64_t kWaiting = 512 << 10; // bytes of such blocks, which wait in the second-level cache

// A matrix that is to be quantized, as Python fills it in, see native/products.py.
struct Matrix {
  const float* values;   // (rows, columns)
  const float* scales;   // one for every group
  const float* offsets;  // likewise, or null; there are none if groups are along the rows
  int64_t rows, columns;
  int64_t group_rows, group_columns;  // of a group; one of the two is all there are
  double lowest, highest;             // codes

  // The scale of an element is the product of these two, one of which is 1.
  float row_scale(int64_t row) const { return group_rows < rows ? scales[row / group_rows] : 1; }
  float column_scale(int64_t column) const { return group_rows < rows ? 1 : scales[column / group_columns]; }

  int64_t steps() const { return ceil_div(rows, kSide); }
  int64_t blocks() const { return ceil_div(columns, kSide); }
  View view() const { return {values, rows, columns, columns}; }

  // Of each 16 columns, but for the scales of rows.
  std::vector<Quantizers> quantizers() const {
    std::vector<Quantizers> all;
    for (int64_t first = 0; first < blocks() * kSide; first += kTile) {
      alignas(64) float scale[16], offset[16];
      for (int64_t i = 0; i < 16; i++) {
        const int64_t column = std::min(first + i, columns - 1);
        scale[i] = column_scale(column), offset[i] = offsets ? offsets[column / group_columns] : 0;
      }
      all.push_back({_mm512_load_ps(scale), _mm512_load_ps(offset), _mm512_set1_ps(float(lowest)),
                     _mm512_set1_ps(float(highest))});
    }
    return all;
  }
};

}  // namespace

extern "C" {

int vaq_request_tiles() { return Tiles::request(); }

// Numbers that vaq_transposed_codes writes.
int64_t vaq_size_of_codes(int64_t rows, int64_t columns) {
  return ceil_div(rows, kSide) * ceil_div(columns, kSide) * kPanel;
}

// The codes of a matrix, transposed, as the first operand of the gradient by a weight.
void vaq_transposed_codes(const Matrix* matrix, Half* codes, int threads) {
  const Matrix& m = *matrix;
  const View values = m.view();
  const std::vector<Quantizers> quantizers = m.quantizers();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t s = 0; s < m.steps(); s++)
    for (int64_t b = 0; b < m.blocks(); b++)
      pack_transposed_code_rows(
          [&](int64_t row, int64_t column) {
            column += b * kSide;
            return quantizers[column / kTile].codes(values(s * kSide + row, column));
          },
          codes + (b * m.steps() + s) * kPanel);
}

// `grad`^T times the quantized matrix whose codes were transposed, result: (outputs, columns). `grad` is (rows, outputs),
// the sums of its columns (outputs,).
void vaq_gradient_of_weight(const float* grad, int64_t outputs, const Matrix* matrix, const Half* codes, float* result,
                            float* sums, int threads) {
  const Matrix& m = *matrix;
  const View grads{grad, m.rows, outputs, outputs};
  const std::vector<Quantizers> quantizers = m.quantizers();
  const int64_t sides = ceil_div(outputs, kSide);
  const int64_t most = std::max<int64_t>(1, kWaiting / (m.blocks() * kBlock * int64_t(sizeof(float))));
  const int64_t parts = ceil_div(ceil_div(sides, most), threads) * threads, width = ceil_div(sides, parts);
#pragma omp parallel num_threads(threads)
  {
    const Tiles tiles;
    const Aligned<Half> packed(width * kSteps * kPieces * kPanel);
    const Aligned<float> products(width * m.blocks() * kBlock), totals(width * kSide);
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < sides; begin += width) {
      const int64_t some = std::min(width, sides - begin);
      std::fill_n(totals.get(), some * kSide, 0.f);
      for (int64_t s = 0; s < m.steps(); s += kSteps) {
        const int64_t now = std::min(kSteps, m.steps() - s);
        for (int64_t k = 0; k < now; k++)
          for (int64_t j = 0; j < some; j++)
            pack_columns(
                [&](int64_t row, int64_t column) {
                  const __m512 x = grads((s + k) * kSide + row, (begin + j) * kSide + column);
                  float* const total = totals.get() + j * kSide + column;
                  _mm512_store_ps(total, _mm512_add_ps(_mm512_load_ps(total), x));
                  return x;
                },
                packed.get() + (j * kSteps + k) * kPieces * kPanel);
        for (int64_t j = 0; j < some; j++)
          for (int64_t b = 0; b < m.blocks(); b++)
            multiply<1, kPieces>(codes + (b * m.steps() + s) * kPanel, packed.get() + j * kSteps * kPieces * kPanel, now,
                                 products.get() + (j * m.blocks() + b) * kBlock, kSide, s > 0);
      }
      for (int64_t o = 0; o < some * kSide; o += kTile)
        for (int64_t c = 0; c < m.blocks() * kSide; c += kTile) {
          const float* from = products.get() + (o / kSide * m.blocks() + c / kSide) * kBlock;
          const Quantizers& of_columns = quantizers[c / kTile];
          __m512 rows[16];
          for (int i = 0; i < 16; i++) rows[i] = _mm512_load_ps(from + (c % kSide + i) * kSide + o % kSide);
          transpose(rows);
          for (int64_t i = 0; i < std::min(kTile, outputs - begin * kSide - o); i++) {
            const __m512 shift = _mm512_mul_ps(of_columns.offset, _mm512_set1_ps(totals.get()[o + i]));
            _mm512_mask_storeu_ps(result + (begin * kSide + o + i) * m.columns + c, first_of(m.columns - c),
                                  _mm512_add_ps(_mm512_mul_ps(rows[i], of_columns.scale), shift));
          }
        }
      std::copy_n(totals.get(), std::min(some * kSide, outputs - begin * kSide), sums + begin * kSide);
    }
  }
}

// `grad`, (rows, the matrix's rows), times the quantized matrix, result: (rows, the matrix's columns). With a plan, that of
// the quantizer of `x`, which is like the result, the gradient by `x`; and by the logarithms of its scales, and by its
// offsets, unless these are null.
void vaq_gradient_of_input(const float* grad, int64_t rows, const Matrix* matrix, float* result, const Plan* plan,
                           const float* x, const float* x_scales, const float* x_offsets, float* by_scale,
                           float* by_offset, int threads) {
  const Matrix& m = *matrix;
  const View values = m.view(), grads{grad, rows, m.rows, m.rows};
  const std::vector<Quantizers> quantizers = m.quantizers();
  const Aligned<Half> weight(m.blocks() * m.steps() * kPanel);
  const Aligned<float> scales(m.steps() * kSide);  // of the matrix's rows, which are columns of `grad`
  for (int64_t k = 0; k < m.steps() * kSide; k++) scales.get()[k] = m.row_scale(std::min(k, m.rows - 1));
  const int64_t groups = plan ? plan->scales : 0, width = plan ? m.columns / groups : 0;
  std::vector<Sums> sums(ceil_div(rows, kSide) * groups);
#pragma omp parallel num_threads(threads)
  {
    const Tiles tiles;
#pragma omp for schedule(static)
    for (int64_t k = 0; k < m.steps(); k++)
      for (int64_t b = 0; b < m.blocks(); b++)
        pack_code_columns(
            [&](int64_t row, int64_t column) {
              row += k * kSide, column += b * kSide;
              Quantizers of_columns = quantizers[column / kTile];
              of_columns.scale = _mm512_mul_ps(of_columns.scale, _mm512_set1_ps(scales.get()[row]));
              return of_columns.codes(values(row, column));
            },
            weight.get() + (b * m.steps() + k) * kPanel);
    const Aligned<Half> packed(m.steps() * kPieces * kPanel);
    const Aligned<float> products(m.blocks() * kBlock);
    const int64_t stride = m.blocks() * kSide;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r += kSide) {
      for (int64_t k = 0; k < m.steps(); k++)
        pack_rows(
            [&](int64_t row, int64_t column) {
              column += k * kSide;
              return _mm512_mul_ps(grads(r + row, column), _mm512_load_ps(scales.get() + column));
            },
            packed.get() + k * kPieces * kPanel);
      for (int64_t b = 0; b < m.blocks(); b++)
        multiply<kPieces, 1>(packed.get(), weight.get() + b * m.steps() * kPanel, m.steps(), products.get() + b * kSide,
                             stride);
      Sums* const here = sums.data() + r / kSide * groups;
      for (int64_t i = r; i < std::min(r + kSide, rows); i++) {
        float* const row = products.get() + (i - r) * stride;
        for (int64_t c = 0; c < m.columns; c += kTile) {
          const __m512 scaled = _mm512_mul_ps(_mm512_load_ps(row + c), quantizers[c / kTile].scale);
          if (plan)
            _mm512_store_ps(row + c, scaled);
          else
            _mm512_mask_storeu_ps(result + i * m.columns + c, first_of(m.columns - c), scaled);
        }
        for (int64_t g = 0; g < groups; g++) {
          const Quantizer quantizer(*plan, x_scales, x_offsets, g);
          const auto through = x_offsets ? differentiate<true> : differentiate<false>;
          const int64_t at = i * m.columns + g * width;
          here[g].group = g;
          through(quantizer, row + g * width, x + at, width, result + at, here[g]);
        }
      }
    }
  }
  if (by_scale) finish(*plan, x_scales, sums, by_scale, by_offset);
}
}
