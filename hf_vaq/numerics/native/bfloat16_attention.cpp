// Attention on bfloat16 queries, keys and values, quantized as its probabilities are, and its backward pass; on
// processors with AMX, see tiles.h.
//
// One thread computes a head of an image, all of which fits its second-level cache: scores are not written to memory,
// but computed again in the backward pass. Sums of heads are added in order, so results do not depend on the number of
// threads. What is rounded to bfloat16 on the way are the gradients by the scores.

#include <vector>

#include "bfloat16_tiles.h"

namespace {

// What Python fills in, see native/bfloat16_attention.py. Queries, keys and values lie as (batch, tokens, heads, dim),
// as do their gradients, the result and its gradient; statistics of the rows of scores as (batch, heads, tokens).
struct Tensors {
  const Half *query, *key, *value;
  const float* mask;  // added to scores, or null; rows are contiguous, and these are its strides
  int64_t mask_image, mask_head, mask_row;
  const float *query_scale, *key_scale, *value_scale, *probability_scale;
  float *highest, *reciprocals;  // of a row: score, sum of exponentials
  Half* result;
  const Half* grad;  // from here on for the backward pass only
  Half *grad_query, *grad_key, *grad_value;
  float* grad_scores;  // (batch, heads, tokens, tokens): of the argument of softmax; null if it is not wanted
  float *by_query_scale, *by_key_scale, *by_value_scale, *by_probability_scale;  // logarithms; null if not wanted
};

// Queries, keys, values, or the gradient of the result.
struct Operand {
  const Plan& plan;
  const Half* values;
  const float* scales;

  Quantizer quantizer(int64_t head) const { return {plan, scales, nullptr, head}; }
  float scale(int64_t head) const { return quantizer(head).scale; }

  // Rows of a block of a head: the numbers themselves, zero beyond the end, or their codes.
  template <bool kCodes>
  void rows(int64_t image, int64_t head, int64_t row_block, int64_t column_block, Half* to) const {
    const Quantizer16 quantizer(this->quantizer(head));
    const int64_t row = row_block * kSide, column = column_block * kSide, some = std::min(kSide, plan.rows - row);
    const __mmask16 first = first_of(plan.inner - column), last = first_of(plan.inner - column - 16);
    const Half* from = this->row(image, head, row) + column;
    for (int64_t i = 0; i < some; i++, from += apart()) {
      const __m512 x = load(from, first), y = load(from + 16, last);
      store_pair(to + i * kSide, kCodes ? quantizer.code(x) : x, kCodes ? quantizer.code(y) : y);
    }
    std::fill(to + some * kSide, to + kPanel, Half(0));
  }

  // Asks for a block of rows to be brought to the second-level cache. The processor does not foresee which rows of
  // a head follow each other.
  void prefetch(int64_t image, int64_t head, int64_t row_block) const {
    const int64_t row = row_block * kSide, some = std::min(kSide, plan.rows - row);
    const Half* from = this->row(image, head, row);
    for (int64_t i = 0; i < some; i++, from += apart())
      for (int64_t c = 0; c < plan.inner; c += kSide) _mm_prefetch(from + c, _MM_HINT_T1);
  }

  const Half* row(int64_t image, int64_t head, int64_t row) const { return values + plan.values_at(image, head, row); }
  int64_t apart() const { return plan.groups * plan.inner; }
};

struct Gradient {
  const Operand& operand;
  Half* gradient;
  float* by_scale;
  std::vector<Sums> sums;  // of every head of every image

  Gradient(const Operand& operand, Half* gradient, float* by_scale)
      : operand(operand), gradient(gradient), by_scale(by_scale), sums(operand.plan.outer * operand.plan.groups) {}

