// The Python face of the core: latxa_megatron._core. Arrays in and out are NumPy's; nothing else of Python enters
// csrc/.
#include "bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "packing.h"
#include "permutation.h"
#include "slices.h"
#include "store_reader.h"
#include "store_writer.h"

using namespace latxa;

namespace {

TokenType token_type(int code) {
    if (code != 4 && code != 8) throw py::value_error("the token type is 8 (uint16) or 4 (int32)");
    return static_cast<TokenType>(code);
}

void add_document(ShardWriter& writer, const Array<std::int32_t>& tokens, const Array<std::int32_t>& spans) {
    if (tokens.ndim() != 1) throw py::value_error("tokens: one dimension");
    if (spans.size() > 0 && (spans.ndim() != 2 || spans.shape(1) != 2)) throw py::value_error("spans: shape [k, 2]");
    writer.add(tokens.data(), static_cast<std::size_t>(tokens.size()), reinterpret_cast<const Span*>(spans.data()),
               static_cast<std::size_t>(spans.size()) / 2);
}

void add_whole(ShardWriter& writer, const Array<std::int32_t>& tokens, const Array<std::int64_t>& offsets) {
    if (tokens.ndim() != 1 || offsets.ndim() != 1 || offsets.size() < 1)
        throw py::value_error("tokens and offsets: one dimension, offsets at least one");
    const std::int64_t* border = offsets.data();
    if (border[0] != 0 || border[offsets.size() - 1] != tokens.size())
        throw py::value_error("offsets: from 0 to the number of tokens");
    for (py::ssize_t i = 0; i + 1 < offsets.size(); ++i) {
        if (border[i + 1] < border[i]) throw py::value_error("offsets: not in order");
        const Span all{0, static_cast<std::int32_t>(border[i + 1] - border[i])};
        writer.add(tokens.data() + border[i], static_cast<std::size_t>(border[i + 1] - border[i]), &all, 1);
    }
}

void check_document(const Shard& shard, std::uint64_t document) {
    if (document >= shard.documents()) throw py::index_error("the shard has no such document");
}

py::array_t<std::int32_t> lengths(const Shard& shard) {
    py::array_t<std::int32_t> out(static_cast<py::ssize_t>(shard.documents()));
    for (std::uint64_t i = 0; i < shard.documents(); ++i) out.mutable_data()[i] = shard.length(i);
    return out;
}

py::array_t<std::int64_t> document_tokens(const Shard& shard, std::uint64_t document) {
    check_document(shard, document);
    const auto n = static_cast<std::size_t>(shard.length(document));
    py::array_t<std::int64_t> out(static_cast<py::ssize_t>(n));
    shard.copy_tokens(document, 0, n, out.mutable_data());
    return out;
}

py::array_t<std::int32_t> document_spans(const Shard& shard, std::uint64_t document) {
    check_document(shard, document);
    if (!shard.with_mask()) {
        py::array_t<std::int32_t> all({py::ssize_t{1}, py::ssize_t{2}});
        all.mutable_data()[0] = 0;
        all.mutable_data()[1] = shard.length(document);
        return all;
    }
    const std::size_t n = shard.span_count(document);
    py::array_t<std::int32_t> out({static_cast<py::ssize_t>(n), py::ssize_t{2}});
    for (std::size_t i = 0; i < n; ++i) {
        out.mutable_data()[2 * i] = shard.span(document, i).start;
        out.mutable_data()[2 * i + 1] = shard.span(document, i).end;
    }
    return out;
}

py::tuple pack(const Array<std::uint32_t>& sizes, std::uint32_t capacity) {
    Packing packing;
    {
        py::gil_scoped_release release;
        packing = best_fit_decreasing(sizes.data(), static_cast<std::size_t>(sizes.size()), capacity);
    }
    return py::make_tuple(to_array(std::move(packing.offsets)), to_array(std::move(packing.items)));
}

void check_documents(const Shard& shard, std::uint64_t first, std::uint64_t last, std::uint32_t seq_length) {
    if (first > last || last > shard.documents()) throw py::index_error("the shard has no such documents");
    if (seq_length == 0) throw py::value_error("a sequence length of 0");
}

py::tuple count(const Shard& shard, std::uint64_t first, std::uint64_t last, std::uint32_t seq_length) {
    check_documents(shard, first, last, seq_length);
    const Counts counts = count_slices(shard, first, last, seq_length);
    return py::make_tuple(counts.documents, counts.slices);
}

// The documents [first, last) of shard `number` of store `store`; the first of them that has two tokens is number
// `begin` of its source.
struct Range {
    std::shared_ptr<Shard> shard;
    std::uint16_t store, number;
    std::uint64_t first, last;
    Part part;
    std::uint64_t begin;
};

py::array_t<std::uint8_t> cut_ranges(const std::vector<Range>& ranges, std::uint32_t seq_length) {
    for (const Range& range : ranges) check_documents(*range.shard, range.first, range.last, seq_length);
    std::vector<Slice> slices;
    {
        py::gil_scoped_release release;
        std::uint64_t most = 0;
        for (const Range& range : ranges)
            most += count_slices(*range.shard, range.first, range.last, seq_length).slices;
        slices.reserve(most);  // pages that stay unused cost nothing
        for (const Range& range : ranges) {
            std::uint64_t number = range.begin;
            cut(*range.shard, range.first, range.last, seq_length, range.part,
                Slice{range.store, range.number, 0, 0, 0}, number, slices);
        }
    }
    return to_array<Slice, std::uint8_t>(std::move(slices));
}

py::tuple concat(const Array<std::uint8_t>& documents, std::uint32_t seq_length, std::uint32_t room,
                 std::uint64_t key) {
    if (static_cast<std::size_t>(documents.size()) % sizeof(Slice) != 0) throw py::value_error("slices cut short");
    if (room == 0 || room > seq_length || seq_length >= (1U << 31)) throw py::value_error("a room outside the row");
    const std::size_t n = static_cast<std::size_t>(documents.size()) / sizeof(Slice);
    Stream stream;
    {
        py::gil_scoped_release release;
        const auto* slices = reinterpret_cast<const Slice*>(documents.data());
        stream = concatenate(slices, n, seq_length, room, Permutation(std::max<std::size_t>(n, 1), key));
    }
    return py::make_tuple(to_array<Slice, std::uint8_t>(std::move(stream.slices)), to_array(std::move(stream.ends)),
                          stream.room);
}

py::array_t<std::int64_t> images(const Permutation& permutation, std::uint64_t first, std::uint64_t last) {
    if (first > last || last > permutation.size()) throw py::index_error("outside the permutation");
    py::array_t<std::int64_t> out(static_cast<py::ssize_t>(last - first));
    permutation.images(first, static_cast<std::size_t>(last - first), out.mutable_data());
    return out;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "Token stores, packing, sample order and batch gather. Formats: docs/formats.md.";
    py::register_exception<StoreError>(m, "StoreError", PyExc_OSError);

    py::class_<ShardWriter>(m, "ShardWriter")
        .def(py::init([](std::string prefix, int type, bool with_mask) {
                 return std::make_unique<ShardWriter>(std::move(prefix), token_type(type), with_mask);
             }),
             py::arg("prefix"), py::arg("token_type"), py::arg("with_mask"))
        .def("add", &add_document, py::arg("tokens"), py::arg("spans"),
             "Append a document: tokens int32 [n], trained spans int32 [k, 2].")
        .def("add_whole", &add_whole, py::arg("tokens"), py::arg("offsets"),
             "Append documents that are trained whole: tokens int32 [n] end to end, offsets int64 [documents + 1].")
        .def("finish", &ShardWriter::finish, "Write the index and the mask, fsync, rename into place.")
        .def_property_readonly("documents", &ShardWriter::documents)
        .def_property_readonly("tokens", &ShardWriter::tokens)
        .def_property_readonly("trained_tokens", &ShardWriter::trained_tokens);

    py::class_<Shard, std::shared_ptr<Shard>>(m, "Shard")
        .def(py::init<const std::string&, bool>(), py::arg("prefix"), py::arg("with_mask"))
        .def("__len__", &Shard::documents)
        .def_property_readonly("lengths", &lengths, "Tokens of each document, int32 [documents].")
        .def_property_readonly("trained_tokens", &Shard::trained_tokens, "Tokens in the spans of all documents.")
        .def("tokens", &document_tokens, py::arg("document"), "A document's token ids, int64 [n].")
        .def("spans", &document_spans, py::arg("document"), "A document's trained spans, int32 [k, 2].");

    m.def("best_fit_decreasing", &pack, py::arg("sizes"), py::arg("capacity"),
          "(row offsets int64 [rows + 1], item indices uint32 [n]) of the packed sizes.");

    py::class_<Range>(m, "Range")
        .def(py::init([](std::shared_ptr<Shard> shard, std::uint16_t store, std::uint16_t number, std::uint64_t first,
                         std::uint64_t last, const Permutation& order, std::uint64_t part_first,
                         std::uint64_t part_last, std::uint64_t begin) {
                 return Range{std::move(shard), store, number, first, last, Part{order, part_first, part_last}, begin};
             }),
             py::arg("shard"), py::arg("store"), py::arg("number"), py::arg("first"), py::arg("last"), py::arg("order"),
             py::arg("part_first"), py::arg("part_last"), py::arg("begin"),
             "Documents [first, last) of a shard whose place in their source's order is in [part_first, part_last).");
    m.def("count_slices", &count, py::arg("shard"), py::arg("first"), py::arg("last"), py::arg("seq_length"),
          "(documents of two or more tokens, their slices) among documents [first, last).");
    m.def("cut", &cut_ranges, py::arg("ranges"), py::arg("seq_length"), "The ranges' slices, uint8 [16 n].");
    m.def("concatenate", &concat, py::arg("documents"), py::arg("seq_length"), py::arg("room"), py::arg("key"),
          "(slices uint8 [16 n], row ends int64 [rows], room left) of documents end to end in the key's order.");

    py::class_<Permutation>(m, "Permutation")
        .def(py::init<std::uint64_t, std::uint64_t>(), py::arg("n"), py::arg("key"))
        .def("__len__", &Permutation::size)
        .def("__getitem__",
             [](const Permutation& p, std::uint64_t i) {
                 if (i >= p.size()) throw py::index_error("outside the permutation");
                 return p.at(i);
             })
        .def("images", &images, py::arg("first"), py::arg("last"),
             "Those of first ... last - 1, int64 [last - first].");

    bind_batches(m);
}
