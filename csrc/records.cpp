#include "records.h"

#include <algorithm>
#include <cstring>

namespace latxa {
namespace {

template <typename T>
void append(std::vector<unsigned char>& out, const T* values, std::size_t n) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values);
    out.insert(out.end(), bytes, bytes + n * sizeof(T));
}

template <typename T>
void append_tokens(const Shard& shard, const Slice& slice, std::vector<unsigned char>& out) {
    const std::size_t at = out.size();
    out.resize(at + slice.length * sizeof(T));
    shard.copy_tokens(slice.document, slice.start, slice.length, reinterpret_cast<T*>(out.data() + at));
}

// Calls visit(first, last) for each run of labels of a slice that are trained, counted from the slice's first label.
template <typename Visit>
void for_trained(const Shard& shard, const Slice& slice, Visit visit) {
    if (!shard.with_mask()) return visit(0, slice.length - 1);
    const std::int64_t first = std::int64_t{slice.start} + 1, last = std::int64_t{slice.start} + slice.length;
    for (std::size_t i = 0; i < shard.span_count(slice.document); ++i) {
        const Span span = shard.span(slice.document, i);
        const std::int64_t begin = std::max<std::int64_t>(span.start, first),
                           end = std::min<std::int64_t>(span.end, last);
        if (begin < end) visit(static_cast<std::uint32_t>(begin - first), static_cast<std::uint32_t>(end - first));
    }
}

void check_room(const Slice& slice, std::size_t at, std::size_t positions) {
    if (slice.length - 1 > positions - at) throw StoreError("a row of the plan is longer than its sequence length");
}

}  // namespace

TokenType record_type(const Stores& stores) {
    for (const auto& store : stores)
        for (const SourceShard& each : store)
            if (each.shard->type() != TokenType::kUint16) return TokenType::kInt32;
    return TokenType::kUint16;
}

std::size_t append_record(const Stores& stores, const Slice* slices, std::size_t count, std::size_t positions,
                          TokenType type, std::vector<unsigned char>& out) {
    std::vector<RecordDocument> documents;
    std::vector<Span> spans;
    std::size_t at = 0, trained = 0;
    for (std::size_t s = 0; s < count; ++s) {
        const auto& [shard, source] = shard_of(stores, slices[s]);
        check_room(slices[s], at, positions);
        documents.push_back({slices[s].length, source});
        for_trained(*shard, slices[s], [&](std::uint32_t first, std::uint32_t last) {
            const auto begin = static_cast<std::int32_t>(at + first), end = static_cast<std::int32_t>(at + last);
            trained += last - first;
            if (!spans.empty() && spans.back().end == begin)
                spans.back().end = end;
            else
                spans.push_back({begin, end});
        });
        at += slices[s].length - 1;
    }
    const RecordHead head{static_cast<std::uint32_t>(count), static_cast<std::uint32_t>(spans.size())};
    append(out, &head, 1);
    append(out, documents.data(), documents.size());
    append(out, spans.data(), spans.size());
    for (std::size_t s = 0; s < count; ++s) {
        const Shard& shard = *shard_of(stores, slices[s]).shard;
        type == TokenType::kUint16 ? append_tokens<std::uint16_t>(shard, slices[s], out)
                                   : append_tokens<std::int32_t>(shard, slices[s], out);
    }
    out.resize((out.size() + kRecordAlignment - 1) / kRecordAlignment * kRecordAlignment);
    return trained;
}

void read_record(const unsigned char* data, std::size_t size, TokenType type, std::uint32_t sources, std::int64_t pad,
                 const SampleView& out, std::int32_t base, std::vector<std::int32_t>& document_ends) {
    const auto damaged = [](const char* what) { throw StoreError(what); };
    RecordHead head{};
    if (size < sizeof head) damaged("is cut short");
    std::memcpy(&head, data, sizeof head);
    if (head.documents > out.positions || head.spans > out.positions ||
        size < sizeof head + 8 * (std::size_t{head.documents} + head.spans))
        damaged("has more documents or spans than its sequence length or its bytes allow");
    const unsigned char* documents = data + sizeof head;
    const unsigned char* spans = documents + sizeof(RecordDocument) * head.documents;
    const unsigned char* tokens = spans + sizeof(Span) * head.spans;
    const auto left = static_cast<std::size_t>(data + size - tokens);
    const std::size_t width = token_bytes(type);
    std::size_t at = 0, token = 0;
    for (std::size_t d = 0; d < head.documents; ++d) {
        RecordDocument document{};
        std::memcpy(&document, documents + d * sizeof document, sizeof document);
        if (document.tokens < 2 || document.tokens - 1 > out.positions - at || document.source >= sources)
            damaged("has a document of another length or source than there can be");
        const std::size_t n = document.tokens - 1;
        if ((token + n + 1) * width > left) damaged("has fewer tokens than its documents");
        widen_tokens(type, tokens + token * width, n, out.tokens + at);
        widen_tokens(type, tokens + (token + 1) * width, n, out.labels + at);
        std::fill_n(out.sources + at, n, std::int64_t{document.source});
        for (std::size_t i = 0; i < n; ++i) out.position_ids[at + i] = static_cast<std::int64_t>(i);
        at += n;
        token += n + 1;
        document_ends.push_back(base + static_cast<std::int32_t>(at));
    }
    if (left - token * width >= kRecordAlignment) damaged("has more tokens than its documents");
    std::fill_n(out.loss_mask, at, 0.0F);
    std::int32_t end = 0;
    for (std::size_t s = 0; s < head.spans; ++s) {
        Span span{};
        std::memcpy(&span, spans + s * sizeof span, sizeof span);
        if (span.start < end || span.end <= span.start || static_cast<std::size_t>(span.end) > at)
            damaged("has trained positions outside its documents");
        std::fill(out.loss_mask + span.start, out.loss_mask + span.end, 1.0F);
        end = span.end;
    }
    if (at == out.positions) return;
    out.pad(at, pad);
    document_ends.push_back(base + static_cast<std::int32_t>(out.positions));
}

void append_flat(const Stores& stores, const Slice* slices, std::size_t count, std::size_t positions, FlatRows& out) {
    std::size_t at = 0;
    for (std::size_t s = 0; s < count; ++s) {
        const Slice& slice = slices[s];
        const Shard& shard = *shard_of(stores, slice).shard;
        check_room(slice, at, positions);
        at += slice.length - 1;
        const std::size_t first = out.tokens.size();
        out.tokens.resize(first + slice.length);
        shard.copy_tokens(slice.document, slice.start, slice.length, out.tokens.data() + first);
        out.loss_mask.resize(first + slice.length);
        for_trained(shard, slice, [&](std::uint32_t begin, std::uint32_t end) {
            std::memset(out.loss_mask.data() + first + begin, 1, end - begin);
        });
        out.lengths.push_back(static_cast<std::int32_t>(slice.length));
    }
}

}  // namespace latxa
