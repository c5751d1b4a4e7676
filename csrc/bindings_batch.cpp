// The part of latxa_megatron._core that reads samples: from a plan and its stores, or from an export.
#include <pybind11/stl.h>

#include <memory>
#include <utility>

#include "bindings.h"
#include "gather.h"
#include "record_file.h"
#include "records.h"

using namespace latxa;

namespace {

// The arrays of a batch, b samples of s positions.
class BatchArrays {
  public:
    BatchArrays(std::size_t samples, std::size_t positions)
        : positions_(positions),
          shape_{static_cast<py::ssize_t>(samples), static_cast<py::ssize_t>(positions)},
          tokens_(shape_),
          labels_(shape_),
          position_ids_(shape_),
          sources_(shape_),
          loss_mask_(shape_) {
        whole_ = {tokens_.mutable_data(),       labels_.mutable_data(),  loss_mask_.mutable_data(),
                  position_ids_.mutable_data(), sources_.mutable_data(), positions_};
    }
    // Fills the samples: fill(r, view, base, ends) for each, without the interpreter's lock.
    template <typename Fill>
    py::dict filled(Fill fill) {
        std::vector<std::int32_t> ends{0};
        {
            py::gil_scoped_release release;
            for (std::size_t r = 0; r < static_cast<std::size_t>(shape_[0]); ++r) {
                const std::size_t at = r * positions_;
                const SampleView view{whole_.tokens + at,       whole_.labels + at,  whole_.loss_mask + at,
                                      whole_.position_ids + at, whole_.sources + at, positions_};
                fill(r, view, static_cast<std::int32_t>(at), ends);
            }
        }
        py::dict result;
        result["tokens"] = std::move(tokens_);
        result["labels"] = std::move(labels_);
        result["loss_mask"] = std::move(loss_mask_);
        result["position_ids"] = std::move(position_ids_);
        result["cu_seqlens"] = to_array(std::move(ends));
        result["sources"] = std::move(sources_);
        return result;
    }

  private:
    std::size_t positions_;
    std::vector<py::ssize_t> shape_;
    py::array_t<std::int64_t> tokens_, labels_, position_ids_, sources_;
    py::array_t<float> loss_mask_;
    SampleView whole_{};
};

// A plan's two arrays, memory mapped by the caller, and the shards that they name.
class Gatherer {
  public:
    Gatherer(const std::vector<std::vector<std::pair<std::shared_ptr<Shard>, std::uint32_t>>>& stores,
             Array<std::int64_t> offsets, Array<std::uint8_t> slices)
        : offsets_(std::move(offsets)), slices_(std::move(slices)) {
        if (static_cast<std::size_t>(slices_.size()) % sizeof(Slice) != 0 || offsets_.size() < 1)
            throw StoreError("the plan's files are cut short");
        for (const auto& store : stores) {
            stores_.emplace_back();
            for (const auto& [shard, source] : store) stores_.back().push_back({shard, source});
        }
        plan_ = {offsets_.data(), static_cast<std::size_t>(offsets_.size()) - 1,
                 reinterpret_cast<const Slice*>(slices_.data()),
                 static_cast<std::size_t>(slices_.size()) / sizeof(Slice)};
    }

    int token_type() const { return static_cast<int>(record_type(stores_)); }

    py::dict batch(const std::vector<std::int64_t>& rows, std::size_t positions, std::int64_t pad) const {
        check(rows.data(), rows.size());
        return BatchArrays(rows.size(), positions)
            .filled([&](std::size_t r, const SampleView& view, std::int32_t base, std::vector<std::int32_t>& ends) {
                gather_row(stores_, plan_, static_cast<std::size_t>(rows[r]), pad, view, base, ends);
            });
    }

    py::tuple records(const Array<std::int64_t>& rows, std::size_t positions) const {
        std::vector<unsigned char> bytes;
        std::vector<std::int64_t> sizes, documents;
        std::vector<std::int32_t> lengths;
        std::size_t trained = 0;
        const TokenType type = record_type(stores_);
        check(rows.data(), static_cast<std::size_t>(rows.size()));
        for_rows(rows, [&](const Slice* first, const Slice* last) {
            const std::size_t before = bytes.size();
            trained += append_record(stores_, first, static_cast<std::size_t>(last - first), positions, type, bytes);
            sizes.push_back(static_cast<std::int64_t>(bytes.size() - before));
            documents.push_back(last - first);
            for (const Slice* slice = first; slice != last; ++slice)
                lengths.push_back(static_cast<std::int32_t>(slice->length));
        });
        return py::make_tuple(to_array(std::move(bytes)), to_array(std::move(sizes)), to_array(std::move(documents)),
                              to_array(std::move(lengths)), trained);
    }

