// The files that the fuzz driver starts from, whole ones, and what it does to them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace fuzz {

using Bytes = std::vector<unsigned char>;
using Random = std::mt19937_64;

enum File : std::size_t { kBin, kIndex, kMask, kRows, kSlices, kFiles };

// A store of one shard, and a plan of it with one slice to a document.
struct Sample {
    Bytes files[kFiles];
    bool with_mask;
    std::size_t positions;  // of a row
};

// A whole store and plan of 0 to 8 documents of 1 to 16 tokens, written from docs/formats.md, not by the writer.
Sample whole(Random& random);

// Changes one to four places of a sample's files: bits, numbers, lengths of files, copied pieces; now and
// then also the number of documents.
void damage(Sample& sample, Random& random);

}  // namespace fuzz
