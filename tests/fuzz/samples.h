// The files that the fuzz driver starts from, whole ones, and what it does to them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace fuzz {

using Bytes = std::vector<unsigned char>;
using Random = std::mt19937_64;

enum File : std::size_t { kBin, kIndex, kMask, kRows, kSlices, kRecords, kRecordIndex, kFiles };

inline constexpr std::uint32_t kSources = 3;  // of an export

// A store of one shard, a plan of it with one slice to a document, and the export of that.
struct Sample {
    Bytes files[kFiles];
    bool with_mask;
    std::size_t positions;  // of a row
};

// A whole store, plan and export of 0 to 8 documents of 1 to 16 tokens, written from docs/formats.md, not by the
// writer.
Sample whole(Random& random);

// Changes one to four places of a sample's store and plan, or of its export: bits, numbers, lengths of files, copied
// pieces; now and then also the number of documents of a store.
void damage(Sample& sample, Random& random, bool of_export);

}  // namespace fuzz
