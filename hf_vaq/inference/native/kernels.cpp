// Kernels on integer codes for CPUs with AVX-512 and VNNI: plain C interface, no dependency.
//
// Loaded with ctypes; loading.py declares the same arguments, layer_kernel.py the same structures.

#include "layer.h"

extern "C" {

// Attention on codes, see Attention. Tasks are heads of images, cut into parts of the queries if there are few.
void vaq_attention(const uint8_t* query, const uint8_t* key, const uint8_t* value, const float* mask, const int64_t* sizes,
                   const int64_t* strides, const float* scales, const float* levels, float scaling, int coded, void* out,
                   int threads) {
    Attention a;
    a.query = query, a.key = key, a.value = value, a.mask = mask;
    a.batch = sizes[0], a.heads = sizes[1], a.tokens = sizes[2], a.dim = sizes[3];
    for (int i = 0; i < 9; ++i) a.stride[i / 3][i % 3] = strides[i];
    for (int i = 0; i < 3; ++i) a.mask_stride[i] = strides[9 + i];
    a.set_scales(scales, levels, coded);
    a.scaling = scaling, a.out = out, a.out_stride = a.heads * a.dim;
    const int64_t parts = parts_of(a.batch * a.heads, a.tokens, threads), tasks = a.batch * a.heads * parts;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t head = task / parts, part = task % parts;
        attend_rows(a, head / a.heads, head % a.heads, a.tokens * part / parts, a.tokens * (part + 1) / parts);
    }
}

// Byte codes of n values with one scale; whether there is NaN among the values.
int vaq_quantize(const float* x, int64_t n, float scale, float offset, int has_offset, float qn, float qp, uint8_t* out,
                  int threads) {
    const Quantizer quantizer{scale, offset, qn, qp, has_offset != 0};
    constexpr int64_t block = 1 << 13;
    int nan = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : nan) if (n > 2 * block)
    for (int64_t i = 0; i < n; i += block) nan |= quantize_row(x + i, std::min(block, n - i), quantizer, out + i);
    return nan;
}

// Byte codes of a function of n values, see Staircase; whether there is NaN among the values.
int vaq_step_codes(const float* x, int64_t n, const float* breakpoints, const int32_t* codes, int count, uint8_t* out,
                    int threads) {
    constexpr int64_t block = 1 << 13;
    int nan = 0;
    Staircase{breakpoints, codes, count}.with_search([&](const auto& search) {
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : nan) if (n > 2 * block)
        for (int64_t i = 0; i < n; i += block)
            for (int64_t j = i; j < std::min(i + block, n); j += 16) {
                const __m512 numbers = _mm512_maskz_loadu_ps(first(n - j), x + j);
                nan |= nan_in(numbers);
                store_bytes(out + j, search(numbers), n - j);
            }
    });
    return nan != 0;
}

// Byte codes of LayerNorm of each row of x, (rows, width); whether one of them is NaN.
int vaq_layer_norm_codes(const float* x, int64_t rows, int64_t width, const float* weight, const float* bias,
                          float epsilon, float scale, float qn, float qp, uint8_t* out, int threads) {
    const Norm norm{weight, bias, epsilon, {scale, 0, qn, qp, false}};
    int nan = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : nan)
    for (int64_t r = 0; r < rows; ++r) nan |= norm.row(x + r * width, width, out + r * width);
    return nan;
}

// Pack an int8 weight, (outputs, inputs), into the layout of Product, and fill its start from the zero point.
void vaq_pack_weight(const int8_t* codes, int64_t outputs, int64_t inputs, int64_t groups, int zero_point, int8_t* weight,
                     int32_t* start) {
    const Product p{weight, start, nullptr, nullptr, inputs, outputs, groups};
    const int64_t width = p.width(), steps = p.steps(), outputs16 = p.outputs16();
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t n = 0; n < outputs; ++n) {
            const int64_t panel = n / 64 * 64, lanes = std::min<int64_t>(64, outputs16 - panel);
            int8_t* to = weight + (g * outputs16 + panel) * steps * 4 + (n - panel) * 4;
            const int8_t* from = codes + n * inputs + g * width;
            int32_t sum = 0;
            for (int64_t k = 0; k < width; ++k) {
                to[k / 4 * lanes * 4 + k % 4] = from[k];
                sum += from[k];
            }
            start[g * outputs16 + n] = -zero_point * sum;
        }
}

// A transformer layer over images of `tokens` tokens each: x and y are (images, tokens, width) and do not overlap. An
// image with a token that is not finite becomes NaN as a whole, since all tokens attend to all.
void vaq_layer(const Layer* layer, const Windows* windows, const float* x, float* y, int64_t images, int64_t tokens,
               int threads) {
    std::vector<std::atomic<bool>> nan(images);
    LayerPass{*layer, *windows, x, y, images, tokens, nan.data()}.run(threads);
}

#ifdef VAQ_CLOCKS
// Seconds since the last call, by Work.
void vaq_clocks(double* seconds) {
    std::copy(clocks, clocks + KINDS, seconds);
    std::fill(clocks, clocks + KINDS, 0.0);
}
#endif

}  // extern "C"
