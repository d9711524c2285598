// ReLU, a norm and a max pool in one pass over memory each way (Sections 3.1, 3.3 and 3.4).
//
// Maps lie channels last: pixel after pixel, the maps of one pixel beside each other. One vector
// holds L maps of one pixel; the maps of a column are a run of vectors, and the window of the
// response norm is cut from three neighbouring ones in registers. The forward pass keeps nothing
// but the position of each largest unit (one byte); the backward pass computes the scale again and
// gathers each unit's gradient from the windows that the unit is in, so that nothing is written
// twice and the result does not depend on the number of threads. All arithmetic is in float.
//
// Compiled on first use by `native.py` and called through `Chain`, which mirrors `native.Chain`.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define WIDE 1
#include <immintrin.h>
#elif defined(__AVX__)
#include <immintrin.h>
#endif

extern "C" {

struct Chain {
    int64_t images, height, width, maps, columns;
    int64_t norm;  // 0 none, 1 response, 2 spatial
    int64_t size;
    int64_t pool_size, pool_stride;  // 0: no pool
    int64_t relu_before, relu_after;
    int64_t threads;
    double alpha, beta, k;
};

}  // extern "C"

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr uint8_t NOWHERE = 255;  // the position of a largest unit that the last ReLU has cut off

// --- Vectors of L floats ------------------------------------------------------------------------

#if defined(WIDE)
constexpr int L = 16;
#elif defined(__AVX__)
constexpr int L = 8;
#else
constexpr int L = 4;
#endif

typedef float F __attribute__((vector_size(4 * L)));
typedef int32_t I __attribute__((vector_size(4 * L)));
typedef uint32_t U __attribute__((vector_size(4 * L)));
typedef uint16_t H __attribute__((vector_size(2 * L)));
typedef uint8_t B __attribute__((vector_size(L)));

struct bfloat16 {
    uint16_t bits;
};

inline F all(float value) { return F{} + value; }

template <class V>
inline V read(const void* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class V>
inline void write(void* to, V value) {
    std::memcpy(to, &value, sizeof value);
}

inline F widen(H half) {
#if defined(WIDE)
    return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#else
    return (F)(__builtin_convertvector(half, U) << 16);
#endif
}

inline H narrow(F value) {  // to the nearest, ties to even; NaN stays NaN
#if defined(WIDE) && defined(__AVX512BF16__)
    return (H)_mm512_cvtneps_pbh((__m512)value);
#else
    U bits = (U)value;
    U rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    U quiet = (bits >> 16) | 0x40;
    U nan = (U)(value != value);
    return __builtin_convertvector((rounded & ~nan) | (quiet & nan), H);
#endif
}

inline F load(const float* from) { return read<F>(from); }
inline F load(const bfloat16* from) { return widen(read<H>(from)); }
inline void store(float* to, F value) { write(to, value); }
inline void store(bfloat16* to, F value) { write(to, narrow(value)); }

// The first `count` lanes: fewer than L at the end of a column whose maps are no multiple of L.
// WHOLE promises that there is no such end, which halves the time of the backward pass.
template <bool WHOLE = false, class T>
inline F load(const T* from, int64_t count) {
    if (WHOLE || __builtin_expect(count >= L, 1)) return load(from);
    T lanes[L] = {};
    std::memcpy(lanes, from, count * sizeof(T));
    return load(lanes);
}

template <bool WHOLE = false, class T>
inline void store(T* to, F value, int64_t count) {
    if (WHOLE || __builtin_expect(count >= L, 1)) return store(to, value);
    T lanes[L];
    store(lanes, value);
    std::memcpy(to, lanes, count * sizeof(T));
}

template <bool WHOLE = false>
inline B load_bytes(const uint8_t* from, int64_t count) {
    if (WHOLE || __builtin_expect(count >= L, 1)) return read<B>(from);
    uint8_t lanes[L] = {};
    std::memcpy(lanes, from, count);
    return read<B>(lanes);
}

template <bool WHOLE = false>
inline void store_bytes(uint8_t* to, B value, int64_t count) {
    if (WHOLE || __builtin_expect(count >= L, 1)) return write(to, value);
    std::memcpy(to, &value, count);
}

#if defined(WIDE)
typedef __mmask16 Mask;
inline Mask beats(F value, F best) {  // larger, or not a number
    return _mm512_cmp_ps_mask((__m512)value, (__m512)best, _CMP_GT_OQ) |
           _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_UNORD_Q);
}
inline Mask at_most_zero(F value) {
    return _mm512_cmp_ps_mask((__m512)value, _mm512_setzero_ps(), _CMP_LE_OQ);
}
inline Mask equal(B bytes, uint8_t byte) {
    return _mm_cmpeq_epi8_mask((__m128i)bytes, _mm_set1_epi8((char)byte));
}
inline F choose(Mask mask, F yes, F no) {
    return (F)_mm512_mask_mov_ps((__m512)no, mask, (__m512)yes);
}
inline B choose(Mask mask, B yes, B no) {
    return (B)_mm_mask_mov_epi8((__m128i)no, mask, (__m128i)yes);
}
inline F add_where(Mask mask, F sum, F value) {
    return (F)_mm512_mask_add_ps((__m512)sum, mask, (__m512)sum, (__m512)value);
}
inline F zero_where(Mask mask, F value) {
    return (F)_mm512_maskz_mov_ps((Mask)~mask, (__m512)value);
}
#else
typedef I Mask;
inline Mask beats(F value, F best) { return (value > best) | (value != value); }
inline Mask at_most_zero(F value) { return value <= F{}; }
inline Mask equal(B bytes, uint8_t byte) {
    typedef int8_t S __attribute__((vector_size(L)));
    return __builtin_convertvector((S)(bytes == (B{} + byte)), I);
}
inline F choose(Mask mask, F yes, F no) { return (F)((mask & (I)yes) | (~mask & (I)no)); }
inline B choose(Mask mask, B yes, B no) {
    B narrow_mask = __builtin_convertvector((U)mask, B);
    return (narrow_mask & yes) | (~narrow_mask & no);
}
inline F add_where(Mask mask, F sum, F value) { return sum + (F)(mask & (I)value); }
inline F zero_where(Mask mask, F value) { return (F)(~mask & (I)value); }
#endif

