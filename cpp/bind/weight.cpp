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

// What `array`, scales, offsets or what their steps are multiples of, must be: `count` a row, of the right size.
template <class Array>
void check_groups(const Array& array, const char* name, const Matrix& m, i64 count, i64 bytes) {
    if (static_cast<i64>(array.dtype().bits) != 8 * bytes || array.dtype().lanes != 1) fail(std::string(name) + " has the wrong dtype");
    if (m.panels) {
        check_shape(array, name, {panels_of(m), count, kPanelRows});
    } else {
        check_shape(array, name, {m.rows, count});
    }
}

// The type of scales or offsets; of one level or, with `two`, steps.
ScaleType scale_type(const Input& array, const char* name, bool two) {
    if (!two && is_half(array.dtype())) return ScaleType::f16;
    if (!two && has_type<float>(array.dtype())) return ScaleType::f32;
    if (two && has_type<i8>(array.dtype())) return ScaleType::steps;
    if (two && has_type<u8>(array.dtype())) return ScaleType::low_steps;
    fail(std::string(name) + " has the wrong dtype");
}

const void* per_group(const Input& array, const char* name, const Matrix& m, ScaleType type) {
    check_groups(array, name, m, m.cols / m.group, scale_bytes(type));
    return array.data();
}

const u16* per_super(const Input& array, const char* name, const Matrix& m) {
    if (!is_half(array.dtype())) fail(std::string(name) + " has the wrong dtype");
    if (m.cols % kSuper != 0 || kSuper % m.group != 0) fail("groups of " + std::to_string(m.group) + " have no scales of two levels");
    check_groups(array, name, m, m.cols / kSuper, 2);
    return static_cast<const u16*>(array.data());
}

template <class Array>
void check_codes(const Array& codes, const Matrix& m, const KindInfo& info) {
    if (!codes_fit(info.kind, codes.dtype())) fail(std::string("weight codes have the wrong dtype for ") + info.name);
    const i64 bytes = info.row_codes(m.cols);
    if (m.panels) {
        check_shape(codes, "weight codes", {panels_of(m), bytes / kPanelBytes, kPanelRows * kPanelBytes});
    } else {
        check_shape(codes, "weight codes", {m.rows, bytes});
    }
}

// Four bytes of a row, from byte `at` on.
u32 word_at(const u8* row, i64 at) {
    u32 word;
    memcpy(&word, row + at, sizeof word);
    return word;
}

// Unit number `unit` (16 bytes) of a row as the four words of its chunks in panels; see formats/quant.py.
void panel_words(Kind kind, const u8* row, i64 unit, u32* words) {
    const u8* p = row + 16 * unit;
    if (kind == Kind::int8) {
        for (int i = 0; i < 4; ++i) words[i] = word_at(p, 4 * i);
        return;
    }
    if (kind == Kind::int4) {
        for (int i = 0; i < 2; ++i) {
            const u32 a = word_at(p, 8 * i), b = word_at(p, 8 * i + 4);
            words[i] = (a & 0x0f0f0f0fU) | (b & 0x0f0f0f0fU) << 4;
            words[2 + i] = (a >> 4 & 0x0f0f0f0fU) | (b & 0xf0f0f0f0U);
        }
        return;
    }
    for (int i = 0; i < 4; ++i) {
        words[i] = 0;
        for (int f = 0; f < 4; ++f) words[i] |= (word_at(p, 4 * f) >> 2 * i & 0x03030303U) << 2 * f;
    }
}

void codes_to_panel(const Matrix& m, i64 panel, i64 row_bytes, u8* to) {
    const i64 units = row_bytes / 16;
    for (i64 i = 0; i < kPanelRows; ++i) {
        const i64 r = panel * kPanelRows + i;
        const u8* row = static_cast<const u8*>(m.codes) + r * row_bytes;
        for (i64 u = 0; u < units; ++u) {
            u32 words[4] = {};
            if (r < m.rows) panel_words(m.kind, row, u, words);
            for (int w = 0; w < 4; ++w) {
                memcpy(to + ((u * 4 + w) * kPanelRows + i) * kPanelBytes, words + w, sizeof *words);
            }
        }
    }
}

// Of codes in two planes: bits of each, weights of a unit in rows and in panels.
struct Planes {
    int low, high;
    i64 row_unit, panel_unit;
};

