// A whole transformer layer on codes: LayerNorm, queries, keys and values, attention, projection, residual, LayerNorm,
// two linear layers with an activation function between them, residual. Between the products everything is a byte, and
// stays in the cache of the core that made it.

#pragma once

#include <atomic>

#include "attention.h"

namespace {

struct Layer {
    Norm before, after;
    Product projections, output, first, second;
    Staircase activation;
    int64_t heads, head_dim;
    const float* scales;  // (5, heads): of query, key, value, probabilities, output of the attention
    float levels[10];     // lowest and highest codes of those five
    float scaling;

    int64_t width() const { return output.outputs; }
    int64_t inner() const { return heads * head_dim; }
};

// How the tokens of an image form windows; one window, in their order, if there are none.
struct Windows {
    int64_t count, tokens;  // windows in an image, tokens in a window
    const int32_t* source;  // (count, tokens): which token of the image, -1 for padding; none: in their order
    const int32_t* kinds;   // (count,): which of the masks a window has; none: the first
    const float* mask;      // (kinds, heads, tokens, tokens), added to the scores; none: no mask
};

// Memory of a thread, kept from call to call.
struct Scratch {
    std::vector<uint8_t> codes, projected, context, hidden;
    std::vector<const float*> in;
    std::vector<float*> out;

    static Scratch& mine() {
        static thread_local Scratch scratch;
        return scratch;
    }
};

// One forward pass of a layer over a batch of images with `tokens` tokens each. Rows are the tokens of all windows.
struct LayerPass {
    const Layer& layer;
    const Windows& windows;
    const float* x;
    float* y;
    int64_t images, tokens;
    std::atomic<bool>* nan;  // (images,): which hold a token that is not finite

    // Bytes from row to row of what passes between the products.
    int64_t codes_stride() const { return Product::padded(layer.width()); }
    int64_t projected_stride() const { return layer.projections.outputs; }
    int64_t context_stride() const { return Product::padded(layer.inner()); }
    int64_t hidden_stride() const { return Product::padded(layer.first.outputs); }

    // Three ways to share the work: a thread takes whole windows; or a part of the columns of every product, which
    // reads the weights once for all threads together; or a part of the rows.
    void run(int threads) const {
        const Clock clock(LAYER);
        const int64_t count = images * windows.count, rows = count * windows.tokens;
        const Product* products[] = {&layer.projections, &layer.output, &layer.first, &layer.second};
        int64_t weights = 0;
        bool columns = threads > 1 && rows <= 256;
        for (const Product* p : products) weights += p->inputs * p->outputs, columns = columns && p->panels() % threads == 0;
        columns = columns && weights > 1 << 20;  // more than the cache of a core
        const bool whole = !columns && (count % threads == 0 || count >= 8 * threads);
        Scratch& shared = Scratch::mine();
        uint8_t* projected = whole ? nullptr : grow(shared.projected, rows * projected_stride());
        uint8_t* context = whole ? nullptr : grow(shared.context, rows * context_stride());
        uint8_t* codes = columns ? grow(shared.codes, rows * codes_stride()) : nullptr;
        uint8_t* hidden = columns ? grow(shared.hidden, rows * hidden_stride()) : nullptr;
#pragma omp parallel num_threads(threads)
        {
            const Part part{omp_get_thread_num(), omp_get_num_threads()};
            if (whole)
                by_windows(part, count);
            else if (columns)
                by_columns(part, rows, codes, projected, context, hidden);
            else
                by_rows(part, rows, projected, context);
        }
        for (int64_t image = 0; image < images; ++image)
            if (nan[image]) std::fill_n(y + image * tokens * layer.width(), tokens * layer.width(), NAN);
    }

   private:
    void by_windows(Part part, int64_t count) const {
        const int64_t size = windows.tokens, group = std::max<int64_t>(1, 192 / size), end = part.end(count);
        Scratch& mine = Scratch::mine();
        uint8_t* codes = grow(mine.codes, group * size * codes_stride());
        uint8_t* projected = grow(mine.projected, group * size * projected_stride());
        uint8_t* context = grow(mine.context, group * size * context_stride());
        for (int64_t begin = part.begin(count); begin < end; begin += group) {
            const int64_t many = std::min(group, end - begin);
            enter(begin * size, (begin + many) * size, codes);
            project(codes, many * size, ALL, projected);
            for (int64_t w = 0; w < many; ++w)
                for (int64_t head = 0; head < layer.heads; ++head)
                    attend(begin + w, head, ALL, projected + w * size * projected_stride(),
                           context + w * size * context_stride());
            finish(begin * size, (begin + many) * size, context);
        }
    }

