// The backward pass of attention on quantized queries, keys, values and probabilities; see tiles.h.
//
// One thread computes a head of an image, all of which fits its second-level cache. Its sums are added to those of
// others in order, so results do not depend on the number of threads.

#include <vector>

#include "quantizer.h"
#include "tiles.h"

namespace {

// What Python fills in, see native/attention.py. Queries, keys and values lie as (batch, tokens, heads, dim), as do their
// gradients and that of the result; probabilities as (batch, heads, tokens, tokens).
struct Tensors {
  const float *query, *key, *value, *probabilities, *grad;
  const float *query_scale, *key_scale, *value_scale, *probability_scale;
  float *grad_query, *grad_key, *grad_value;
  float* grad_scores;  // like the probabilities: of the argument of softmax; null if it is not wanted
  float *by_query_scale, *by_key_scale, *by_value_scale, *by_probability_scale;  // logarithms; null if not wanted
};

// An operand of the products, and its gradient.
struct Operand {
  const Plan& plan;
  const float *values, *scales;
  float *gradient, *by_scale;
  std::vector<Sums> sums;  // of every head of every image

  Operand(const Plan* p, const float* values, const float* scales, float* gradient, float* by_scale)
      : plan(*p), values(values), scales(scales), gradient(gradient), by_scale(by_scale), sums(p->outer * p->groups) {}

  Quantizer quantizer(int64_t head) const { return {plan, scales, nullptr, head}; }
  Quantizers quantizers(int64_t head) const {
    const Quantizer q = quantizer(head);
    return {_mm512_set1_ps(q.scale), _mm512_setzero_ps(), _mm512_set1_ps(q.lowest), _mm512_set1_ps(q.highest)};
  }

  // Where a head begins, and how far its rows are apart.
  int64_t begin(int64_t image, int64_t head) const { return plan.values_at(image, head, 0); }
  int64_t stride() const { return plan.moved ? plan.groups * plan.inner : plan.inner; }

  // Codes of 16 values of a row of a head.
  auto codes(int64_t image, int64_t head) const {
    const View view{values + begin(image, head), plan.rows, plan.inner, stride()};
    const Quantizers quantizers = this->quantizers(head);
    return [=](int64_t row, int64_t column) { return quantizers.codes(view(row, column)); };
  }

  // From the gradient of the quantized values of a head, whose rows are `apart`, to that of the values.
  void differentiate_head(int64_t image, int64_t head, const float* grad, int64_t apart) {
    Sums& sum = sums[image * plan.groups + head];
    sum.group = head;
    for (int64_t row = 0; row < plan.rows; row++) {
      const int64_t at = plan.values_at(image, head, row);
      differentiate<false>(quantizer(head), grad + row * apart, values + at, plan.inner, gradient + at, sum);
    }
  }

  void finish_scales() const {
    if (by_scale) finish(plan, scales, sums, by_scale, nullptr);
  }
};

void scale(float* values, int64_t count, float factor) {
  for (int64_t i = 0; i < count; i += 16)
    _mm512_store_ps(values + i, _mm512_mul_ps(_mm512_load_ps(values + i), _mm512_set1_ps(factor)));
}

// Memory for a head: operands of the products, 32 rows of scores, and gradients.
struct Head {
  const int64_t tokens, width;  // multiples of kSide
  Aligned<Half> grad_rows, grad_columns, values, probabilities, keys, queries, score_rows, score_columns;
  Aligned<float> scores, levels, result, turned;

  Head(int64_t n, int64_t d)
      : tokens(n), width(d), grad_rows(kPieces * n * d), grad_columns(kPieces * n * d), values(n * d),
        probabilities(n * n), keys(n * d), queries(n * d), score_rows(kPieces * kSide * n),
        score_columns(kPieces * n * n), scores(kSide * n), levels(kSide * n), result(n * d), turned(n * d) {}
};

}  // namespace