Planes planes_of(Kind kind) {
    return kind == Kind::int6 ? Planes{4, 2, 64, 16} : kind == Kind::int5 ? Planes{4, 1, 32, 32} : Planes{2, 1, 64, 32};
}

// Columns k to k + 3 of a row, in bytes: their lower and their upper bits.
void plane_words(const Planes& p, const u8* row, i64 k, u32* low, u32* high) {
    const i64 s = k % p.row_unit / 16, j = k % 16, fields = 8 / p.low;
    const u8 *unit = row + k / p.row_unit * (p.row_unit * (p.low + p.high) / 8), *top = unit + p.row_unit * p.low / 8;
    *low = word_at(unit, s / fields * 16 + j) >> s % fields * p.low & (p.low == 4 ? 0x0f0f0f0fU : 0x03030303U);
    if (p.high == 2) {
        *high = word_at(top, j) >> 2 * s & 0x03030303U;
    } else {
        *high = (top[2 * s + j / 8] >> j % 8 & 15U) * 0x00204081U & 0x01010101U;  // a bit a byte
    }
}

void planes_to_panel(const Matrix& m, i64 panel, i64 row_bytes, u8* to) {
    const Planes p = planes_of(m.kind);
    const i64 chunks = p.panel_unit * (p.low + p.high) / 32, fields = 8 / p.low;
    for (i64 i = 0; i < kPanelRows; ++i) {
        const i64 r = panel * kPanelRows + i;
        const u8* row = static_cast<const u8*>(m.codes) + r * row_bytes;
        u8* place = to + i * kPanelBytes;
        for (i64 k = 0; k < m.cols; k += p.panel_unit, place += chunks * kPanelRows * kPanelBytes) {
            u32 words[5] = {};
            for (i64 q = 0; r < m.rows && q < p.panel_unit / 4; ++q) {
                u32 low = 0, high = 0;
                plane_words(p, row, k + 4 * q, &low, &high);
                words[q / fields] |= low << q % fields * p.low;
                words[chunks - 1] |= high << q * p.high;
            }
            for (i64 w = 0; w < chunks; ++w) memcpy(place + w * kPanelRows * kPanelBytes, words + w, sizeof *words);
        }
    }
}

// `count` values of `size` bytes a row, such as scales.
void groups_to_panel(const Matrix& m, i64 panel, const void* data, i64 count, i64 size, void* to) {
    for (i64 i = 0; i < kPanelRows; ++i) {
        const i64 r = panel * kPanelRows + i;
        for (i64 g = 0; g < count; ++g) {
            u8* place = static_cast<u8*>(to) + ((panel * count + g) * kPanelRows + i) * size;
            if (r < m.rows) {
                memcpy(place, static_cast<const u8*>(data) + (r * count + g) * size, static_cast<size_t>(size));
            } else {
                memset(place, 0, static_cast<size_t>(size));
            }
        }
    }
}

}  // namespace

