// Turns rows of a pack plan into the arrays of a batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "slices.h"
#include "store_reader.h"

namespace latxa {

// One sample of `positions` positions, written into the caller's arrays. Documents stand one after the other, each with
// positions from 0; what is left at the end is padding: token `pad`, label `pad`, mask 0, source 0, a document of its
// own.
struct SampleView {
    std::int64_t* tokens;
    std::int64_t* labels;
    float* loss_mask;
    std::int64_t* position_ids;
    std::int64_t* sources;
    std::size_t positions;

    // Fills positions from `at` to the end.
    void pad(std::size_t at, std::int64_t token) const;
};

// A shard, and the number of the source that its documents are of.
struct SourceShard {
    std::shared_ptr<Shard> shard;
    std::uint32_t source;
};

// stores[s][h] is shard h of store s.
using Stores = std::vector<std::vector<SourceShard>>;

// The shard that a slice names. Throws StoreError where there is none, or it has no such tokens.
const SourceShard& shard_of(const Stores& stores, const Slice& slice);

// Fills one sample and appends the exclusive end of each of its documents, plus `base`, to document_ends.
// Throws StoreError for a slice that names tokens no store has, or for more slices than fit.
void gather_sample(const Stores& stores, const Slice* slices, std::size_t count, std::int64_t pad,
                   const SampleView& out, std::int32_t base, std::vector<std::int32_t>& document_ends);

// The two arrays of a plan: row r is slices [offsets[r], offsets[r + 1]).
struct PlanView {
    const std::int64_t* offsets;
    std::size_t rows;
    const Slice* slices;
    std::size_t slice_count;
};

// The slices of a row, one of plan.rows, as [first, last). Throws StoreError for offsets outside the slices.
std::pair<const Slice*, const Slice*> slices_of(const PlanView& plan, std::size_t row);

// Fills the sample that a row, one of plan.rows, is. Throws as gather_sample does, and for offsets outside the slices.
void gather_row(const Stores& stores, const PlanView& plan, std::size_t row, std::int64_t pad, const SampleView& out,
                std::int32_t base, std::vector<std::int32_t>& document_ends);

}  // namespace latxa