inline F rectify(F x, F lowest) {  // max(x, lowest), NaN stays; lowest is 0, or -inf: x itself
#if defined(WIDE)
    return (F)_mm512_max_ps((__m512)lowest, (__m512)x);
#else
    I below = x <= lowest;
    return choose(below, lowest, x);
#endif
}

// --- s^-beta and 1/s ----------------------------------------------------------------------------

struct Scale {
    F power, inverse;  // s^-beta, 1 / s
};

// beta = 3/4 without a power, a root or a division: p = s^-1/4 to 14 bits from two estimates of
// 1 / sqrt, then one Newton step p (5 - s p^4) / 4, whose error is 2.5 times the square of theirs.
struct ThreeQuarters {
    explicit ThreeQuarters(double) {}
    Scale operator()(F s) const {
#if defined(WIDE)
        F root = (F)_mm512_rsqrt14_ps((__m512)s);
        F p = (F)_mm512_rsqrt14_ps((__m512)(s * root));
        F square = p * p;
        p = p * (1.25f - (0.25f * s) * (square * square));
        square = p * p;
        Scale scale = {square * p, square * square};
        // The estimates make NaN of an infinite s, whose powers are 0.
        Mask finite = _mm512_cmp_ps_mask((__m512)s, (__m512)all(INF), _CMP_NEQ_UQ);
        return {(F)_mm512_maskz_mov_ps(finite, (__m512)scale.power),
                (F)_mm512_maskz_mov_ps(finite, (__m512)scale.inverse)};
#else
        F inverse = 1.0f / s, root = s, fourth;
        for (int lane = 0; lane < L; lane++) root[lane] = __builtin_sqrtf(inverse[lane]);
        for (int lane = 0; lane < L; lane++) fourth[lane] = __builtin_sqrtf(root[lane]);
        return {root * fourth, inverse};
#endif
    }
};