    void by_rows(Part part, int64_t rows, uint8_t* projected, uint8_t* context) const {
        // Whole tiles, as far as there are enough of them.
        const int64_t height = rows >= 2 * ROWS * part.of ? ROWS : 1, tiles = (rows + height - 1) / height;
        const int64_t begin = part.begin(tiles) * height, end = std::min(rows, part.end(tiles) * height);
        uint8_t* codes = grow(Scratch::mine().codes, (end - begin) * codes_stride());
        enter(begin, end, codes);
        project(codes, end - begin, ALL, projected + begin * projected_stride());
#pragma omp barrier
        attend_all(part, rows, projected, context);
#pragma omp barrier
        finish(begin, end, context + begin * context_stride());
    }

    void by_columns(Part part, int64_t rows, uint8_t* codes, uint8_t* projected, uint8_t* context, uint8_t* hidden) const {
        const int64_t begin = part.begin(rows), end = part.end(rows);
        enter(begin, end, codes + begin * codes_stride());
#pragma omp barrier
        project(codes, rows, part, projected);
#pragma omp barrier
        attend_all(part, rows, projected, context);
#pragma omp barrier
        float* const* out;
        const int64_t real = add_attention(0, rows, context, part, &out);
#pragma omp barrier
        normalize(out, part.begin(real), part.end(real), codes + part.begin(real) * codes_stride());
#pragma omp barrier
        expand(codes, real, part, hidden);
#pragma omp barrier
        contract(hidden, real, part, out);
    }

    // Everything after the attention, for rows [begin, end).
    void finish(int64_t begin, int64_t end, const uint8_t* context) const {
        Scratch& mine = Scratch::mine();
        float* const* out;
        const int64_t rows = add_attention(begin, end, context, ALL, &out);
        const int64_t block = std::max<int64_t>(48, (1 << 18) / layer.first.outputs / 24 * 24);  // hidden stays in the cache
        uint8_t* codes = grow(mine.codes, std::min(block, rows) * codes_stride());
        uint8_t* hidden = grow(mine.hidden, std::min(block, rows) * hidden_stride());
        for (int64_t done = 0; done < rows; done += block) {
            const int64_t count = std::min(block, rows - done);
            normalize(out, done, done + count, codes);
            expand(codes, count, ALL, hidden);
            contract(hidden, count, ALL, out + done);
        }
    }

    // Where the token of a row lies, in numbers from the start of x and y; -1 for padding.
    int64_t place(int64_t row) const {
        if (!windows.source) return row * layer.width();
        const int64_t size = windows.count * windows.tokens, token = windows.source[row % size];
        return token < 0 ? -1 : (row / size * tokens + token) * layer.width();
    }

    // The first LayerNorm of rows [begin, end). Padding comes after it, and is zero.
    void enter(int64_t begin, int64_t end, uint8_t* codes) const {
        const Clock clock(NORM);
        alignas(16) uint8_t zero[16];
        store_bytes(zero, layer.before.quantizer.bytes(_mm512_setzero_ps()), 16);
        for (int64_t row = begin; row < end; ++row, codes += codes_stride()) {
            const int64_t from = place(row);
            if (from < 0)
                std::memset(codes, zero[0], layer.width());
            else if (layer.before.row(x + from, layer.width(), codes))
                nan[row / (windows.count * windows.tokens)] = true;
        }
    }

    // Queries, keys and values, as centered bytes.
    void project(const uint8_t* codes, int64_t rows, Part part, uint8_t* projected) const {
        const Clock clock(LINEAR);
        const int64_t outputs = layer.projections.outputs;
        const Quantizer centered{1, 0, -(float)CENTER, 255.0f - CENTER, false};
        layer.projections.multiply(codes, codes_stride(), rows, part, [&](int64_t row, int64_t column, __m512 numbers) {
            store_bytes(projected + row * projected_stride() + column, centered.bytes(numbers), outputs - column);
        });
    }