  // From the gradient of the quantized values of a head over `factor`, with rows `apart`, to that of the values.
  void differentiate(int64_t image, int64_t head, const float* grad, int64_t apart, float factor) {
    const Plan& plan = operand.plan;
    const Quantizer16 quantizer(operand.quantizer(head));
    Sums16 total;
    for (int64_t row = 0; row < plan.rows; row++) {
      const int64_t at = plan.values_at(image, head, row);
      for_columns(plan.inner, [&](int64_t c, __mmask16 some) {
        const __m512 x = load(operand.values + at + c, some), v = quantizer.normalized(x);
        const __m512 of_quantized = _mm512_mul_ps(_mm512_load_ps(grad + row * apart + c), _mm512_set1_ps(factor));
        store(gradient + at + c, total.differentiate<false>(quantizer, x, v, quantizer.level(v), of_quantized), some);
      });
    }
    Sums& sum = sums[image * plan.groups + head];
    sum.group = head;
    total.add_to(sum);
  }

  void finish_scales() const {
    if (by_scale) finish(operand.plan, operand.scales, sums, by_scale, nullptr);
  }
};

// All operands, and what is computed of a head.
struct Attention {
  const Tensors& t;
  const Operand query, key, value, grad;  // of the last one numbers are read only, and in the backward pass only
  const Plan& plan;  // of the probabilities, with the factor on scores
  const int64_t tokens, dim, n, d;  // the latter in panels

  Attention(const Plan* query_plan, const Plan* key_plan, const Plan* value_plan, const Plan* probability_plan,
            const Tensors* tensors)
      : t(*tensors), query{*query_plan, t.query, t.query_scale}, key{*key_plan, t.key, t.key_scale},
        value{*value_plan, t.value, t.value_scale}, grad{*value_plan, t.grad, t.value_scale}, plan(*probability_plan),
        tokens(plan.rows), dim(value_plan->inner), n(ceil_div(tokens, kSide)), d(ceil_div(dim, kSide)) {}

  int64_t heads() const { return plan.outer * plan.groups; }
  Quantizer probability(int64_t head) const { return {plan, t.probability_scale, nullptr, head}; }
  const float* mask(int64_t image, int64_t head, int64_t row) const {
    return t.mask ? t.mask + image * t.mask_image + head * t.mask_head + row * t.mask_row : nullptr;
  }

  // Asks for a block of rows of all operands of a head, if there is such a head.
  void prefetch(int64_t i, int64_t row_block) const {
    if (i >= heads()) return;
    for (const Operand* operand : {&query, &key, &value, &grad})
      if (operand->values) operand->prefetch(i / plan.groups, i % plan.groups, row_block);
  }

  // From products of codes to the argument of softmax, times the logarithm of 2 to the base e: 16 numbers of a row.
  auto logits(int64_t image, int64_t head) const {
    const float factor = query.scale(head) * key.scale(head) * float(plan.scaling) * kLog2OfE;
    return [factor = _mm512_set1_ps(factor)](const float* products, const float* mask, int64_t c, __mmask16 some) {
      const __m512 scaled = _mm512_mul_ps(_mm512_load_ps(products + c), factor);
      if (!mask) return scaled;
      return _mm512_fmadd_ps(_mm512_maskz_loadu_ps(some, mask + c), _mm512_set1_ps(kLog2OfE), scaled);
    };
  }

  // Where 16 numbers of a row of 32 rows are among their panels.
  static Half* in_panels(Half* panels, int64_t row, int64_t column) {
    return panels + column / kSide * kPanel + row * kSide + column % kSide;
  }
};

}  // namespace

