"""Stored formats: one module a family. Whoever quantized a checkpoint, its family reads what it holds.

A family's module has

    METHODS: tuple[str, ...]                         values of `quant_method` in config.json that it reads
    inspect(name, module, checkpoint) -> QuantizedMatrix | None
                                                     a linear layer that the file stores in this format: its bytes, the
                                                     bytes that the format's formula gives, the matrix by arithmetic of
                                                     our own, how the inputs are rounded; name: the one in the file
    unreadable(stated, device) -> str | None         why such a checkpoint cannot be loaded here (optional); stated:
                                                     its quantization_config; device: cpu, cuda or auto
    loading(checkpoint, stated, backend, dtype, device)
                                                     context manager that gives the arguments for from_pretrained
                                                     (optional)
    TAKES_BACKEND: bool                              whether a method's `backend:` chooses its kernel (optional: no)
    finish(model, dtype)                             what is left to do on a model that was just loaded (optional)
    compute_in_float32(model)                        as in a quantizer's module (optional)
    excluded(stated, names) -> set[str]              modules that the checkpoint says it leaves alone (optional)

`quantharm.quantizers.formats.families` finds the family of a checkpoint. A quantizer that writes a format takes its
family's `inspect`. Imports of ML libraries stay inside functions where the configuration needs a module.
"""
