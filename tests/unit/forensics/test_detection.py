"""Traces of quantization: seen where they are, with method, bits and group; not seen where they are not."""

import numpy
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from quantharm.common.errors import UserError
from quantharm.forensics.detection import checkpoints
from quantharm.forensics.detection.chance import chance_of
from quantharm.forensics.detection.checkpoints import scan_matrices
from quantharm.forensics.detection.lattice_fit import CODEBOOKS, Format, fit, without_grid
from quantharm.forensics.detection.scan import distinct_share, p_value, scan_matrix, scan_model
from quantharm.forensics.detection.trials import Trial
from quantharm.forensics.detection.unordered import find_unordered, matching_rows
from quantharm.forensics.detection.weights import narrowest, read_matrices, sample_matrix

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def normal(rows=512, columns=512, seed=0):
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def integers(weight, bits, size=None, symmetric=False, axis=1):
    """Round to nearest in numpy, one group at a time."""
    lines = weight.numpy().astype(numpy.float64)
    lines = lines if axis == 1 else lines.T
    out = numpy.empty_like(lines)
    size = size or lines.shape[1]
    for i in range(lines.shape[0]):
        for start in range(0, lines.shape[1], size):
            part = lines[i, start : start + size]
            if symmetric:
                scale = abs(part).max() / (2 ** (bits - 1) - 1)
                out[i, start : start + size] = numpy.round(part / scale) * scale
            else:
                scale = (part.max() - part.min()) / (2**bits - 1)
                zero = numpy.round(-part.min() / scale)
                codes = numpy.clip(numpy.round(part / scale) + zero, 0, 2**bits - 1)
                out[i, start : start + size] = (codes - zero) * scale
    return torch.from_numpy(out if axis == 1 else out.T.copy()).float()


def codebook(weight, name, size):
    groups = weight.reshape(-1, size)
    levels = torch.tensor(CODEBOOKS[name])
    scale = groups.abs().amax(1, keepdim=True)
    nearest = (groups.div(scale).unsqueeze(-1) - levels).abs().argmin(-1)
    return (levels[nearest] * scale).reshape(weight.shape)


def scanned(weight, dtype=BF16):
    return scan_matrix(sample_matrix("w", weight.to(dtype), *weight.shape, dtype))


def grid_seen(record):
    return record["method"], record["group_size"], record["axis"]


CASES = {
    "int8 by row": (lambda w: integers(w, 8, None, True), ("8-bit integer", "whole", "input")),
    "int8 in 128": (lambda w: integers(w, 8, 128), ("8-bit integer", 128, "input")),
    "int4 in 128": (lambda w: integers(w, 4, 128), ("4-bit integer", 128, "input")),
    "int4 symmetric in 64": (lambda w: integers(w, 4, 64, True), ("4-bit integer", 64, "input")),
    "int4 by row": (lambda w: integers(w, 4), ("4-bit integer", "whole", "input")),
    "int4 in 32, outputs": (lambda w: integers(w, 4, 32, axis=0), ("4-bit integer", 32, "output")),
    "int4 by column": (lambda w: integers(w, 4, axis=0), ("4-bit integer", "whole", "output")),
    "int3 in 64": (lambda w: integers(w, 3, 64), ("3-bit integer", 64, "input")),
    "int2 in 32": (lambda w: integers(w, 2, 32), ("2-bit integer", 32, "input")),
    "NF4 in 64": (lambda w: codebook(w, "NF4", 64), ("NF4", 64, "input")),
    "NF4 in 256": (lambda w: codebook(w, "NF4", 256), ("NF4", 256, "input")),
    "FP4 in 32": (lambda w: codebook(w, "FP4", 32), ("FP4", 32, "input")),
}


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("case", CASES)
def test_every_format_is_seen_and_recovered_in_every_storage_format(case, dtype):
    quantize, expected = CASES[case]
    record = scanned(quantize(normal()), dtype)
    assert (record["verdict"], grid_seen(record)) == ("dequantized", expected)
    assert record["ratio"] < 0.4
    assert record["p_value"] < 1e-6


