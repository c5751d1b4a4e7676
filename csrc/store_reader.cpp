#include "store_reader.h"

#include <utility>

namespace latxa {

Shard::Shard(const std::string& prefix, bool with_mask)
    : Shard(prefix, std::make_unique<MappedFile>(prefix + ".bin"), std::make_unique<MappedFile>(prefix + ".idx"),
            with_mask ? std::make_unique<MappedFile>(prefix + ".mask") : nullptr) {}

Shard::Shard(std::string prefix, std::unique_ptr<MappedFile> bin, std::unique_ptr<MappedFile> index,
             std::unique_ptr<MappedFile> mask)
    : prefix_(std::move(prefix)), bin_(std::move(bin)), index_(std::move(index)), mask_(std::move(mask)) {
    const MappedFile& idx = *index_;
    if (idx.size() < kIndexHeader || std::memcmp(idx.data(), kIndexMagic, sizeof kIndexMagic) != 0)
        throw StoreError(idx.path() + ": is not a Megatron index file");
    if (idx.read<std::uint64_t>(9) != kIndexVersion)
        throw StoreError(idx.path() + ": has an index version that this reader does not know");
    const auto type = idx.read<std::uint8_t>(17);
    if (type != static_cast<std::uint8_t>(TokenType::kInt32) && type != static_cast<std::uint8_t>(TokenType::kUint16))
        throw StoreError(idx.path() + ": tokens are neither uint16 nor int32");
    type_ = static_cast<TokenType>(type);
    documents_ = idx.read<std::uint64_t>(18);
    check_index();
    if (mask_ != nullptr) check_mask();
}

void Shard::check_index() const {
    const MappedFile& idx = *index_;
    const auto stops = idx.read<std::uint64_t>(26);
    // The counts are bounded by the file's size before they are multiplied: no overflow.
    if (documents_ > idx.size() / 12 || stops != documents_ + 1 ||
        idx.size() < kIndexHeader + 12 * documents_ + 8 * stops)
        throw StoreError(idx.path() + ": is cut short or holds several sequences to a document");
    std::int64_t expected = 0;
    for (std::uint64_t i = 0; i < documents_; ++i) {
        if (length(i) <= 0 || pointer(i) != expected)
            throw StoreError(idx.path() + ": document " + std::to_string(i) + " has a wrong length or place");
        expected += static_cast<std::int64_t>(length(i)) * static_cast<std::int64_t>(token_bytes(type_));
    }
    if (static_cast<std::uint64_t>(expected) != bin_->size())
        throw StoreError(bin_->path() + ": has " + std::to_string(bin_->size()) + " bytes, its index says " +
                         std::to_string(expected));
}

void Shard::check_mask() {
    const MappedFile& mask = *mask_;
    if (mask.size() < kMaskHeader || std::memcmp(mask.data(), kMaskMagic, sizeof kMaskMagic) != 0 ||
        mask.read<std::uint64_t>(8) != kMaskVersion)
        throw StoreError(mask.path() + ": is not a mask file of this version");
    if (mask.read<std::uint64_t>(16) != documents_ || mask.size() < kMaskHeader + 8 * (documents_ + 1))
        throw StoreError(mask.path() + ": does not have one entry for each document");
    spans_at_ = kMaskHeader + 8 * (documents_ + 1);
    const std::uint64_t spans = (mask.size() - spans_at_) / sizeof(Span);
    if (span_offset(0) != 0 || static_cast<std::uint64_t>(span_offset(documents_)) != spans ||
        spans_at_ + spans * sizeof(Span) != mask.size())
        throw StoreError(mask.path() + ": is cut short");
    for (std::uint64_t d = 0; d < documents_; ++d) {
        const std::int64_t first = span_offset(d), last = span_offset(d + 1);
        if (first < 0 || last < first || static_cast<std::uint64_t>(last) > spans)
            throw StoreError(mask.path() + ": document " + std::to_string(d) + " has a wrong span offset");
        std::int32_t end = 0;
        for (std::size_t i = 0; i < span_count(d); ++i) {
            const Span s = span(d, i);
            if (s.start < end || s.end <= s.start || s.end > length(d))
                throw StoreError(mask.path() + ": document " + std::to_string(d) + " has spans outside its tokens");
            end = s.end;
        }
    }
}

std::uint64_t Shard::trained_tokens() const {
    std::uint64_t trained = mask_ == nullptr ? bin_->size() / token_bytes(type_) : 0;
    for (std::uint64_t d = 0; mask_ != nullptr && d < documents_; ++d)
        for (std::size_t i = 0; i < span_count(d); ++i)
            trained += static_cast<std::uint64_t>(span(d, i).end - span(d, i).start);
    return trained;
}

}  // namespace latxa
