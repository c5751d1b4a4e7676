// Opens damaged shards, plans and exports and reads all that can be read, under AddressSanitizer and UBSan: `make
// fuzz`.
//
// The files are heap blocks of exactly their size, so that one byte past an end is seen, which it is not in a map's
// last page; one run in 256 goes through files and maps. Each run ends with a StoreError or with data that its format
// allows. An allocation over 64 MiB and a thousand runs of over 20 seconds end the program.
#include <sanitizer/asan_interface.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gather.h"
#include "record_file.h"
#include "samples.h"

extern "C" const char* __asan_default_options() {
    return "max_allocation_size_mb=64:quarantine_size_mb=4:malloc_context_size=4";
}
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }

namespace {

using fuzz::Bytes;
using fuzz::Sample;
using latxa::MappedFile;
using latxa::Shard;

void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "what was read breaks its format: %s\n", what);
    std::abort();
}

// Memory for one run, from one allocation: a run that asked the sanitizer's allocator for each block would take twice
// as long. What is not handed out is poisoned.
class Arena {
  public:
    Arena() : memory_(new unsigned char[kSize]) { clear(); }
    ~Arena() { ASAN_UNPOISON_MEMORY_REGION(memory_.get(), kSize); }
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    void clear() {
        ASAN_POISON_MEMORY_REGION(memory_.get(), kSize);
        used_ = kGap;
    }
    // n values with at least kGap poisoned bytes on either side.
    template <typename T>
    T* take(std::size_t n) {
        require(n <= (kSize - used_ - kGap) / sizeof(T), "more memory than a small file can ask for");
        void* start = memory_.get() + used_;
        ASAN_UNPOISON_MEMORY_REGION(start, n * sizeof(T));
        used_ += (n * sizeof(T) + kGap - 1) / kGap * kGap + kGap;
        return static_cast<T*>(start);
    }

  private:
    static constexpr std::size_t kSize = 1 << 16, kGap = 32;
    std::unique_ptr<unsigned char[]> memory_;
    std::size_t used_ = 0;
};

// A file's bytes in the arena.
struct Block {
    Block(Arena& arena, const Bytes& bytes) : data(arena.take<unsigned char>(bytes.size())), size(bytes.size()) {
        std::copy(bytes.begin(), bytes.end(), data);
    }
    std::unique_ptr<MappedFile> file(const char* name) const { return std::make_unique<MappedFile>(name, data, size); }

    unsigned char* data;
    std::size_t size;
};

void read_documents(Arena& arena, const Shard& shard) {
    const bool narrow = shard.type() == latxa::TokenType::kUint16;
    std::uint64_t trained = 0;
    for (std::uint64_t d = 0; d < shard.documents(); ++d) {
        const auto n = static_cast<std::size_t>(shard.length(d));
        auto* tokens = arena.take<std::int64_t>(n);
        shard.copy_tokens(d, 0, n, tokens);
        for (std::size_t i = 0; i < n; ++i)
            require(narrow ? tokens[i] >= 0 && tokens[i] < 65536 : tokens[i] == static_cast<std::int32_t>(tokens[i]),
                    "a token id");
        std::int64_t end = 0;
        for (std::size_t i = 0; shard.with_mask() && i < shard.span_count(d); ++i) {
            const latxa::Span span = shard.span(d, i);
            require(span.start >= end && span.end > span.start && span.end <= shard.length(d), "a span");
            end = span.end;
            trained += static_cast<std::uint64_t>(span.end - span.start);
        }
        if (!shard.with_mask()) trained += n;
    }
    require(shard.trained_tokens() == trained, "the number of trained tokens");
}

// The arrays of one sample in the arena, and what must hold of them.
struct Arrays {
    Arrays(Arena& arena, std::size_t positions)
        : view{arena.take<std::int64_t>(positions), arena.take<std::int64_t>(positions), arena.take<float>(positions),
               arena.take<std::int64_t>(positions), arena.take<std::int64_t>(positions), positions} {}

    void check(const std::vector<std::int32_t>& ends, std::int64_t sources) const {
        require(ends.back() == static_cast<std::int32_t>(view.positions), "the last border of a sample");
        for (std::size_t k = 1; k < ends.size(); ++k) {
            require(ends[k] > ends[k - 1], "the borders of a sample");
            for (std::int32_t i = ends[k - 1]; i < ends[k]; ++i) {
                require(view.position_ids[i] == i - ends[k - 1], "a position");
                require(view.loss_mask[i] == 0.0F || view.loss_mask[i] == 1.0F, "a mask");
                require(i + 1 == ends[k] || view.tokens[i + 1] == view.labels[i], "a label");
                require(view.sources[i] >= 0 && view.sources[i] < sources, "a source");
            }
        }
    }

    latxa::SampleView view;
};

// Gathers every row of the plan.
void gather_rows(Arena& arena, const latxa::Stores& stores, const Block& rows, const Block& slices,
                 std::size_t positions) {
    if (rows.size < 8 || slices.size % sizeof(latxa::Slice) != 0) return;  // the binding refuses these
    const latxa::PlanView plan{reinterpret_cast<const std::int64_t*>(rows.data), rows.size / 8 - 1,
                               reinterpret_cast<const latxa::Slice*>(slices.data), slices.size / sizeof(latxa::Slice)};
    const Arrays arrays(arena, positions);
    std::vector<std::int32_t> ends;
    for (std::size_t r = 0; r < plan.rows; ++r) {
        ends.assign(1, 0);
        latxa::gather_row(stores, plan, r, 0, arrays.view, 0, ends);
        arrays.check(ends, 2);
    }
}

