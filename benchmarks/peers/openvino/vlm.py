"""A LLaVA in OpenVINO GenAI: python -m benchmarks.peers.openvino.vlm FOLDER THREADS [f32]

FOLDER: as `optimum-cli export openvino` leaves it. A question about an image goes through GenAI's VLMPipeline; tower and decoder
are timed apart through OpenVINO's Runtime on the same files. OpenVINO's defaults for a CPU are kept, unless products are to be f32.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from PIL import Image

from benchmarks.peers.chain import Asked, Parts, prompt, serve, step_times
from benchmarks.peers.openvino.convert import keep_last_token
from benchmarks.peers.openvino.decoder import OpenVino, facts

DECODER, TABLE, TOWER = (f"openvino_{part}_model.xml" for part in ("language", "text_embeddings", "vision_embeddings"))
IMAGE = "<ov_genai_image_0>"
"""GenAI's tag for the first image, behind which it puts a newline itself."""


class GenAi:
    """VLMPipeline, or the parts that it is made of."""

    def __init__(self, folder: Path, threads: int, precision: str) -> None:
        self._folder, self._threads = folder, threads
        self._more = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
        self._settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", **self._more}
        self._pipeline: openvino_genai.VLMPipeline | None = None

    def ask(self, image: str, new: int) -> Asked:
        if self._pipeline is None:
            self._pipeline = openvino_genai.VLMPipeline(str(self._folder), "CPU", **self._settings)
        config = openvino_genai.GenerationConfig(
            max_new_tokens=new, ignore_eos=True, do_sample=False, apply_chat_template=False
        )
        started = time.perf_counter()
        pixels = openvino.Tensor(np.asarray(Image.open(image).convert("RGB"))[None])
        prepared = time.perf_counter()
        metrics = self._pipeline.generate(prompt(IMAGE), images=[pixels], generation_config=config).perf_metrics
        first = prepared + metrics.get_ttft().mean / 1000
        count = metrics.get_num_generated_tokens()
        ends = [first, *[first + metrics.get_tpot().mean / 1000 * (count - 1)] * (count - 1)]
        return step_times(started, ends, metrics.get_num_input_tokens())

    def parts(self) -> Parts:
        self._pipeline = None
        core = openvino.Core()
        tower_graph = core.read_model(self._folder / TOWER)
        tower = core.compile_model(tower_graph, "CPU", self._settings)
        graph = core.read_model(self._folder / DECODER)
        keep_last_token(graph)
        decoder = Embedded(
            graph, self._threads, self._more, core.compile_model(self._folder / TABLE, "CPU", self._settings)
        )
        products = tower.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        vision = f"{matrices(tower_graph)} weights, {products} products"
        return Parts(facts(graph, decoder.compiled), decoder, vision, lambda pixels: tower(pixels)[0])


class Embedded(OpenVino):
    """A decoder that takes embeddings, behind the table that gives them."""

    def __init__(self, model: openvino.Model, threads: int, more: dict, table: openvino.CompiledModel) -> None:
        super().__init__(model, threads, more)
        self._table = table

    def given(self, ids: Sequence[int]) -> dict[str, np.ndarray]:
        return {"inputs_embeds": self._table(np.array([ids], np.int64))[0]}


def matrices(graph: openvino.Model) -> str:
    """Type of the constants that hold most of a graph's weights."""
    sizes: dict[str, int] = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Constant":
            name = node.get_element_type().get_type_name()
            sizes[name] = sizes.get(name, 0) + node.get_byte_size()
    return max(sizes, key=lambda name: sizes[name])


if __name__ == "__main__":
    serve(GenAi(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""))
