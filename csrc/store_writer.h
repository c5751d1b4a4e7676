// Writes one shard of a token store: NAME.bin, NAME.idx and, where documents are masked, NAME.mask.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "store_format.h"

namespace latxa {

// Tokens stream to NAME.bin as documents come; the index (12 bytes a document) and the spans (8 bytes each) are held
// until finish(). All files are written as NAME.*.tmp and renamed by finish(), after fsync, .idx last: a shard with an
// .idx is whole.
class ShardWriter {
  public:
    ShardWriter(std::string prefix, TokenType type, bool with_mask);
    ~ShardWriter();
    ShardWriter(const ShardWriter&) = delete;
    ShardWriter& operator=(const ShardWriter&) = delete;

    // Appends a document of n tokens. Spans are increasing, disjoint, inside [0, n); ignored where the shard has no
    // mask.
    void add(const std::int32_t* tokens, std::size_t n, const Span* spans, std::size_t span_count);
    void finish();

    std::uint64_t documents() const { return lengths_.size(); }
    std::uint64_t tokens() const { return tokens_; }
    std::uint64_t trained_tokens() const { return trained_; }

  private:
    void write_index() const;
    void write_mask() const;

    std::string prefix_;
    TokenType type_;
    bool with_mask_;
    bool finished_ = false;
    std::FILE* bin_ = nullptr;
    std::vector<std::int32_t> lengths_;
    std::vector<std::int64_t> span_offsets_{0};
    std::vector<Span> spans_;
    std::vector<std::uint16_t> narrow_;
    std::uint64_t tokens_ = 0;
    std::uint64_t trained_ = 0;
};

}  // namespace latxa
