// Best-fit decreasing bin packing over integer sizes.
#pragma once

#include <cstdint>
#include <vector>

namespace latxa {

// Rows of items: row r holds items[offsets[r] .. offsets[r + 1]), indices into the sizes that were given.
struct Packing {
    std::vector<std::int64_t> offsets;
    std::vector<std::uint32_t> items;
};

// Packs sizes (each in 1..capacity) into rows of at most capacity. Items go from the largest to the smallest, equal
// ones in their order, each into the row with the least room that still holds it (Johnson 1974; at most 11/9 of the
// optimum + 1). O(n + capacity): a counting sort, and a two-level bitmap of the rooms that rows have left, so that the
// best row is found with two or three bit scans. Throws std::invalid_argument for a size out of range.
Packing best_fit_decreasing(const std::uint32_t* sizes, std::size_t n, std::uint32_t capacity);

}  // namespace latxa