// Reads every record of the export; each from a block of its own, so that one byte past it is seen.
void read_export(Arena& arena, const Sample& sample) {
    const Block records(arena, sample.files[fuzz::kRecords]), index(arena, sample.files[fuzz::kRecordIndex]);
    const latxa::RecordIndex found(index.file(".index"), records.size);
    const Arrays arrays(arena, sample.positions);
    std::vector<std::int32_t> ends;
    for (std::uint64_t i = 0; i < found.samples(); ++i) {
        for (std::uint64_t d = found.first_document(i); d < found.first_document(i + 1); ++d) found.length(d);
        const std::uint64_t size = found.offset(i + 1) - found.offset(i);
        if (size > latxa::longest_record(sample.positions)) throw latxa::StoreError("too long");
        const Block record(arena, Bytes(records.data + found.offset(i), records.data + found.offset(i) + size));
        ends.assign(1, 0);
        latxa::read_record(record.data, size, found.type(), fuzz::kSources, 0, arrays.view, 0, ends);
        arrays.check(ends, fuzz::kSources);
    }
}

void read_all(Arena& arena, const std::shared_ptr<Shard>& shard, const Block& rows, const Block& slices,
              std::size_t positions) {
    read_documents(arena, *shard);
    gather_rows(arena, {{{shard, 1}}}, rows, slices, positions);
}

void read_from_memory(Arena& arena, const Sample& sample) {
    const Block bin(arena, sample.files[fuzz::kBin]), index(arena, sample.files[fuzz::kIndex]),
        mask(arena, sample.files[fuzz::kMask]), rows(arena, sample.files[fuzz::kRows]),
        slices(arena, sample.files[fuzz::kSlices]);
    const auto shard = std::make_shared<Shard>("shard", bin.file(".bin"), index.file(".idx"),
                                               sample.with_mask ? mask.file(".mask") : nullptr);
    read_all(arena, shard, rows, slices, sample.positions);
}

void read_from_files(Arena& arena, const Sample& sample, const std::string& prefix) {
    const char* suffixes[] = {".bin", ".idx", ".mask"};
    for (std::size_t i = 0; i < 3; ++i) {
        const Bytes& bytes = sample.files[i];
        std::ofstream(prefix + suffixes[i], std::ios::binary)
            .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }
    const auto shard = std::make_shared<Shard>(prefix, sample.with_mask);
    read_all(arena, shard, Block(arena, sample.files[fuzz::kRows]), Block(arena, sample.files[fuzz::kSlices]),
             sample.positions);
}

void read_export_from_files(Arena& arena, const Sample& sample, const std::string& prefix) {
    const char* suffixes[] = {".records", ".index"};
    for (std::size_t i = 0; i < 2; ++i) {
        const Bytes& bytes = sample.files[fuzz::kRecords + i];
        std::ofstream(prefix + suffixes[i], std::ios::binary)
            .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }
    const latxa::RecordFile file(prefix, fuzz::kSources);
    const Arrays arrays(arena, sample.positions);
    std::vector<std::int32_t> ends;
    for (std::uint64_t i = 0; i < file.index().samples(); ++i) {
        ends.assign(1, 0);
        file.read(i, 0, arrays.view, 0, ends);
        arrays.check(ends, fuzz::kSources);
    }
}

// A refusal without what differs from run to run: the file's name and the numbers.
std::string kind(const std::string& message) {
    std::string found;
    const std::size_t colon = message.find(": ");
    for (const char c : message.substr(colon == std::string::npos ? 0 : colon + 2))
        if (c < '0' || c > '9') found += c;
    return found;
}

}  // namespace

int main(int argc, char** argv) {
    const std::uint64_t runs = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100000;
    const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 33;
    const auto directory = std::filesystem::temp_directory_path() / ("latxa-fuzz-" + std::to_string(::getpid()));
    std::filesystem::create_directory(directory);
    const std::string prefix = (directory / "shard").string();
    const auto begin = std::chrono::steady_clock::now();
    std::map<std::string, std::uint64_t> outcomes;
    fuzz::Random random(seed);
    Sample start, sample;
    Arena arena;
    for (std::uint64_t run = 0; run < runs; ++run) {
        if (run % 16 == 0) {
            start = fuzz::whole(random);
            arena.clear();
            read_from_memory(arena, start);  // what is whole is read: else the driver would test refusals alone
            arena.clear();
            read_export(arena, start);
        }
        if (run % 1000 == 0) ::alarm(20);
        sample = start;
        arena.clear();
        const bool of_export = run % 4 == 3;
        fuzz::damage(sample, random, of_export);
        try {
            if (run % 256 == 255)
                read_export_from_files(arena, sample, prefix);
            else if (of_export)
                read_export(arena, sample);
            else if (run % 256 == 0)
                read_from_files(arena, sample, prefix);
            else
                read_from_memory(arena, sample);
            ++outcomes["read whole"];
        } catch (const latxa::StoreError& error) {
            ++outcomes[kind(error.what())];
        }
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    std::filesystem::remove_all(directory);
    for (const auto& [outcome, count] : outcomes)
        std::printf("%12llu  %s\n", static_cast<unsigned long long>(count), outcome.c_str());
    std::printf("%12llu  runs from seed %llu in %.1f s, %.0f a second, no crash\n",
                static_cast<unsigned long long>(runs), static_cast<unsigned long long>(seed), seconds.count(),
                static_cast<double>(runs) / seconds.count());
}
