// What training does once a step with all quantized weights: the bin regularizer and the count of oscillations.
//
// The unit of work is a scale group, which one thread handles from its first weight to its last. So results do not
// depend on the number of threads. Definitions: numerics/bins.py and numerics/oscillation.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kBlock = 1024;  // weights whose levels and distances wait in the first-level cache
constexpr int64_t kAhead = 1024;  // weights by which memory is asked for ahead: processors do not look beyond a page
constexpr int kMasked = 4;        // bits up to which comparing with every level is faster than scattering

// One row of the table that Python fills, see native/weights.py.
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

struct Bin {
  double count = 0, sum = 0;  // of its weights, and of their distances to the level
};

// x / scale, as division rounds it where no number is too small or too large (of an infinite one it is NaN): a division
// takes as long as ten other operations. The remainder of the first quotient is exact.
inline float quotient(float x, float scale, float reciprocal) {
#if defined(__FMA__)
  const float q = x * reciprocal;
  return std::fma(std::fma(-q, scale, x), reciprocal, q);
#else
  return x / scale;
#endif
}

#if defined(__AVX512F__)
inline __m512 quotient(__m512 x, __m512 scale, __m512 reciprocal) {
  const __m512 q = _mm512_mul_ps(x, reciprocal);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(q, scale, x), reciprocal, q);
}

inline __m512 clamped(__m512 v, __m512 lowest, __m512 highest) {
  return _mm512_max_ps(_mm512_min_ps(v, highest), lowest);  // in this order NaN becomes the highest here too
}

// Counts and sums `weights` that are no less than bounds, of which kBounds stay in registers.
template <int kBounds>
void add_above(const float* bounds, const float* weights, int64_t count, Bin* bins) {
  __m512 sums[kBounds] = {};
  __m512i counts[kBounds] = {};
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 some = count - i < 16 ? __mmask16((1 << (count - i)) - 1) : __mmask16(0xffff);
    const __m512 w = _mm512_maskz_loadu_ps(some, weights + i);
    _mm_prefetch(weights + i + kAhead, _MM_HINT_T0);
    for (int k = 0; k < kBounds; k++) {
      const __mmask16 above = _mm512_mask_cmp_ps_mask(some, w, _mm512_set1_ps(bounds[k]), _CMP_GE_OQ);
      sums[k] = _mm512_mask_add_ps(sums[k], above, sums[k], w);
      counts[k] = _mm512_mask_add_epi32(counts[k], above, counts[k], _mm512_set1_epi32(1));
    }
  }
  for (int k = 0; k < kBounds; k++)
    bins[k].count += _mm512_reduce_add_epi32(counts[k]), bins[k].sum += _mm512_reduce_add_ps(sums[k]);
}

// Counts and sums of the bins of a group, of at most 16 levels, from those of all weights at a level or above it.
void fill_few_bins(const Group& group, Bin* bins) {
  const float lowest = group.lowest;
  const auto level = [&](float w) { return rounded(clamped(w / group.scale, lowest, group.highest)); };
  float bounds[16] = {-INFINITY};  // the least weights of levels
  for (int l = 1; l < group.levels; l++) {
    bounds[l] = (lowest + float(l) - 0.5f) * group.scale;
    while (level(bounds[l]) >= lowest + float(l)) bounds[l] = std::nextafter(bounds[l], -INFINITY);
    while (level(bounds[l]) < lowest + float(l)) bounds[l] = std::nextafter(bounds[l], INFINITY);
  }
  group.blocks([&](int64_t first, int64_t count) {
    const float* weights = group.weight->values + first;
    if (group.levels == 4) return add_above<4>(bounds, weights, count, bins);
    for (int l = 0; l < group.levels; l += 8) add_above<8>(bounds + l, weights, count, bins + l);
  });
  for (int l = 0; l < group.levels; l++) {
    if (l + 1 < group.levels) bins[l].count -= bins[l + 1].count, bins[l].sum -= bins[l + 1].sum;
    bins[l].sum -= bins[l].count * double(lowest + float(l)) * double(group.scale);  // now of distances
  }
}
#endif

