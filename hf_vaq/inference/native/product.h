// Products of unsigned byte codes and signed byte weights, summed in int32.

#pragma once

#include "codes.h"

namespace {

// One of several equal parts of some work.
struct Part {
    int64_t index, of;

    int64_t begin(int64_t n) const { return n * index / of; }
    int64_t end(int64_t n) const { return n * (index + 1) / of; }
};

constexpr Part ALL{0, 1};

constexpr int ROWS = 6, VECTORS = 4;  // of a tile: 6 x 4 vectors of sums fit the registers
constexpr int PANEL = 16 * VECTORS;   // columns of a tile

// Sums of products: out[i][16 v ..] = start[16 v ..] + sum over t of a[i][4 t ..] . b[t][16 v ..], a unsigned bytes, b
// signed bytes with four consecutive ones of the summed dimension side by side (a word). No start is zero.
template <int R, int V>
void tile(const uint8_t* a, int64_t a_stride, const int8_t* b, int64_t b_stride, int64_t steps, const int32_t* start,
          __m512i (*out)[VECTORS]) {
    __m512i sums[R][V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
        const __m512i s = start ? _mm512_loadu_si512(start + 16 * v) : _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) sums[i][v] = s;
    }
    for (int64_t t = 0; t < steps; ++t) {
        __m512i w[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) w[v] = _mm512_loadu_si512(b + t * b_stride + 64 * v);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
            int32_t word;
            std::memcpy(&word, a + i * a_stride + 4 * t, 4);
            const __m512i x = _mm512_set1_epi32(word);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sums[i][v] = _mm512_dpbusd_epi32(sums[i][v], x, w[v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) out[i][v] = sums[i][v];
}

using Tile = void (*)(const uint8_t*, int64_t, const int8_t*, int64_t, int64_t, const int32_t*, __m512i (*)[VECTORS]);

// By rows and vectors, less one.
constexpr Tile TILES[ROWS][VECTORS] = {
    {tile<1, 1>, tile<1, 2>, tile<1, 3>, tile<1, 4>}, {tile<2, 1>, tile<2, 2>, tile<2, 3>, tile<2, 4>},
    {tile<3, 1>, tile<3, 2>, tile<3, 3>, tile<3, 4>}, {tile<4, 1>, tile<4, 2>, tile<4, 3>, tile<4, 4>},
    {tile<5, 1>, tile<5, 2>, tile<5, 3>, tile<5, 4>}, {tile<6, 1>, tile<6, 2>, tile<6, 3>, tile<6, 4>},
};

// A packed weight and what turns the sums into numbers. Where columns have scales of their own (groups of equal width),
// there is one sum a group, and the numbers are added in float32.
//
// Layout of the weight, by groups: panels of up to 64 outputs (whole vectors of 16), in each of them words of four
// consecutive inputs, in each of those the outputs side by side. Missing inputs and outputs are zeros.
struct Product {
    const int8_t* weight;
    const int32_t* start;  // (groups, outputs16): what the zero point of the input adds
    const float* scale;    // (groups, outputs16)
    const float* bias;     // (outputs16,)
    int64_t inputs, outputs, groups;

    int64_t width() const { return inputs / groups; }
    int64_t steps() const { return (width() + 3) / 4; }
    int64_t outputs16() const { return (outputs + 15) / 16 * 16; }

    // Bytes that a row of codes must have: the last word is read as a whole.
    static int64_t padded(int64_t inputs) { return (inputs + 3) / 4 * 4 + 4; }

    int64_t panels() const { return (outputs16() + PANEL - 1) / PANEL; }

    // write(row, column, 16 numbers) for all rows of `codes` and every 16th column of a part of the panels.
    template <class Write>
    void multiply(const uint8_t* codes, int64_t stride, int64_t rows, Part part, Write write) const {
        const int64_t columns = outputs16(), words = steps() * 4, last = std::min(columns, part.end(panels()) * PANEL);
        for (int64_t column = part.begin(panels()) * PANEL; column < last; column += PANEL) {
            const int vectors = std::min<int64_t>(VECTORS, (columns - column) / 16);
            for (int64_t row = 0; row < rows; row += ROWS) {
                const int height = std::min<int64_t>(ROWS, rows - row);
                __m512 numbers[ROWS][VECTORS];
                for (int64_t g = 0; g < groups; ++g) {
                    __m512i sums[ROWS][VECTORS];
                    TILES[height - 1][vectors - 1](codes + row * stride + g * width(), stride,
                                                   weight + (g * columns + column) * words, 64 * vectors, steps(),
                                                   start + g * columns + column, sums);
                    for (int v = 0; v < vectors; ++v) {
                        const __m512 s = _mm512_loadu_ps(scale + g * columns + column + 16 * v);
                        const __m512 b = _mm512_loadu_ps(bias + column + 16 * v);
                        for (int i = 0; i < height; ++i)
                            numbers[i][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i][v]), s, g ? numbers[i][v] : b);
                    }
                }
                for (int i = 0; i < height; ++i)
                    for (int v = 0; v < vectors; ++v) write(row + i, column + 16 * v, numbers[i][v]);
            }
        }
    }
};

}  // namespace
