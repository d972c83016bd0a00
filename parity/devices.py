"""Peak FLOP/s of devices, by the names that drivers give them."""

# Dense products in TFLOP/s by the vendor's data sheets (which give the tensor cores' figures with sparsity, twice
# these): (words in the device's name, {precision: peak}); the first that fits holds. float32 is plain float32, since
# the recipes never narrow it to TF32; float64 is the tensor cores'.
PEAKS: tuple[tuple[tuple[str, ...], dict[str, float]], ...] = (
    (("H200", "NVL"), {"bfloat16": 835.5, "tf32": 417.5, "float32": 60.0, "float64": 60.0}),
    (("H200",), {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9, "float64": 66.9}),
    (("H100", "NVL"), {"bfloat16": 835.5, "tf32": 417.5, "float32": 60.0, "float64": 60.0}),
    (("H100", "PCIe"), {"bfloat16": 756.0, "tf32": 378.0, "float32": 51.0, "float64": 51.0}),
    (("H100", "HBM3"), {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9, "float64": 66.9}),
    (("H100", "SXM"), {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9, "float64": 66.9}),
    (("A100",), {"bfloat16": 312.0, "tf32": 156.0, "float32": 19.5, "float64": 19.5}),
)
CPU_HZ = 6.5e9  # no CPU core is clocked higher
CPU_FLOPS_PER_CYCLE = {"float64": 32, "float32": 64, "bfloat16": 2048}  # two 512-bit fused multiply-adds; AMX tiles
UNKNOWN_GPU_TFLOPS = {"bfloat16": 5000.0, "tf32": 2500.0, "float32": 200.0, "float64": 200.0}  # above all of 2026


def peak_flops(device_kind: str, precision: str) -> float | None:
    """Peak dense FLOP/s of one device, by its name as the driver gives it ("NVIDIA H100 80GB HBM3" is the SXM one).

    `precision` is a recipe's, or "tf32". None where the peak is not known: CPUs, and GPUs not in the table.
    """
    name = device_kind.lower()
    for words, peaks in PEAKS:
        if all(word.lower() in name for word in words):
            return peaks[precision] * 1e12 if precision in peaks else None
    return None


def speed_limit(device_kind: str, platform: str, cores: int, precision: str) -> tuple[float, str]:
    """FLOP/s that no such device can exceed, and the reason; for CPUs all cores together."""
    if platform == "cpu":
        per_cycle = CPU_FLOPS_PER_CYCLE[precision]
        return cores * CPU_HZ * per_cycle, f"{cores} cores x {per_cycle} FLOPs a cycle x {CPU_HZ / 1e9:g} GHz"
    known = peak_flops(device_kind, precision)
    if known is not None:
        return known, f"the data sheet's dense {precision} peak of {device_kind}"
    return UNKNOWN_GPU_TFLOPS[precision] * 1e12, f"no peak of {device_kind} is known; above every GPU of 2026"