// Adding a block to bins. Up to kMasked bits, weights are compared with every bin, many at once: with kBins at a time, whose
// sums stay in registers. The block is filled up to a multiple of kLanes with kNone, a bin that is none.
//
// Vectors are an extension of GCC and Clang. Indices are floating-point numbers: then masks are as wide as distances.
#if defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Index;
constexpr Index kNone = 255;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Members __attribute__((vector_size(4 * kLanes)));
template <int kBins>
void add_masked(const Index* bin, const float* distance, int64_t count, int first, Bin* bins) {
  Members counts[kBins] = {};
  Floats sums[kBins] = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats b = *reinterpret_cast<const Floats*>(bin + i), d = *reinterpret_cast<const Floats*>(distance + i);
    for (int k = 0; k < kBins; k++) {
      const Members members = b == float(first + k);
      counts[k] -= members;
      sums[k] += Floats(members & Members(d));
    }
  }
  for (int k = 0; k < kBins; k++)
    for (int j = 0; j < kLanes; j++) bins[first + k].count += counts[k][j], bins[first + k].sum += sums[k][j];
}

// Bins of the weights of a block, and distances to their levels.
void find_bins(const Group& group, const float* values, int64_t count, Index* bin, float* distance) {
  const float scale = group.scale, reciprocal = 1 / scale, lowest = group.lowest, highest = group.highest;
#pragma omp simd
  for (int64_t i = 0; i < count; i++) {
    const float r = rounded(clamped(quotient(values[i], scale, reciprocal), lowest, highest));
    bin[i] = Index(int(r - lowest));
    distance[i] = values[i] - r * scale;
  }
}

// The regularizer of a weight is share (clipped distance)^2 + slope[bin] (distance - mean[bin])^2.
struct Tables {
  float share, slope[256], mean[256];
};

// Adds the regularizer of a block to `gradient`, unless that is null, as its gradient times `factor`; returns it.
template <bool kWithGradient>
double regularize_block(const Group& group, const float* values, int64_t count, const Tables& tables, float factor,
                        float* gradient) {
  const float scale = group.scale, lowest = group.lowest, highest = group.highest, share = tables.share;
  const float reciprocal = 1 / scale;
  double value = 0;
  int64_t i = 0;
#if defined(__AVX512F__)
  if (group.levels <= 16) {  // a table fills one register
    const __m512 slopes = _mm512_loadu_ps(tables.slope), means = _mm512_loadu_ps(tables.mean);
    const __m512 s = _mm512_set1_ps(scale), low = _mm512_set1_ps(lowest), high = _mm512_set1_ps(highest);
    const __m512 inverse = _mm512_set1_ps(reciprocal), shares = _mm512_set1_ps(share), twice = _mm512_set1_ps(2 * factor);
    __m512 sums = _mm512_setzero_ps();
    for (; i + 16 <= count; i += 16) {
      const __m512 w = _mm512_loadu_ps(values + i);
      _mm_prefetch(values + i + kAhead, _MM_HINT_T0);
      if (kWithGradient) __builtin_prefetch(gradient + i + kAhead, 1);
      const __m512 v = clamped(quotient(w, s, inverse), low, high);
      const __m512 r = _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT);
      const __m512i bin = _mm512_cvtps_epi32(_mm512_sub_ps(r, low));
      const __m512 clipped = _mm512_mul_ps(_mm512_sub_ps(v, r), s);
      const __m512 deviation = _mm512_sub_ps(_mm512_fnmadd_ps(r, s, w), _mm512_permutexvar_ps(bin, means));
      const __m512 sloped = _mm512_mul_ps(deviation, _mm512_permutexvar_ps(bin, slopes));
      const __m512 shared = _mm512_mul_ps(clipped, shares);
      sums = _mm512_fmadd_ps(deviation, sloped, _mm512_fmadd_ps(clipped, shared, sums));
      if (kWithGradient) {
        const __m512 g = _mm512_loadu_ps(gradient + i);
        _mm512_storeu_ps(gradient + i, _mm512_fmadd_ps(_mm512_add_ps(sloped, shared), twice, g));
      }
    }
    for (int j = 0; j < 16; j++) value += sums[j];
  }
