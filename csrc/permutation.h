// A keyed bijection of [0, n): the order of samples without a shuffle array.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace latxa {

// A balanced Feistel network of four rounds over the smallest even number of bits that holds n - 1, with cycle walking
// for values outside [0, n) (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). at() costs fewer than
// four network passes on average, since the network's domain is less than four times n. Not for secrets.
class Permutation {
  public:
    Permutation(std::uint64_t n, std::uint64_t key) : n_(n) {
        while (half_bits_ < 32 && (std::uint64_t{1} << (2 * half_bits_)) < n) ++half_bits_;
        half_mask_ = (std::uint64_t{1} << half_bits_) - 1;
        for (std::uint64_t round = 0; round < 4; ++round) round_keys_[round] = mix(key + round);
    }
    std::uint64_t size() const { return n_; }

    // The image of i, which lies in [0, n).
    std::uint64_t at(std::uint64_t i) const {
        do i = network(i);
        while (i >= n_);
        return i;
    }

    // The images of first ... first + n - 1. Block by block, all that still walk take a step together: the processor
    // overlaps their networks, where one value's walk would wait for its branch. Half of at()'s time for each.
    void images(std::uint64_t first, std::size_t n, std::int64_t* out) const {
        constexpr std::size_t kBlock = 256;
        std::uint64_t value[kBlock];
        std::size_t place[kBlock];
        for (std::size_t begin = 0; begin < n; begin += kBlock) {
            std::size_t walking = std::min(kBlock, n - begin);
            for (std::size_t i = 0; i < walking; ++i) {
                value[i] = first + begin + i;
                place[i] = begin + i;
            }
            while (walking > 0) {
                for (std::size_t i = 0; i < walking; ++i) value[i] = network(value[i]);
                std::size_t kept = 0;
                for (std::size_t i = 0; i < walking; ++i) {
                    out[place[i]] = static_cast<std::int64_t>(value[i]);
                    value[kept] = value[i];
                    place[kept] = place[i];
                    kept += value[i] >= n_ ? 1 : 0;
                }
                walking = kept;
            }
        }
    }

  private:
    // splitmix64's finalizer (Steele, Lea and Flood 2014).
    static std::uint64_t mix(std::uint64_t x) {
        x += 0x9e3779b97f4a7c15U;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
        return x ^ (x >> 31);
    }
    std::uint64_t network(std::uint64_t i) const {
        std::uint64_t left = i >> half_bits_, right = i & half_mask_;
        for (const std::uint64_t round_key : round_keys_) {
            const std::uint64_t next = left ^ (mix(round_key ^ right) & half_mask_);
            left = right;
            right = next;
        }
        return (left << half_bits_) | right;
    }

    std::uint64_t n_;
    std::uint64_t round_keys_[4];
    unsigned half_bits_ = 1;
    std::uint64_t half_mask_ = 0;
};

}  // namespace latxa