struct AnyPower {
    float beta;
    explicit AnyPower(double beta) : beta((float)beta) {}
    Scale operator()(F s) const {
        F power;
        for (int lane = 0; lane < L; lane++) power[lane] = std::pow(s[lane], -beta);
        return {power, 1.0f / s};
    }
};

// --- Window sums over the maps of one pixel -------------------------------------------------------

template <int SHIFT, size_t... LANE>
inline F cut(F left, F right, std::index_sequence<LANE...>) {
    return __builtin_shufflevector(left, right, (int)(LANE + SHIFT)...);
}

// Lanes c + SHIFT of the three neighbours, -L <= SHIFT <= L.
template <int SHIFT>
inline F shifted(F before, F here, F after) {
    if constexpr (SHIFT == 0) return here;
#if defined(WIDE)  // one instruction, which compilers do not find
    else if constexpr (SHIFT < 0)
        return (F)_mm512_alignr_epi32((__m512i)here, (__m512i)before, L + SHIFT);
    else return (F)_mm512_alignr_epi32((__m512i)after, (__m512i)here, SHIFT);
#else
    else if constexpr (SHIFT < 0)
        return cut<L + SHIFT>(before, here, std::make_index_sequence<L>{});
    else return cut<SHIFT>(here, after, std::make_index_sequence<L>{});
#endif
}

template <int SIZE>
struct Window {  // c - SIZE / 2 ... c - SIZE / 2 + SIZE - 1; `turned` is its mirror image
    explicit Window(int64_t) {}
    template <int FIRST, size_t... STEP>
    static F add(F before, F here, F after, std::index_sequence<STEP...>) {
        return (shifted<FIRST + (int)STEP>(before, here, after) + ...);
    }
    F operator()(F before, F here, F after) const {
        return add<-(SIZE / 2)>(before, here, after, std::make_index_sequence<SIZE>{});
    }
    F turned(F before, F here, F after) const {
        return add<SIZE / 2 - SIZE + 1>(before, here, after, std::make_index_sequence<SIZE>{});
    }
};

struct AnyWindow {  // up to L maps to either side
    int64_t size;
    explicit AnyWindow(int64_t size) : size(size) {}
    F add(F before, F here, F after, int64_t first) const {
        float lanes[3 * L];
        write(lanes, before);
        write(lanes + L, here);
        write(lanes + 2 * L, after);
        F sum = {};
        for (int64_t i = 0; i < size; i++) sum += read<F>(lanes + L + first + i);
        return sum;
    }
    F operator()(F before, F here, F after) const { return add(before, here, after, -(size / 2)); }
    F turned(F before, F here, F after) const {
        return add(before, here, after, size / 2 - size + 1);
    }
};

// --- The response norm of one column of one pixel -------------------------------------------------

#define ALWAYS __attribute__((always_inline)) inline

inline F lowest_of(const Chain& g) { return all(g.relu_before ? 0.0f : -INF); }

template <class Window_, class Power, bool WHOLE_>
struct ResponseNorm {
    static constexpr bool WHOLE = WHOLE_;
    Window_ window;
    Power power;
    F k, alpha, twice, lowest;

    explicit ResponseNorm(const Chain& g)
        : window(g.size), power(g.beta), k(all((float)g.k)), alpha(all((float)g.alpha)),
          twice(all((float)(-2.0 * g.alpha * g.beta))), lowest(lowest_of(g)) {}

    template <class T, class O>
    ALWAYS void forward(const T* x, O* y, int64_t maps) const {
        F before = {}, value = rectify(load<WHOLE>(x, maps), lowest), here = value * value;
        for (int64_t c = 0; c < maps; c += L) {
            F next = {}, after = {};
            if (c + L < maps) {
                next = rectify(load<WHOLE>(x + c + L, maps - c - L), lowest);
                after = next * next;
            }
            F s = k + alpha * window(before, here, after);
            store<WHOLE>(y + c, value * power(s).power, maps - c);
            before = here, here = after, value = next;
        }
    }