#endif
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = i; k < count; k++) {
    const float v = clamped(quotient(values[k], scale, reciprocal), lowest, highest), r = rounded(v);
    const int bin = int(r - lowest);
    const float clipped = (v - r) * scale, deviation = values[k] - r * scale - tables.mean[bin];
    const float sloped = deviation * tables.slope[bin], shared = clipped * share;
    sum += deviation * sloped + clipped * shared;
    if (kWithGradient) gradient[k] += 2 * factor * (sloped + shared);
  }
  return value + sum;
}

// Counts and sums of all bins of a group.
void fill_bins(const Group& group, Bin* bins) {
  const Weight& weight = *group.weight;
#if defined(__AVX512F__)
  // A scale that is no number has no bounds: every weight would be at every level.
  if (weight.bits <= kMasked && std::isfinite(group.scale)) return fill_few_bins(group, bins);
#endif
  alignas(64) Index bin[kBlock];
  alignas(64) float distance[kBlock];
  group.blocks([&](int64_t first, int64_t count) {
    find_bins(group, weight.values + first, count, bin, distance);
    if (weight.bits <= kMasked) {
      std::fill(bin + count, bin + (count + kLanes - 1) / kLanes * kLanes, kNone);
      if (weight.bits == 2) add_masked<4>(bin, distance, count, 0, bins);
      for (int l = 0; weight.bits > 2 && l < group.levels; l += 8) add_masked<8>(bin, distance, count, l, bins);
    } else {
      for (int64_t i = 0; i < count; i++) bins[int(bin[i])].count += 1, bins[int(bin[i])].sum += distance[i];
    }
  });
}

// The term of one group; adds `factor` times its gradient.
double regularize(const Group& group, double factor) {
  const Weight& weight = *group.weight;
  Bin bins[256];
  fill_bins(group, bins);
  Tables tables;
  tables.share = float(1.0 / double(group.size() * weight.groups));
  for (int l = 0; l < 256; l++) {
    // A bin of one weight has no variance, but NaN in it must not go unnoticed: zero times NaN is NaN.
    tables.slope[l] = bins[l].count >= 2 ? float(1.0 / (double(weight.groups) * (bins[l].count - 1))) : 0;
    tables.mean[l] = bins[l].count > 0 ? float(bins[l].sum / bins[l].count) : 0;
  }
  double value = 0;
  group.blocks([&](int64_t first, int64_t count) {
    const float* values = weight.values + first;
    if (weight.gradient == nullptr)
      value += regularize_block<false>(group, values, count, tables, float(factor), nullptr);
    else
      value += regularize_block<true>(group, values, count, tables, float(factor), weight.gradient + first);
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

// A code that has changed: twice the weight's place in its block, plus one if the code went down.
using Change = uint32_t;

// See Oscillations in numerics/oscillation.py. Without branches: which way a change goes cannot be foretold.
template <class Number>
void count_change(Change change, typename Number::Bits* histories, Step step) {
  using Bits = typename Number::Bits;
  Bits& history = histories[change >> 1];
  const Bits direction = change & 1 ? Number::kSign : 0;
  const Bits magnitude = history & Bits(~Number::kSign);
  const Bits grown = Number::store(Number::load(magnitude) + step.increment, step.rounding);
  const Bits counted = (history & Number::kSign) == direction ? magnitude : grown;
  history = Bits((magnitude > Number::kInfinity ? 0 : counted) | direction);  // NaN: the first change
}

// Brings the codes of a block up to date. Writes down those that change, and returns how many they are.
int find_changes(const Group& group, const float* values, int64_t count, int8_t* codes, Change* changes) {
  const float scale = group.scale, reciprocal = 1 / scale, lowest = group.lowest, highest = group.highest;
  const float least = 2 * lowest * scale, most = 2 * highest * scale;  // what is beyond has the code of these
  int found = 0;
  int64_t i = 0;
#if defined(__AVX512F__)
  const __m512 s = _mm512_set1_ps(scale), inverse = _mm512_set1_ps(reciprocal);
  const __m512 low = _mm512_set1_ps(lowest), high = _mm512_set1_ps(highest);
  const __m512 bottom = _mm512_set1_ps(least), top = _mm512_set1_ps(most);
  __m512i places = _mm512_slli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 1);
  for (; i + 16 <= count; i += 16) {
    const __m512 w = _mm512_loadu_ps(values + i);
    _mm_prefetch(values + i + kAhead, _MM_HINT_T0);
    const __m512i now = _mm512_cvtps_epi32(clamped(quotient(clamped(w, bottom, top), s, inverse), low, high));
    const __m512i before = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)));
    const __mmask16 changed = _mm512_cmpneq_epi32_mask(now, before), down = _mm512_cmplt_epi32_mask(now, before);
    const __m512i all = _mm512_mask_add_epi32(places, down, places, _mm512_set1_epi32(1));
    _mm512_storeu_si512(changes + found, _mm512_maskz_compress_epi32(changed, all));
    found += __builtin_popcount(changed);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(now));
    places = _mm512_add_epi32(places, _mm512_set1_epi32(32));
  }
