"""integrity.json: whether a checkpoint is what it is said to be."""

from typing import NotRequired, TypedDict

from quantharm.common.records.parts import Finished, Interval


class Files(TypedDict):
    """Files against a manifest: as recorded when fetched, or signed by the owner."""

    kind: str  # of the manifest: recorded or signed
    verified: bool
    files: int  # in the manifest
    missing: list[str]
    wrong: list[str]  # with other content
    extra: list[str]  # that the manifest does not name
    explanation: str
    signature: NotRequired[str]  # file
    public_key: NotRequired[str]  # file


class Behaviour(TypedDict):
    """Divergence from the log-prob store of the original."""

    kl_nats_mean: float
    kl_nats_ci95: Interval | None
    noise_floor_kl_nats: float | None  # of the baseline against its own store
    limit_kl_nats: float  # above it, it is not the original on any hardware
    same_limit_kl_nats: float  # up to it, it is the original
    eight_bit_kl_nats: float | None  # of the original with weights rounded to 8 bits
    top1_agreement: float
    verdict: str  # same, cannot be told, different
    same_as_original: bool | None
    explanation: str
    store_model: NotRequired[str]  # the model that filled the store


class DistinctShares(TypedDict):
    """Distinct values ÷ values, and the same after a small relative move."""

    distinct_share_of_block: float  # in blocks of 128
    distinct_share_of_block_reference: float
    distinct_share_of_row: float
    distinct_share_of_row_reference: float


class MatrixScan(DistinctShares):
    """Traces of quantization in one matrix, by the best format or the best of those that failed."""

    name: str
    shape: list[int]  # [rows, columns]
    stored_dtype: str
    effective_dtype: str  # the narrowest that holds every weight
    sampled_weights: int
    verdict: str  # dequantized or no trace
    method: str | None
    bits: int | None
    group_size: int | str | None  # weights that share a scale, or `whole`
    axis: str | None
    r: float | None  # error from the format's levels ÷ norm of the weights
    r_reference: float | None  # the same of weights without a grid
    ratio: float | None  # r ÷ r_reference over the groups
    t: float | None  # of Student's test of the groups' errors
    closest: str | None  # format
    zero_share: float
    p_value: float | None  # Bonferroni over the formats tried


class ScanFigures(TypedDict):
    """Traces of quantization over the matrices of a checkpoint."""

    verdict: str  # dequantized, few traces, no trace, packed, partly packed, not scanned
    method: NotRequired[str | None]  # by the traces
    bits: NotRequired[int | None]
    group_size: NotRequired[int | str | None]  # weights that share a scale, or `whole`
    axis: NotRequired[str | None]
    matrices_scanned: NotRequired[int]
    matrices_with_trace: NotRequired[int]
    share_of_weights: NotRequired[float]  # in matrices with a trace
    share_agreeing: NotRequired[float | None]  # of the weights with a trace, those of this format, group and axis
    chance_if_never_quantized: NotRequired[float]  # of at least as many matrices with a trace
    coverage: NotRequired[float]  # sampled share of the weights
    effective_dtypes: NotRequired[list[str]]


class ScanVerdict(ScanFigures):
    explanation: str


class FolderScan(ScanVerdict):
    matrices: list[MatrixScan]
    findings: list[str]  # contradictions between config.json and the storage of the weights
    matrices_packed: NotRequired[int]  # openly stored as quantized
    foreign_matrices: NotRequired[int]  # that the architecture lacks


class DequantizedScan(ScanVerdict):
    matrices: list[MatrixScan]
    matrices_of_checkpoint: int  # quantized ones, of which some are scanned


class FolderIntegrity(TypedDict):
    """Findings on a checkpoint that somebody handed over."""

    checkpoint: str  # folder
    manifest: Files | None  # signed by its owner
    store_manifest: Files | None  # of the store with which its behaviour is compared
    behaviour: Behaviour | None
    scan: FolderScan
    verified: bool | None  # null where nothing vouches for it
    explanation: str


class CellIntegrity(TypedDict):
    """Findings on a cell of the workflow."""

    model: str
    method: str
    checkpoint: str  # folder
    manifest: Files  # as recorded
    signed_manifest: Files | None  # of the model, signed by its owner; in the baseline's record
    behaviour: Behaviour
    scan: FolderScan
    if_dequantized: DequantizedScan | None  # the scan of the cell's dequantized matrices
    verified: bool
    explanation: str


class IntegrityRecord(CellIntegrity, Finished):
    """integrity.json of a cell."""


class FolderIntegrityRecord(FolderIntegrity, Finished):
    """The record of a folder, written by the command."""
