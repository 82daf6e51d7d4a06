// Fake quantization of float32 tensors and its gradients, one pass over memory each; definitions: numerics/fused.py.
//
// To be compiled without contraction of products and sums: values have the bits of separate operations then. A tensor is
// handled in parts of a fixed size, whose sums are added in order, so results do not depend on the number of threads.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int64_t kPart = 16384;  // values of a part at most, but for a row that has more among others
constexpr int64_t kBlock = 1024;  // values whose sums are taken in float32

enum Factor : int64_t { kNone, kConstant, kOfTheGroup, kMeanOfGroups };

// A tensor and its quantizer, as Python fills it in, see native/quantizers.py.
struct Plan {
  int64_t outer, groups, rows, inner;  // the quantized values lie in memory like this
  int64_t moved;                       // 1: the values before quantization lie as (outer, rows, groups, inner)
  int64_t scales;                      // one, or one for every group
  int64_t rule;
  double lowest, highest;
  double factor;   // on the gradients of scale and offset, if it is a constant
  double scaling;  // on the gradient that goes through softmax
  double bound;    // of the logarithm of a scale
};

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

// Where a row of a part begins among the quantized values, and among those before quantization.
inline int64_t quantized_at(const Plan& p, const Part& part, int64_t row) {
  return ((part.outer * p.groups + part.group) * p.rows + row) * p.inner + part.first;
}
inline int64_t values_at(const Plan& p, const Part& part, int64_t row) {
  if (!p.moved) return quantized_at(p, part, row);
  return ((part.outer * p.rows + row) * p.groups + part.group) * p.inner + part.first;
}

struct Quantizer {
  float scale, offset, lowest, highest;

  Quantizer(const Plan& p, const float* scales, const float* offsets, int64_t group)
      : scale(scales[p.scales > 1 ? group : 0]), offset(offsets ? offsets[p.scales > 1 ? group : 0] : 0),
        lowest(float(p.lowest)), highest(float(p.highest)) {}

  template <bool kOffset>
  float normalized(float x) const { return kOffset ? (x - offset) / scale : x / scale; }
  float level(float v) const {  // of NaN: NaN
    return std::rint(v < lowest ? lowest : (v > highest ? highest : v));
  }
};

template <bool kOffset>
void quantize(const Quantizer& q, const float* x, int64_t count, float* result) {
#pragma omp simd
  for (int64_t i = 0; i < count; i++) {
    const float value = q.level(q.normalized<kOffset>(x[i])) * q.scale;
    result[i] = kOffset ? value + q.offset : value;
  }
}

// Sums over a part: of the derivatives by the scale times the gradient, of the gradients of what was clipped, of the
// magnitudes; and the group that they belong to.
struct Sums {
  double by_scale = 0, clipped = 0, magnitudes = 0;
  int64_t group = 0;
};

template <bool kOffset>
void differentiate(const Quantizer& q, const float* grad, const float* x, int64_t count, float* result, Sums& sums) {
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t last = std::min(count, first + kBlock);
    float by_scale = 0, clipped = 0, magnitudes = 0;
#pragma omp simd reduction(+ : by_scale, clipped, magnitudes)
    for (int64_t i = first; i < last; i++) {
      const float v = q.normalized<kOffset>(x[i]), g = grad[i];
      const bool inside = v > q.lowest && v < q.highest;
      by_scale += (q.level(v) - (inside ? v : 0)) * g;
      if (kOffset) clipped += inside ? 0 : g;
      magnitudes += std::fabs(x[i]);
      result[i] = inside ? g : 0;
    }
    sums.by_scale += by_scale, sums.clipped += clipped, sums.magnitudes += magnitudes;
  }
}

// The same for a row of probabilities, and on through the softmax that made them.
void differentiate_softmax(const Quantizer& q, const float* grad, const float* p, int64_t count, float scaling,
                           float* result, Sums& sums) {
  float by_scale = 0, magnitudes = 0, projection = 0;
#pragma omp simd reduction(+ : by_scale, magnitudes, projection)
  for (int64_t i = 0; i < count; i++) {
    const float v = q.normalized<false>(p[i]), g = grad[i];
    const bool inside = v > q.lowest && v < q.highest;
    by_scale += (q.level(v) - (inside ? v : 0)) * g;
    magnitudes += std::fabs(p[i]);
    const float passed = inside ? g : 0;
    projection += passed * p[i];
    result[i] = passed;
  }
#pragma omp simd
  for (int64_t i = 0; i < count; i++) result[i] = (result[i] - projection) * p[i] * scaling;
  sums.by_scale += by_scale, sums.magnitudes += magnitudes;
}

// Calls f(quantizer, quantized, values, count, sums) for all rows, or pieces of rows: where one begins among the quantized
// values and among those before quantization, how long it is, and the sums of its part, which are returned.
template <class F>
std::vector<Sums> for_all(const Plan& plan, const float* scales, const float* offsets, int threads, F f) {
  const Parts parts(plan);
  std::vector<Sums> sums(parts.all);
  threads = int(std::min<int64_t>(threads, parts.all));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < parts.all; i++) {
    const Part part = parts[i];
    const Quantizer quantizer(plan, scales, offsets, part.group);
    Sums sum;  // threads do not share its memory
    sum.group = part.group;
    for (int64_t row = part.first_row; row < part.first_row + part.rows; row++)
      f(quantizer, quantized_at(plan, part, row), values_at(plan, part, row), part.count, sum);
    sums[i] = sum;
  }
  return sums;
}

// From sums to the gradients by the logarithms of the scales and by the offsets.
void finish(const Plan& p, const float* scales, const std::vector<Sums>& all, float* by_scale, float* by_offset) {
  std::vector<Sums> sums(p.scales);
  double magnitudes = 0;
  for (const Sums& part : all) {
    Sums& sum = sums[p.scales > 1 ? part.group : 0];
    sum.by_scale += part.by_scale, sum.clipped += part.clipped, sum.magnitudes += part.magnitudes;
    magnitudes += part.magnitudes;
  }
  for (int64_t g = 0; g < p.scales; g++) {
    double factor = p.factor;
    if (p.rule != kConstant) {
      const double l1_norm = p.rule == kOfTheGroup ? sums[g].magnitudes : magnitudes / double(p.scales);
      factor = 1 / std::sqrt(std::max(l1_norm * p.highest, double(FLT_MIN)));
    }
    const double scale = scales[g], position = std::log(scale) / p.bound;  // = tanh(l / B)
    by_scale[g] = float(sums[g].by_scale * factor * scale * (1 - position * position));
    if (by_offset) by_offset[g] = float(sums[g].clipped * factor);
  }
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
        differentiate_softmax(q, grad + at, p + at, count, scaling, result + at, sum);
      });
  if (by_scale) finish(*plan, scales, sums, by_scale, nullptr);
}
}