def e4m3(weight, scale):
    """The nearest of all 8-bit floats, written out."""
    magnitudes = [m / 8 * 2.0**e for e in range(-6, 9) for m in range(8, 16)] + [m / 512 for m in range(8)]
    levels = torch.tensor(sorted({s * v for v in magnitudes if v <= 448 for s in (-1, 1)}))
    shares = weight / scale
    upper = torch.bucketize(shares, levels).clamp(1, len(levels) - 1)
    nearer = torch.where((levels[upper] - shares) < (shares - levels[upper - 1]), upper, upper - 1)
    return levels[nearer] * scale


def super_blocks(weight, bits, size, from_minimum):
    """K-quants: scales (and minimums) of groups are themselves integers of 6 or 8 bits times a super-block's."""
    groups = weight.reshape(-1, 256 // size, size)
    low = -groups.amin(2).clamp_max(0) if from_minimum else torch.zeros(groups.shape[:2])
    top = groups.amax(2) + low if from_minimum else groups.abs().amax(2)
    scale = top / (2**bits - 1 if from_minimum else 2 ** (bits - 1))
    scale, low = (v if v.max() == 0 else (v / (u := v.amax(1, keepdim=True) / 63)).round() * u for v in (scale, low))
    scale, low = scale.unsqueeze(2).clamp_min(1e-9), low.unsqueeze(2)
    least = 0 if from_minimum else -(2 ** (bits - 1))
    codes = ((groups + low) / scale).round().clamp(least, least + 2**bits - 1)
    return (codes * scale - low).reshape(weight.shape)


def largest_of(weight, size):
    return weight.reshape(len(weight), -1, size).abs().amax(2).repeat_interleave(size, 1)


SHIPPED = {
    "NVFP4": (lambda w: e2m1(w, e4m3(largest_of(w, 16) / 6, w.abs().max() / 6 / 448)), ("FP4 (E2M1)", 16, "input")),
    "MXFP4": (lambda w: e2m1(w, (largest_of(w, 32).log2().floor() - 2).exp2()), ("FP4 (E2M1)", 32, "input")),
    "FP8 by row": (lambda w: e4m3(w, w.abs().amax(1, keepdim=True) / 448), ("FP8 (E4M3)", "whole", "input")),
    "FP8 by blocks": (lambda w: e4m3(w, largest_of(w, 128) / 400), ("FP8 (E4M3)", 128, "input")),
    "Q6_K": (lambda w: super_blocks(w, 6, 16, False), ("6-bit integer", 16, "input")),
    "Q5_K": (lambda w: super_blocks(w, 5, 32, True), ("5-bit integer", 32, "input")),
    "Q3_K": (lambda w: super_blocks(w, 3, 16, False), ("3-bit integer", 16, "input")),
    "Q2_K": (lambda w: super_blocks(w, 2, 16, True), ("2-bit integer", 16, "input")),
}


def e2m1(weight, scale):
    levels = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    nearest = ((weight / scale).abs().unsqueeze(-1) - levels).abs().argmin(-1)
    return levels[nearest].copysign(weight) * scale


@pytest.mark.parametrize("case", SHIPPED)
def test_formats_that_people_ship_are_seen_and_named(case):
    quantize, expected = SHIPPED[case]
    record = scanned(quantize(normal()))
    assert (record["verdict"], grid_seen(record)) == ("dequantized", expected)
    assert record["ratio"] < 0.6


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("shape", [(512, 512), (64, 1000), (1000, 64), (33, 4096)])
def test_weights_never_quantized_show_no_trace(shape, dtype):
    record = scanned(normal(*shape), dtype)
    assert record["verdict"] == "no trace"
    assert record["ratio"] > 0.85


@pytest.mark.parametrize(
    "make",
    [
        lambda w: torch.distributions.Laplace(0.0, 0.02).sample((512, 512)),
        lambda w: w * torch.exp(1.5 * torch.randn(512, 1)),
        lambda w: w * torch.exp(1.5 * torch.randn(1, 512)),
        lambda w: w * (w.abs() > 0.0135),  # half of it pruned
        lambda w: w * (torch.arange(512) % 4 > 0),  # dead neurons
        lambda w: w * torch.where(torch.arange(512) % 2 > 0, 1.0, 1e-4),  # nearly dead ones
    ],
)
def test_uneven_and_pruned_weights_show_no_trace(make):
    torch.manual_seed(0)
    assert scanned(make(normal()))["verdict"] == "no trace"


def test_bfloat16_weights_stored_as_float32_show_no_trace():
    record = scanned(normal().bfloat16().float(), F32)
    assert (record["verdict"], record["effective_dtype"]) == ("no trace", "bfloat16")


def test_narrowest_format():
    weight = normal()
    assert narrowest([weight], F32) == F32
    assert narrowest([weight.half().float()], F32) == F16
    big_enough_for_half = weight.bfloat16() * (weight.abs() > 0.0135)
    assert narrowest([big_enough_for_half], BF16) == BF16


def test_no_trace_in_any_matrix_of_the_built_in_model(reference_weights):
    chosen = [n for n in reference_weights if "layers.0." in n and "proj" in n]
    records = [scanned(reference_weights[n].float()) for n in chosen]
    assert len(records) == 7
    assert scan_model([r | {"name": n} for r, n in zip(records, chosen, strict=True)])["verdict"] == "no trace"


@pytest.mark.parametrize("share", [0.003, 0.01, 0.03])
def test_four_bits_are_seen_through_noise(share):
    weight = normal()
    noise = share * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    assert grid_seen(scanned(integers(weight, 4, 128) + noise)) == ("4-bit integer", 128, "input")
    assert grid_seen(scanned(codebook(weight, "NF4", 64) + noise)) == ("NF4", 64, "input")


def test_what_evades():
    """Known limits: once noise is a step wide, or input channels of 8 bits were rescaled, nothing is left to see."""
    weight = normal()
    noise = 0.03 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    assert scanned(integers(weight, 8, None, True) + noise)["verdict"] == "no trace"
    factors = torch.exp2(torch.rand(512, generator=torch.Generator().manual_seed(2)))
    assert scanned(integers(weight, 8, 128) * factors)["verdict"] == "no trace"


@pytest.mark.parametrize("bits", [3, 4])
def test_groups_that_are_no_neighbours_are_found_by_their_columns(bits):
    order = torch.randperm(512, generator=torch.Generator().manual_seed(3))
    record = scanned(integers(normal(), bits, 128)[:, order])
    assert (record["verdict"], record["bits"], record["group_size"]) == ("dequantized", bits, 128)
    assert record["method"] == f"{bits}-bit integer, columns in any order"


def test_eight_bits_in_any_order_leave_nothing_to_see():
    order = torch.randperm(512, generator=torch.Generator().manual_seed(3))
    assert scanned(integers(normal(), 8, 128)[:, order])["verdict"] == "no trace"


def test_ratios_of_columns_by_hand():
    """Of codes 1, 2, 3 times a scale a row every ratio is a fraction; of a copied column nothing is counted."""
    scale = torch.rand(40, generator=torch.Generator().manual_seed(0)) + 1
    first = torch.tensor([1.0, 2, 3, 1]).repeat(10) * scale
    second = torch.tensor([3.0, 1, 2, 0]).repeat(10) * scale
    matching, rows = matching_rows(torch.stack([first, second, 2 * first]), 3, 2.0**-11)
    assert matching.tolist() == [30, 0, 20]  # (first, second), (first, its double), (second, the double)
    assert rows.tolist() == [30, 40, 30]
    weight = normal()
    assert find_unordered(sample_matrix("w", weight, 512, 512, F32)) is None
    copied = torch.cat([weight[:, :1]] * 64 + [weight[:, 64:]], 1)
    assert find_unordered(sample_matrix("w", copied, 512, 512, F32)) is None


def test_copied_few_values_leave_few_distinct_values():
    values = normal(128, 60)
    picked = torch.randint(0, 60, (128, 2048), generator=torch.Generator().manual_seed(3))
    record = scanned(values.gather(1, picked))
    assert (record["verdict"], record["method"]) == ("dequantized", "few distinct values")


def test_idempotence_ratio_by_hand():
    """r of a grid that is known: only the rounding to bfloat16 is left; the reference has a step's spread."""
    weight = integers(normal(), 4, 128)
    stored = weight.bfloat16().float()
    record = scanned(weight)
    rounding = float((stored - weight).norm() / weight.norm())
    assert record["r"] == pytest.approx(rounding, rel=0.5)
    assert record["r"] < 0.004
    again = integers(normal(seed=5), 4, 128)
    direct = float((again - normal(seed=5)).norm() / normal(seed=5).norm())  # what quantizing for the first time costs
    assert direct < record["r_reference"] < 1.5 * direct  # noise widens a group, and with it the step


def test_reference_keeps_the_spread_and_loses_the_grid():
    kind = Format("integer", 4)
    groups = integers(normal(), 4, 128).reshape(-1, 128)
    best = fit(groups, kind)
    moved = without_grid(groups, best.step.unsqueeze(1), BF16, torch.Generator().manual_seed(0))
    assert float(best.error.mean()) < 1e-6
    assert float(fit(moved, kind).error.mean()) == pytest.approx(1 / 12, rel=0.35)  # uniform, less what trying gains
    assert float(moved.std() / groups.std()) == pytest.approx(1.0, abs=0.03)
    assert torch.equal(moved.bfloat16().float(), moved)


def test_distinct_share_by_hand():
    lines = torch.tensor([[1.0, 1.0, 2.0, 0.0], [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    assert distinct_share(lines) == pytest.approx((2 / 3 + 1) / 2)


def test_p_value_is_the_normal_tail_times_the_trials():
    trial = Trial(Format("integer", 4), 128, 1, 0.1, 0.2, 0.5, -3.0)
    assert p_value(trial, 48) == pytest.approx(48 * stats.norm.sf(3.0))
    assert p_value(trial, 10**6) == 1.0
    assert p_value(None, 48) is None


def write(folder, **tensors):
    folder.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    return folder


def test_reading_from_disk_gives_the_same_as_from_memory(tmp_path):
    weight = integers(normal(700, 384), 4, 128).bfloat16()
    folder = write(
        tmp_path / "m", w=weight, bias=torch.zeros(700), narrow=torch.zeros(700, 4), stack=normal().unsqueeze(0)
    )
    records = {m.name: scan_matrix(m) for m in read_matrices(folder, ["w", "stack"])}
    assert set(records) == {"w", "stack[0]"}
    assert records["w"] == scan_matrix(sample_matrix("w", weight, 700, 384, BF16))
    assert records["stack[0]"]["verdict"] == "no trace"


def test_scanning_on_all_cores_gives_the_same_in_order_and_holds_few_matrices():
    held, most, count = 0, 0, 6 * torch.get_num_threads()

    def matrices():
        nonlocal held, most
        for i in range(count):
            held += 1
            most = max(most, held - len(finished))
            yield sample_matrix(f"w{i}", normal(64, 256, seed=i).to(BF16), 64, 256, BF16)

    finished = []
    original = checkpoints.scan_matrix

    def counted(matrix):
        record = original(matrix)
        finished.append(record)
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "scan_matrix", counted)
        records = scan_matrices(matrices())
    assert [r["name"] for r in records] == [f"w{i}" for i in range(count)]
    assert records == [scanned(normal(64, 256, seed=i)) | {"name": f"w{i}"} for i in range(count)]
    assert most <= 2 * torch.get_num_threads() + 2


def test_samples_lie_where_they_should():
    """Row slabs are whole rows, column slabs parts of columns; every value is the matrix's own."""
    weight = torch.arange(2000 * 600, dtype=torch.float32).reshape(2000, 600)
    matrix = sample_matrix("w", weight, 2000, 600, F32)
    for slab in matrix.row_slabs:
        first = int(slab[0, 0]) // 600
        assert torch.equal(slab, weight[first : first + len(slab)])
        assert first % 256 == 0  # 600 columns are no multiple of the largest block
    for slab in matrix.column_slabs:
        row, column = divmod(int(slab[0, 0]), 600)
        assert torch.equal(slab, weight[row : row + 256, column : column + len(slab)].t())
    assert matrix.column_lines.shape[1] == 2000
    assert len({int(s[0, 0]) for s in matrix.row_slabs}) == 4


def test_a_damaged_file_is_one_sentence(tmp_path):
    folder = write(tmp_path / "m", w=normal(64, 64))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        list(read_matrices(folder, ["w"]))


def test_model_verdict_names_what_most_weights_were_stored_as():
    records = [
        scanned(integers(normal(), 4, 128)) | {"name": "a"},
        scanned(codebook(normal(128, 128), "NF4", 64)) | {"name": "b"},
        scanned(normal()) | {"name": "c"},
    ]
    verdict = scan_model(records)
    assert (verdict["verdict"], verdict["method"], verdict["group_size"]) == ("dequantized", "4-bit integer", 128)
    assert verdict["matrices_with_trace"] == 2
    total = 512 * 512
    assert verdict["share_of_weights"] == pytest.approx((total + 128 * 128) / (2 * total + 128 * 128))
    assert verdict["share_agreeing"] == pytest.approx(total / (total + 128 * 128), abs=1e-6)
    assert scan_model(records[2:])["verdict"] == "no trace"
    assert scan_model([])["verdict"] == "not scanned"


def test_chance_of_traces_by_hand():
    """Of 3 matrices with a false alarm in 100 each: 1 - 0.99³, 3 × 0.01² × 0.99 + 0.01³, 0.01³."""
    assert [chance_of(k, 3) for k in range(4)] == pytest.approx([1.0, 1 - 0.99**3, 3e-4 * 0.99 + 1e-6, 1e-6])
    seen = numpy.random.default_rng(0).binomial(226, 0.01, 200_000)
    assert chance_of(6, 226) == pytest.approx((seen >= 6).mean(), rel=0.05)


@pytest.mark.parametrize(
    ("traced", "scanned", "verdict"),
    [
        (0, 226, "no trace"),
        (1, 226, "few traces"),
        (8, 226, "few traces"),
        (9, 226, "dequantized"),
        (1, 1, "few traces"),  # one matrix alone is no model
        (2, 7, "few traces"),
        (3, 16, "dequantized"),
    ],
)
def test_a_few_traced_matrices_make_no_dequantized_model(traced, scanned, verdict):
    record = {"shape": [64, 64], "sampled_weights": 4096, "effective_dtype": "bfloat16", "ratio": 0.9, "method": None}
    trace = record | {"verdict": "dequantized", "method": "NF4", "bits": 4, "group_size": 64, "axis": "input"}
    matrices = [(trace if i < traced else record | {"verdict": "no trace"}) | {"name": f"w{i}"} for i in range(scanned)]
    scan = scan_model(matrices)
    assert (scan["verdict"], scan["matrices_with_trace"]) == (verdict, traced)
    if verdict == "few traces":
        assert "too few" in scan["explanation"]
        assert "w0" in scan["explanation"]