    // dx = dy s^-beta - 2 alpha beta x w, w the turned window sum of dy x s^-beta / s.
    template <class T, class Gradient>
    ALWAYS void backward(const T* x, const Gradient& gradient, T* dx, int64_t maps,
                         bool relu) const {
        F before = {}, value = rectify(load<WHOLE>(x, maps), lowest), here = value * value;
        F part_before = {}, part = {}, direct = {}, last = {};
        for (int64_t c = 0; c < maps + L; c += L) {
            F part_after = {}, direct_after = {}, now = value;
            if (c < maps) {
                F next = {}, after = {};
                if (c + L < maps) {
                    next = rectify(load<WHOLE>(x + c + L, maps - c - L), lowest);
                    after = next * next;
                }
                Scale scale = power(k + alpha * window(before, here, after));
                direct_after = gradient.template at<WHOLE>(c, maps - c) * scale.power;
                part_after = direct_after * value * scale.inverse;
                before = here, here = after, value = next;
            }
            if (c > 0) {
                F result = direct + twice * last * window.turned(part_before, part, part_after);
                if (relu) result = zero_where(at_most_zero(last), result);
                store<WHOLE>(dx + c - L, result, maps - (c - L));
            }
            part_before = part, part = part_after, direct = direct_after, last = now;
        }
    }
};

template <bool WHOLE_>
struct NoNorm {
    static constexpr bool WHOLE = WHOLE_;
    F lowest;
    explicit NoNorm(const Chain& g) : lowest(lowest_of(g)) {}

    template <class T, class O>
    ALWAYS void forward(const T* x, O* y, int64_t maps) const {
        for (int64_t c = 0; c < maps; c += L)
            store<WHOLE>(y + c, rectify(load<WHOLE>(x + c, maps - c), lowest), maps - c);
    }

    template <class T, class Gradient>
    ALWAYS void backward(const T* x, const Gradient& gradient, T* dx, int64_t maps,
                         bool relu) const {
        for (int64_t c = 0; c < maps; c += L) {
            F result = gradient.template at<WHOLE>(c, maps - c);
            if (relu) {
                F value = load<WHOLE>(x + c, maps - c);
                result = zero_where(at_most_zero(value), result);
            }
            store<WHOLE>(dx + c, result, maps - c);
        }
    }
};

// --- Pools --------------------------------------------------------------------------------------

struct Pool {
    int64_t size, stride, height, width, rows, columns;

    explicit Pool(const Chain& g)
        : size(g.pool_size), stride(g.pool_stride), height(g.height), width(g.width),
          rows(size ? covered(height) : height), columns(size ? covered(width) : width) {}

    int64_t covered(int64_t pixels) const { return (pixels - size + stride - 1) / stride + 1; }
    // Windows first ... last are those that pixel `at` is in; `depth` of them at most.
    int64_t first(int64_t at) const { return at < size ? 0 : (at - size) / stride + 1; }
    int64_t last(int64_t at, int64_t windows) const { return std::min(at / stride, windows - 1); }
    int64_t depth() const { return (size - 1) / stride + 1; }
};

constexpr int MOST_WINDOWS = 16;  // that one pixel is in; 4 rows of them

// A row of windows that is being pooled: the largest units so far, and where they end up.
template <class T>
struct Pooling {
    float* value;  // `maps` of each window, close together
    uint8_t* position;
    T* y;  // of `pitch` maps each
    uint8_t* index;
    uint8_t offset;  // position of the first pixel of this row of the picture
    bool begins, ends;
};

