// A fake quantizer and its gradients for rows of float32 values; definitions: numerics/fused.py.
//
// To be compiled without contraction of products and sums: values have the bits of separate operations then.

#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <vector>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace {

// As long as it lives, its thread takes denormal numbers for zero. Processors of x86 need a hundred times as long for
// them as for others, and probabilities that a mask makes small are such numbers.
struct NoDenormals {
#if defined(__SSE__)
  const unsigned before = _mm_getcsr();
  NoDenormals() { _mm_setcsr(before | 0x8040); }  // of results, of operands
  ~NoDenormals() { _mm_setcsr(before); }
#else
  NoDenormals() {}
#endif
};

constexpr int64_t kSummed = 1024;  // values whose sums are taken in float32

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

  // Where a row begins among the quantized values, and among those before quantization.
  int64_t quantized_at(int64_t o, int64_t group, int64_t row) const {
    return ((o * groups + group) * rows + row) * inner;
  }
  int64_t values_at(int64_t o, int64_t group, int64_t row) const {
    return moved ? ((o * rows + row) * groups + group) * inner : quantized_at(o, group, row);
  }
};

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
  for (int64_t first = 0; first < count; first += kSummed) {
    const int64_t last = std::min(count, first + kSummed);
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

// The same for a row of probabilities, and on through the softmax that made them: the gradient by the scores, times
// `scaling`, from that of the quantized probabilities over `factor`. `levels` gets the codes, unless it is null.
template <bool kLevels>
void differentiate_softmax(const Quantizer& q, const float* grad, float factor, const float* p, int64_t count,
                           float scaling, float* result, float* levels, Sums& sums) {
  float by_scale = 0, magnitudes = 0, projection = 0;
#pragma omp simd reduction(+ : by_scale, magnitudes, projection)
  for (int64_t i = 0; i < count; i++) {
    const float v = q.normalized<false>(p[i]), g = grad[i] * factor, level = q.level(v);
    const bool inside = v > q.lowest && v < q.highest;
    by_scale += (level - (inside ? v : 0)) * g;
    magnitudes += std::fabs(p[i]);
    const float passed = inside ? g : 0;
    projection += passed * p[i];
    result[i] = passed;
    if (kLevels) levels[i] = level;
  }
#pragma omp simd
  for (int64_t i = 0; i < count; i++) result[i] = (result[i] - projection) * p[i] * scaling;
  sums.by_scale += by_scale, sums.magnitudes += magnitudes;
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
