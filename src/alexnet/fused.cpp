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

// The first `count` lanes: at the end of a column whose maps are no multiple of L.
template <class T>
inline F load(const T* from, int64_t count) {
    if (__builtin_expect(count >= L, 1)) return load(from);
    T lanes[L] = {};
    std::memcpy(lanes, from, count * sizeof(T));
    return load(lanes);
}

template <class T>
inline void store(T* to, F value, int64_t count) {
    if (__builtin_expect(count >= L, 1)) return store(to, value);
    T lanes[L];
    store(lanes, value);
    std::memcpy(to, lanes, count * sizeof(T));
}

inline B load_bytes(const uint8_t* from, int64_t count) {
    if (__builtin_expect(count >= L, 1)) return read<B>(from);
    uint8_t lanes[L] = {};
    std::memcpy(lanes, from, count);
    return read<B>(lanes);
}

inline void store_bytes(uint8_t* to, B value, int64_t count) {
    if (__builtin_expect(count >= L, 1)) return write(to, value);
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
    constexpr auto lanes = std::make_index_sequence<L>{};
    if constexpr (SHIFT == 0) return here;
    else if constexpr (SHIFT < 0) return cut<L + SHIFT>(before, here, lanes);
    else return cut<SHIFT>(here, after, lanes);
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

template <class Window_, class Power>
struct ResponseNorm {
    Window_ window;
    Power power;
    F k, alpha, twice, lowest;

    explicit ResponseNorm(const Chain& c)
        : window(c.size), power(c.beta), k(all((float)c.k)), alpha(all((float)c.alpha)),
          twice(all((float)(-2.0 * c.alpha * c.beta))), lowest(all(c.relu_before ? 0.0f : -INF)) {}

    template <class T, class O>
    inline void forward(const T* x, O* y, int64_t maps) const {
        F before = {}, value = rectify(load(x, maps), lowest), here = value * value;
        for (int64_t c = 0; c < maps; c += L) {
            F next = {}, after = {};
            if (c + L < maps) {
                next = rectify(load(x + c + L, maps - c - L), lowest);
                after = next * next;
            }
            F s = k + alpha * window(before, here, after);
            store(y + c, value * power(s).power, maps - c);
            before = here, here = after, value = next;
        }
    }

    // dx = dy s^-beta - 2 alpha beta x w, w the turned window sum of dy x s^-beta / s.
    template <class T, class Gradient>
    inline void backward(const T* x, const Gradient& gradient, T* dx, int64_t maps,
                         bool relu) const {
        F before = {}, value = rectify(load(x, maps), lowest), here = value * value;
        F part_before = {}, part = {}, direct = {}, last = {};
        for (int64_t c = 0; c < maps + L; c += L) {
            F part_after = {}, direct_after = {};
            F now = value;
            if (c < maps) {
                F next = {}, after = {};
                if (c + L < maps) {
                    next = rectify(load(x + c + L, maps - c - L), lowest);
                    after = next * next;
                }
                Scale scale = power(k + alpha * window(before, here, after));
                direct_after = gradient(c, maps - c) * scale.power;
                part_after = direct_after * value * scale.inverse;
                before = here, here = after, value = next;
            }
            if (c > 0) {
                F result = direct + twice * last * window.turned(part_before, part, part_after);
                if (relu) result = zero_where(at_most_zero(last), result);
                store(dx + c - L, result, maps - (c - L));
            }
            part_before = part, part = part_after, direct = direct_after, last = now;
        }
    }
};

struct NoNorm {
    F lowest;
    explicit NoNorm(const Chain& c) : lowest(all(c.relu_before ? 0.0f : -INF)) {}

    template <class T, class O>
    inline void forward(const T* x, O* y, int64_t maps) const {
        for (int64_t c = 0; c < maps; c += L)
            store(y + c, rectify(load(x + c, maps - c), lowest), maps - c);
    }

    template <class T, class Gradient>
    inline void backward(const T* x, const Gradient& gradient, T* dx, int64_t maps,
                         bool relu) const {
        for (int64_t c = 0; c < maps; c += L) {
            F result = gradient(c, maps - c);
            if (relu) result = zero_where(at_most_zero(load(x + c, maps - c)), result);
            store(dx + c, result, maps - c);
        }
    }
};

// --- Pools --------------------------------------------------------------------------------------

struct Pool {
    int64_t size, stride, height, width, maps, rows, columns;

    explicit Pool(const Chain& c)
        : size(c.pool_size), stride(c.pool_stride), height(c.height), width(c.width), maps(c.maps),
          rows(covered(height)), columns(covered(width)) {}

    int64_t covered(int64_t pixels) const { return (pixels - size + stride - 1) / stride + 1; }
    // Windows first ... last are those that pixel `at` is in.
    int64_t first(int64_t at) const { return at < size ? 0 : (at - size) / stride + 1; }
    int64_t last(int64_t at, int64_t windows) const { return std::min(at / stride, windows - 1); }
};

// The largest units of a row's windows so far, with their positions in the window.
struct Best {
    float* value;
    uint8_t* position;
};

// Largest of each window of one row of pixels; the first of equal ones.
inline void pool_row(const Pool& p, const float* row, Best best) {
    for (int64_t j = 0; j < p.columns; j++) {
        int64_t left = j * p.stride, right = std::min(left + p.size, p.width);
        for (int64_t c = 0; c < p.maps; c += L) {
            int64_t count = p.maps - c;
            F value = load(row + left * p.maps + c, count);
            B position = {};
            for (int64_t w = left + 1; w < right; w++) {
                F other = load(row + w * p.maps + c, count);
                Mask better = beats(other, value);
                value = choose(better, other, value);
                position = choose(better, B{} + (uint8_t)(w - left), position);
            }
            store(best.value + j * p.maps + c, value, count);
            store_bytes(best.position + j * p.maps + c, position, count);
        }
    }
}

// Put a row's largest units into those of the windows above it; the first row of a window sets them.
inline void merge(const Pool& p, Best best, Best row, int64_t down) {
    const B offset = B{} + (uint8_t)(down * p.size);
    const int64_t count = p.columns * p.maps;
    for (int64_t c = 0; c < count; c += L) {
        F value = load(row.value + c, count - c);
        B position = load_bytes(row.position + c, count - c) + offset;
        if (down > 0) {
            F above = load(best.value + c, count - c);
            Mask better = beats(value, above);
            value = choose(better, value, above);
            position = choose(better, position, load_bytes(best.position + c, count - c));
        }
        store(best.value + c, value, count - c);
        store_bytes(best.position + c, position, count - c);
    }
}

template <class T>
inline void emit(const Pool& p, Best best, T* y, uint8_t* index, bool relu) {
    const int64_t count = p.columns * p.maps;
    for (int64_t c = 0; c < count; c += L) {
        F value = load(best.value + c, count - c);
        B position = load_bytes(best.position + c, count - c);
        if (relu) {
            Mask cut = at_most_zero(value);
            value = zero_where(cut, value);
            position = choose(cut, B{} + NOWHERE, position);
        }
        store(y + c, value, count - c);
        if (index) store_bytes(index + c, position, count - c);
    }
}

// --- One image ----------------------------------------------------------------------------------

struct Scratch {
    std::unique_ptr<float[]> floats;
    std::unique_ptr<uint8_t[]> bytes;
    Scratch(int64_t num_floats, int64_t num_bytes)
        : floats(new float[num_floats]), bytes(new uint8_t[num_bytes]) {}
};

template <class T, class Norm>
void forward_pooled(const Chain& g, const Norm& norm, const T* x, T* y, uint8_t* index,
                    Scratch& scratch) {
    const Pool p(g);
    const int64_t per_column = g.maps / g.columns, out = p.columns * g.maps;
    const int64_t depth = (p.size - 1) / p.stride + 1;  // windows that share a row
    float* row = scratch.floats.get();
    Best here = {row + g.width * g.maps, scratch.bytes.get()};
    for (int64_t r = 0; r < g.height; r++) {
        const T* from = x + r * g.width * g.maps;
        for (int64_t i = 0; i < g.width * g.columns; i++)
            norm.forward(from + i * per_column, row + i * per_column, per_column);
        pool_row(p, row, here);
        for (int64_t i = p.first(r); i <= p.last(r, p.rows); i++) {
            int64_t slot = 1 + i % depth;
            Best best = {here.value + slot * out, here.position + slot * out};
            merge(p, best, here, r - i * p.stride);
            if (r == std::min(i * p.stride + p.size, g.height) - 1)
                emit(p, best, y + i * out, index ? index + i * out : nullptr, g.relu_after);
        }
    }
}

template <class T, class Norm>
void forward_image(const Chain& g, const Norm& norm, const T* x, T* y, uint8_t* index,
                   Scratch& scratch) {
    if (g.pool_size) return forward_pooled(g, norm, x, y, index, scratch);
    const int64_t per_column = g.maps / g.columns;
    for (int64_t i = 0; i < g.height * g.width * g.columns; i++)
        norm.forward(x + i * per_column, y + i * per_column, per_column);
}

// A unit's gradient: the sum of those of the windows in which it is the largest.
template <class T>
struct Gathered {
    struct At {
        const T* gradient;
        const uint8_t* index;
        uint8_t position;
    };
    static constexpr int MOST = 16;
    At at[MOST];
    int count;
    int64_t map;  // first of the column

    inline F operator()(int64_t c, int64_t maps) const {
        F sum = {};
        for (int i = 0; i < count; i++) {
            Mask mine = equal(load_bytes(at[i].index + map + c, maps), at[i].position);
            sum = add_where(mine, sum, load(at[i].gradient + map + c, maps));
        }
        return sum;
    }
};

template <class T>
struct Plain {
    const T* gradient;
    inline F operator()(int64_t c, int64_t maps) const { return load(gradient + c, maps); }
};

template <class T, class Norm>
void backward_pooled(const Chain& g, const Norm& norm, const T* dy, const T* x,
                     const uint8_t* index, T* dx) {
    const Pool p(g);
    const int64_t per_column = g.maps / g.columns;
    Gathered<T> gradient;
    for (int64_t r = 0; r < g.height; r++)
        for (int64_t w = 0; w < g.width; w++) {
            gradient.count = 0;
            for (int64_t i = p.first(r); i <= p.last(r, p.rows); i++)
                for (int64_t j = p.first(w); j <= p.last(w, p.columns); j++) {
                    const int64_t window = (i * p.columns + j) * g.maps;
                    const int64_t position = (r - i * p.stride) * p.size + w - j * p.stride;
                    gradient.at[gradient.count++] = {dy + window, index + window,
                                                     (uint8_t)position};
                }
            const int64_t pixel = (r * g.width + w) * g.maps;
            for (gradient.map = 0; gradient.map < g.maps; gradient.map += per_column)
                norm.backward(x + pixel + gradient.map, gradient, dx + pixel + gradient.map,
                              per_column, g.relu_before);
        }
}

template <class T, class Norm>
void backward_image(const Chain& g, const Norm& norm, const T* dy, const T* x,
                    const uint8_t* index, T* dx) {
    if (g.pool_size) return backward_pooled(g, norm, dy, x, index, dx);
    const int64_t per_column = g.maps / g.columns;
    for (int64_t i = 0; i < g.height * g.width * g.columns; i++)
        norm.backward(x + i * per_column, Plain<T>{dy + i * per_column}, dx + i * per_column,
                      per_column, g.relu_before);
}

// --- All images ---------------------------------------------------------------------------------

template <class T, class Norm>
void forward_all(const Chain& g, const T* x, T* y, uint8_t* index) {
    const int64_t in = g.height * g.width * g.maps;
    int64_t out = in, num_floats = 0, num_bytes = 0;
    if (g.pool_size) {
        const Pool p(g);
        out = p.rows * p.columns * g.maps;
        const int64_t kept = 2 + (p.size - 1) / p.stride;
        num_bytes = kept * p.columns * g.maps;
        num_floats = g.width * g.maps + num_bytes;
    }
#pragma omp parallel num_threads((int)g.threads)
    {
        const Norm norm(g);
        Scratch scratch(num_floats, num_bytes);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < g.images; n++)
            forward_image(g, norm, x + n * in, y + n * out, index ? index + n * out : nullptr,
                          scratch);
    }
}

