"""The scan of a whole checkpoint: of a folder, or of a quantized cell's dequantized weights."""

import concurrent.futures
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from quantharm.common.ahead import results_ahead
from quantharm.common.checkpoint_files import gguf_file, listed, weight_files
from quantharm.common.records.integrity import DequantizedScan, FolderScan, MatrixScan
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.forensics.detection.scan import scan_matrix, scan_model
from quantharm.forensics.detection.storage import Storage, read_storage
from quantharm.forensics.detection.weights import FLOATS, Matrix, linear_shape, read_matrices, sample_matrix, spread
from quantharm.models.devices import torch_dtype

SCAN_THREADS = 4  # more would wait for the GIL: a matrix takes some thousand short calls
FLOATS_OF_GGUF = {name: FLOATS[name] for name in ("F32", "F16", "BF16")}
DEQUANTIZED_MATRICES = 16  # of a quantized cell, spread over its depth, that are dequantized and scanned


def scan_matrices(matrices: Iterable[Matrix]) -> list[MatrixScan]:
    """The scan of each matrix, in order; a thread scans whole matrices, since the operations are too small to divide.

    At most two matrices a thread are held at a time, so memory does not grow with the checkpoint.
    """
    cores = torch.get_num_threads()
    threads = min(cores, SCAN_THREADS)
    torch.set_num_threads(1)
    try:
        with concurrent.futures.ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            shown = tqdm(matrices, desc="scan", unit="matrix", mininterval=5)
            return list(results_ahead(pool, scan_matrix, shown, 2 * threads))
    finally:
        torch.set_num_threads(cores)


def read_gguf(path: Path) -> tuple[Storage, Iterator[Matrix]]:
    """The storage of a GGUF file's matrices, and a sample of each that it stores as plain floats."""
    from quantharm.quantizers.formats import gguf_file as stored_gguf

    tensors = [t for t in stored_gguf.tensors_of(path).values() if linear_shape([int(n) for n in reversed(t.shape)])]
    floats = [t for t in tensors if t.tensor_type.name in FLOATS_OF_GGUF]
    packed = [t.name for t in tensors if t.tensor_type.name not in FLOATS_OF_GGUF]

    def sample(tensor) -> Matrix:
        columns, rows = (int(length) for length in tensor.shape)
        dtype = FLOATS_OF_GGUF[tensor.tensor_type.name]
        matrix = torch.from_numpy(tensor.data.copy()).view(dtype).reshape(rows, columns)
        return sample_matrix(tensor.name, matrix, rows, columns, dtype)

    storage = Storage([t.name for t in floats], packed, [], "GGUF" if packed else None)
    return storage, map(sample, floats)


def scan_folder(folder: Path) -> FolderScan:
    """The scan of a checkpoint: of every matrix stored as plain floats, however the others are stored.

    The verdict is `packed` where most matrices are openly stored as quantized and `partly packed` where some are,
    unless the plain floats show traces of quantization. `findings` has contradictions between config.json and the
    storage.
    """
    if not weight_files(folder):
        explanation = f"{folder} has no safetensors to scan"
        return {"verdict": "not scanned", "explanation": explanation, "matrices": [], "findings": []}
    if packed := gguf_file(folder):
        storage, samples = read_gguf(packed)
    else:
        storage = read_storage(folder)
        samples = read_matrices(folder, storage.floats)
    matrices = scan_matrices(samples)
    scan = scan_model(matrices)
    if storage.packed and scan["verdict"] != "dequantized":
        how = storage.claim or "integers or 8-bit floats with scales"
        most = len(storage.packed) >= len(storage.floats)
        of = len(storage.packed) + len(storage.floats)
        scan["verdict"] = "packed" if most else "partly packed"
        scan["method"] = how
        scan["explanation"] = f"{len(storage.packed)} of {of} matrices are openly stored as quantized ({how})" + (
            f"; of those in plain floats: {scan['explanation']}" if matrices else ""
        )
    if storage.findings:
        scan["explanation"] += f"; {'; '.join(storage.findings)}"
    if storage.foreign:
        scan["explanation"] += f"; left out, as the architecture lacks them: {listed(storage.foreign)}"
    return {
        **scan,
        "matrices_packed": len(storage.packed),
        "foreign_matrices": len(storage.foreign),
        "findings": storage.findings,
        "matrices": matrices,
    }


def scan_dequantized(record: QuantizationRecord, device: str) -> DequantizedScan:
    """The scan of a quantized cell's weights, dequantized to its model's dtype: would they pass as the original?"""
    from quantharm.models.loading import load_as_stored
    from quantharm.quantizers import quantized_layers

    model = load_as_stored(record, device)
    matrices = quantized_layers.quantized_matrices(model, Path(record["checkpoint"]), record["quantizer"])
    del model
    known = [(m, m.dequantize) for m in matrices if m.dequantize is not None]
    stored = torch_dtype(record["dtype"])
    scanned = scan_matrices(
        sample_matrix(m.name, dequantize().to(stored), m.rows, m.columns, stored)
        for m, dequantize in spread(known, min(DEQUANTIZED_MATRICES, len(known)))
    )
    scan = scan_model(scanned)
    noticed = scan["verdict"] == "dequantized"
    words = f"dequantized and handed on, it would {'' if noticed else 'not '}be noticed: {scan['explanation']}"
    return {**scan, "explanation": words, "matrices_of_checkpoint": len(matrices), "matrices": scanned}
