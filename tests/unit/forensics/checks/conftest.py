"""What several checks are broken with."""

import pytest

from quantharm.models.loading import load_cell
from quantharm.quantizers import quantized_layers


@pytest.fixture(scope="session")
def damaged_copy():
    """damaged_copy(cell): (model, matrices) loaded anew from the cell's files, to be broken."""

    def load(cell):
        model = load_cell(cell.record, "cpu")
        return model, quantized_layers.quantized_matrices(model, cell.checkpoint, cell.record["quantizer"])

    return load
