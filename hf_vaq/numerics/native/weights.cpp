// What training does once a step with all quantized weights: the bin regularizer, and the count of oscillations.
//
// One call for a whole model. The unit of work is a scale group, which one thread handles from its first weight to its
// last: results do not depend on the number of threads, and the second pass over a group finds it in the cache.
// Definitions: numerics/bins.py and numerics/oscillation.py.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kBlock = 1024;  // weights whose levels and distances wait in the first-level cache
constexpr int kMasked = 4;        // bits up to which comparing with every level is faster than scattering

// One row of the table that Python fills, see native/ops.py.
struct Weight {
  const float* values;
  float* gradient;  // null: none is wanted
  int8_t* codes;
  void* history;
  const float* scales;
  int64_t outer, groups, inner, bits;  // values lie in memory as (outer, groups, inner)
};
static_assert(sizeof(Weight) == 9 * sizeof(int64_t), "a row is nine numbers of 64 bits");

struct Group {
  const Weight* weight;
  int64_t index;
  float scale, lowest, highest;
  int levels;

  Group(const Weight& w, int64_t i)
      : weight(&w), index(i), scale(w.scales[i]), lowest(-float(1 << (w.bits - 1))),
        highest(float((1 << (w.bits - 1)) - 1)), levels(1 << w.bits) {}

  int64_t size() const { return weight->outer * weight->inner; }

  // Calls f(first, count) for the blocks of the group, `first` counted from the beginning of the tensor.
  template <class F>
  void blocks(F f) const {
    for (int64_t o = 0; o < weight->outer; o++) {
      const int64_t begin = (o * weight->groups + index) * weight->inner;
      for (int64_t i = 0; i < weight->inner; i += kBlock) f(begin + i, std::min(kBlock, weight->inner - i));
    }
  }
};

// To the nearest integer, ties to even, of numbers that are small: compilers vectorize it everywhere. In this order NaN
// becomes the highest level, a valid index; the distance to it is NaN still.
inline float clamped(float v, float lowest, float highest) {
  v = v < highest ? v : highest;
  return v > lowest ? v : lowest;
}
inline float rounded(float v) { return (v + 12582912.0f) - 12582912.0f; }

// Levels and distances to them of a block; returns the sum of squared distances of the clipped weights.
float distances(const Group& group, const float* values, int64_t count, float* level, float* distance) {
  const float scale = group.scale, lowest = group.lowest, highest = group.highest;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; i++) {
    const float v = clamped(values[i] / scale, lowest, highest), r = rounded(v), clipped = (v - r) * scale;
    level[i] = r;
    distance[i] = values[i] - r * scale;
    sum += clipped * clipped;
  }
  return sum;
}

struct Moments {
  double count = 0, sum = 0, squares = 0;
};

// As many numbers as a register of this processor holds; sums and counts of some of them. (Vectors are an extension of
// GCC and Clang; of AVX-512's masked sums neither makes use by itself.)
#if defined(__AVX512F__)
constexpr int kLanes = 16;
typedef __m512 Floats;
typedef __mmask16 Members;
typedef int64_t Counts;
inline Members equal(Floats a, float b) { return _mm512_cmpeq_ps_mask(a, _mm512_set1_ps(b)); }
inline void add(Floats& sum, Members members, Floats x) { sum = _mm512_mask_add_ps(sum, members, sum, x); }
inline void add(Counts& counts, Members members) { counts += __builtin_popcount(members); }
inline double total(Counts counts) { return double(counts); }
#else
#if defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Members __attribute__((vector_size(4 * kLanes)));
typedef Members Counts;
inline Members equal(Floats a, float b) { return a == b; }
inline void add(Floats& sum, Members members, Floats x) { sum += Floats(members & Members(x)); }
inline void add(Counts& counts, Members members) { counts -= members; }
inline double total(Counts counts) {
  double sum = 0;
  for (int i = 0; i < kLanes; i++) sum += counts[i];
  return sum;
}
#endif

inline double total(Floats lanes) {
  double sum = 0;
  for (int i = 0; i < kLanes; i++) sum += lanes[i];
  return sum;
}

