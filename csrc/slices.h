// The slices of a pack plan, made from documents.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "permutation.h"
#include "store_reader.h"

namespace latxa {

// One slice of a document in a pack plan: tokens [start, start + length) of a document, of which the first length - 1
// are inputs and the last length - 1 are labels. The record of slices.bin, little-endian.
struct Slice {
    std::uint16_t store;
    std::uint16_t shard;
    std::uint32_t document;
    std::uint32_t start;
    std::uint32_t length;
};
static_assert(sizeof(Slice) == 16);

// Those of a source's documents whose place in its seeded order lies in [first, last).
struct Part {
    Permutation order;
    std::uint64_t first, last;

    bool has(std::uint64_t document) const {
        if (first == 0 && last == order.size()) return true;
        const std::uint64_t place = order.at(document);
        return first <= place && place < last;
    }
};

struct Counts {
    std::uint64_t documents;  // of two or more tokens
    std::uint64_t slices;     // of these documents
};

// What documents [first, last) of a shard come to when they are cut. O(last - first).
Counts count_slices(const Shard& shard, std::uint64_t first, std::uint64_t last, std::uint32_t seq_length);

// Appends the slices of documents [first, last) of a shard that are in the part: of at most seq_length + 1 tokens,
// neighbours sharing one, so that every token but a document's first is a label once. A document of one token has no
// slice. `number` is that of the next document of two or more tokens in the source, and is moved on. `like` has the
// numbers of the store and the shard. O(last - first + slices).
void cut(const Shard& shard, std::uint64_t first, std::uint64_t last, std::uint32_t seq_length, const Part& part,
         Slice like, std::uint64_t& number, std::vector<Slice>& out);

// Rows of slices cut from a stream of documents: ends[r] is where row r ends in `slices`.
struct Stream {
    std::vector<Slice> slices;
    std::vector<std::int64_t> ends;
    std::uint32_t room;  // positions that are free in the last row, which has no end yet; a full row has one
};

// Lays documents (each a slice of whatever length) end to end in the order's order and cuts the stream after every
// seq_length positions, the first time after `room`. Parts of a document on both sides of a cut share one token.
// O(documents + rows).
Stream concatenate(const Slice* documents, std::size_t n, std::uint32_t seq_length, std::uint32_t room,
                   const Permutation& order);

}  // namespace latxa