    // Attention of one head in one window, for a part of its queries.
    void attend(int64_t window, int64_t head, Part part, const uint8_t* projected, uint8_t* context) const {
        const int64_t size = windows.tokens, inner = layer.inner();
        const int64_t kind = windows.kinds ? windows.kinds[window % windows.count] : 0;
        Attention a;
        a.query = projected, a.key = projected + inner, a.value = projected + 2 * inner;
        a.mask = windows.mask ? windows.mask + kind * layer.heads * size * size : nullptr;
        a.batch = 1, a.heads = layer.heads, a.tokens = size, a.dim = layer.head_dim;
        for (auto& stride : a.stride) stride[0] = 0, stride[1] = layer.head_dim, stride[2] = projected_stride();
        a.mask_stride[0] = 0, a.mask_stride[1] = size * size, a.mask_stride[2] = size;
        a.set_scales(layer.scales, layer.levels, true);
        a.scaling = layer.scaling, a.out = context, a.out_stride = context_stride();
        attend_rows(a, 0, head, part.begin(size), part.end(size));
    }

    // A part of all heads of all windows.
    void attend_all(Part part, int64_t rows, const uint8_t* projected, uint8_t* context) const {
        const int64_t size = windows.tokens, heads = rows / size * layer.heads, parts = parts_of(heads, size, part.of);
        for (int64_t task = part.begin(heads * parts); task < part.end(heads * parts); ++task) {
            const int64_t window = task / parts / layer.heads, begin = window * size;
            attend(window, task / parts % layer.heads, {task % parts, parts}, projected + begin * projected_stride(),
                   context + begin * context_stride());
        }
    }

    // Output projection of rows [begin, end) plus residual, into y. Returns how many of the rows are no padding, and
    // where they are in y.
    int64_t add_attention(int64_t begin, int64_t end, const uint8_t* context, Part part, float* const** places) const {
        const Clock clock(LINEAR);
        const float** in = grow(Scratch::mine().in, end - begin);
        float** out = grow(Scratch::mine().out, end - begin);
        for (int64_t row = begin; row < end; ++row) {
            const int64_t at = place(row);
            in[row - begin] = at < 0 ? nullptr : x + at, out[row - begin] = at < 0 ? nullptr : y + at;
        }
        const auto write = [&](int64_t row, int64_t column, __m512 numbers) {
            if (out[row]) add(in[row], out[row], column, numbers);
        };
        layer.output.multiply(context, context_stride(), end - begin, part, write);
        int64_t rows = 0;
        for (int64_t row = 0; row < end - begin; ++row)
            if (out[row]) out[rows++] = out[row];
        *places = out;
        return rows;
    }

    // The second LayerNorm.
    void normalize(float* const* rows, int64_t begin, int64_t end, uint8_t* codes) const {
        const Clock clock(NORM);
        for (int64_t row = begin; row < end; ++row, codes += codes_stride())
            layer.after.row(rows[row], layer.width(), codes);
    }

    // The first linear layer and the activation function.
    void expand(const uint8_t* codes, int64_t rows, Part part, uint8_t* hidden) const {
        const Clock clock(LINEAR);
        const int64_t outputs = layer.first.outputs;
        layer.activation.with_search([&](const auto& search) {
            layer.first.multiply(codes, codes_stride(), rows, part, [&](int64_t row, int64_t column, __m512 numbers) {
                store_bytes(hidden + row * hidden_stride() + column, search(numbers), outputs - column);
            });
        });
    }

    // The second linear layer plus residual.
    void contract(const uint8_t* hidden, int64_t rows, Part part, float* const* out) const {
        const Clock clock(LINEAR);
        layer.second.multiply(hidden, hidden_stride(), rows, part, [&](int64_t row, int64_t column, __m512 numbers) {
            add(out[row], out[row], column, numbers);
        });
    }

    void add(const float* from, float* to, int64_t column, __m512 numbers) const {
        const __mmask16 mask = first(layer.width() - column);
        _mm512_mask_storeu_ps(to + column, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, from + column), numbers));
    }
};

}  // namespace
