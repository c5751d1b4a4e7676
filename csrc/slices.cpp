#include "slices.h"

#include <algorithm>

namespace latxa {

Counts count_slices(const Shard& shard, std::uint64_t first, std::uint64_t last, std::uint32_t seq_length) {
    Counts counts{0, 0};
    for (std::uint64_t d = first; d < last; ++d) {
        const std::int64_t labels = std::int64_t{shard.length(d)} - 1;
        if (labels < 1) continue;
        ++counts.documents;
        counts.slices += static_cast<std::uint64_t>((labels - 1) / seq_length + 1);
    }
    return counts;
}

void cut(const Shard& shard, std::uint64_t first, std::uint64_t last, std::uint32_t seq_length, const Part& part,
         Slice like, std::uint64_t& number, std::vector<Slice>& out) {
    for (std::uint64_t d = first; d < last; ++d) {
        const std::int64_t tokens = shard.length(d);
        if (tokens < 2 || !part.has(number++)) continue;
        like.document = static_cast<std::uint32_t>(d);
        for (std::int64_t start = 0; start + 1 < tokens; start += seq_length) {
            like.start = static_cast<std::uint32_t>(start);
            like.length = static_cast<std::uint32_t>(std::min(tokens - start, std::int64_t{seq_length} + 1));
            out.push_back(like);
        }
    }
}

Stream concatenate(const Slice* documents, std::size_t n, std::uint32_t seq_length, std::uint32_t room,
                   const Permutation& order) {
    Stream stream;
    stream.slices.reserve(n + n / 8);
    for (std::size_t i = 0; i < n; ++i) {
        Slice rest = documents[order.at(i)];
        while (rest.length > 1) {
            Slice piece = rest;
            piece.length = std::min(rest.length, room + 1);
            stream.slices.push_back(piece);
            rest.start += piece.length - 1;
            rest.length -= piece.length - 1;
            room -= piece.length - 1;
            if (room == 0) {
                stream.ends.push_back(static_cast<std::int64_t>(stream.slices.size()));
                room = seq_length;
            }
        }
    }
    stream.room = room;
    return stream;
}

}  // namespace latxa