extern "C" {

// Writes the gradients by queries, keys, values, and the logarithms of the four scales. The plan of the probabilities has
// the factor on scores.
void vaq_differentiate_attention(const Plan* query_plan, const Plan* key_plan, const Plan* value_plan,
                                 const Plan* probability_plan, const Tensors* tensors, int threads) {
  const Tensors& t = *tensors;
  Operand query(query_plan, t.query, t.query_scale, t.grad_query, t.by_query_scale);
  Operand key(key_plan, t.key, t.key_scale, t.grad_key, t.by_key_scale);
  Operand value(value_plan, t.value, t.value_scale, t.grad_value, t.by_value_scale);
  Operand probability(probability_plan, t.probabilities, t.probability_scale, t.grad_scores, t.by_probability_scale);
  const Plan& p = *probability_plan;
  const int64_t tokens = p.rows, dim = value_plan->inner, heads = p.groups;
  const int64_t n = ceil_div(tokens, kSide), d = ceil_div(dim, kSide);
  const float scaling = float(p.scaling);
#pragma omp parallel num_threads(threads)
  {
    const Tiles tiles;
    const NoDenormals no_denormals;
    const Head h(n * kSide, d * kSide);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p.outer * heads; i++) {
      const int64_t image = i / heads, head = i % heads;
      const auto queries = query.codes(image, head), keys = key.codes(image, head), values = value.codes(image, head);
      const View grad{t.grad + value.begin(image, head), tokens, dim, value.stride()};
      const auto at = [](const auto& x, int64_t row, int64_t column) {
        return [&x, row, column](int64_t r, int64_t c) { return x(row * kSide + r, column * kSide + c); };
      };
      for (int64_t b = 0; b < n; b++)
        for (int64_t c = 0; c < d; c++) {
          pack_rows_and_columns(at(grad, b, c), h.grad_rows.get() + (b * d + c) * kPieces * kPanel,
                                h.grad_columns.get() + (c * n + b) * kPieces * kPanel);
          pack_transposed_code_columns(at(values, b, c), h.values.get() + (b * d + c) * kPanel);
          pack_code_columns(at(keys, b, c), h.keys.get() + (c * n + b) * kPanel);
          pack_transposed_code_rows(at(queries, b, c), h.queries.get() + (c * n + b) * kPanel);
        }

      // By the scores, and from them by the queries.
      Sums& sums = probability.sums[i];
      sums.group = head;
      for (int64_t b = 0; b < n; b++) {
        for (int64_t c = 0; c < n; c++)
          multiply<kPieces, 1>(h.grad_rows.get() + b * d * kPieces * kPanel, h.values.get() + c * d * kPanel, d,
                               h.scores.get() + c * kSide, h.tokens);
        const int64_t some = std::min(kSide, tokens - b * kSide);
        for (int64_t r = 0; r < some; r++) {
          const int64_t row = p.values_at(image, head, b * kSide + r);
          float* const scores = h.scores.get() + r * h.tokens;
          differentiate_softmax<true>(probability.quantizer(head), scores, value.quantizer(head).scale,
                                      t.probabilities + row, tokens, 1, scores, h.levels.get() + r * h.tokens, sums);
          if (t.grad_scores) std::copy_n(scores, tokens, t.grad_scores + row);
        }
        const View scores{h.scores.get(), some, tokens, h.tokens}, levels{h.levels.get(), some, tokens, h.tokens};
        for (int64_t c = 0; c < n; c++) {
          pack_rows_and_columns(at(scores, 0, c), h.score_rows.get() + c * kPieces * kPanel,
                                h.score_columns.get() + (c * n + b) * kPieces * kPanel);
          pack_transposed_code_rows(at(levels, 0, c), h.probabilities.get() + (c * n + b) * kPanel);
        }
        for (int64_t c = 0; c < d; c++)
          multiply<kPieces, 1>(h.score_rows.get(), h.keys.get() + c * n * kPanel, n,
                               h.result.get() + b * kSide * h.width + c * kSide, h.width);
      }
      scale(h.result.get(), h.tokens * h.width, key.quantizer(head).scale * scaling);
      query.differentiate_head(image, head, h.result.get(), h.width);

      // By the values.
      for (int64_t b = 0; b < n; b++)
        for (int64_t c = 0; c < d; c++)
          multiply<1, kPieces>(h.probabilities.get() + b * n * kPanel, h.grad_columns.get() + c * n * kPieces * kPanel, n,
                               h.result.get() + b * kSide * h.width + c * kSide, h.width);
      scale(h.result.get(), h.tokens * h.width, probability.quantizer(head).scale);
      value.differentiate_head(image, head, h.result.get(), h.width);

      // By the keys, transposed at first.
      for (int64_t c = 0; c < d; c++)
        for (int64_t b = 0; b < n; b++)
          multiply<1, kPieces>(h.queries.get() + c * n * kPanel, h.score_columns.get() + b * n * kPieces * kPanel, n,
                               h.turned.get() + c * kSide * h.tokens + b * kSide, h.tokens);
      scale(h.turned.get(), h.tokens * h.width, query.quantizer(head).scale * scaling);
      transpose(h.turned.get(), h.width, h.tokens, h.result.get());
      key.differentiate_head(image, head, h.result.get(), h.width);
    }
  }
  for (const Operand* operand : {&query, &key, &value, &probability}) operand->finish_scales();
}
}
