// A read-only memory map of one file. Pages come from the page cache, so a store of any size costs no memory of its
// own.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "store_format.h"

namespace latxa {

class MappedFile {
  public:
    explicit MappedFile(std::string path) : path_(std::move(path)) {
        // O_NONBLOCK: to open a pipe that nobody writes to would otherwise wait for ever.
        const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0) throw StoreError(path_ + ": cannot be opened: " + std::strerror(errno));
        struct stat info{};
        if (::fstat(fd, &info) != 0) {
            const int error = errno;
            ::close(fd);
            throw StoreError(path_ + ": " + std::strerror(error));
        }
        if (!S_ISREG(info.st_mode)) {
            ::close(fd);
            throw StoreError(path_ + ": is not a regular file");
        }
        size_ = static_cast<std::size_t>(info.st_size);
        if (size_ > 0) {
            void* map = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
            const int error = errno;
            ::close(fd);
            if (map == MAP_FAILED) throw StoreError(path_ + ": cannot be mapped: " + std::strerror(error));
            data_ = static_cast<const unsigned char*>(map);
            mapped_ = true;
        } else {
            ::close(fd);
        }
    }
    // Bytes that the caller keeps, in place of those of a file.
    MappedFile(std::string path, const unsigned char* data, std::size_t size)
        : path_(std::move(path)), data_(data), size_(size) {}
    ~MappedFile() {
        if (mapped_) ::munmap(const_cast<unsigned char*>(data_), size_);
    }
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const unsigned char* data() const { return data_; }
    std::size_t size() const { return size_; }
    const std::string& path() const { return path_; }

    // A T at a byte offset that need not be aligned. The caller has checked the bounds.
    template <typename T>
    T read(std::size_t offset) const {
        T value;
        std::memcpy(&value, data_ + offset, sizeof(T));
        return value;
    }

  private:
    std::string path_;
    const unsigned char* data_ = nullptr;
    std::size_t size_ = 0;
    bool mapped_ = false;
};

}  // namespace latxa