Weight::Weight(const std::string& kind, const std::string& layout, i64 rows, i64 cols, i64 group, Input codes,
               OptionalInput scales, OptionalInput offsets, OptionalInput super_scales, OptionalInput super_offsets)
    : codes_(std::move(codes)),
      scales_(std::move(scales)),
      offsets_(std::move(offsets)),
      super_scales_(std::move(super_scales)),
      super_offsets_(std::move(super_offsets)) {
    const KindInfo& info = kind_info(kind);
    Matrix& m = matrix_;
    m.kind = info.kind;
    m.rows = checked_size(rows, "rows");
    m.cols = checked_size(cols, "cols");
    m.group = checked_size(group, "group");
    if (layout != "rows" && layout != "panels") fail("weight layout '" + layout + "' is unknown");
    m.panels = layout == "panels";
    if (cols % info.row_multiple != 0) {
        fail(std::to_string(cols) + " columns do not fit weight format " + kind);
    }
    const i64 multiple = m.panels ? kPanelGroup : info.group_multiple;
    if (info.group_multiple == 0) {
        if (scales_ || offsets_ || super_scales_ || super_offsets_ || group != 0) fail("weight format " + kind + " has no groups");
        if (m.panels) fail("weight format " + kind + " has no panels");
    } else if (group == 0 || group % multiple != 0 || cols % group != 0) {
        fail("group size " + std::to_string(group) + " does not fit " + std::to_string(cols) + " columns of " +
             kind);
    }
    check_codes(codes_, m, info);
    m.codes = codes_.data();
    if (info.group_multiple == 0) return;
    if (!scales_) fail("weight format " + kind + " needs scales");
    const bool two = super_scales_.has_value();
    m.scale_type = scale_type(*scales_, "weight scales", two);
    m.scales = per_group(*scales_, "weight scales", m, m.scale_type);
    if (two) {
        m.super_scales = per_super(*super_scales_, "weight super-scales", m);
        while (m.group << m.super_shift < kSuper) ++m.super_shift;
    }
    const bool together = m.scale_type == ScaleType::low_steps;
    if (together ? offsets_.has_value() : super_offsets_.has_value() != (two && offsets_.has_value())) {
        fail("weight offsets have another form than scales");
    }
    if (info.kind == Kind::ternary && (offsets_ || super_offsets_)) fail("ternary weights have no offsets");
    if (super_offsets_) m.super_offsets = per_super(*super_offsets_, "weight super-offsets", m);
    if (offsets_) {
        m.offset_type = scale_type(*offsets_, "weight offsets", two);
        if (m.offset_type == ScaleType::low_steps) fail("weight offsets has the wrong dtype");
        m.offsets = per_group(*offsets_, "weight offsets", m, m.offset_type);
    } else if (super_offsets_) {
        m.offset_type = ScaleType::high_steps;
        m.offsets = m.scales;
    }
}

void Weight::to_panels(Context& context, const Output& codes, const Output& scales, const OptionalOutput& offsets,
                       const OptionalOutput& super_scales, const OptionalOutput& super_offsets) const {
    const Matrix& m = matrix_;
    if (m.panels || m.group == 0 || m.group % kPanelGroup != 0) fail("these weights do not go into panels");
    Matrix target = m;
    target.panels = true;
    const KindInfo* info = kKinds + static_cast<int>(m.kind);
    check_codes(codes, target, *info);
    struct Part {
        const OptionalInput& from;
        const Output* to;
        i64 count;
    };
    const auto given = [](const OptionalOutput& one) { return one ? &*one : nullptr; };
    const i64 groups = m.cols / m.group;
    const Part parts[] = {{scales_, &scales, groups},
                          {offsets_, given(offsets), groups},
                          {super_scales_, given(super_scales), m.cols / kSuper},
                          {super_offsets_, given(super_offsets), m.cols / kSuper}};
    for (const Part& part : parts) {
        if (part.from.has_value() != (part.to != nullptr)) fail("offsets go with offsets, and two levels with two");
        if (part.to == nullptr) continue;
        if (part.to->dtype() != part.from->dtype()) fail("scales have another dtype");
        check_groups(*part.to, "scales", target, part.count, part.from->dtype().bits / 8);
    }
    const i64 row_bytes = info->row_bytes(m.cols);
    auto body = [&](i64 begin, i64 end, int) {
        for (i64 p = begin; p < end; ++p) {
            const auto write = m.kind == Kind::int6 || m.kind == Kind::int5 || m.kind == Kind::int3 ? planes_to_panel : codes_to_panel;
            write(m, p, row_bytes, static_cast<u8*>(codes.data()) + p * kPanelRows * row_bytes);
            for (const Part& part : parts) {
                if (part.to == nullptr) continue;
                groups_to_panel(m, p, part.from->data(), part.count, part.from->dtype().bits / 8, part.to->data());
            }
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
        .def(nb::init<const std::string&, const std::string&, i64, i64, i64, Input, OptionalInput, OptionalInput,
                      OptionalInput, OptionalInput>(),
             nb::arg("kind"), nb::arg("layout"), nb::arg("rows"), nb::arg("cols"), nb::arg("group"),
             nb::arg("codes"), nb::arg("scales").none(), nb::arg("offsets").none(),
             nb::arg("super_scales").none() = nb::none(), nb::arg("super_offsets").none() = nb::none())
        .def("to_panels", &Weight::to_panels, nb::arg("context"), nb::arg("codes"), nb::arg("scales"),
             nb::arg("offsets").none(), nb::arg("super_scales").none() = nb::none(),
             nb::arg("super_offsets").none() = nb::none(), "Writes the same weights in panels.");
}

}  // namespace minicpm4
