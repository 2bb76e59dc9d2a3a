"""The config's `report:`: where the report's verdicts change. The schema describes each key and has its default."""

from typing import TypedDict

Scale = dict[str, float]  # {negligible, low, moderate}: each level's upper limit


class DefenseThresholds(TypedDict):
    perplexity_change_percent: float
    kl_nats: float
    high_stakes_categories: list[str]
    high_stakes_kl_nats: float


class ApplicationThresholds(TypedDict):
    categories: list[str]
    low: float  # nats
    medium: float


class Thresholds(TypedDict):
    kl_nats: Scale
    perplexity_change_percent: Scale
    noise_floor_factor: float
    top1_agreement: float
    other_hardware_kl_nats: dict[str | None, float]  # by dtype
    speed_process_spread_percent: dict[str, float]  # by device
    unsteady_percent: float
    busy_percent: float
    prompts_to_test_a_category: int
    defense: DefenseThresholds
    applications: dict[str, ApplicationThresholds]
