#include "store_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

namespace latxa {
namespace {

[[noreturn]] void fail(const std::string& path) {
    throw StoreError(path + ": cannot be written: " + std::strerror(errno));
}

// A FILE that is flushed to the disk and closed, or an exception.
class Output {
  public:
    explicit Output(std::string path) : path_(std::move(path)), file_(std::fopen(path_.c_str(), "wb")) {
        if (file_ == nullptr) fail(path_);
    }
    ~Output() {
        if (file_ != nullptr) std::fclose(file_);
    }
    Output(const Output&) = delete;
    Output& operator=(const Output&) = delete;

    void bytes(const void* data, std::size_t n) {
        if (n > 0 && std::fwrite(data, 1, n, file_) != n) fail(path_);
    }
    template <typename T>
    void value(T v) {
        bytes(&v, sizeof v);
    }
    template <typename T>
    void all(const std::vector<T>& v) {
        bytes(v.data(), v.size() * sizeof(T));
    }
    void close() {
        if (std::fflush(file_) != 0 || ::fsync(::fileno(file_)) != 0) fail(path_);
        const int rc = std::fclose(std::exchange(file_, nullptr));
        if (rc != 0) fail(path_);
    }

  private:
    std::string path_;
    std::FILE* file_;
};

void rename_into_place(const std::string& path) {
    if (std::rename((path + ".tmp").c_str(), path.c_str()) != 0) fail(path);
}

}  // namespace

ShardWriter::ShardWriter(std::string prefix, TokenType type, bool with_mask)
    : prefix_(std::move(prefix)), type_(type), with_mask_(with_mask) {
    bin_ = std::fopen((prefix_ + ".bin.tmp").c_str(), "wb");
    if (bin_ == nullptr) fail(prefix_ + ".bin.tmp");
}

ShardWriter::~ShardWriter() {
    if (bin_ != nullptr) std::fclose(bin_);
    if (finished_) return;
    for (const char* suffix : {".bin.tmp", ".idx.tmp", ".mask.tmp"}) std::remove((prefix_ + suffix).c_str());
}

void ShardWriter::add(const std::int32_t* tokens, std::size_t n, const Span* spans, std::size_t span_count) {
    if (finished_) throw StoreError(prefix_ + ": is finished; no document can be added");
    if (bin_ == nullptr) throw StoreError(prefix_ + ": failed before; write the shard again");
    if (n == 0) throw StoreError(prefix_ + ": a document without tokens cannot be stored");
    if (n > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
        throw StoreError(prefix_ + ": a document of over 2^31 tokens cannot be stored");
    const std::uint32_t limit = type_ == TokenType::kUint16 ? 0xFFFF : 0x7FFFFFFF;
    std::uint32_t bits = 0;  // of all ids together: one is above the limit, all ones, just where these are
    for (std::size_t i = 0; i < n; ++i) bits |= static_cast<std::uint32_t>(tokens[i]);
    if (bits > limit) {
        const auto* bad =
            std::find_if(tokens, tokens + n, [=](std::int32_t t) { return static_cast<std::uint32_t>(t) > limit; });
        throw StoreError(prefix_ + ": token id " + std::to_string(*bad) + " does not fit the store's token type");
    }
    std::int32_t end = 0;
    std::uint64_t trained = with_mask_ ? 0 : n;
    if (with_mask_) {
        for (std::size_t i = 0; i < span_count; ++i) {
            if (spans[i].start < end || spans[i].end <= spans[i].start || static_cast<std::size_t>(spans[i].end) > n)
                throw StoreError(prefix_ + ": a document's trained spans overlap, are empty or leave the document");
            end = spans[i].end;
            trained += static_cast<std::uint64_t>(spans[i].end - spans[i].start);
        }
    }
    const void* data = tokens;
    if (type_ == TokenType::kUint16) {
        narrow_.assign(tokens, tokens + n);
        data = narrow_.data();
    }
    if (std::fwrite(data, token_bytes(type_), n, bin_) != n) fail(prefix_ + ".bin.tmp");
    lengths_.push_back(static_cast<std::int32_t>(n));
    if (with_mask_) {
        spans_.insert(spans_.end(), spans, spans + span_count);
        span_offsets_.push_back(static_cast<std::int64_t>(spans_.size()));
    }
    tokens_ += n;
    trained_ += trained;
}

void ShardWriter::write_index() const {
    Output out(prefix_ + ".idx.tmp");
    out.bytes(kIndexMagic, sizeof kIndexMagic);
    out.value(kIndexVersion);
    out.value(static_cast<std::uint8_t>(type_));
    out.value(static_cast<std::uint64_t>(lengths_.size()));
    out.value(static_cast<std::uint64_t>(lengths_.size() + 1));
    out.all(lengths_);
    std::int64_t pointer = 0;
    for (const std::int32_t length : lengths_) {
        out.value(pointer);
        pointer += static_cast<std::int64_t>(length) * static_cast<std::int64_t>(token_bytes(type_));
    }
    for (std::size_t i = 0; i <= lengths_.size(); ++i) out.value(static_cast<std::int64_t>(i));
    out.close();
}

void ShardWriter::write_mask() const {
    Output out(prefix_ + ".mask.tmp");
    out.bytes(kMaskMagic, sizeof kMaskMagic);
    out.value(kMaskVersion);
    out.value(static_cast<std::uint64_t>(lengths_.size()));
    out.all(span_offsets_);
    out.all(spans_);
    out.close();
}

void ShardWriter::finish() {
    if (finished_) return;
    if (bin_ == nullptr) throw StoreError(prefix_ + ": failed before; write the shard again");
    if (std::fflush(bin_) != 0 || ::fsync(::fileno(bin_)) != 0) fail(prefix_ + ".bin.tmp");
    if (std::fclose(std::exchange(bin_, nullptr)) != 0) fail(prefix_ + ".bin.tmp");
    write_index();
    if (with_mask_) write_mask();
    rename_into_place(prefix_ + ".bin");
    if (with_mask_) rename_into_place(prefix_ + ".mask");
    rename_into_place(prefix_ + ".idx");
    finished_ = true;
}

}  // namespace latxa