// One row of normalised pixels goes into each row of windows that it belongs to.
template <bool WHOLE, class T>
ALWAYS void pool_row(const Pool& p, const float* row, const Pooling<T>* windows, int num_windows,
                     int64_t maps, int64_t valid, int64_t pitch, bool relu) {
    for (int64_t j = 0; j < p.columns; j++) {
        const int64_t left = j * p.stride, right = std::min(left + p.size, p.width);
        for (int64_t c = 0; c < valid; c += L) {
            const float* from = row + left * maps + c;
            F value = load<WHOLE>(from, maps - c);
            B position = {};
            for (int64_t w = 1; w < right - left; w++) {
                F other = load<WHOLE>(from + w * maps, maps - c);
                Mask better = beats(other, value);
                value = choose(better, other, value);
                position = choose(better, B{} + (uint8_t)w, position);
            }
            for (int i = 0; i < num_windows; i++) {
                const Pooling<T>& window = windows[i];
                const int64_t at = j * maps + c, out = j * pitch + c;
                F best = value;
                B where = position + window.offset;
                if (!window.begins) {
                    F above = load<WHOLE>(window.value + at, maps - c);
                    Mask better = beats(value, above);
                    best = choose(better, value, above);
                    where = choose(better, where,
                                   load_bytes<WHOLE>(window.position + at, maps - c));
                }
                if (!window.ends) {
                    store<WHOLE>(window.value + at, best, maps - c);
                    store_bytes<WHOLE>(window.position + at, where, maps - c);
                    continue;
                }
                if (relu) {
                    Mask cut = at_most_zero(best);
                    best = zero_where(cut, best);
                    where = choose(cut, B{} + NOWHERE, where);
                }
                store<WHOLE>(window.y + out, best, valid - c);
                if (window.index) store_bytes<WHOLE>(window.index + out, where, valid - c);
            }
        }
    }
}

// Rows of pixels, first to last, of `maps` maps in memory, of which `valid` are written to the
// output, in pixels of `pitch` maps. `scratch` has depth() rows of windows.
template <bool WHOLE, class T>
struct Pooler {
    const Pool& p;
    float* values;
    uint8_t* positions;
    T* y;
    uint8_t* index;
    int64_t maps, valid, pitch;
    bool relu;

    void operator()(const float* row, int64_t r) const {
        Pooling<T> windows[MOST_WINDOWS];
        int count = 0;
        const int64_t one = p.columns * maps;
        for (int64_t i = p.first(r); i <= p.last(r, p.rows); i++) {
            const int64_t slot = i % p.depth() * one, out = i * p.columns * pitch;
            const int64_t down = r - i * p.stride;
            const int64_t end = std::min(i * p.stride + p.size, p.height) - 1;
            windows[count++] = {values + slot, positions + slot, y + out,
                                index ? index + out : nullptr, (uint8_t)(down * p.size), down == 0,
                                r == end};
        }
        pool_row<WHOLE>(p, row, windows, count, maps, valid, pitch, relu);
    }
};

// A unit's gradient: the sum of those of the windows in which it is the largest.
template <class T>
struct Gathered {
    const T* gradient[MOST_WINDOWS];
    const uint8_t* index[MOST_WINDOWS];
    uint8_t position[MOST_WINDOWS];
    int count;
    int64_t map;  // first of those that are asked for

    void look(const Pool& p, const T* dy, const uint8_t* positions, int64_t r, int64_t w,
              int64_t maps) {
        count = 0;
        for (int64_t i = p.first(r); i <= p.last(r, p.rows); i++)
            for (int64_t j = p.first(w); j <= p.last(w, p.columns); j++) {
                const int64_t window = (i * p.columns + j) * maps;
                gradient[count] = dy + window;
                index[count] = positions + window;
                position[count++] = (uint8_t)((r - i * p.stride) * p.size + w - j * p.stride);
            }
    }

    template <bool WHOLE>
    ALWAYS F at(int64_t c, int64_t maps) const {
        F sum = {};
        for (int i = 0; i < count; i++) {
            Mask mine = equal(load_bytes<WHOLE>(index[i] + map + c, maps), position[i]);
            sum = add_where(mine, sum, load<WHOLE>(gradient[i] + map + c, maps));
        }
        return sum;
    }
};

template <class T>
struct Given {
    const T* gradient;
    template <bool WHOLE>
    ALWAYS F at(int64_t c, int64_t maps) const {
        return load<WHOLE>(gradient + c, maps);
    }
};

// --- One image: a norm within each pixel, or none -------------------------------------------------

struct Scratch {
    std::unique_ptr<float[]> floats;
    std::unique_ptr<uint8_t[]> bytes;
    Scratch(int64_t num_floats, int64_t num_bytes)
        : floats(new float[num_floats]), bytes(new uint8_t[num_bytes]) {}
};

template <class Norm_>
struct PerPixel {
    using Norm = Norm_;

