// Packed records: samples of a pack plan as they are exported, each self-contained. See docs/formats.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gather.h"

namespace latxa {

// The head of a record: then `documents` RecordDocuments, `spans` Spans of trained positions, the tokens of the
// documents, and zero bytes up to a multiple of kRecordAlignment.
struct RecordHead {
    std::uint32_t documents;
    std::uint32_t spans;
};
static_assert(sizeof(RecordHead) == 8);

// A document, or a piece of one: so many tokens (one more than positions), of a source.
struct RecordDocument {
    std::uint32_t tokens;
    std::uint32_t source;
};
static_assert(sizeof(RecordDocument) == 8);

inline constexpr std::size_t kRecordAlignment = 8;

// The most bytes that a record of so many positions has.
inline std::size_t longest_record(std::size_t positions) {
    return sizeof(RecordHead) + positions * (sizeof(RecordDocument) + sizeof(Span) + 8) + kRecordAlignment;
}

// uint16 where all shards have it, else int32.
TokenType record_type(const Stores& stores);

// Appends the record of a row's slices, with tokens of record_type; the number of its trained positions. Throws
// StoreError as gather_sample does.
std::size_t append_record(const Stores& stores, const Slice* slices, std::size_t count, std::size_t positions,
                          TokenType type, std::vector<unsigned char>& out);

// Fills a sample from the `size` bytes of its record, and appends the ends of its documents as gather_sample does.
// Throws StoreError for bytes that are no record of so many positions, or name a source that is not below `sources`.
void read_record(const unsigned char* data, std::size_t size, TokenType type, std::uint32_t sources, std::int64_t pad,
                 const SampleView& out, std::int32_t base, std::vector<std::int32_t>& document_ends);

// Rows as Megatron-Bridge has them: the tokens of all documents end to end, and of each whether the token after it is
// trained; of a document's last token it is not. lengths[i] are the tokens of document i.
struct FlatRows {
    std::vector<std::int32_t> tokens;
    std::vector<std::int8_t> loss_mask;
    std::vector<std::int32_t> lengths;
};

// Appends a row. Throws StoreError as gather_sample does.
void append_flat(const Stores& stores, const Slice* slices, std::size_t count, std::size_t positions, FlatRows& out);

}  // namespace latxa
