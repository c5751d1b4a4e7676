// Reads one shard of a token store through memory maps. Opening checks every header, size, offset and span, so that a
// damaged file is refused here and never read out of bounds later: O(documents + spans), about 20 bytes touched for
// each.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "mapped_file.h"

namespace latxa {

class Shard {
  public:
    // with_mask: NAME.mask must be there; otherwise every token of every document is trained.
    Shard(const std::string& prefix, bool with_mask);
    // The same of files that are open already; mask is null where every token is trained.
    Shard(std::string prefix, std::unique_ptr<MappedFile> bin, std::unique_ptr<MappedFile> index,
          std::unique_ptr<MappedFile> mask);

    std::uint64_t documents() const { return documents_; }
    TokenType type() const { return type_; }
    bool with_mask() const { return mask_ != nullptr; }

    std::int32_t length(std::uint64_t document) const {
        return index_->read<std::int32_t>(kIndexHeader + 4 * document);
    }
    // Copies tokens [start, start + n) of a document. The slice lies inside the document; T is int64, int32 or, of a
    // shard of uint16, uint16.
    template <typename T>
    void copy_tokens(std::uint64_t document, std::size_t start, std::size_t n, T* out) const {
        const unsigned char* from = bin_->data() + pointer(document) + start * token_bytes(type_);
        widen_tokens(type_, from, n, out);
    }

    std::size_t span_count(std::uint64_t document) const {
        return static_cast<std::size_t>(span_offset(document + 1) - span_offset(document));
    }
    Span span(std::uint64_t document, std::size_t i) const {
        return mask_->read<Span>(spans_at_ + sizeof(Span) * (static_cast<std::size_t>(span_offset(document)) + i));
    }
    // Tokens in spans, or all of them where there is no mask. O(documents + spans).
    std::uint64_t trained_tokens() const;
    const std::string& prefix() const { return prefix_; }

  private:
    void check_index() const;
    void check_mask();
    std::int64_t pointer(std::uint64_t document) const {
        return index_->read<std::int64_t>(kIndexHeader + 4 * documents_ + 8 * document);
    }
    std::int64_t span_offset(std::uint64_t document) const {
        return mask_->read<std::int64_t>(kMaskHeader + 8 * document);
    }

    std::string prefix_;
    std::unique_ptr<MappedFile> bin_, index_, mask_;
    TokenType type_ = TokenType::kInt32;
    std::uint64_t documents_ = 0;
    std::size_t spans_at_ = 0;
};

}  // namespace latxa