// Adds a block to two bins; it is filled up to whole registers with levels that are none.
void add_masked(const float* level, const float* distance, int64_t count, float first, Moments* bins) {
  Counts counts[2] = {};
  Floats sums[2] = {}, squares[2] = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats l = *reinterpret_cast<const Floats*>(level + i), d = *reinterpret_cast<const Floats*>(distance + i);
    const Floats dd = d * d;
    for (int k = 0; k < 2; k++) {
      const Members members = equal(l, first + k);
      add(counts[k], members);
      add(sums[k], members, d);
      add(squares[k], members, dd);
    }
  }
  for (int k = 0; k < 2; k++) {
    bins[k].count += total(counts[k]);
    bins[k].sum += total(sums[k]);
    bins[k].squares += total(squares[k]);
  }
}

// The gradient of a weight is (clipped distance) share + (distance) slope[bin] + intercept[bin].
struct Tables {
  float share, slope[256], intercept[256];
};

void add_gradient(const Group& group, const float* values, int64_t count, const Tables& tables, float* gradient) {
  const float scale = group.scale, lowest = group.lowest, highest = group.highest, share = tables.share;
  int64_t i = 0;
#if defined(__AVX512F__)
  if (group.levels <= 16) {  // a table fills one register
    const __m512 slope = _mm512_loadu_ps(tables.slope), intercept = _mm512_loadu_ps(tables.intercept);
    const __m512 s = _mm512_set1_ps(scale), low = _mm512_set1_ps(lowest), high = _mm512_set1_ps(highest);
    for (; i + 16 <= count; i += 16) {
      const __m512 w = _mm512_loadu_ps(values + i);
      const __m512 v = _mm512_max_ps(_mm512_min_ps(_mm512_div_ps(w, s), high), low);  // of NaN: the highest
      const __m512 r = _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT);
      const __m512i bin = _mm512_cvtps_epi32(_mm512_sub_ps(r, low));
      const __m512 clipped = _mm512_mul_ps(_mm512_sub_ps(v, r), s), distance = _mm512_fnmadd_ps(r, s, w);
      __m512 g = _mm512_fmadd_ps(distance, _mm512_permutexvar_ps(bin, slope), _mm512_permutexvar_ps(bin, intercept));
      g = _mm512_fmadd_ps(clipped, _mm512_set1_ps(share), g);
      _mm512_storeu_ps(gradient + i, _mm512_add_ps(_mm512_loadu_ps(gradient + i), g));
    }
  }
#endif
  for (; i < count; i++) {
    const float v = clamped(values[i] / scale, lowest, highest), r = rounded(v);
    const int bin = int(r - lowest);
    gradient[i] += (v - r) * scale * share + ((values[i] - r * scale) * tables.slope[bin] + tables.intercept[bin]);
  }
}

// The term of one group; adds `factor` times its gradient.
double regularize(const Group& group, double factor) {
  const Weight& weight = *group.weight;
  const double share = 1.0 / double(group.size() * weight.groups), bin_share = 1.0 / double(weight.groups);
  Moments bins[256];
  alignas(64) float level[kBlock], distance[kBlock];
  double clipped = 0;
  group.blocks([&](int64_t first, int64_t count) {
    clipped += distances(group, weight.values + first, count, level, distance);
    if (weight.bits <= kMasked) {
      std::fill(level + count, level + std::min(count + kLanes, kBlock), 1e9f);
      for (int l = 0; l < group.levels; l += 2) add_masked(level, distance, count, group.lowest + l, bins + l);
    } else {
      for (int64_t i = 0; i < count; i++) {
        Moments& bin = bins[int(level[i] - group.lowest)];
        bin.count += 1, bin.sum += distance[i], bin.squares += double(distance[i]) * distance[i];
      }
    }
  });
  double value = clipped * share;
  Tables tables;
  tables.share = float(2 * factor * share);
  for (int l = 0; l < 256; l++) {
    const Moments& bin = bins[l];
    const double mean = bin.count > 0 ? bin.sum / bin.count : 0;
    const double slope = bin.count >= 2 ? bin_share / (bin.count - 1) : 0;
    // A bin of one weight has no variance, but NaN in it must not go unnoticed: zero times NaN is NaN.
    value += (bin.squares - bin.sum * mean) * slope;
    tables.slope[l] = float(2 * factor * slope);
    tables.intercept[l] = float(-2 * factor * slope * mean);
  }
  if (weight.gradient != nullptr)
    group.blocks([&](int64_t first, int64_t count) {
      add_gradient(group, weight.values + first, count, tables, weight.gradient + first);
    });
  return value;
}

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// How a history is stored: in 16 bits (IEEE binary16) or in 32. Magnitudes are zero or normal numbers.
struct Half {
  using Bits = uint16_t;
  static constexpr Bits kSign = 0x8000, kInfinity = 0x7c00;
  static constexpr uint32_t kBias = 112u << 23;  // difference of the exponents
  static float load(Bits bits) { return float_of(uint32_t(bits) << 13) * 5.192296858534828e33f; }  // 2^112
  static Bits store(float value, uint32_t rounding) { return Bits((bits_of(value) + rounding - kBias) >> 13); }
};
struct Single {
  using Bits = uint32_t;
  static constexpr Bits kSign = 0x80000000, kInfinity = 0x7f800000;
  static float load(Bits bits) { return float_of(bits); }
  static Bits store(float value, uint32_t) { return bits_of(value); }
};

