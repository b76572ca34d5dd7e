"""Rules for ``init_model_`` by which Transformers' models start as Transformers starts them.

What is in no library's code but in a paper is in docs/recipes.md, a few lines each.
"""

from torchinit.models.recipes.families import bert, gpt2, llama, mixtral, t5, vit

__all__ = ["bert", "gpt2", "llama", "mixtral", "t5", "vit"]
