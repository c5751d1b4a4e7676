// A keyed bijection of [0, n): the order of samples without a shuffle array.
#pragma once

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
