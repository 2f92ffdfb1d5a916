#include "core/isa.hpp"

#if defined(MINICPM4_X86)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(MINICPM4_AMX)
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(MINICPM4_ARM) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(MINICPM4_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace minicpm4 {
namespace {

struct Features {
    bool avx2 = false, fma = false, f16c = false, avx_vnni = false, avx512f = false, avx512bw = false;
    bool avx512vl = false, avx512dq = false, avx512_vnni = false, avx512_bf16 = false;
    bool amx_tile = false, amx_bf16 = false, amx_int8 = false;
    bool neon = false, dotprod = false, i8mm = false, bf16 = false;
};

#if defined(MINICPM4_X86)

struct Registers {
    u32 eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(u32 leaf, u32 subleaf) {
    Registers r;
#if defined(_MSC_VER)
    int raw[4];
    __cpuidex(raw, static_cast<int>(leaf), static_cast<int>(subleaf));
    r.eax = static_cast<u32>(raw[0]);
    r.ebx = static_cast<u32>(raw[1]);
    r.ecx = static_cast<u32>(raw[2]);
    r.edx = static_cast<u32>(raw[3]);
#else
    __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
#endif
    return r;
}

// XCR0: which register files the operating system saves when it switches threads.
u64 enabled_state() {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    u32 low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<u64>(high) << 32) | low;
#endif
}

bool bit(u32 word, int index) { return ((word >> index) & 1U) != 0; }

Features detect() {
    Features f;
    const u32 last = cpuid(0, 0).eax;
    if (last < 7) return f;
    const Registers one = cpuid(1, 0);
    if (!bit(one.ecx, 27)) return f;  // no OSXSAVE: AVX registers may not be used
    const u64 state = enabled_state();
    const bool ymm = (state & 0x6) == 0x6;
    const bool zmm = (state & 0xe6) == 0xe6;
    const bool amx = (state & 0x60000) == 0x60000;
    const Registers seven = cpuid(7, 0);
    const Registers seven1 = seven.eax >= 1 ? cpuid(7, 1) : Registers{};
    f.fma = ymm && bit(one.ecx, 12);
    f.f16c = ymm && bit(one.ecx, 29);
    f.avx2 = ymm && bit(seven.ebx, 5);
    f.avx_vnni = ymm && bit(seven1.eax, 4);
    f.avx512f = zmm && bit(seven.ebx, 16);
    f.avx512dq = zmm && bit(seven.ebx, 17);
    f.avx512bw = zmm && bit(seven.ebx, 30);
    f.avx512vl = zmm && bit(seven.ebx, 31);
    f.avx512_vnni = zmm && bit(seven.ecx, 11);
    f.avx512_bf16 = zmm && bit(seven1.eax, 5);
    f.amx_bf16 = amx && bit(seven.edx, 22);
    f.amx_tile = amx && bit(seven.edx, 24);
    f.amx_int8 = amx && bit(seven.edx, 25);
    return f;
}

#elif defined(MINICPM4_ARM)

Features detect() {
    Features f;
    f.neon = true;  // part of the aarch64 baseline
#if defined(__linux__)
    const unsigned long one = getauxval(AT_HWCAP);
    const unsigned long two = getauxval(AT_HWCAP2);
    f.dotprod = ((one >> 20) & 1UL) != 0;
    f.i8mm = ((two >> 13) & 1UL) != 0;
    f.bf16 = ((two >> 14) & 1UL) != 0;
#elif defined(__APPLE__)
    const auto has = [](const char* name) {
        int value = 0;
        size_t size = sizeof value;
        return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
    };
    f.dotprod = has("hw.optional.arm.FEAT_DotProd");
    f.i8mm = has("hw.optional.arm.FEAT_I8MM");
    f.bf16 = has("hw.optional.arm.FEAT_BF16");
#endif
    return f;
}

#else

Features detect() { return {}; }

#endif

const Features& features() {
    static const Features found = detect();
    return found;
}

#if defined(MINICPM4_AMX)

// Linux gives tiles to a process that asks: 8 KB more to save for each thread that uses them.
bool tiles_granted() {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Whether tiles compute what the emulation does. Of small integers, so that every sum is exact in any order.
bool tiles_agree() {
    constexpr int kWords = 512;
    alignas(64) u16 a[kWords], b[kWords];
    for (int i = 0; i < kWords; ++i) {
        const float values[] = {static_cast<float>(i * 37 % 23 - 11), static_cast<float>(i * 29 % 31 - 15)};
        u32 bits[2];
        memcpy(bits, values, sizeof bits);
        a[i] = static_cast<u16>(bits[0] >> 16);
        b[i] = static_cast<u16>(bits[1] >> 16);
    }
    alignas(64) u8 real[3 * 1024], emulated[3 * 1024];
    isa_amx::kernels.probe(a, b, real);
    isa_amx_emulated::kernels.probe(a, b, emulated);
    return memcmp(real, emulated, sizeof real) == 0;
}

bool has_tiles() {
    const Features& f = features();
    return f.amx_tile && f.amx_bf16 && f.amx_int8 && tiles_granted() && tiles_agree();
}

KernelTable with_tiles(const TileKernels& kernels) {
    KernelTable table = isa_avx512_bf16::table;
    table.name = kernels.name;
    table.linear = kernels.linear;
    table.linears = kernels.linears;
    table.attention.attend = kernels.attend;
    return table;
}

#endif

#if defined(MINICPM4_X86)

bool has_avx2() { return features().avx2 && features().fma && features().f16c; }

#if defined(MINICPM4_AVX512)

bool has_avx512() {
    const Features& f = features();
    return has_avx2() && f.avx512f && f.avx512bw && f.avx512vl && f.avx512dq;
}

bool has_avx512_vnni() { return has_avx512() && features().avx512_vnni; }

bool has_avx512_dots() { return has_avx512_vnni() && features().avx512_bf16; }

#endif

#endif

}  // namespace

std::vector<std::pair<std::string, bool>> cpu_features() {
    const Features& f = features();
    return {{"avx2", f.avx2},
            {"fma", f.fma},
            {"f16c", f.f16c},
            {"avx_vnni", f.avx_vnni},
            {"avx512f", f.avx512f},
            {"avx512_vnni", f.avx512_vnni},
            {"avx512_bf16", f.avx512_bf16},
            {"amx_tile", f.amx_tile},
            {"amx_bf16", f.amx_bf16},
            {"amx_int8", f.amx_int8},
            {"neon", f.neon},
            {"dotprod", f.dotprod},
            {"i8mm", f.i8mm},
            {"bf16", f.bf16}};
}

std::vector<const KernelTable*> available_tables() {
    std::vector<const KernelTable*> tables{&isa_scalar::table};
#if defined(MINICPM4_X86)
#if defined(MINICPM4_AVX512)
    // It multiplies in float32, which is slower by grouped weights than integers are with AVX2: it is never the last.
    if (has_avx512()) tables.push_back(&isa_avx512::table);
#endif
    if (has_avx2()) tables.push_back(&isa_avx2::table);
#if defined(MINICPM4_AVXVNNI)
    if (has_avx2() && features().avx_vnni) tables.push_back(&isa_avxvnni::table);
#endif
#if defined(MINICPM4_AVX512)
    if (has_avx512_vnni()) tables.push_back(&isa_avx512_vnni::table);
    if (has_avx512_dots()) tables.push_back(&isa_avx512_bf16::table);
#endif
#if defined(MINICPM4_AMX)
    static const bool tiles = has_avx512_dots() && has_tiles();
    static const KernelTable amx = with_tiles(isa_amx::kernels);
    if (tiles) tables.push_back(&amx);
#endif
#elif defined(MINICPM4_ARM)
    const Features& f = features();
    if (f.neon) tables.push_back(&isa_neon::table);
    if (f.neon && f.dotprod) {
        tables.push_back(&isa_neon_dotprod::table);
        if (f.i8mm && f.bf16) tables.push_back(&isa_neon_i8mm::table);  // ARMv8.6 has both
    }
#endif
    return tables;
}

std::vector<const KernelTable*> emulated_tables() {
    std::vector<const KernelTable*> tables;
#if defined(MINICPM4_AMX)
    static const KernelTable amx = with_tiles(isa_amx_emulated::kernels);
    if (has_avx512_dots()) tables.push_back(&amx);
#endif
    return tables;
}

}  // namespace minicpm4
