// Weight matrices: checks of their arrays, and the way from rows to panels.
#include "bind/weight.hpp"

#include "linear/ways.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>

namespace minicpm4 {
namespace {

constexpr i64 kPanelGroup = 16;  // groups in panels are multiples of this
constexpr i64 kPanelBytes = 4;   // bytes of codes of each row that lie together

const KindInfo& kind_info(const std::string& name) {
    for (const KindInfo& info : kKinds) {
        if (name == info.name) return info;
    }
    fail("weight format '" + name + "' is unknown");
}

bool codes_fit(Kind kind, nb::dlpack::dtype type) {
    switch (kind) {
        case Kind::f32: return has_type<float>(type);
        case Kind::f16: return is_half(type);
        case Kind::bf16: return has_type<u16>(type);
        case Kind::int8: return has_type<i8>(type);
        default: return has_type<u8>(type);
    }
}

i64 panels_of(const Matrix& m) { return (m.rows + kPanelRows - 1) / kPanelRows; }

template <class Array>
void check_groups(const Array& array, const char* name, const Matrix& m, bool half) {
    if (!half && !has_type<float>(array.dtype())) fail(std::string(name) + " has the wrong dtype");
    if (m.panels) {
        check_shape(array, name, {panels_of(m), m.cols / m.group, kPanelRows});
    } else {
        check_shape(array, name, {m.rows, m.cols / m.group});
    }
}

const void* per_group(const Input& array, const char* name, const Matrix& m, bool* half) {
    *half = is_half(array.dtype());
    check_groups(array, name, m, *half);
    return array.data();
}

template <class Array>
void check_codes(const Array& codes, const Matrix& m, const KindInfo& info) {
    if (!codes_fit(info.kind, codes.dtype())) fail(std::string("weight codes have the wrong dtype for ") + info.name);
    const i64 bytes = m.cols / info.weights_per_code;
    if (m.panels) {
        check_shape(codes, "weight codes", {panels_of(m), bytes / kPanelBytes, kPanelRows * kPanelBytes});
    } else {
        check_shape(codes, "weight codes", {m.rows, bytes});
    }
}

// Words of four codes' bytes: of row `r` of a matrix in rows, `bytes` from byte `at` on.
u32 word_at(const u8* row, i64 at) {
    u32 word;
    memcpy(&word, row + at, sizeof word);
    return word;
}

// Bytes b of unit `unit` (16 bytes of a row) as the words of its chunks in panels; see formats/quant.py.
int panel_words(Kind kind, const u8* row, i64 unit, u32* words) {
    const u8* p = row + 16 * unit;
    if (kind == Kind::int8) {
        for (int i = 0; i < 4; ++i) words[i] = word_at(p, 4 * i);
        return 4;
    }
    if (kind == Kind::int4) {
        for (int i = 0; i < 2; ++i) {
            const u32 a = word_at(p, 8 * i), b = word_at(p, 8 * i + 4);
            words[i] = (a & 0x0f0f0f0fU) | (b & 0x0f0f0f0fU) << 4;
            words[2 + i] = (a >> 4 & 0x0f0f0f0fU) | (b & 0xf0f0f0f0U);
        }
        return 4;
    }
    for (int i = 0; i < 4; ++i) {
        words[i] = 0;
        for (int f = 0; f < 4; ++f) words[i] |= (word_at(p, 4 * f) >> 2 * i & 0x03030303U) << 2 * f;
    }
    return 4;
}

void codes_to_panel(const Matrix& m, i64 panel, i64 row_bytes, u8* to) {
    const i64 units = row_bytes / 16;
    for (i64 i = 0; i < kPanelRows; ++i) {
        const i64 r = panel * kPanelRows + i;
        const u8* row = static_cast<const u8*>(m.codes) + r * row_bytes;
        for (i64 u = 0; u < units; ++u) {
            u32 words[4] = {};
            const int count = r < m.rows ? panel_words(m.kind, row, u, words) : 4;
            for (int w = 0; w < count; ++w) {
                memcpy(to + ((u * 4 + w) * kPanelRows + i) * kPanelBytes, words + w, sizeof *words);
            }
        }
    }
}

void groups_to_panel(const Matrix& m, i64 panel, const void* data, bool half, void* to) {
    const i64 groups = m.cols / m.group;
    const size_t size = half ? 2 : 4;
    for (i64 i = 0; i < kPanelRows; ++i) {
        const i64 r = panel * kPanelRows + i;
        for (i64 g = 0; g < groups; ++g) {
            u8* place = static_cast<u8*>(to) + static_cast<size_t>((panel * groups + g) * kPanelRows + i) * size;
            if (r < m.rows) {
                memcpy(place, static_cast<const u8*>(data) + static_cast<size_t>(r * groups + g) * size, size);
            } else {
                memset(place, 0, size);
            }
        }
    }
}

}  // namespace

Weight::Weight(const std::string& kind, const std::string& layout, i64 rows, i64 cols, i64 group, Input codes,
               OptionalInput scales, OptionalInput offsets)
    : codes_(std::move(codes)), scales_(std::move(scales)), offsets_(std::move(offsets)) {
    const KindInfo& info = kind_info(kind);
    Matrix& m = matrix_;
    m.kind = info.kind;
    m.rows = rows;
    m.cols = cols;
    m.group = group;
    if (layout != "rows" && layout != "panels") fail("weight layout '" + layout + "' is unknown");
    m.panels = layout == "panels";
    if (rows < 0 || cols < 0 || cols % info.row_multiple != 0) {
        fail(std::to_string(cols) + " columns do not fit weight format " + kind);
    }
    const i64 multiple = m.panels ? kPanelGroup : info.group_multiple;
    if (info.group_multiple == 0) {
        if (scales_ || offsets_ || group != 0) fail("weight format " + kind + " has no groups");
        if (m.panels) fail("weight format " + kind + " has no panels");
    } else if (group <= 0 || group % multiple != 0 || cols % group != 0) {
        fail("group size " + std::to_string(group) + " does not fit " + std::to_string(cols) + " columns of " +
             kind);
    }
    check_codes(codes_, m, info);
    m.codes = codes_.data();
    if (info.group_multiple == 0) return;
    if (!scales_) fail("weight format " + kind + " needs scales");
    m.scales = per_group(*scales_, "weight scales", m, &m.half_scales);
    if (offsets_ && info.kind == Kind::ternary) fail("ternary weights have no offsets");
    if (offsets_) m.offsets = per_group(*offsets_, "weight offsets", m, &m.half_offsets);
}

void Weight::to_panels(Context& context, const Output& codes, const Output& scales,
                       const OptionalOutput& offsets) const {
    const Matrix& m = matrix_;
    if (m.panels || m.group == 0 || m.group % kPanelGroup != 0) fail("these weights do not go into panels");
    if (offsets.has_value() != (m.offsets != nullptr)) fail("offsets go with offsets");
    Matrix target = m;
    target.panels = true;
    const KindInfo* info = kKinds + static_cast<int>(m.kind);
    check_codes(codes, target, *info);
    check_groups(scales, "scales", target, is_half(scales.dtype()));
    if (is_half(scales.dtype()) != m.half_scales) fail("scales have another dtype");
    if (offsets) check_groups(*offsets, "offsets", target, is_half(offsets->dtype()));
    if (offsets && is_half(offsets->dtype()) != m.half_offsets) fail("offsets have another dtype");
    const i64 row_bytes = m.cols / info->weights_per_code;
    auto body = [&](i64 begin, i64 end, int) {
        for (i64 p = begin; p < end; ++p) {
            codes_to_panel(m, p, row_bytes, static_cast<u8*>(codes.data()) + p * kPanelRows * row_bytes);
            groups_to_panel(m, p, m.scales, m.half_scales, scales.data());
            if (offsets) groups_to_panel(m, p, m.offsets, m.half_offsets, offsets->data());
        }
    };
    using Body = decltype(body);
    context.run([&](Pool& pool, const KernelTable&) {
        pool.run(
            panels_of(m), 4,
            [](void* data, i64 begin, i64 end, int worker) { (*static_cast<Body*>(data))(begin, end, worker); },
            &body);
    });
}

const Matrix& usable(const Context& context, const Weight& weight) {
    const Matrix& m = weight.matrix();
    if (m.panels && !takes_panels(context.level(), m.kind)) {
        fail(std::string("kernels of level ") + context.kernels().name + " do not take such weights in panels");
    }
    return m;
}

void bind_weight(nb::module_& module) {
    module.def(
        "weight_kinds",
        [] {
            std::vector<std::string> names;
            for (const KindInfo& info : kKinds) names.emplace_back(info.name);
            return names;
        },
        "Names of the weight kinds that there are kernels for.");
    nb::class_<Weight>(module, "Weight", "A weight matrix, checked, with the arrays that it lies in.")
        .def(nb::init<const std::string&, const std::string&, i64, i64, i64, Input, OptionalInput, OptionalInput>(),
             nb::arg("kind"), nb::arg("layout"), nb::arg("rows"), nb::arg("cols"), nb::arg("group"),
             nb::arg("codes"), nb::arg("scales").none(), nb::arg("offsets").none())
        .def("to_panels", &Weight::to_panels, nb::arg("context"), nb::arg("codes"), nb::arg("scales"),
             nb::arg("offsets").none(), "Writes the same weights in panels.");
}

}  // namespace minicpm4