    static Scratch forward_scratch(const Chain& g, const Pool& p) {
        if (!p.size) return Scratch(0, 0);
        const int64_t pooled = p.depth() * p.columns * g.maps;
        return Scratch(g.width * g.maps + pooled, pooled);
    }
    static Scratch backward_scratch(const Chain&, const Pool&) { return Scratch(0, 0); }

    template <class T>
    static void forward(const Chain& g, const Norm& norm, const Pool& p, const T* x, T* y,
                        uint8_t* index, Scratch& scratch) {
        const int64_t maps = g.maps / g.columns, in_row = g.width * g.columns;
        if (!p.size) {
            for (int64_t i = 0; i < g.height * in_row; i++)
                norm.forward(x + i * maps, y + i * maps, maps);
            return;
        }
        float* row = scratch.floats.get();
        const Pooler<Norm::WHOLE, T> pool = {p, row + g.width * g.maps, scratch.bytes.get(), y,
                                             index, g.maps, g.maps, g.maps, g.relu_after != 0};
        for (int64_t r = 0; r < g.height; r++) {
            for (int64_t i = 0; i < in_row; i++)
                norm.forward(x + (r * in_row + i) * maps, row + i * maps, maps);
            pool(row, r);
        }
    }

    template <class T>
    static void backward(const Chain& g, const Norm& norm, const Pool& p, const T* dy, const T* x,
                         const uint8_t* index, T* dx, Scratch&) {
        const int64_t maps = g.maps / g.columns;
        const bool relu = g.relu_before;
        if (!p.size) {
            for (int64_t at = 0; at < g.height * g.width * g.maps; at += maps)
                norm.backward(x + at, Given<T>{dy + at}, dx + at, maps, relu);
            return;
        }
        Gathered<T> gradient;
        for (int64_t r = 0; r < g.height; r++)
            for (int64_t w = 0; w < g.width; w++) {
                gradient.look(p, dy, index, r, w, g.maps);
                const int64_t pixel = (r * g.width + w) * g.maps;
                for (gradient.map = 0; gradient.map < g.maps; gradient.map += maps) {
                    const int64_t at = pixel + gradient.map;
                    norm.backward(x + at, gradient, dx + at, maps, relu);
                }
            }
    }
};

// --- One image: a norm over a window of pixels, each map for itself -------------------------------

template <class Power>
struct SpatialNorm {
    Power power;
    F k, alpha, twice, lowest;
    explicit SpatialNorm(const Chain& g)
        : power(g.beta), k(all((float)g.k)), alpha(all((float)g.alpha)),
          twice(all((float)(-2.0 * g.alpha * g.beta))), lowest(lowest_of(g)) {}
};

// BLOCK maps at a time, so that three float planes of the picture stay in the cache: sums of
// squares along the rows; sums of dy x s^-beta / s along the rows; dy s^-beta.
template <class Power>
struct PerMap {
    using Norm = SpatialNorm<Power>;
    static constexpr int64_t BLOCK = 4 * L;

    static Scratch forward_scratch(const Chain& g, const Pool& p) {
        const int64_t pooled = p.size ? p.depth() * p.columns * BLOCK : 0;
        return Scratch((g.height + 1) * g.width * BLOCK + pooled, pooled);
    }
    static Scratch backward_scratch(const Chain& g, const Pool&) {
        return Scratch((3 * g.height + 1) * g.width * BLOCK, 0);
    }

    // sums[w] = row[w - below] + ... + row[w + above], as far as there are pixels
    static void sum_row(const float* row, float* sums, int64_t width, int64_t below,
                        int64_t above) {
        for (int64_t w = 0; w < width; w++) {
            const int64_t from = std::max<int64_t>(0, w - below);
            const int64_t to = std::min(width - 1, w + above);
            F sum[4] = {};
            for (int64_t i = from; i <= to; i++)
                for (int v = 0; v < 4; v++) sum[v] += load(row + i * BLOCK + v * L);
            for (int v = 0; v < 4; v++) store(sums + w * BLOCK + v * L, sum[v]);
        }
    }

