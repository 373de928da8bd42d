// The Plackett-Luce likelihood of every row and its gradient, on CPU, through XLA's FFI.
//
// What listwise.py computes, with a radix sort of exact float32 keys and float64 sums: the
// exponentials of a list span e^200 at scale 100, which float64 holds. Built by native.py.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

constexpr int kDigitBits = 11;  // three digits make 32 bits
constexpr int kDigits = 3;
constexpr uint32_t kDigit = (1u << kDigitBits) - 1;
constexpr size_t kRowsAtOnce = 8;

struct Item {
  uint32_t key;
  uint32_t index;
};

struct Scratch {
  explicit Scratch(size_t n) : items(n), sorted(n), p(n), e(n), mass(n) {}
  std::vector<Item> items, sorted;
  std::vector<uint32_t> start[kDigits];
  std::vector<double> p, e, mass;
};

// Bits that fall as the number rises; -0 and 0, which fast-math takes for one, are a tie.
uint32_t FallingKey(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (bits << 1 == 0) bits = 0;
  return bits >> 31 ? bits : bits ^ 0x7fffffffu;
}

// Leaves `items` in descending order of `reference`, ties by index.
void Sort(const float* reference, size_t n, Scratch& s) {
  for (auto& start : s.start) start.assign(kDigit + 1, 0);
  for (size_t i = 0; i < n; ++i) {
    const uint32_t key = FallingKey(reference[i]);
    s.items[i] = {key, static_cast<uint32_t>(i)};
    for (int d = 0; d < kDigits; ++d) ++s.start[d][key >> d * kDigitBits & kDigit];
  }
  for (int d = 0; d < kDigits; ++d) {
    auto& start = s.start[d];
    std::exclusive_scan(start.begin(), start.end(), start.begin(), 0u);
    for (size_t i = 0; i < n; ++i) {
      const Item item = s.items[i];
      s.sorted[start[item.key >> d * kDigitBits & kDigit]++] = item;
    }
    std::swap(s.items, s.sorted);
  }
}

// One list, whose first `count` items in descending order of `reference` exist.
void Row(const float* scores, const float* reference, const float* mu, size_t count,
         size_t n, float* nll, float* gradient, Scratch& s) {
  Sort(reference, n, s);
  double top = -std::numeric_limits<double>::max();
  for (size_t k = 0; k < count; ++k) {
    s.p[k] = scores[s.items[k].index];
    top = std::max(top, s.p[k]);
  }
  for (size_t k = 0; k < count; ++k) s.p[k] -= top;
  for (size_t k = 0; k < count; ++k) s.e[k] = std::exp(s.p[k]);
  double sum = 0.0;
  for (size_t k = count; k-- > 0;) s.mass[k] = sum += s.e[k];
  double total = 0.0;
  for (size_t k = 0; k < count; ++k) total += mu[k] * (std::log(s.mass[k]) - s.p[k]);
  *nll = static_cast<float>(total);
  for (size_t k = 0; k < count; ++k) s.mass[k] = mu[k] / s.mass[k];
  double weight = 0.0;
  for (size_t k = 0; k < count; ++k) {
    weight += s.mass[k];
    gradient[s.items[k].index] = static_cast<float>(s.e[k] * weight - mu[k]);
  }
  for (size_t k = count; k < n; ++k) gradient[s.items[k].index] = 0.0f;
}

// Calls work(0) .. work(n - 1) on the pool's threads and on this one, which waits only for
// calls that have begun: a full pool cannot make it wait for ever.
template <typename Work>
void ParallelFor(ffi::ThreadPool& pool, size_t n, Work work) {
  struct Progress {
    std::atomic<size_t> next{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  auto drain = [progress, n, work] {
    for (size_t i; (i = progress->next++) < n; ++progress->done) work(i);
  };
  const size_t threads = std::min<size_t>(pool.num_threads(), n);
  for (size_t i = 1; i < threads; ++i) pool.Schedule([drain] { drain(); });
  drain();
  while (progress->done < n) std::this_thread::yield();
}

ffi::Error Listwise(ffi::ThreadPool pool, ffi::BufferR2<ffi::F32> scores,
                    ffi::BufferR2<ffi::F32> reference, ffi::BufferR1<ffi::F32> mu,
                    ffi::BufferR1<ffi::S32> count,
                    ffi::Result<ffi::BufferR1<ffi::F32>> nll,
                    ffi::Result<ffi::BufferR2<ffi::F32>> gradient) {
  const size_t rows = scores.dimensions()[0], n = scores.dimensions()[1];
  const float *p = scores.typed_data(), *q = reference.typed_data();
  const float* m = mu.typed_data();
  const int32_t* c = count.typed_data();
  float *loss = nll->typed_data(), *g = gradient->typed_data();
  ParallelFor(pool, (rows + kRowsAtOnce - 1) / kRowsAtOnce, [=](size_t block) {
    Scratch scratch(n);
    const size_t end = std::min(rows, (block + 1) * kRowsAtOnce);
    for (size_t i = block * kRowsAtOnce; i < end; ++i) {
      Row(p + i * n, q + i * n, m, c[i], n, loss + i, g + i * n, scratch);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(RankclipListwise, Listwise,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::F32>>()
                                  .Arg<ffi::BufferR1<ffi::S32>>()
                                  .Ret<ffi::BufferR1<ffi::F32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>());
