#include "gather.h"

#include <algorithm>

namespace latxa {
namespace {

// mask[i] is that of label i, which is the document's token start + 1 + i.
void fill_mask(const Shard& shard, const Slice& slice, float* mask) {
    const std::size_t labels = slice.length - 1;
    if (!shard.with_mask()) {
        std::fill_n(mask, labels, 1.0F);
        return;
    }
    std::fill_n(mask, labels, 0.0F);
    const std::int64_t first = std::int64_t{slice.start} + 1, last = std::int64_t{slice.start} + slice.length;
    for (std::size_t i = 0; i < shard.span_count(slice.document); ++i) {
        const Span span = shard.span(slice.document, i);
        for (std::int64_t t = std::max<std::int64_t>(span.start, first); t < std::min<std::int64_t>(span.end, last);
             ++t)
            mask[t - first] = 1.0F;
    }
}

void count_up(std::int64_t* out, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<std::int64_t>(i);
}

}  // namespace

const SourceShard& shard_of(const Stores& stores, const Slice& slice) {
    if (slice.store >= stores.size() || slice.shard >= stores[slice.store].size())
        throw StoreError("a slice of the plan names a shard that its stores do not have");
    const SourceShard& found = stores[slice.store][slice.shard];
    const Shard& shard = *found.shard;
    if (slice.document >= shard.documents() || slice.length < 2 ||
        std::uint64_t{slice.start} + slice.length > static_cast<std::uint64_t>(shard.length(slice.document)))
        throw StoreError("a slice of the plan names tokens that " + shard.prefix() + " does not have");
    return found;
}

void SampleView::pad(std::size_t at, std::int64_t token) const {
    const std::size_t left = positions - at;
    std::fill_n(tokens + at, left, token);
    std::fill_n(labels + at, left, token);
    std::fill_n(loss_mask + at, left, 0.0F);
    std::fill_n(sources + at, left, std::int64_t{0});
    count_up(position_ids + at, left);
}

void gather_sample(const Stores& stores, const Slice* slices, std::size_t count, std::int64_t pad,
                   const SampleView& out, std::int32_t base, std::vector<std::int32_t>& document_ends) {
    std::size_t at = 0;
    for (std::size_t s = 0; s < count; ++s) {
        const Slice& slice = slices[s];
        const auto& [shard, source] = shard_of(stores, slice);
        const std::size_t n = slice.length - 1;
        if (n > out.positions - at) throw StoreError("a row of the plan is longer than its sequence length");
        shard->copy_tokens(slice.document, slice.start, n, out.tokens + at);
        shard->copy_tokens(slice.document, std::size_t{slice.start} + 1, n, out.labels + at);
        fill_mask(*shard, slice, out.loss_mask + at);
        std::fill_n(out.sources + at, n, std::int64_t{source});
        count_up(out.position_ids + at, n);
        at += n;
        document_ends.push_back(base + static_cast<std::int32_t>(at));
    }
    if (at == out.positions) return;
    out.pad(at, pad);
    document_ends.push_back(base + static_cast<std::int32_t>(out.positions));
}

std::pair<const Slice*, const Slice*> slices_of(const PlanView& plan, std::size_t row) {
    const std::int64_t first = plan.offsets[row], last = plan.offsets[row + 1];
    if (first < 0 || last < first || static_cast<std::uint64_t>(last) > plan.slice_count)
        throw StoreError("the plan's row offsets are damaged");
    return {plan.slices + first, plan.slices + last};
}

void gather_row(const Stores& stores, const PlanView& plan, std::size_t row, std::int64_t pad, const SampleView& out,
                std::int32_t base, std::vector<std::int32_t>& document_ends) {
    const auto [first, last] = slices_of(plan, row);
    gather_sample(stores, first, static_cast<std::size_t>(last - first), pad, out, base, document_ends);
}

}  // namespace latxa
