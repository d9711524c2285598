// The passes over memory at both ends of a training step: a batch of uint8 crops becomes what the
// network sees, and the weights are moved (Sections 4.1 and 5).
//
// Each is one pass: what is read is read once, what is written is written once. All arithmetic is
// in float, in the order of `augment.py` and `optim.py`, which these must equal.
// Compiled on first use by `native.py`, called by `passes.py`.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct bfloat16 {
    uint16_t bits;
};

inline float widen(float value) { return value; }

inline float widen(bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline void narrow(float value, float* to) { *to = value; }

// To nearest, ties to even; what is no number stays none.
inline void narrow(float value, bfloat16* to) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to->bits = uint16_t(value == value ? rounded : 0x7fc0u);
}

constexpr int64_t BLOCK = 16384;  // weights that one thread moves at a time

// v <- momentum * v - decay * rate * w - rate * g;   w <- w + v;   copy <- w
template <class Grad, bool COPIES>
void update(float* w, const Grad* g, float* v, bfloat16* copy, int64_t count, float rate,
            float momentum, float decay_rate, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < (count + BLOCK - 1) / BLOCK; ++block) {
        const int64_t stop = std::min(count, (block + 1) * BLOCK);
#pragma omp simd
        for (int64_t i = block * BLOCK; i < stop; ++i) {
            const float velocity = momentum * v[i] - decay_rate * w[i] - rate * widen(g[i]);
            const float weight = w[i] + velocity;
            v[i] = velocity;
            w[i] = weight;
            if (COPIES) narrow(weight, copy + i);
        }
    }
}

}  // namespace

extern "C" {

// What `network_input` needs to know. `mean` is that of pixels (image_px, image_px, 3); a picture's
// own window of it begins at (mean_top[b], mean_left[b]) and is mirrored with it if `mirror_mean`.
struct Input {
    int64_t images, crop_px, image_px, out_px, mirror_mean, has_shift, threads;
    float std[3];
    float divisor;
};

void update_float32(float* w, const float* g, float* v, bfloat16* copy, int64_t count, float rate,
                    float momentum, float decay_rate, int64_t threads) {
    if (copy)
        update<float, true>(w, g, v, copy, count, rate, momentum, decay_rate, threads);
    else
        update<float, false>(w, g, v, copy, count, rate, momentum, decay_rate, threads);
}

void update_bfloat16(float* w, const bfloat16* g, float* v, bfloat16* copy, int64_t count,
                     float rate, float momentum, float decay_rate, int64_t threads) {
    update<bfloat16, true>(w, g, v, copy, count, rate, momentum, decay_rate, threads);
}

}  // extern "C"

namespace {

// One row of one picture: out[x] = ((crop - mean) / std + shift) / divisor.
template <class Out>
void prepare_row(const Input& in, const uint8_t* crop, const float* mean, bool flip,
                 const float* shift, float* row, Out* out) {
    const int64_t width = in.crop_px;
    const bool mean_mirrored = flip && in.mirror_mean;
    if (flip) {
        for (int64_t x = 0; x < width; ++x)
            for (int c = 0; c < 3; ++c) row[3 * x + c] = float(crop[3 * (width - 1 - x) + c]);
    } else {
        for (int64_t i = 0; i < 3 * width; ++i) row[i] = float(crop[i]);
    }
    if (mean_mirrored) {
        for (int64_t x = 0; x < width; ++x)
            for (int c = 0; c < 3; ++c) row[3 * x + c] -= mean[3 * (width - 1 - x) + c];
    } else {
        for (int64_t i = 0; i < 3 * width; ++i) row[i] -= mean[i];
    }
    if (in.std[0] != 1.0f || in.std[1] != 1.0f || in.std[2] != 1.0f)
        for (int64_t x = 0; x < width; ++x)
            for (int c = 0; c < 3; ++c) row[3 * x + c] /= in.std[c];
    if (in.has_shift)
        for (int64_t x = 0; x < width; ++x)
            for (int c = 0; c < 3; ++c) row[3 * x + c] += shift[c];
    if (in.divisor != 1.0f)
        for (int64_t i = 0; i < 3 * width; ++i) row[i] /= in.divisor;
    for (int64_t i = 0; i < 3 * width; ++i) narrow(row[i], out + i);
    std::memset(static_cast<void*>(out + 3 * width), 0, sizeof(Out) * 3 * (in.out_px - width));
}

template <class Out>
void prepare(const Input& in, const uint8_t* crops, const int64_t* top, const int64_t* left,
             const uint8_t* flip, const float* mean, const float* shift, Out* out) {
#pragma omp parallel num_threads(in.threads)
    {
        std::vector<float> row(size_t(3 * in.crop_px));
#pragma omp for schedule(static)
        for (int64_t b = 0; b < in.images; ++b) {
            Out* picture = out + b * in.out_px * in.out_px * 3;
            for (int64_t y = 0; y < in.crop_px; ++y)
                prepare_row(in, crops + (b * in.crop_px + y) * in.crop_px * 3,
                            mean + ((top[b] + y) * in.image_px + left[b]) * 3, flip[b] != 0,
                            shift + 3 * b, row.data(), picture + y * in.out_px * 3);
            std::memset(static_cast<void*>(picture + in.crop_px * in.out_px * 3), 0,
                        sizeof(Out) * 3 * in.out_px * (in.out_px - in.crop_px));
        }
    }
}

}  // namespace

extern "C" {

void prepare_float32(const Input* in, const uint8_t* crops, const int64_t* top,
                     const int64_t* left, const uint8_t* flip, const float* mean,
                     const float* shift, float* out) {
    prepare(*in, crops, top, left, flip, mean, shift, out);
}

void prepare_bfloat16(const Input* in, const uint8_t* crops, const int64_t* top,
                      const int64_t* left, const uint8_t* flip, const float* mean,
                      const float* shift, bfloat16* out) {
    prepare(*in, crops, top, left, flip, mean, shift, out);
}

}  // extern "C"