extern "C" {

// Writes the result and the statistics.
void vaq_attend(const Plan* query_plan, const Plan* key_plan, const Plan* value_plan, const Plan* probability_plan,
                const Tensors* tensors, int threads) {
  const Attention a(query_plan, key_plan, value_plan, probability_plan, tensors);
  const int64_t n = a.n, d = a.d, length = n * kSide, width = d * kSide;
#pragma omp parallel num_threads(threads)
  {
    const Tiles tiles;
    const NoDenormals no_denormals;
    const Aligned<Half> queries(length * width), keys(length * width), values(length * width);
    const Aligned<Half> rows(kPanel), codes(kSide * length);
    const Aligned<float> scores(kSide * length), result(kSide * width);
    std::fill_n(codes.get(), kSide * length, Half(0));  // beyond the last row they stay zero
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.heads(); i++) {
      const int64_t image = i / a.plan.groups, head = i % a.plan.groups;
      for (int64_t b = 0; b < n; b++)
        for (int64_t c = 0; c < d; c++) {
          a.query.rows<true>(image, head, b, c, queries.get() + (b * d + c) * kPanel);
          a.key.rows<true>(image, head, b, c, rows.get());
          pack_as_turned_columns(rows.get(), kSide, keys.get() + (b * d + c) * kPanel);
          a.value.rows<true>(image, head, b, c, rows.get());
          pack_as_columns(rows.get(), kSide, values.get() + (c * n + b) * kPanel);
        }
      const Quantizer16 quantizer(a.probability(head));
      const auto logits = a.logits(image, head);
      const float factor = a.probability(head).scale * a.value.scale(head);
      for (int64_t b = 0; b < n; b++) {
        a.prefetch(i + 1, b);
        for (int64_t c = 0; c < n; c++)
          multiply<1, 1>(queries.get() + b * d * kPanel, keys.get() + c * d * kPanel, d, scores.get() + c * kSide,
                         length);
        const int64_t some_rows = std::min(kSide, a.tokens - b * kSide);
        const int64_t at = i * a.tokens + b * kSide;
        float *const highest = a.t.highest + at, *const reciprocals = a.t.reciprocals + at;
        // A step for all rows, then the next one: the sum of a row is there when it is needed.
        for (int64_t r = 0; r < some_rows; r++) {
          float* const row = scores.get() + r * length;
          const float* const mask = a.mask(image, head, b * kSide + r);
          __m512 most = _mm512_set1_ps(-INFINITY);
          for_columns(a.tokens, [&](int64_t c, __mmask16 some) {
            const __m512 x = logits(row, mask, c, some);
            most = _mm512_mask_max_ps(most, some, most, x);
            _mm512_store_ps(row + c, x);
          });
          highest[r] = _mm512_reduce_max_ps(most);
        }
        for (int64_t r = 0; r < some_rows; r++) {
          float* const row = scores.get() + r * length;
          const __m512 most = _mm512_set1_ps(highest[r]);
          __m512 sum = _mm512_setzero_ps();
          for_columns(a.tokens, [&](int64_t c, __mmask16 some) {
            const __m512 e = _mm512_maskz_mov_ps(some, power_of_two(_mm512_sub_ps(_mm512_load_ps(row + c), most)));
            sum = _mm512_add_ps(sum, e);
            _mm512_store_ps(row + c, e);
          });
          reciprocals[r] = 1 / _mm512_reduce_add_ps(sum);
        }
        for (int64_t r = 0; r < some_rows; r++) {
          const float* const row = scores.get() + r * length;
          const __m512 reciprocal = _mm512_set1_ps(reciprocals[r]);
          for (int64_t c = 0; c < length; c += kSide) {
            const auto code = [&](int64_t c) {
              const __m512 e = _mm512_load_ps(row + c);
              return quantizer.code(_mm512_maskz_mul_ps(first_of(a.tokens - c), e, reciprocal));
            };
            store_pair(a.in_panels(codes.get(), r, c), code(c), code(c + 16));
          }
        }
        for (int64_t c = 0; c < d; c++)
          multiply<1, 1>(codes.get(), values.get() + c * n * kPanel, n, result.get() + c * kSide, width);
        for (int64_t r = 0; r < some_rows; r++) {
          Half* const to = a.t.result + a.value.plan.values_at(image, head, b * kSide + r);
          for_columns(a.dim, [&](int64_t c, __mmask16 some) {
            store(to + c, _mm512_mul_ps(_mm512_load_ps(result.get() + r * width + c), _mm512_set1_ps(factor)), some);
          });
        }
      }
    }
  }
}

