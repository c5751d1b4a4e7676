// The bytes of a token store's shard: Megatron's MMIDIDX v1 and our .mask beside it. See docs/formats.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace latxa {

// A file that breaks its format, or cannot be read or written. Becomes latxa_megatron._core.StoreError.
struct StoreError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class TokenType : std::uint8_t { kInt32 = 4, kUint16 = 8 };

inline std::size_t token_bytes(TokenType type) { return type == TokenType::kUint16 ? 2 : 4; }

// n tokens of a file, from an address that need not be aligned, to values of T, which has room for the type's.
template <typename T>
void widen_tokens(TokenType type, const unsigned char* from, std::size_t n, T* out) {
    const auto widen = [&](auto token) {
        for (std::size_t i = 0; i < n; ++i) {
            std::memcpy(&token, from + i * sizeof token, sizeof token);
            out[i] = static_cast<T>(token);
        }
    };
    if (type == TokenType::kUint16)
        widen(std::uint16_t{});
    else
        widen(std::int32_t{});
}

inline constexpr char kIndexMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'};
inline constexpr char kMaskMagic[8] = {'L', 'A', 'T', 'X', 'M', 'S', 'K', '\0'};
inline constexpr std::uint64_t kIndexVersion = 1;
inline constexpr std::uint64_t kMaskVersion = 1;
// magic 9, version 8, token type 1, sequences 8, documents 8
inline constexpr std::size_t kIndexHeader = 34;
// magic 8, version 8, documents 8
inline constexpr std::size_t kMaskHeader = 24;

// Tokens [start, end) of one document that are trained, that is, predicted as labels.
struct Span {
    std::int32_t start;
    std::int32_t end;
};
static_assert(sizeof(Span) == 8);

}  // namespace latxa
