"""Whole models of frameworks whose shards are plain tensors, not DTensors; a module for each.

    from torchinit.integrations import megatron
    megatron.init_model_(model, rules, seed=0)

No framework is imported unless it is used: what they set on parameters and modules is read. What
fits a model of one process, or of DTensors, needs none of this: ``torchinit.init_model_``.
"""