// Writes the gradients by queries, keys, values, and the logarithms of the four scales.
void vaq_differentiate_bfloat16_attention(const Plan* query_plan, const Plan* key_plan, const Plan* value_plan,
                                          const Plan* probability_plan, const Tensors* tensors, int threads) {
  const Attention a(query_plan, key_plan, value_plan, probability_plan, tensors);
  const Tensors& t = a.t;
  Gradient by_query(a.query, t.grad_query, t.by_query_scale), by_key(a.key, t.grad_key, t.by_key_scale);
  Gradient by_value(a.value, t.grad_value, t.by_value_scale);
  std::vector<Sums> by_probabilities(a.heads());
  const int64_t n = a.n, d = a.d, length = n * kSide, width = d * kSide;
  const float scaling = float(a.plan.scaling);
#pragma omp parallel num_threads(threads)
  {
    const Tiles tiles;
    const NoDenormals no_denormals;
    const int64_t size = length * width;
    const Aligned<Half> query_rows(size), query_turned(size), key_turned(size), key_columns(size), value_turned(size);
    const Aligned<Half> grad_rows(size), grad_turned(size), rows(kPanel);
    const Aligned<Half> code_rows(kSide * length), score_rows(kSide * length);
    const Aligned<Half> code_columns(length * length), score_columns(length * length);
    const Aligned<float> scores(kSide * length), grads(kSide * length), result(size), turned(size);
    std::fill_n(code_rows.get(), kSide * length, Half(0));
    std::fill_n(score_rows.get(), kSide * length, Half(0));
    // The product of two operands whose panels have columns of the result across, turned back.
    const auto multiply_turned = [&](const Half* first, const Half* second) {
      for (int64_t c = 0; c < d; c++)
        for (int64_t b = 0; b < n; b++)
          multiply<1, 1>(first + c * n * kPanel, second + b * n * kPanel, n,
                         turned.get() + c * kSide * length + b * kSide, length);
      transpose(turned.get(), width, length, result.get());
    };
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.heads(); i++) {
      const int64_t image = i / a.plan.groups, head = i % a.plan.groups;
      for (int64_t b = 0; b < n; b++)
        for (int64_t c = 0; c < d; c++) {
          const int64_t by_row = (b * d + c) * kPanel, by_column = (c * n + b) * kPanel;
          a.query.rows<true>(image, head, b, c, query_rows.get() + by_row);
          pack_as_turned_rows(query_rows.get() + by_row, kSide, query_turned.get() + by_column);
          a.key.rows<true>(image, head, b, c, rows.get());
          pack_as_turned_columns(rows.get(), kSide, key_turned.get() + by_row);
          pack_as_columns(rows.get(), kSide, key_columns.get() + by_column);
          a.value.rows<true>(image, head, b, c, rows.get());
          pack_as_turned_columns(rows.get(), kSide, value_turned.get() + by_row);
          a.grad.rows<false>(image, head, b, c, grad_rows.get() + by_row);
          pack_as_turned_rows(grad_rows.get() + by_row, kSide, grad_turned.get() + by_column);
        }
      const Quantizer16 quantizer(a.probability(head));
      const auto logits = a.logits(image, head);
      const __m512 value_scale = _mm512_set1_ps(a.value.scale(head));
      Sums16 total;
      for (int64_t b = 0; b < n; b++) {
        a.prefetch(i + 1, b);
        for (int64_t c = 0; c < n; c++) {
          multiply<1, 1>(query_rows.get() + b * d * kPanel, key_turned.get() + c * d * kPanel, d,
                         scores.get() + c * kSide, length);
          multiply<1, 1>(grad_rows.get() + b * d * kPanel, value_turned.get() + c * d * kPanel, d,
                         grads.get() + c * kSide, length);
        }
        const int64_t some_rows = std::min(kSide, a.tokens - b * kSide), at = i * a.tokens + b * kSide;
        float projection[kSide];
        for (int64_t r = 0; r < some_rows; r++) {
          const __m512 highest = _mm512_set1_ps(t.highest[at + r]), reciprocal = _mm512_set1_ps(t.reciprocals[at + r]);
          float *const row = scores.get() + r * length, *const grad_row = grads.get() + r * length;
          const float* const mask = a.mask(image, head, b * kSide + r);
          __m512 projections = _mm512_setzero_ps();
          for_columns(a.tokens, [&](int64_t c, __mmask16 some) {
            const __m512 e = power_of_two(_mm512_sub_ps(logits(row, mask, c, some), highest));
            const __m512 p = _mm512_maskz_mul_ps(some, e, reciprocal), v = quantizer.normalized(p);
            const __m512 level = quantizer.level(v), g = _mm512_mul_ps(_mm512_load_ps(grad_row + c), value_scale);
            const __m512 passed = total.differentiate<false>(quantizer, p, v, level, _mm512_maskz_mov_ps(some, g));
            projections = _mm512_fmadd_ps(passed, p, projections);
            store(a.in_panels(code_rows.get(), r, c), level, some);
            _mm512_store_ps(row + c, p);
            _mm512_store_ps(grad_row + c, passed);
          });
          projection[r] = _mm512_reduce_add_ps(projections);
        }
        for (int64_t r = 0; r < some_rows; r++) {
          const float *const row = scores.get() + r * length, *const grad_row = grads.get() + r * length;
          float* const by_scores = t.grad_scores ? t.grad_scores + (at + r) * a.tokens : nullptr;
          for_columns(a.tokens, [&](int64_t c, __mmask16 some) {
            const __m512 difference = _mm512_sub_ps(_mm512_load_ps(grad_row + c), _mm512_set1_ps(projection[r]));
            const __m512 by_score = _mm512_mul_ps(difference, _mm512_load_ps(row + c));
            store(a.in_panels(score_rows.get(), r, c), by_score, some);
            if (by_scores) _mm512_mask_storeu_ps(by_scores + c, some, by_score);
          });
        }
        for (int64_t r = some_rows; r < kSide; r++)  // of the block before
          for (int64_t c = 0; c < length; c += kSide) {
            std::fill_n(a.in_panels(code_rows.get(), r, c), kSide, Half(0));
            std::fill_n(a.in_panels(score_rows.get(), r, c), kSide, Half(0));
          }
        for (int64_t c = 0; c < n; c++) {
          pack_as_columns(code_rows.get() + c * kPanel, kSide, code_columns.get() + (c * n + b) * kPanel);
          pack_as_columns(score_rows.get() + c * kPanel, kSide, score_columns.get() + (c * n + b) * kPanel);
        }
        for (int64_t c = 0; c < d; c++)
          multiply<1, 1>(score_rows.get(), key_columns.get() + c * n * kPanel, n,
                         result.get() + b * kSide * width + c * kSide, width);
      }
      by_probabilities[i].group = head;
      total.add_to(by_probabilities[i]);
      by_query.differentiate(image, head, result.get(), width, a.key.scale(head) * scaling);
      multiply_turned(query_turned.get(), score_columns.get());
      by_key.differentiate(image, head, result.get(), width, a.query.scale(head) * scaling);
      multiply_turned(grad_turned.get(), code_columns.get());
      by_value.differentiate(image, head, result.get(), width, a.probability(head).scale);
    }
  }
  for (const Gradient* gradient : {&by_query, &by_key, &by_value}) gradient->finish_scales();
  if (t.by_probability_scale) finish(a.plan, t.probability_scale, by_probabilities, t.by_probability_scale, nullptr);
}
}