// What an oscillation adds to a history, and how the sum is rounded.
struct Step {
  float increment;
  uint32_t rounding;
};

// See Oscillations in numerics/oscillation.py.
template <class Number>
void count_change(int8_t before, int8_t code, typename Number::Bits& history, Step step) {
  using Bits = typename Number::Bits;
  const Bits direction = code > before ? 0 : Number::kSign;
  const Bits magnitude = history & Bits(~Number::kSign);
  if (magnitude > Number::kInfinity) {  // NaN: the first change
    history = direction;
  } else if ((history & Number::kSign) == direction) {
    return;
  } else {
    history = Bits(Number::store(Number::load(magnitude) + step.increment, step.rounding) | direction);
  }
}

template <class Number>
void count_changes(const Group& group, Step step) {
  const Weight& weight = *group.weight;
  const float scale = group.scale, lowest = group.lowest, highest = group.highest;
  auto* history = static_cast<typename Number::Bits*>(weight.history);
  alignas(64) int8_t now[kBlock];
  group.blocks([&](int64_t first, int64_t count) {
    const float* values = weight.values + first;
    int8_t* before = weight.codes + first;
    for (int64_t i = 0; i < count; i++) now[i] = int8_t(int(rounded(clamped(values[i] / scale, lowest, highest))));
    const auto changed = [&](int64_t i) {
      count_change<Number>(before[i], now[i], history[first + i], step);
      before[i] = now[i];
    };
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {  // few codes change in a step: eight are compared at once
      uint64_t a, b;
      std::memcpy(&a, now + i, 8);
      std::memcpy(&b, before + i, 8);
      if (a == b) continue;
      for (int64_t k = i; k < i + 8; k++)
        if (now[k] != before[k]) changed(k);
    }
    for (; i < count; i++)
      if (now[i] != before[i]) changed(i);
  });
}

std::vector<Group> all_groups(const Weight* weights, int64_t count) {
  std::vector<Group> groups;
  for (int64_t i = 0; i < count; i++)
    for (int64_t g = 0; g < weights[i].groups; g++) groups.emplace_back(weights[i], g);
  return groups;
}

}  // namespace

extern "C" {

// Returns the regularizer of all weights, and adds `factor` times its gradient to the gradients that are not null.
double vaq_bin_regularizer(const void* table, int64_t count, double factor, int threads) {
  const std::vector<Group> groups = all_groups(static_cast<const Weight*>(table), count);
  std::vector<double> terms(groups.size());
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (size_t i = 0; i < groups.size(); i++) terms[i] = regularize(groups[i], factor);
  double value = 0;
  for (const double term : terms) value += term;
  return value;
}

// Brings codes up to date and counts the oscillations; `half` says of what type the histories are.
void vaq_count_oscillations(const void* table, int64_t count, float increment, int rounding, int half, int threads) {
  const std::vector<Group> groups = all_groups(static_cast<const Weight*>(table), count);
  const Step step{increment, uint32_t(rounding)};
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (size_t i = 0; i < groups.size(); i++) {
    if (half)
      count_changes<Half>(groups[i], step);
    else
      count_changes<Single>(groups[i], step);
  }
}
}
