// Products of float32 matrices with matrices of codes on processors with AMX (Intel, from Sapphire Rapids on).
//
// AMX multiplies bfloat16 numbers and adds the products in float32, many times as fast as float32 numbers are
// multiplied. A code is a bfloat16 number, and a float32 number is the sum of three of them. So three products give
// what one in float32 would, and nothing is rounded but sums. (Parts of numbers below 2^-126 count as zero.)
//
// Operands are packed into panels, 32 x 32 numbers each, in the order in which tiles are read. The first operand of a
// product has rows of the result along its panels, the second one columns; both have the terms of its sums across.

#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "bfloat16.h"

namespace {

constexpr int64_t kTile = 16;               // rows of a tile
constexpr int64_t kSide = 2 * kTile;        // of a block of a result, two tiles by two, and of a panel
constexpr int64_t kNumbers = kTile * kSide; // bfloat16 numbers of a tile
constexpr int64_t kPanel = 2 * kNumbers;    // of a panel
constexpr int64_t kBlock = kSide * kSide;   // numbers of a block of a result
constexpr int kPieces = 3;                  // bfloat16 numbers whose sum is a float32 number

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
struct Aligned {
  std::unique_ptr<T, decltype(&std::free)> memory;
  explicit Aligned(int64_t count)
      : memory(static_cast<T*>(std::aligned_alloc(64, ceil_div(count * int64_t(sizeof(T)), 64) * 64)), &std::free) {}
  T* get() const { return memory.get(); }
};

// A float32 matrix in memory.
struct View {
  const float* data;
  int64_t rows, columns, stride;

  __m512 operator()(int64_t row, int64_t column) const {  // 16 numbers of a row, zero beyond the end
    if (row >= rows) return _mm512_setzero_ps();
    return _mm512_maskz_loadu_ps(first_of(columns - column), data + row * stride + column);
  }
};

// 16 quantizers.
struct Quantizers {
  __m512 scale, offset, lowest, highest;

  // The operations of `Quantizer` in quantizer.h; of NaN: NaN.
  __m512 codes(__m512 x) const {
    const __m512 v = _mm512_div_ps(_mm512_sub_ps(x, offset), scale);
    const __m512 clamped = _mm512_min_ps(highest, _mm512_max_ps(lowest, v));
    return rounded(clamped);
  }
};

// The three bfloat16 numbers whose sum `x` is, as float32.
struct Pieces {
  __m512 piece[kPieces];

  explicit Pieces(__m512 x) {
    for (int i = 0; i < kPieces - 1; i++) {
      piece[i] = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(int(0xffff0000))));
      x = _mm512_sub_ps(x, piece[i]);
    }
    piece[kPieces - 1] = x;
  }
};

// Numbers that are bfloat16 already: 16 of a row and the 16 after them; 16 of a row between those of the next row.
inline __m512i beside(__m512 first, __m512 second) { return __m512i(_mm512_cvtne2ps_pbh(second, first)); }
inline __m512i between(__m512 row, __m512 next) {
  return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(row), 16), _mm512_castps_si512(next));
}

inline void transpose(__m512* r) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  const auto doubles = [](__m512 x) { return _mm512_castps_pd(x); };
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(doubles(t[i + j]), doubles(t[i + j + 2])));
      r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(doubles(t[i + j]), doubles(t[i + j + 2])));
    }
  for (int half = 0; half < 16; half += 8)
    for (int j = 0; j < 4; j++) {
      t[half + j] = _mm512_shuffle_f32x4(r[half + j], r[half + 4 + j], 0x88);
      t[half + 4 + j] = _mm512_shuffle_f32x4(r[half + j], r[half + 4 + j], 0xdd);
    }
  for (int j = 0; j < 8; j++) {
    r[j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0x88);
    r[8 + j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0xdd);
  }
}

// Writes a matrix of tiles, (rows, columns), transposed.
inline void transpose(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t r = 0; r < rows; r += kTile)
    for (int64_t c = 0; c < columns; c += kTile) {
      __m512 tile[16];
      for (int k = 0; k < 16; k++) tile[k] = _mm512_load_ps(from + (r + k) * columns + c);
      transpose(tile);
      for (int k = 0; k < 16; k++) _mm512_store_ps(to + (c + k) * rows + r, tile[k]);
    }
}

// Packing. `x(row, column)` gives 16 numbers of a row of a matrix of 32 x 32, `to` is where its panel begins, or kPieces
// panels one after the other. Those for codes want numbers that are bfloat16 already.

// As the first operand, for sums along rows.
template <class X>
void pack_rows(const X& x, Half* to) {
  for (int64_t i = 0; i < kSide; i++) {
    const Pieces first(x(i, 0)), second(x(i, 16));
    for (int p = 0; p < kPieces; p++)
      _mm512_store_si512(to + p * kPanel + i * kSide, beside(first.piece[p], second.piece[p]));
  }
}