    static ALWAYS F sum_column(const float* plane, int64_t r, int64_t height, int64_t pitch,
                               int64_t below, int64_t above) {
        F sum = {};
        const int64_t to = std::min(height - 1, r + above);
        for (int64_t i = std::max<int64_t>(0, r - below); i <= to; i++)
            sum += load(plane + i * pitch);
        return sum;
    }

    template <class T>
    static void square_rows(const Chain& g, const Norm& norm, const T* x, int64_t valid,
                            float* row, float* squares) {
        const int64_t below = g.size / 2, pitch = g.width * BLOCK;
        for (int64_t r = 0; r < g.height; r++) {
            for (int64_t w = 0; w < g.width; w++)
                for (int64_t c = 0; c < BLOCK; c += L) {
                    const T* from = x + (r * g.width + w) * g.maps + c;
                    F value = c < valid ? rectify(load(from, valid - c), norm.lowest) : F{};
                    store(row + w * BLOCK + c, value * value);
                }
            sum_row(row, squares + r * pitch, g.width, below, g.size - 1 - below);
        }
    }

    template <class T>
    static void forward(const Chain& g, const Norm& norm, const Pool& p, const T* x, T* y,
                        uint8_t* index, Scratch& scratch) {
        const int64_t below = g.size / 2, above = g.size - 1 - below, pitch = g.width * BLOCK;
        float *squares = scratch.floats.get(), *row = squares + g.height * pitch;
        for (int64_t map = 0; map < g.maps; map += BLOCK) {
            const int64_t valid = std::min(BLOCK, g.maps - map);
            const int64_t used = (valid + L - 1) / L * L;
            square_rows(g, norm, x + map, valid, row, squares);
            const Pooler<false, T> pool = {p, row + pitch, scratch.bytes.get(), y + map,
                                           index ? index + map : nullptr, BLOCK, valid, g.maps,
                                           g.relu_after != 0};
            for (int64_t r = 0; r < g.height; r++) {
                for (int64_t w = 0; w < g.width; w++)
                    for (int64_t c = 0; c < used; c += L) {
                        const int64_t at = (r * g.width + w) * g.maps + map + c;
                        F s = norm.k + norm.alpha * sum_column(squares + w * BLOCK + c, r,
                                                               g.height, pitch, below, above);
                        F value = rectify(load(x + at, valid - c), norm.lowest);
                        value *= norm.power(s).power;
                        if (p.size) store(row + w * BLOCK + c, value);
                        else store(y + at, value, valid - c);
                    }
                if (p.size) pool(row, r);
            }
        }
    }

    template <class T>
    static void backward(const Chain& g, const Norm& norm, const Pool& p, const T* dy, const T* x,
                         const uint8_t* index, T* dx, Scratch& scratch) {
        const int64_t below = g.size / 2, above = g.size - 1 - below, pitch = g.width * BLOCK;
        const int64_t plane = g.height * pitch;
        float *squares = scratch.floats.get(), *parts = squares + plane, *direct = parts + plane;
        float* row = direct + plane;
        Gathered<T> gradient;
        for (int64_t map = 0; map < g.maps; map += BLOCK) {
            const int64_t valid = std::min(BLOCK, g.maps - map);
            gradient.map = map;
            square_rows(g, norm, x + map, valid, row, squares);
            for (int64_t r = 0; r < g.height; r++) {
                for (int64_t w = 0; w < g.width; w++) {
                    if (p.size) gradient.look(p, dy, index, r, w, g.maps);
                    for (int64_t c = 0; c < valid; c += L) {
                        const int64_t at = (r * g.width + w) * g.maps + map + c;
                        Scale scale = norm.power(
                            norm.k + norm.alpha * sum_column(squares + w * BLOCK + c, r, g.height,
                                                             pitch, below, above));
                        F given = p.size ? gradient.template at<false>(c, valid - c)
                                         : load(dy + at, valid - c);
                        F value = rectify(load(x + at, valid - c), norm.lowest);
                        F straight = given * scale.power;
                        store(direct + r * pitch + w * BLOCK + c, straight);
                        store(row + w * BLOCK + c, straight * value * scale.inverse);
                    }
                }
                sum_row(row, parts + r * pitch, g.width, above, below);
            }
            for (int64_t r = 0; r < g.height; r++)
                for (int64_t w = 0; w < g.width; w++)
                    for (int64_t c = 0; c < valid; c += L) {
                        const int64_t at = (r * g.width + w) * g.maps + map + c;
                        F value = rectify(load(x + at, valid - c), norm.lowest);
                        F around = sum_column(parts + w * BLOCK + c, r, g.height, pitch, above,
                                              below);
                        F result = load(direct + r * pitch + w * BLOCK + c) +
                                   norm.twice * value * around;
                        if (g.relu_before) result = zero_where(at_most_zero(value), result);
                        store(dx + at, result, valid - c);
                    }
        }
    }
};

