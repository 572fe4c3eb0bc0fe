/* Which versions this processor and its operating system can run. */
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

static int has(uint32_t word, int bit) { return word >> bit & 1; }

/* Register state that the operating system saves: a processor's own feature bits do not say so. */
static uint32_t saved_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* 0 portable, 1 AVX2, 2 AVX-512, 3 AVX-512 with VBMI2 and BF16. */
static int level(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    int scalar = has(c, 12) && has(c, 23) && has(c, 27) && has(c, 28) && has(c, 29); /* FMA POPCNT OSXSAVE AVX F16C */
    if (!scalar || (saved_state() & 0x6) != 0x6) return 0;
    uint32_t most;
    if (!__get_cpuid_count(7, 0, &most, &b, &c, &d)) return 0;
    if (!has(b, 3) || !has(b, 5) || !has(b, 8)) return 0;                                             /* BMI1 AVX2 BMI2 */
    if ((saved_state() & 0xe6) != 0xe6) return 1;
    if (!has(b, 16) || !has(b, 17) || !has(b, 30) || !has(b, 31)) return 1; /* F DQ BW VL */
    if (!has(c, 1) || !has(c, 6) || most < 1) return 2;                     /* VBMI VBMI2 */
    uint32_t extended;
    if (!__get_cpuid_count(7, 1, &extended, &b, &c, &d) || !has(extended, 5)) return 2; /* BF16 */
    return 3;
}
#endif

int sh_available(const sh_kernels **found, int limit) {
    int count = 0;
#if defined(__x86_64__)
    static int best = -1; /* CPUID leaves a virtual machine: asked once. Two threads would write the same number. */
    if (best < 0) best = level();
    if (best >= 3 && count < limit) found[count++] = &sh_avx512_vbmi2;
    if (best >= 2 && count < limit) found[count++] = &sh_avx512;
    if (best >= 1 && count < limit) found[count++] = &sh_avx2;
#endif
    if (count < limit) found[count++] = &sh_portable;
    return count;
}
