// Blocks of bfloat16 matrices as operands of products on processors with AMX. A block has 32 rows of 32 numbers, which
// lie `apart` in memory; it becomes a panel, see tiles.h.

#pragma once

#include "tiles.h"

namespace {

// Numbers of a row between those of the next one: the first 16 of both, the last 16 of both.
struct Between {
  __m512i first, last;

  Between(const Half* row, const Half* next_row) {
    const __m512i step = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i low = _mm512_or_si512(step, _mm512_slli_epi32(_mm512_add_epi32(step, _mm512_set1_epi32(32)), 16));
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(16 << 16 | 16));
    const __m512i x = _mm512_loadu_si512(row), next = _mm512_loadu_si512(next_row);
    first = _mm512_permutex2var_epi16(x, low, next), last = _mm512_permutex2var_epi16(x, high, next);
  }
};

// As the second operand, for sums along columns.
inline void pack_as_columns(const Half* rows, int64_t apart, Half* to) {
  for (int64_t i = 0; i < kTile; i++) {
    const Between pairs(rows + 2 * i * apart, rows + (2 * i + 1) * apart);
    _mm512_store_si512(to + i * kSide, pairs.first);
    _mm512_store_si512(to + kNumbers + i * kSide, pairs.last);
  }
}

// Transposed and as the first operand: for sums along columns.
inline void pack_as_turned_rows(const Half* rows, int64_t apart, Half* to) {
  __m512 first[16], last[16];
  for (int64_t i = 0; i < 16; i++) {
    const Between pairs(rows + 2 * i * apart, rows + (2 * i + 1) * apart);
    first[i] = _mm512_castsi512_ps(pairs.first), last[i] = _mm512_castsi512_ps(pairs.last);
  }
  transpose(first), transpose(last);
  for (int64_t i = 0; i < 16; i++) {
    _mm512_store_ps(to + i * kSide, first[i]);
    _mm512_store_ps(to + kNumbers + i * kSide, last[i]);
  }
}

// Transposed and as the second operand: for sums along rows.
inline void pack_as_turned_columns(const Half* rows, int64_t apart, Half* to) {
  for (int64_t r = 0; r < kSide; r += kTile) {
    __m512 pairs[16];
    for (int64_t i = 0; i < 16; i++) pairs[i] = _mm512_loadu_ps(rows + (r + i) * apart);
    transpose(pairs);
    for (int64_t i = 0; i < 16; i++) _mm512_store_ps(to + (r + i) * kSide, pairs[i]);
  }
}

}  // namespace