template <class T, class Norm>
void backward_all(const Chain& g, const T* dy, const T* x, const uint8_t* index, T* dx) {
    const int64_t in = g.height * g.width * g.maps;
    int64_t out = in;
    if (g.pool_size) {
        const Pool p(g);
        out = p.rows * p.columns * g.maps;
    }
#pragma omp parallel num_threads((int)g.threads)
    {
        const Norm norm(g);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < g.images; n++)
            backward_image(g, norm, dy + n * out, x + n * in, index ? index + n * out : nullptr,
                           dx + n * in);
    }
}

// Calls `run` with the norm that a chain has; sizes and powers other than the networks' are slower.
template <class Run>
void with_norm(const Chain& g, const Run& run) {
    if (g.norm == 0) return run.template operator()<NoNorm>();
    if (g.beta != 0.75) return run.template operator()<ResponseNorm<AnyWindow, AnyPower>>();
    if (g.size == 5) return run.template operator()<ResponseNorm<Window<5>, ThreeQuarters>>();
    if (g.size == 9 && L >= 8)
        return run.template operator()<ResponseNorm<Window<L >= 8 ? 9 : 5>, ThreeQuarters>>();
    return run.template operator()<ResponseNorm<AnyWindow, ThreeQuarters>>();
}

template <class T>
struct Forward {
    const Chain& g;
    const T* x;
    T* y;
    uint8_t* index;
    template <class Norm>
    void operator()() const {
        forward_all<T, Norm>(g, x, y, index);
    }
};

template <class T>
struct Backward {
    const Chain& g;
    const T *dy, *x;
    const uint8_t* index;
    T* dx;
    template <class Norm>
    void operator()() const {
        backward_all<T, Norm>(g, dy, x, index, dx);
    }
};

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
