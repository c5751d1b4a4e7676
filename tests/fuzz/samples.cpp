#include "samples.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>

namespace fuzz {
namespace {

std::uint64_t below(Random& random, std::uint64_t n) { return random() % n; }

template <typename T>
void put(Bytes& file, T value) {
    const std::size_t at = file.size();
    file.resize(at + sizeof value);
    std::memcpy(file.data() + at, &value, sizeof value);
}

void put_text(Bytes& file, const char* text, std::size_t n) { file.insert(file.end(), text, text + n); }

// A number that a count, length or offset of a damaged file could have: near a border, or near the file's own numbers.
std::uint64_t number(const Bytes& file, Random& random) {
    static constexpr std::uint64_t kBorders[] = {0,          1,          2,          4,          8,         127,
                                                 255,        256,        65535,      1U << 16,   1U << 24,  1ULL << 31,
                                                 1ULL << 32, 1ULL << 60, 1ULL << 61, 1ULL << 62, 1ULL << 63};
    static constexpr std::uint64_t kWidths[] = {1, 2, 4, 8, 12, 16, 20};
    const std::uint64_t base = [&]() -> std::uint64_t {
        switch (below(random, 4)) {
            case 0:
                return kBorders[below(random, std::size(kBorders))];
            case 1:
                return file.size() / kWidths[below(random, std::size(kWidths))];
            case 2:  // what overflows when it is multiplied by the width of an entry
                return std::numeric_limits<std::uint64_t>::max() / kWidths[below(random, std::size(kWidths))];
            default:
                return below(random, 32);
        }
    }();
    return base + below(random, 5) - 2;
}

void write_number(Bytes& file, Random& random) {
    const std::size_t width = std::size_t{1} << below(random, 4);
    if (file.size() < width) return;
    // Half of the time on an entry's border, counted from the end: the arrays stand there.
    std::size_t at = below(random, file.size() - width + 1);
    if (below(random, 2) == 0) at = (file.size() - width) % width + at / width * width;
    at = std::min(at, file.size() - width);
    const std::uint64_t value = number(file, random);
    std::memcpy(file.data() + at, &value, width);
}

void copy_piece(Bytes& file, Random& random) {
    if (file.size() < 2) return;
    const std::size_t n = 1 + below(random, std::min<std::size_t>(file.size() / 2, 24));
    const std::size_t from = below(random, file.size() - n + 1), to = below(random, file.size() - n + 1);
    std::memmove(file.data() + to, file.data() + from, n);
}

void damage_file(Bytes& file, Random& random) {
    switch (below(random, 8)) {
        case 0:
        case 1:
            if (!file.empty()) file[below(random, file.size())] ^= static_cast<unsigned char>(1U << below(random, 8));
            return;
        case 2:
        case 3:
        case 4:
            return write_number(file, random);
        case 5:
            file.resize(below(random, file.size() + 1));
            return;
        case 6:
            file.resize(file.size() + 1 + below(random, 40), static_cast<unsigned char>(random()));
            return;
        default:
            return copy_piece(file, random);
    }
}

// Another number of documents, the same in all the headers that have it: one header alone is refused by the next.
void claim_documents(Sample& sample, Random& random) {
    const std::uint64_t documents = number(sample.files[kIndex], random), stops = documents + 1;
    if (sample.files[kIndex].size() >= 34) {
        std::memcpy(sample.files[kIndex].data() + 18, &documents, sizeof documents);
        std::memcpy(sample.files[kIndex].data() + 26, &stops, sizeof stops);
    }
    if (sample.files[kMask].size() >= 24) std::memcpy(sample.files[kMask].data() + 16, &documents, sizeof documents);
}

using Tokens = std::vector<std::uint16_t>;

// The record of a sample with these documents, trained in places.
void put_record(Bytes& out, const std::vector<Tokens>& documents, bool narrow, Random& random) {
    std::int32_t positions = 0;
    Bytes heads, spans, tokens;
    for (const Tokens& document : documents) {
        put(heads, static_cast<std::uint32_t>(document.size()));
        put(heads, static_cast<std::uint32_t>(below(random, kSources)));
        positions += static_cast<std::int32_t>(document.size()) - 1;
        for (const std::uint16_t token : document) narrow ? put(tokens, token) : put(tokens, std::int32_t{token});
    }
    for (std::int32_t at = 0; at < positions;) {
        const auto start = at + static_cast<std::int32_t>(below(random, 6));
        const auto end = start + 1 + static_cast<std::int32_t>(below(random, 6));
        if (end > positions) break;
        put(spans, start);
        put(spans, end);
        at = end;
    }
    put(out, static_cast<std::uint32_t>(documents.size()));
    put(out, static_cast<std::uint32_t>(spans.size() / 8));
    for (const Bytes& part : {heads, spans, tokens}) out.insert(out.end(), part.begin(), part.end());
    out.resize((out.size() + 7) / 8 * 8);
}

// .records and .index of samples with these documents.
void put_export(Sample& sample, const std::vector<std::vector<Tokens>>& rows, bool narrow, Random& random) {
    Bytes &records = sample.files[kRecords], &index = sample.files[kRecordIndex];
    std::vector<std::uint64_t> offsets{0}, firsts{0};
    std::vector<std::uint32_t> lengths;
    for (const std::vector<Tokens>& documents : rows) {
        put_record(records, documents, narrow, random);
        offsets.push_back(records.size());
        for (const Tokens& document : documents) lengths.push_back(static_cast<std::uint32_t>(document.size()));
        firsts.push_back(lengths.size());
    }
    put_text(index, "LATXREC", 8);
    put<std::uint64_t>(index, 1);
    put<std::uint64_t>(index, narrow ? 8 : 4);
    put<std::uint64_t>(index, rows.size());
    put<std::uint64_t>(index, lengths.size());
    for (const std::uint64_t offset : offsets) put(index, offset);
    for (const std::uint64_t first : firsts) put(index, first);
    for (const std::uint32_t length : lengths) put(index, length);
}

}  // namespace

Sample whole(Random& random) {
    Sample sample{};
    const bool narrow = below(random, 2) == 0;
    sample.with_mask = below(random, 4) != 0;
    const std::size_t documents = below(random, 9);
    std::vector<std::int32_t> lengths(documents);
    for (std::int32_t& length : lengths) length = static_cast<std::int32_t>(1 + below(random, 16));

    std::vector<Tokens> texts(documents);
    Bytes &bin = sample.files[kBin], &index = sample.files[kIndex], &mask = sample.files[kMask],
          &rows = sample.files[kRows], &slices = sample.files[kSlices];
    put_text(index, "MMIDIDX\0", 9);
    put<std::uint64_t>(index, 1);
    put<std::uint8_t>(index, narrow ? 8 : 4);
    put<std::uint64_t>(index, documents);
    put<std::uint64_t>(index, documents + 1);
    for (const std::int32_t length : lengths) put(index, length);
    for (std::size_t i = 0; i < documents; ++i) {
        put(index, static_cast<std::int64_t>(bin.size()));
        for (std::int32_t t = 0; t < lengths[i]; ++t) {
            const auto token = static_cast<std::uint16_t>(below(random, 65536));
            texts[i].push_back(token);
            narrow ? put(bin, token) : put(bin, std::int32_t{token});
        }
    }
    for (std::size_t i = 0; i <= documents; ++i) put(index, static_cast<std::int64_t>(i));

    Bytes spans;
    put_text(mask, "LATXMSK", 8);
    put<std::uint64_t>(mask, 1);
    put<std::uint64_t>(mask, documents);
    put<std::int64_t>(mask, 0);
    for (const std::int32_t length : lengths) {
        for (std::int32_t at = 0; at < length;) {
            const auto start = at + static_cast<std::int32_t>(below(random, 4));
            const auto end = start + 1 + static_cast<std::int32_t>(below(random, 4));
            if (end > length) break;
            put(spans, start);
            put(spans, end);
            at = end;
        }
        put(mask, static_cast<std::int64_t>(spans.size() / 8));
    }
    mask.insert(mask.end(), spans.begin(), spans.end());

    sample.positions = 15 + below(random, 20);
    std::size_t used = 0;
    std::vector<std::vector<Tokens>> samples;
    put<std::int64_t>(rows, 0);
    for (std::size_t i = 0; i < documents; ++i) {
        if (lengths[i] < 2) continue;
        const auto need = static_cast<std::size_t>(lengths[i] - 1);
        if (used + need > sample.positions) {
            put(rows, static_cast<std::int64_t>(slices.size() / 16));
            used = 0;
        }
        if (used == 0) samples.emplace_back();
        samples.back().push_back(texts[i]);
        used += need;
        put<std::uint32_t>(slices, 0);
        put(slices, static_cast<std::uint32_t>(i));
        put<std::uint32_t>(slices, 0);
        put(slices, static_cast<std::uint32_t>(lengths[i]));
    }
    if (used > 0) put(rows, static_cast<std::int64_t>(slices.size() / 16));
    put_export(sample, samples, narrow, random);
    return sample;
}

void damage(Sample& sample, Random& random, bool of_export) {
    if (!of_export && below(random, 16) == 0) claim_documents(sample, random);
    const std::size_t first = of_export ? kRecords : kBin, count = (of_export ? kFiles : kRecords) - first;
    for (std::uint64_t n = 1 + below(random, 4); n > 0; --n)
        damage_file(sample.files[first + below(random, count)], random);
}

}  // namespace fuzz
