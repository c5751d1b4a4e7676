// One file of an export: NAME.records, read with one pread for each sample, and NAME.index, memory mapped. Opening
// checks the index: O(samples + documents). Reading holds no state and may be done by several threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mapped_file.h"
#include "records.h"

namespace latxa {

inline constexpr char kRecordMagic[8] = {'L', 'A', 'T', 'X', 'R', 'E', 'C', '\0'};
inline constexpr std::uint64_t kRecordVersion = 1;
// magic 8, version 8, token type 8, samples 8, documents 8
inline constexpr std::size_t kRecordIndexHeader = 40;

// NAME.index: where each record begins, and the tokens of each document in it.
class RecordIndex {
  public:
    // records_bytes: the size of NAME.records. Throws StoreError for a damaged index, or one of a file of another size.
    RecordIndex(std::unique_ptr<MappedFile> file, std::uint64_t records_bytes);

    std::uint64_t samples() const { return samples_; }
    std::uint64_t documents() const { return documents_; }
    TokenType type() const { return type_; }
    // Sample i is bytes [offset(i), offset(i + 1)), and has documents [first_document(i), first_document(i + 1)).
    std::uint64_t offset(std::uint64_t i) const { return file_->read<std::uint64_t>(kRecordIndexHeader + 8 * i); }
    std::uint64_t first_document(std::uint64_t i) const {
        return file_->read<std::uint64_t>(kRecordIndexHeader + 8 * (samples_ + 1 + i));
    }
    std::uint32_t length(std::uint64_t document) const {
        return file_->read<std::uint32_t>(kRecordIndexHeader + 16 * (samples_ + 1) + 4 * document);
    }

  private:
    std::unique_ptr<MappedFile> file_;
    std::uint64_t samples_ = 0, documents_ = 0;
    TokenType type_ = TokenType::kInt32;
};

class RecordFile {
  public:
    // sources: how many there are. Throws StoreError for files that cannot be opened or do not belong together.
    RecordFile(const std::string& prefix, std::uint32_t sources);
    ~RecordFile();
    RecordFile(const RecordFile&) = delete;
    RecordFile& operator=(const RecordFile&) = delete;

    const RecordIndex& index() const { return *index_; }
    // Fills a sample, one of index().samples(), as gather_sample does. Throws StoreError for a damaged record, or where
    // it cannot be read.
    void read(std::uint64_t sample, std::int64_t pad, const SampleView& out, std::int32_t base,
              std::vector<std::int32_t>& document_ends) const;

  private:
    [[noreturn]] void refuse(std::uint64_t sample, const std::string& what) const;

    std::string path_;
    std::uint32_t sources_;
    int fd_ = -1;
    std::unique_ptr<RecordIndex> index_;
};

}  // namespace latxa
