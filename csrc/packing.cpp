#include "packing.h"

#include <limits>
#include <stdexcept>
#include <utility>

namespace latxa {
namespace {

constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();

// Indices of the sizes, largest first, equal sizes in their order. ends[capacity - size]: where those of a size end.
struct Decreasing {
    std::vector<std::uint32_t> order;
    std::vector<std::size_t> ends;
};

Decreasing sort_decreasing(const std::uint32_t* sizes, std::size_t n, std::uint32_t capacity) {
    std::vector<std::size_t> place(std::size_t{capacity} + 1, 0);
    for (std::size_t i = 0; i < n; ++i) {
        if (sizes[i] == 0 || sizes[i] > capacity)
            throw std::invalid_argument("a size to pack is 0 or larger than the capacity");
        ++place[capacity - sizes[i] + 1];
    }
    for (std::size_t i = 1; i < place.size(); ++i) place[i] += place[i - 1];
    std::vector<std::uint32_t> order(n);
    for (std::size_t i = 0; i < n; ++i) order[place[capacity - sizes[i]]++] = static_cast<std::uint32_t>(i);
    return {std::move(order), std::move(place)};
}

// The set of rooms (free positions) that at least one row has, with the smallest member >= x in a few bit scans.
class RoomSet {
  public:
    explicit RoomSet(std::uint32_t capacity) : words_(capacity / 64 + 1, 0), summary_(words_.size() / 64 + 1, 0) {}

    void insert(std::uint32_t room) {
        words_[room >> 6] |= bit(room);
        summary_[room >> 12] |= bit(room >> 6);
    }
    void erase(std::uint32_t room) {
        words_[room >> 6] &= ~bit(room);
        if (words_[room >> 6] == 0) summary_[room >> 12] &= ~bit(room >> 6);
    }
    std::uint32_t at_least(std::uint32_t room) const {
        std::size_t w = room >> 6;
        if (const std::uint64_t here = words_[w] & (~std::uint64_t{0} << (room & 63))) return lowest(w, here);
        if (++w >= words_.size()) return kNone;
        std::size_t s = w >> 6;
        std::uint64_t some = summary_[s] & (~std::uint64_t{0} << (w & 63));
        while (some == 0) {
            if (++s >= summary_.size()) return kNone;
            some = summary_[s];
        }
        w = lowest(s, some);
        return lowest(w, words_[w]);
    }

  private:
    static std::uint64_t bit(std::uint32_t i) { return std::uint64_t{1} << (i & 63); }
    static std::uint32_t lowest(std::size_t word, std::uint64_t bits) {
        return static_cast<std::uint32_t>((word << 6) + static_cast<std::size_t>(__builtin_ctzll(bits)));
    }
    std::vector<std::uint64_t> words_, summary_;
};

}  // namespace

Packing best_fit_decreasing(const std::uint32_t* sizes, std::size_t n, std::uint32_t capacity) {
    if (n >= kNone) throw std::invalid_argument("more than 2^32 - 2 items to pack at once");
    auto [order, ends] = sort_decreasing(sizes, n, capacity);
    std::vector<std::uint32_t> row_of(n);
    // Rows with the same room form a linked list: first_row[room], then next_row[row].
    std::vector<std::uint32_t> first_row(std::size_t{capacity} + 1, kNone), next_row;
    RoomSet rooms(capacity);
    // By size and not by item: sizes[order[i]] would be read from all over the memory.
    std::size_t i = 0;
    for (std::uint32_t size = capacity; size > 0; --size) {
        for (; i < ends[capacity - size]; ++i) {
            std::uint32_t room = rooms.at_least(size);
            std::uint32_t row;
            if (room == kNone) {
                row = static_cast<std::uint32_t>(next_row.size());
                next_row.push_back(kNone);
                room = capacity;
            } else {
                row = first_row[room];
                first_row[room] = next_row[row];
                if (first_row[room] == kNone) rooms.erase(room);
            }
            row_of[order[i]] = row;
            const std::uint32_t left = room - size;
            if (left > 0) {
                next_row[row] = first_row[left];
                first_row[left] = row;
                rooms.insert(left);
            }
        }
    }
    Packing packing;
    packing.offsets.assign(next_row.size() + 1, 0);
    for (const std::uint32_t row : row_of) ++packing.offsets[row + 1];
    for (std::size_t r = 1; r < packing.offsets.size(); ++r) packing.offsets[r] += packing.offsets[r - 1];
    std::vector<std::int64_t> cursor(packing.offsets.begin(), packing.offsets.end() - 1);
    packing.items = std::move(order);  // its memory: there may be millions of items
    for (std::size_t item = 0; item < n; ++item)
        packing.items[static_cast<std::size_t>(cursor[row_of[item]]++)] = static_cast<std::uint32_t>(item);
    return packing;
}

}  // namespace latxa
