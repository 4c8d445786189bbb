"""Function-preserving twins of a checkpoint with outlier channels, which rounding to few bits hurts.

    python -m benchmarks.stress_twins CHECKPOINT OUT --factor 32 --channels 0.03 --seed 0

Large language models have a few channels whose activations are tens of times the rest; small ones that were trained for a test
have none. A twin multiplies chosen channels of every norm (and chosen rows of every up-projection) by a factor and divides the
columns that read them: in fp32 it computes what the original computes. Figures on a twin are of a stress test.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.models.decoder_layers import StreamedDecoder
from vlm_edge.quant.folding import fold
from vlm_edge.quant.mapping import architecture_of, resolve


def make_twin(checkpoint: Path, out: Path, *, factor: int, channels: float, seed: int = 0) -> None:
    """Write the twin of a checkpoint; factor: a power of two, so that no rounding comes in. channels: share of each input."""
    if factor < 1 or factor & (factor - 1):
        raise ValueError(f"factor {factor} is no power of two")
    decoder = StreamedDecoder(open_checkpoint(checkpoint))
    stored = decoder.stored()
    if checkpoint.resolve() != out.resolve():
        shutil.copytree(checkpoint, out, dirs_exist_ok=True)
    files = {path: load_file(path) for path in out.glob("*.safetensors")}
    generator = torch.Generator().manual_seed(seed)
    # One choice for all layers, as outlier channels keep their place along the residual stream.
    stream = _chosen(decoder.width, channels, generator)
    for index in range(decoder.count):
        with torch.no_grad():
            layer = decoder.layer(index)
            for pair in resolve(architecture_of(decoder.kind), layer, decoder.config):
                if pair.fold == "none" or pair.source.endswith(("v_proj", "qkv_proj")):
                    continue
                width = layer.get_submodule(pair.linears[0]).weight.shape[1]
                chosen = stream if "norm" in pair.fold else _chosen(width, channels, generator)
                scales = torch.ones(width)
                scales[chosen] = 1 / factor
                fold(pair, layer, scales, stored=None)
            for name, parameter in layer.named_parameters():
                ref = stored[f"{decoder.path}.layers.{index}.{name}"]
                tensors = files[out / ref.path.name]
                tensors[ref.name] = parameter.data.to(tensors[ref.name].dtype).clone()
    for path, tensors in files.items():
        save_file(tensors, path, metadata={"format": "pt"})


def _chosen(width: int, share: float, generator: torch.Generator) -> torch.Tensor:
    return torch.randperm(width, generator=generator)[: max(1, round(width * share))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--factor", type=int, default=32)
    parser.add_argument("--channels", type=float, default=0.03)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_twin(
        arguments.checkpoint, arguments.out, factor=arguments.factor, channels=arguments.channels, seed=arguments.seed
    )
