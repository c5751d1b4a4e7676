#include "record_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace latxa {

RecordIndex::RecordIndex(std::unique_ptr<MappedFile> file, std::uint64_t records_bytes) : file_(std::move(file)) {
    const auto refuse = [&](const char* what) { throw StoreError(file_->path() + ": " + what); };
    if (file_->size() < kRecordIndexHeader || std::memcmp(file_->data(), kRecordMagic, sizeof kRecordMagic) != 0 ||
        file_->read<std::uint64_t>(8) != kRecordVersion)
        refuse("is not an index of packed records of this version");
    const auto type = file_->read<std::uint64_t>(16);
    if (type != static_cast<std::uint64_t>(TokenType::kInt32) && type != static_cast<std::uint64_t>(TokenType::kUint16))
        refuse("has tokens that are neither uint16 nor int32");
    type_ = static_cast<TokenType>(type);
    samples_ = file_->read<std::uint64_t>(24);
    documents_ = file_->read<std::uint64_t>(32);
    // The counts are bounded by the file's size before they are multiplied: no overflow.
    if (samples_ > file_->size() / 16 || documents_ > file_->size() / 4 ||
        file_->size() != kRecordIndexHeader + 16 * (samples_ + 1) + 4 * documents_)
        refuse("has another size than its counts");
    if (offset(0) != 0 || offset(samples_) != records_bytes || first_document(0) != 0 ||
        first_document(samples_) != documents_)
        refuse("does not belong to its records, or these are cut short");
    for (std::uint64_t i = 0; i < samples_; ++i)
        if (offset(i + 1) < offset(i) || offset(i + 1) > records_bytes || first_document(i + 1) < first_document(i) ||
            first_document(i + 1) > documents_)
            refuse("has offsets that do not ascend");
}

RecordFile::RecordFile(const std::string& prefix, std::uint32_t sources)
    : path_(prefix + ".records"), sources_(sources) {
    auto index = std::make_unique<MappedFile>(prefix + ".index");
    const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) throw StoreError(path_ + ": cannot be opened: " + std::strerror(errno));
    try {
        struct stat info{};
        if (::fstat(fd, &info) != 0) throw StoreError(path_ + ": " + std::strerror(errno));
        if (!S_ISREG(info.st_mode)) throw StoreError(path_ + ": is not a regular file");
        index_ = std::make_unique<RecordIndex>(std::move(index), static_cast<std::uint64_t>(info.st_size));
    } catch (...) {
        ::close(fd);
        throw;
    }
    fd_ = fd;
}

RecordFile::~RecordFile() { ::close(fd_); }

void RecordFile::refuse(std::uint64_t sample, const std::string& what) const {
    throw StoreError(path_ + ": record " + std::to_string(sample) + " " + what);
}

void RecordFile::read(std::uint64_t sample, std::int64_t pad, const SampleView& out, std::int32_t base,
                      std::vector<std::int32_t>& document_ends) const {
    const std::uint64_t begin = index_->offset(sample), size = index_->offset(sample + 1) - begin;
    if (size > longest_record(out.positions)) refuse(sample, "is longer than its sequence length allows");
    // Kept from read to read: a buffer of its own for each would be mapped and unmapped again.
    thread_local std::vector<unsigned char> bytes;
    if (bytes.size() < size) bytes.resize(size);
    for (std::uint64_t done = 0; done < size;) {
        const ssize_t n = ::pread(fd_, bytes.data() + done, size - done, static_cast<off_t>(begin + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) refuse(sample, std::string("cannot be read: ") + std::strerror(errno));
        if (n == 0) refuse(sample, "is cut short");
        done += static_cast<std::uint64_t>(n);
    }
    try {
        read_record(bytes.data(), size, index_->type(), sources_, pad, out, base, document_ends);
    } catch (const StoreError& error) {
        refuse(sample, error.what());
    }
}

}  // namespace latxa
