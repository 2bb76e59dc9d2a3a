"""Quantizers: one module each. A new method is one module here and one entry in config.yaml.

A quantizer module has

    SETTINGS                                            JSON Schema properties of its settings, with defaults
    quantize(source, settings, dtype, device, gpus, output, calibration) -> dict
                                                        writes the checkpoint folder `output`; returns extra record keys
    load(folder, settings, source, dtype, device, gpus) -> model
                                                        loads it back from disk, held as it is stored
    inspect(name, module, checkpoint) -> QuantizedMatrix | None
                                                        recognises its own linear layers
    compute_in_float32(model)                           has a loaded model on a CPU multiply its matrices in float32
                                                        (optional; else its 16-bit tensors are held in float32)
    grid(settings) -> str                               its grid in quantharm.quantizers.rounding, for noise (optional)
    conflict(settings, checkpoint_config) -> str | None
                                                        why a model cannot be quantized this way (optional)

Imports of ML libraries stay inside functions: the workflow reads SETTINGS without them.
"""