// --- All images ---------------------------------------------------------------------------------

template <class T>
struct Forward {
    const Chain& g;
    const T* x;
    T* y;
    uint8_t* index;

    template <class Image>
    void run() const {
        const Pool p(g);
        const int64_t in = g.height * g.width * g.maps, out = p.rows * p.columns * g.maps;
#pragma omp parallel num_threads((int)g.threads)
        {
            const typename Image::Norm norm(g);
            Scratch scratch = Image::forward_scratch(g, p);
#pragma omp for schedule(static)
            for (int64_t n = 0; n < g.images; n++)
                Image::forward(g, norm, p, x + n * in, y + n * out,
                               index ? index + n * out : nullptr, scratch);
        }
    }
};

template <class T>
struct Backward {
    const Chain& g;
    const T *dy, *x;
    const uint8_t* index;
    T* dx;

    template <class Image>
    void run() const {
        const Pool p(g);
        const int64_t in = g.height * g.width * g.maps, out = p.rows * p.columns * g.maps;
#pragma omp parallel num_threads((int)g.threads)
        {
            const typename Image::Norm norm(g);
            Scratch scratch = Image::backward_scratch(g, p);
#pragma omp for schedule(static)
            for (int64_t n = 0; n < g.images; n++)
                Image::backward(g, norm, p, dy + n * out, x + n * in,
                                index ? index + n * out : nullptr, dx + n * in, scratch);
        }
    }
};

// Sizes, widths and powers other than those of the networks take slower forms.
template <class Run>
void with_norm(const Chain& g, const Run& run) {
    const bool whole = g.maps / g.columns % L == 0, three_quarters = g.beta == 0.75;
    if (g.norm == 0)
        return whole ? run.template run<PerPixel<NoNorm<true>>>()
                     : run.template run<PerPixel<NoNorm<false>>>();
    if (g.norm == 2)
        return three_quarters ? run.template run<PerMap<ThreeQuarters>>()
                              : run.template run<PerMap<AnyPower>>();
    if (!three_quarters) return run.template run<PerPixel<ResponseNorm<AnyWindow, AnyPower, false>>>();
    if (g.size == 5 && whole)
        return run.template run<PerPixel<ResponseNorm<Window<5>, ThreeQuarters, true>>>();
    if (g.size == 9 && whole)
        return run.template run<PerPixel<ResponseNorm<Window<9>, ThreeQuarters, true>>>();
    return run.template run<PerPixel<ResponseNorm<AnyWindow, ThreeQuarters, false>>>();
}

}  // namespace

extern "C" {

int64_t lanes() { return L; }

void forward_float32(const Chain* g, const float* x, float* y, uint8_t* index) {
    with_norm(*g, Forward<float>{*g, x, y, index});
}

void forward_bfloat16(const Chain* g, const bfloat16* x, bfloat16* y, uint8_t* index) {
    with_norm(*g, Forward<bfloat16>{*g, x, y, index});
}

void backward_float32(const Chain* g, const float* dy, const float* x, const uint8_t* index,
                      float* dx) {
    with_norm(*g, Backward<float>{*g, dy, x, index, dx});
}

void backward_bfloat16(const Chain* g, const bfloat16* dy, const bfloat16* x, const uint8_t* index,
                       bfloat16* dx) {
    with_norm(*g, Backward<bfloat16>{*g, dy, x, index, dx});
}

}  // extern "C"