// As the second operand, for sums along columns.
template <class X>
void pack_columns(const X& x, Half* to) {
  for (int64_t i = 0; i < kTile; i++)
    for (int64_t c = 0; c < kSide; c += kTile) {
      const Pieces row(x(2 * i, c)), next(x(2 * i + 1, c));
      for (int p = 0; p < kPieces; p++)
        _mm512_store_si512(to + p * kPanel + c * kSide + i * kSide, between(row.piece[p], next.piece[p]));
    }
}
template <class X>
void pack_code_columns(const X& x, Half* to) {
  for (int64_t i = 0; i < kTile; i++)
    for (int64_t c = 0; c < kSide; c += kTile)
      _mm512_store_si512(to + c * kSide + i * kSide, between(x(2 * i, c), x(2 * i + 1, c)));
}

// Both at once.
template <class X>
void pack_rows_and_columns(const X& x, Half* rows, Half* columns) {
  for (int64_t i = 0; i < kTile; i++) {
    const Pieces row[] = {Pieces(x(2 * i, 0)), Pieces(x(2 * i, 16))};
    const Pieces next[] = {Pieces(x(2 * i + 1, 0)), Pieces(x(2 * i + 1, 16))};
    for (int p = 0; p < kPieces; p++, rows += kPanel, columns += kPanel) {
      _mm512_store_si512(rows + 2 * i * kSide, beside(row[0].piece[p], row[1].piece[p]));
      _mm512_store_si512(rows + (2 * i + 1) * kSide, beside(next[0].piece[p], next[1].piece[p]));
      _mm512_store_si512(columns + i * kSide, between(row[0].piece[p], next[0].piece[p]));
      _mm512_store_si512(columns + (kTile + i) * kSide, between(row[1].piece[p], next[1].piece[p]));
    }
    rows -= kPieces * kPanel, columns -= kPieces * kPanel;
  }
}

// Transposed and as the first operand: for sums along columns.
template <class X>
void pack_transposed_code_rows(const X& x, Half* to) {
  for (int64_t c = 0; c < kSide; c += kTile) {
    __m512 pairs[16];
    for (int64_t i = 0; i < 16; i++) pairs[i] = _mm512_castsi512_ps(between(x(2 * i, c), x(2 * i + 1, c)));
    transpose(pairs);
    for (int64_t i = 0; i < 16; i++) _mm512_store_ps(to + (c + i) * kSide, pairs[i]);
  }
}

// Transposed and as the second operand: for sums along rows.
template <class X>
void pack_transposed_code_columns(const X& x, Half* to) {
  for (int64_t r = 0; r < kSide; r += kTile) {
    __m512 pairs[16];
    for (int64_t i = 0; i < 16; i++) pairs[i] = _mm512_castsi512_ps(beside(x(r + i, 0), x(r + i, 16)));
    transpose(pairs);
    for (int64_t i = 0; i < 16; i++) _mm512_store_ps(to + (r + i) * kSide, pairs[i]);
  }
}

// The tiles of a thread, as long as it computes.
struct Tiles {
  Tiles() {
    // A constant, because GCC does not know that all of it is read, and leaves out stores to a variable.
    static constexpr struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config{};
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }

  // Whether the system lets this process use AMX, for which it has to be asked.
  static bool request() {
    constexpr int request_permission = 0x1023, tile_data = 18;  // of arch_prctl
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }
};

// Writes a block of the result, 32 x 32 numbers in rows `stride` apart: what is there, if `add`, plus the products of
// `steps` panels of both operands. If one of the two is float32, it has kPieces panels for each one of the other.
template <int kFirst, int kSecond>
void multiply(const Half* a, const Half* b, int64_t steps, float* block, int64_t stride, bool add = false) {
  constexpr int64_t line = 64;
  float* const below = block + kTile * stride;
  const int64_t row = stride * int64_t(sizeof(float));
  std::atomic_signal_fence(std::memory_order_seq_cst);  // GCC does not know that tiles are read from memory
  if (add) {
    _tile_loadd(0, block, row);
    _tile_loadd(1, block + kTile, row);
    _tile_loadd(2, below, row);
    _tile_loadd(3, below + kTile, row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t s = 0; s < steps; s++, a += kFirst * kPanel, b += kSecond * kPanel)
    for (int p = 0; p < std::max(kFirst, kSecond); p++) {
      if (p < kFirst) {
        _tile_loadd(4, a + p * kPanel, line);
        _tile_loadd(5, a + p * kPanel + kNumbers, line);
      }
      if (p < kSecond) {
        _tile_loadd(6, b + p * kPanel, line);
        _tile_loadd(7, b + p * kPanel + kNumbers, line);
      }
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  _tile_stored(0, block, row);
  _tile_stored(1, block + kTile, row);
  _tile_stored(2, below, row);
  _tile_stored(3, below + kTile, row);
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

}  // namespace