    py::tuple flat(const Array<std::int64_t>& rows, std::size_t positions) const {
        FlatRows out;
        std::vector<std::int64_t> documents;
        check(rows.data(), static_cast<std::size_t>(rows.size()));
        for_rows(rows, [&](const Slice* first, const Slice* last) {
            append_flat(stores_, first, static_cast<std::size_t>(last - first), positions, out);
            documents.push_back(last - first);
        });
        return py::make_tuple(to_array(std::move(out.tokens)), to_array(std::move(out.loss_mask)),
                              to_array(std::move(documents)), to_array(std::move(out.lengths)));
    }

  private:
    void check(const std::int64_t* rows, std::size_t n) const {
        for (std::size_t r = 0; r < n; ++r)
            if (rows[r] < 0 || static_cast<std::size_t>(rows[r]) >= plan_.rows)
                throw py::index_error("the plan has no such row");
    }
    // visit(first slice, last slice + 1) of each row, without the interpreter's lock.
    template <typename Visit>
    void for_rows(const Array<std::int64_t>& rows, Visit visit) const {
        const std::int64_t* row = rows.data();
        const auto n = static_cast<std::size_t>(rows.size());
        py::gil_scoped_release release;
        for (std::size_t r = 0; r < n; ++r) {
            const auto [first, last] = slices_of(plan_, static_cast<std::size_t>(row[r]));
            visit(first, last);
        }
    }

    Stores stores_;
    Array<std::int64_t> offsets_;
    Array<std::uint8_t> slices_;
    PlanView plan_{};
};

py::dict read_records(const std::vector<std::pair<std::shared_ptr<RecordFile>, std::uint64_t>>& samples,
                      std::size_t positions, std::int64_t pad) {
    for (const auto& [file, sample] : samples)
        if (sample >= file->index().samples()) throw py::index_error("the file has no such record");
    return BatchArrays(samples.size(), positions)
        .filled([&](std::size_t r, const SampleView& view, std::int32_t base, std::vector<std::int32_t>& ends) {
            samples[r].first->read(samples[r].second, pad, view, base, ends);
        });
}

py::tuple documents(const RecordFile& file, std::uint64_t first, std::uint64_t last) {
    const RecordIndex& index = file.index();
    if (first > last || last > index.samples()) throw py::index_error("the file has no such records");
    const std::uint64_t begin = index.first_document(first), end = index.first_document(last);
    py::array_t<std::int64_t> lengths(static_cast<py::ssize_t>(end - begin));
    py::array_t<std::int64_t> borders(static_cast<py::ssize_t>(last - first + 1));
    for (std::uint64_t d = begin; d < end; ++d) lengths.mutable_data()[d - begin] = index.length(d);
    for (std::uint64_t i = first; i <= last; ++i)
        borders.mutable_data()[i - first] = static_cast<std::int64_t>(index.first_document(i) - begin);
    return py::make_tuple(std::move(lengths), std::move(borders));
}

}  // namespace

void bind_batches(py::module_& m) {
    py::class_<Gatherer>(m, "Gatherer")
        .def(py::init<const std::vector<std::vector<std::pair<std::shared_ptr<Shard>, std::uint32_t>>>&,
                      Array<std::int64_t>, Array<std::uint8_t>>(),
             py::arg("stores"), py::arg("row_offsets"), py::arg("slices"),
             "stores: of each store its shards, each with the number of its source.")
        .def_property_readonly("token_type", &Gatherer::token_type, "Of records: 8 (uint16) or 4 (int32).")
        .def("batch", &Gatherer::batch, py::arg("rows"), py::arg("positions"), py::arg("pad"),
             "tokens, labels, position_ids, sources int64 [b, s]; loss_mask float32 [b, s]; cu_seqlens int32 over the "
             "b*s positions.")
        .def("records", &Gatherer::records, py::arg("rows"), py::arg("positions"),
             "(records uint8, bytes of each int64 [rows], documents of each int64 [rows], tokens of each document "
             "int32, trained positions of all).")
        .def("flat", &Gatherer::flat, py::arg("rows"), py::arg("positions"),
             "(tokens int32 [t], whether the next token is trained int8 [t], documents of each row int64 [rows], "
             "tokens of each document int32).");
    py::class_<RecordFile, std::shared_ptr<RecordFile>>(m, "RecordFile")
        .def(py::init<const std::string&, std::uint32_t>(), py::arg("prefix"), py::arg("sources"))
        .def("__len__", [](const RecordFile& file) { return file.index().samples(); })
        .def_property_readonly("token_type",
                               [](const RecordFile& file) { return static_cast<int>(file.index().type()); })
        .def("documents", &documents, py::arg("first"), py::arg("last"),
             "(tokens of each document int64, first document of each sample int64 [last - first + 1]) of samples "
             "[first, last), from the index.");
    m.def("read_records", &read_records, py::arg("samples"), py::arg("positions"), py::arg("pad"),
          "What Gatherer.batch gives, of (file, number of its record) pairs.");
}
