// The gradient of the weight of a linear layer from bfloat16 matrices, on processors with AMX. Its sums go over the
// rows of both, for which other libraries arrange both in memory first.
//
// An element of the result is computed by one thread, in an order that depends on sizes only: the number of threads
// changes no bit.

#include "bfloat16_tiles.h"

namespace {

constexpr int64_t kSteps = 8;  // after which a block of the result goes back to memory

struct Matrix {
  const Half* data;
  int64_t rows, columns;

  int64_t blocks() const { return ceil_div(columns, kSide); }

  // Packs a block as `pack` does; zero beyond the end.
  template <class Pack>
  void block(int64_t row, int64_t column, Half* to, Pack pack) const {
    const Half* const from = data + row * columns + column;
    if (row + kSide <= rows && column + kSide <= columns) return pack(from, columns, to);
    alignas(64) Half copy[kPanel] = {};
    const __mmask32 some = columns - column < kSide ? (1u << (columns - column)) - 1 : ~0u;
    for (int64_t i = 0; i < std::min(kSide, rows - row); i++)
      _mm512_store_si512(copy + i * kSide, _mm512_maskz_loadu_epi16(some, from + i * columns));
    pack(copy, kSide, to);
  }
};

// Blocks of the result: of the product of `first`, transposed, with some blocks of columns of `second`.
struct Blocks {
  const Matrix &first, &second;
  const int64_t begin, count;  // of the latter
  const bool turned;           // whether the result is the transposed product

  // Of few rows, sums of one block of columns exist at a time, and are written from the cache. Not if they are short
  // pieces of many rows of the result: writing those takes as long.
  void multiply_all(Half* result) const {
    const int64_t steps = ceil_div(first.rows, kSide), height = first.blocks() * kBlock;
    const bool at_once = steps <= kSteps && turned;
    const Aligned<Half> rows(first.blocks() * kSteps * kPanel), columns(count * kSteps * kPanel);
    const Aligned<float> sums(height * (at_once ? 1 : count));
    for (int64_t step = 0; step < steps; step += kSteps) {
      const int64_t now = std::min(kSteps, steps - step);
      for (int64_t k = 0; k < now; k++) {
        const int64_t row = (step + k) * kSide;
        for (int64_t i = 0; i < first.blocks(); i++)
          first.block(row, i * kSide, rows.get() + (i * kSteps + k) * kPanel, pack_as_turned_rows);
        for (int64_t j = 0; j < count; j++)
          second.block(row, (begin + j) * kSide, columns.get() + (j * kSteps + k) * kPanel, pack_as_columns);
      }
      for (int64_t j = 0; j < count; j++) {
        float* const here = sums.get() + (at_once ? 0 : j * height);
        for (int64_t i = 0; i < first.blocks(); i++)
          multiply<1, 1>(rows.get() + i * kSteps * kPanel, columns.get() + j * kSteps * kPanel, now, here + i * kBlock,
                         kSide, step > 0);
        if (at_once) write(here, begin + j, 1, result);
      }
    }
    if (!at_once) write(sums.get(), begin, count, result);
  }

  // Writes the sums of `some` blocks of columns, which are those from `block` on, to the result.
  void write(const float* sums, int64_t block, int64_t some, Half* result) const {
    const int64_t rows = (turned ? second : first).columns, columns = (turned ? first : second).columns;
    for (int64_t i = 0; i < first.blocks() * kSide; i += kTile)
      for (int64_t j = 0; j < some * kSide; j += kTile) {
        const float* from = sums + (j / kSide * first.blocks() + i / kSide) * kBlock + i % kSide * kSide + j % kSide;
        __m512 tile[16];
        for (int64_t k = 0; k < kTile; k++) tile[k] = _mm512_load_ps(from + k * kSide);
        int64_t row = i, column = block * kSide + j;
        if (turned) transpose(tile), std::swap(row, column);
        for (int64_t k = 0; k < std::min(kTile, rows - row); k++)
          store(result + (row + k) * columns + column, tile[k], first_of(columns - column));
      }
  }
};

}  // namespace

extern "C" {

// `grad`^T times `x`, result: (outputs, inputs). `grad` is (rows, outputs), `x` is (rows, inputs).
void vaq_gradient_of_bfloat16_weight(const Half* grad, const Half* x, int64_t rows, int64_t outputs, int64_t inputs,
                                     Half* result, int threads) {
  const Matrix of_outputs{grad, rows, outputs}, of_inputs{x, rows, inputs};
  const bool turned = inputs <= outputs;  // transposing takes time, so the narrower one is transposed
  const Matrix &first = turned ? of_inputs : of_outputs, &second = turned ? of_outputs : of_inputs;
  const int64_t width = ceil_div(second.blocks(), threads);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t begin = 0; begin < second.blocks(); begin += width) {
    const Tiles tiles;
    Blocks{first, second, begin, std::min(width, second.blocks() - begin), turned}.multiply_all(result);
  }
}
}