#endif
  for (int64_t k = i; k < count; k += 16) __builtin_prefetch(values + k + kAhead);
  alignas(64) int8_t now[kBlock];
#pragma omp simd
  for (int64_t k = i; k < count; k++) {
    const float v = quotient(clamped(values[k], least, most), scale, reciprocal);
    now[k] = int8_t(int(rounded(clamped(v, lowest, highest))));
  }
  const auto compare = [&](int64_t k) {
    if (now[k] == codes[k]) return;
    changes[found++] = Change(2 * k + (now[k] < codes[k]));
    codes[k] = now[k];
  };
  for (; i + 8 <= count; i += 8) {  // few codes change in a step: eight are compared at once
    uint64_t a, b;
    std::memcpy(&a, now + i, 8);
    std::memcpy(&b, codes + i, 8);
    if (a == b) continue;
    for (int64_t k = i; k < i + 8; k++) compare(k);
  }
  for (; i < count; i++) compare(i);
  return found;
}

template <class Number>
void count_changes(const Group& group, Step step) {
  const Weight& weight = *group.weight;
  // Two blocks at a time: while changes of one are found, the histories of the other come from memory.
  struct Changes {
    typename Number::Bits* histories;
    int count = 0;
    Change list[kBlock + 16];  // sixteen are written at once, of which some may be none
  } found[2];
  const auto count_all = [&](const Changes& changes) {
    for (int k = 0; k < changes.count; k++) count_change<Number>(changes.list[k], changes.histories, step);
  };
  int next = 0;
  group.blocks([&](int64_t first, int64_t count) {
    Changes& changes = found[next];
    changes.histories = static_cast<typename Number::Bits*>(weight.history) + first;
    changes.count = find_changes(group, weight.values + first, count, weight.codes + first, changes.list);
    for (int k = 0; k < changes.count; k++) __builtin_prefetch(changes.histories + (changes.list[k] >> 1), 1);
    next = 1 - next;
    count_all(found[next]);
  });
  count_all(found[1 - next]);
}

// The largest first, so that no thread has one to itself while the others have nothing left.
std::vector<Group> all_groups(const Weight* weights, int64_t count) {
  std::vector<Group> groups;
  for (int64_t i = 0; i < count; i++)
    for (int64_t g = 0; g < weights[i].groups; g++) groups.emplace_back(weights[i], g);
  std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.size() > b.size(); });
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
