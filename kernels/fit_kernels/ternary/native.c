/* Product of fp32 tokens with ternary weights on a CPU, without multiplications.
 *
 * Four weights of a row have 81 combinations. For four values of a token all 81 signed sums are
 * made once, and each row of the weight then looks its own up: one addition for four products
 * (the method of four Russians; for networks: T-MAC, arXiv:2407.00088). Sixteen tokens are the
 * lanes of a vector, so that a look-up is a load and nothing is gathered. All sums are fp32.
 *
 * Weights lie as in `fit_kernels/ternary_weights.py`. Only the indices of one block of rows exist at a time.
 * T tokens, D width, F features, Q = F / 4 rows of bytes.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    LANES = 16,
    GROUP = 4,    /* weights of one look-up */
    ENTRIES = 81, /* 3 to the power of GROUP */
    CHUNK = 8,    /* tables at a time: 41 KB, what a first-level cache of 48 KB holds */
    SPAN = GROUP * CHUNK,
    SPARE = 40,                 /* a code of 3, which no weight has, must not read beyond */
    INDEX_BYTES = 768 * 1024, /* of one block of rows: what stays in a second-level cache */
    ALIGNMENT = 64,
};

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));

static void *allocate(int64_t bytes) {
    return aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

/* Tokens become lanes: [tokens, D] -> [padded D, LANES], zero where there is nothing. */
static void lay_out_tokens(
    const float *x, int64_t tokens, int64_t width, int64_t padded, float *out) {
    memset(out, 0, padded * LANES * sizeof(float));
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t d = 0; d < width; d++) out[d * LANES + t] = x[t * width + d];
}

/* Entry c0 + 3 c1 + 9 c2 + 27 c3 is the sum of (c - 1) x. */
static inline void fill_table(const lanes *x, lanes *table) {
    table[0] = -x[0] - x[1] - x[2] - x[3];
    int filled = 1;
#pragma GCC unroll 4
    for (int j = 0; j < GROUP; j++) {
        for (int e = 0; e < filled; e++) {
            lanes without = table[e] + x[j];
            table[filled + e] = without;
            table[2 * filled + e] = without + x[j];
        }
        filled *= 3;
    }
}

/* Bytes of `rows` rows -> entries [chunk][4 x rows][CHUNK], one byte each. */
static void fill_indices(
    const uint8_t *packed, int64_t rows, int64_t width, int64_t chunks, uint8_t *indices) {
    for (int64_t c = 0; c < chunks; c++) {
        int64_t left = width - c * SPAN;
        uint8_t *chunk = indices + c * 4 * rows * CHUNK;
        for (int64_t q = 0; q < rows; q++) {
            uint32_t bytes[CHUNK];
            if (left < SPAN) memset(bytes, 0x55, SPAN); /* zeros, in all four rows of a byte */
            memcpy(bytes, packed + q * width + c * SPAN, left < SPAN ? left : SPAN);
            for (int block = 0; block < 4; block++)
                for (int g = 0; g < CHUNK; g++) {
                    uint32_t codes = bytes[g] >> (6 - 2 * block) & 0x03030303u;
                    /* the top byte of this product is c0 + 3 c1 + 9 c2 + 27 c3 */
                    chunk[(block * rows + q) * CHUNK + g] = codes * 0x0103091bu >> 24;
                }
        }
    }
}

static inline const lanes *entry(const lanes *tables, uint64_t eight, int g) {
    return tables + g * ENTRIES + (eight >> 8 * g & 255);
}

/* One chunk of the width for all features of a block. */
static void add_chunk(
    const lanes *tables, const uint8_t *indices, int64_t features, lanes *sums) {
    for (int64_t f = 0; f < features; f++, indices += CHUNK) {
        uint64_t at;
        memcpy(&at, indices, CHUNK);
        sums[f] += ((*entry(tables, at, 0) + *entry(tables, at, 1)) +
                    (*entry(tables, at, 2) + *entry(tables, at, 3))) +
                   ((*entry(tables, at, 4) + *entry(tables, at, 5)) +
                    (*entry(tables, at, 6) + *entry(tables, at, 7)));
    }
}

/* sums [4 x rows][LANES] -> out[t, block * Q + q], scaled and with bias. */
static void write_out(
    const lanes *sums, int64_t tokens, int64_t rows, int64_t block_stride, float alpha,
    const float *bias, float *out) {
    for (int block = 0; block < 4; block++, sums += rows)
        for (int64_t t = 0; t < tokens; t++) {
            float *to = out + t * 4 * block_stride + block * block_stride;
            const float *add = bias ? bias + block * block_stride : NULL;
            for (int64_t q = 0; q < rows; q++)
                to[q] = sums[q][t] * alpha + (add ? add[q] : 0.0f);
        }
}

/* Returns 0, or 1 where memory ran out. bias may be NULL. */
int ternary_linear(
    const float *x, const uint8_t *packed, const float *bias, float *out, float alpha,
    int64_t tokens, int64_t width, int64_t packed_rows, int threads) {
    const int64_t chunks = (width + SPAN - 1) / SPAN, padded = chunks * SPAN;
    const int64_t groups = (tokens + LANES - 1) / LANES;
    int64_t height = INDEX_BYTES / (padded > 0 ? padded : 1); /* four rows of padded / 4 bytes */
    if (height > (packed_rows + threads - 1) / threads)
        height = (packed_rows + threads - 1) / threads;
    if (height < 1) height = 1;
    float *laid_out = allocate(groups * padded * LANES * sizeof(float));
    if (!laid_out) return 1;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t n = 0; n < groups; n++) {
            int64_t left = tokens - n * LANES;
            lay_out_tokens(
                x + n * LANES * width, left < LANES ? left : LANES, width, padded,
                laid_out + n * padded * LANES);
        }
        lanes tables[CHUNK * ENTRIES + SPARE];
        uint8_t *indices = allocate(height * padded);
        lanes *sums = allocate(4 * height * sizeof(lanes));
        if (!indices || !sums) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < packed_rows; first += height) {
            if (failed) continue;
            int64_t rows = packed_rows - first < height ? packed_rows - first : height;
            fill_indices(packed + first * width, rows, width, chunks, indices);
            for (int64_t n = 0; n < groups; n++) {
                const lanes *x_group = (const lanes *)(laid_out + n * padded * LANES);
                int64_t left = tokens - n * LANES;
                memset(sums, 0, 4 * rows * sizeof(lanes));
                for (int64_t c = 0; c < chunks; c++) {
                    for (int g = 0; g < CHUNK; g++)
                        fill_table(x_group + c * SPAN + g * GROUP, tables + g * ENTRIES);
                    add_chunk(tables, indices + c * 4 * rows * CHUNK, 4 * rows, sums);
                }
                write_out(
                    sums, left < LANES ? left : LANES, rows, packed_rows, alpha,
                    bias ? bias + first : NULL, out + n * LANES * 4 * packed_rows + first);
            }
        }
        free(indices);
        free(sums);
    }
    free(laid_out);
    return failed;
}
