"""A seed checkpoint: the weights that every run starts from, written without building the model.

    python examples/seed_checkpoint.py config.json seed

torchtitan starts from it with --checkpoint.initial_load_path seed --checkpoint.initial_load_in_hf.
"""

import argparse

import torchinit
from torchinit import TruncNormal, by

RULES = {
    "**norm*.weight": "ones",
    "**.{o_proj,down_proj}.weight": by(lambda p: TruncNormal(0.02 / (2 * (p.depth + 1)) ** 0.5)),
    "**": TruncNormal(0.02),
}


def main() -> None:
    """Writes the checkpoint, or resumes an interrupted run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", help="a Transformers config.json of a decoder like Llama")
    parser.add_argument("out", help="the directory to be written")
    said = parser.parse_args()
    path = torchinit.write_checkpoint(said.config, said.out, RULES, seed=0, resume=True)
    print(f"{path}: {', '.join(sorted(file.name for file in path.iterdir()))}")


if __name__ == "__main__":
    main()
