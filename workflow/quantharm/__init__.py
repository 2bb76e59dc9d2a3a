"""quantharm: what quantization does to a language model, measured. One module a stage."""
