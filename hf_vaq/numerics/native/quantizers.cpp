// Fake quantization of float32 tensors and its gradients, one pass over memory each; definitions: numerics/fused.py.
//
// To be compiled without contraction of products and sums: values have the bits of separate operations then. A tensor is
// handled in parts of a fixed size, whose sums are added in order, so results do not depend on the number of threads.

#include "quantizer.h"

namespace {

constexpr int64_t kPart = 16384;  // values of a part at most, but for a row that has more among others

// Rows of a group, or a piece of a single row.
struct Part {
  int64_t outer, group, first_row, rows, first, count;
};

struct Parts {
  const Plan& plan;
  int64_t rows, count;           // of one part
  int64_t in_rows, in_row, all;  // parts of a group

  explicit Parts(const Plan& p) : plan(p) {
    rows = std::max<int64_t>(1, kPart / std::max<int64_t>(1, p.inner));
    count = p.rows == 1 ? kPart : p.inner;
    in_rows = (p.rows + rows - 1) / rows;
    in_row = (p.inner + count - 1) / count;
    all = p.outer * p.groups * in_rows * in_row;
  }

  Part operator[](int64_t i) const {
    const int64_t piece = i % in_row, piece_of_rows = i / in_row % in_rows, block = i / in_row / in_rows;
    const int64_t first_row = piece_of_rows * rows, first = piece * count;
    return {block / plan.groups, block % plan.groups, first_row, std::min(rows, plan.rows - first_row),
            first, std::min(count, plan.inner - first)};
  }
};

// Calls f(quantizer, quantized, values, count, sums) for all rows, or pieces of rows: where one begins among the quantized
// values and among those before quantization, how long it is, and the sums of its part, which are returned.
template <class F>
std::vector<Sums> for_all(const Plan& plan, const float* scales, const float* offsets, int threads, F f) {
  const Parts parts(plan);
  std::vector<Sums> sums(parts.all);
  threads = int(std::min<int64_t>(threads, parts.all));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const NoDenormals no_denormals;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < parts.all; i++) {
      const Part part = parts[i];
      const Quantizer quantizer(plan, scales, offsets, part.group);
      Sums sum;  // threads do not share its memory
      sum.group = part.group;
      for (int64_t row = part.first_row; row < part.first_row + part.rows; row++)
        f(quantizer, plan.quantized_at(part.outer, part.group, row) + part.first,
          plan.values_at(part.outer, part.group, row) + part.first, part.count, sum);
      sums[i] = sum;
    }
  }
  return sums;
}

}  // namespace

extern "C" {

// Writes the quantized values. `offsets` may be null.
void vaq_quantize(const Plan* plan, const float* x, const float* scales, const float* offsets, float* result,
                  int threads) {
  for_all(*plan, scales, offsets, threads,
          [=](const Quantizer& q, int64_t quantized, int64_t values, int64_t count, Sums&) {
            if (offsets)
              quantize<true>(q, x + values, count, result + quantized);
            else
              quantize<false>(q, x + values, count, result + quantized);
          });
}

// Writes the gradients by the values (`result` may be `grad`, if nothing is moved), by the logarithms of the scales and,
// with `offsets`, by them. The last two are null if nothing but the first is wanted.
void vaq_differentiate(const Plan* plan, const float* grad, const float* x, const float* scales, const float* offsets,
                       float* result, float* by_scale, float* by_offset, int threads) {
  const std::vector<Sums> sums =
      for_all(*plan, scales, offsets, threads,
              [=](const Quantizer& q, int64_t quantized, int64_t values, int64_t count, Sums& sum) {
                if (offsets)
                  differentiate<true>(q, grad + quantized, x + values, count, result + values, sum);
                else
                  differentiate<false>(q, grad + quantized, x + values, count, result + values, sum);
              });
  if (by_scale) finish(*plan, scales, sums, by_scale, by_offset);
}

// Writes the gradients by the scores, of which softmax made the probabilities `p`, and by the logarithms of the scales.
void vaq_differentiate_softmax(const Plan* plan, const float* grad, const float* p, const float* scales, float* result,
                               float* by_scale, int threads) {
  const float scaling = float(plan->scaling);
  const std::vector<Sums> sums =
      for_all(*plan, scales, nullptr, threads, [=](const Quantizer& q, int64_t at, int64_t, int64_t count, Sums& sum) {
        differentiate_softmax<false>(q, grad + at, 1, p + at, count, scaling, result + at, nullptr, sum);
      });
  if (by_scale) finish(*plan, scales, sums, by_scale, nullptr);
}
}
