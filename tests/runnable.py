"""Checkpoints of every family in miniature that can be asked: tokenizer, processor, and bundles made from them.

Graphs are the concern of other tests: unless asked for, torch stands in for both (tests/reference_engine.py).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from tests import tiny_vlms
from tests.exportable import PREPROCESSORS
from tests.reference_engine import TorchEncoder, TorchEngine
from vlm_edge import AskOptions, Pipeline
from vlm_edge.backends.onnx import export, references
from vlm_edge.core import discover
from vlm_edge.core.bundle import Bundle, open_bundle, reference, write_manifest
from vlm_edge.core.contracts import Backend
from vlm_edge.core.specs import TextSpec
from vlm_edge.pipeline.answering import run
from vlm_edge.pipeline.answering.encoders import open_encoder
from vlm_edge.pipeline.exporting import export as export_module
from vlm_edge.pipeline.exporting.export import ALL_COMPONENTS, COMPONENTS, ExportOptions, export_model

STEPS = 24
SPREAD = 8
GAP = 1e-3
"""Below this distance of the two largest logits, rounding may choose the token."""
MERGED = ("\n\n", "th", "the", "qu")
MARKERS = [f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)]
IDEFICS = ["<image>", "<fake_token_around_image>", "<end_of_utterance>"]
QWEN = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"]
INTERN = ["<IMG_CONTEXT>", "<img>", "</img>", "<video>", "<|im_start|>", "<|im_end|>"]
SPECIAL: dict[str, list[str]] = {
    "llava": ["<image>"],
    "llava_next": ["<image>"],
    "internvl": INTERN,
    "idefics3": [*IDEFICS, "<global-img>", "<|im_start|>", *MARKERS],
    "idefics2": IDEFICS,
    "paligemma": ["<image>"],
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
}
"""Each family's control tokens; the first is its placeholder."""
NAMED = {
    "internvl": {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "paligemma": {"image_token": "<image>"},
}  # fmt: skip
WITHOUT_FIRST = ("internvl", "qwen2_vl", "qwen2_5_vl")
"""Families whose texts begin with no token of their own."""
TEXT = {
    "hidden_size": 60, "intermediate_size": 104, "num_hidden_layers": 5, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
HEAD_DIM = {"head_dim": 16}
"""Not 60 / 6; Qwen-VL's decoders have no such setting."""
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
ROPE = {"hidden_size": 96, "rope_parameters": MROPE}
PREPROCESSOR = {
    **PREPROCESSORS,
    "idefics3": PREPROCESSORS["idefics3"] | {"size": {"longest_edge": 84}},
    "idefics2": PREPROCESSORS["idefics2"] | {"do_image_splitting": True},
    "paligemma": PREPROCESSORS["paligemma"] | {"image_seq_length": 16},
}
QUESTIONS = ("what is the total?", "quite the\n\nother question: 7")


def tokenizer(family: str) -> Tokenizer:
    """A byte-level BPE of a few merges, and the family's control tokens behind `<s>`, `</s>` and `<pad>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    merges = []
    for word in MERGED:
        pieces = [symbol for symbol, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(word)]
        joined = "".join(pieces)
        for end in range(2, len(joined) + 1):
            if joined[:end] not in vocab:
                merges.append((joined[: end - 1], joined[end - 1]))
                vocab[joined[:end]] = len(vocab)
    made = Tokenizer(models.BPE(vocab, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>", "<pad>", *SPECIAL[family]])
    if family not in WITHOUT_FIRST:
        made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", special_tokens=[("<s>", 0)])
    return made


def text_config(family: str, *, tied: bool) -> dict[str, Any]:
    """The decoder's sizes, with as many words as the tokenizer has, and one more that it never gives."""
    whole = {**TEXT, "vocab_size": tokenizer(family).get_vocab_size() + 1, "tie_word_embeddings": tied}
    return whole | (ROPE if family.startswith("qwen") else HEAD_DIM)


@dataclass(frozen=True)
class Variant:
    """A family with another tower, decoder or way to cut images.

    model: makes one whose decoder is replaced.  preprocessor, processor: what differs in the files of the family.
    """

    family: str
    model: Callable[[], Any]
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)


FULL = {"vision_feature_select_strategy": "full"}
VARIANTS: dict[str, Variant] = {
    **{family: Variant(family, tiny_vlms.FAMILIES[family].model) for family in SPECIAL},
    "llava, SigLIP": Variant(
        "llava", lambda: tiny_vlms.llava(tiny_vlms.SIGLIP, -2, "full"), processor=FULL | {"num_additional_image_tokens": 0}
    ),
    "llava, DINOv2": Variant("llava", lambda: tiny_vlms.llava(tiny_vlms.DINO)),
    "llava, class token kept": Variant("llava", lambda: tiny_vlms.llava(tiny_vlms.CLIP, -2, "full"), processor=FULL),
    "llava, Qwen2": Variant("llava", tiny_vlms.llava, text={"model_type": "qwen2"}),
    "smolvlm": Variant("idefics3", lambda: tiny_vlms.idefics3("SmolVLM")),
    "idefics2, whole images": Variant("idefics2", tiny_vlms.idefics2, {"do_image_splitting": False}),
    "paligemma 2": Variant("paligemma", tiny_vlms.paligemma, text={"model_type": "gemma2", "query_pre_attn_scalar": 16}),
}  # fmt: skip


def build(name: str, *, tied: bool = False) -> Any:
    """The variant's model with this module's decoder."""
    variant = VARIANTS[name]
    family = variant.family
    config = variant.model().config
    plain = config.to_dict()
    ids = tokenizer(family).token_to_id
    image = ids(SPECIAL[family][0])
    kind = {"model_type": config.text_config.model_type}
    plain["text_config"] = {**kind, **text_config(family, tied=tied), **variant.text}
    plain |= {"tie_word_embeddings": tied, "image_token_id": image, "image_token_index": image}
    plain |= {"image_seq_length": 4} if family == "internvl" else {}
    if family.startswith("qwen"):
        plain |= {
            "video_token_id": ids("<|video_pad|>"), "vision_start_token_id": ids("<|vision_start|>"),
            "vision_end_token_id": ids("<|vision_end|>"),
        }  # fmt: skip
        width = "hidden_size" if family == "qwen2_vl" else "out_hidden_size"
        plain["vision_config"] = {**plain["vision_config"], width: plain["text_config"]["hidden_size"]}
    kind = transformers.AutoModelForImageTextToText._model_mapping[type(config)].__name__
    model = tiny_vlms.build(kind, type(config).from_dict(plain))
    model.tie_weights()
    with torch.no_grad():  # logits of a trained model's spread: fewer of the best two are nearly equal
        model.get_decoder().norm.weight.mul_(SPREAD)
    return model


@dataclass
class Runnable:
    """A family's model, its bundle, and transformers' processor for the same files."""

    family: str
    model: Any
    processor: Any
    bundle: Bundle
    traced: bool = False

    def pipeline(self, *, graph: bool = False) -> tuple[Pipeline, TorchEngine]:
        """A pipeline over the bundle's encoder and the reference decoder, or the bundle's own."""
        real = discover.backend("onnx")
        engine = TorchEngine(self.model)
        encoder = open_encoder if self.traced else lambda *_: TorchEncoder(self.family, self.model)

        def start(path: Path, text: TextSpec, target: str, threads: int, context: int) -> TorchEngine:
            engine.graph = real.engine(path, text, target, threads, context) if graph else None
            return engine

        with (
            patch.object(discover, "backend", lambda _: Backend("onnx", real.encoder, start)),
            patch.object(run, "open_encoder", encoder),
        ):
            return Pipeline.load(self.bundle, device="cpu", threads=1), engine

    def inputs(self, question: str, images: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """What transformers' processor makes of a question with its images in front."""
        pictures = [Image.fromarray(image) for image in images]
        if self.family == "paligemma":
            # It turns its own tensors into an array, of which NumPy 2 warns; so it is asked for lists.
            made = self.processor([pictures], "<image>" * len(pictures) + question)
            return {name: torch.as_tensor(np.asarray(value)) for name, value in made.items()}
        content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": question}]
        return dict(
            self.processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=True, return_dict=True, add_generation_prompt=True,
                return_tensors="pt",
            )
        )  # fmt: skip

    def generate(self, inputs: Mapping[str, torch.Tensor], steps: int = STEPS) -> tuple[list[int], np.ndarray]:
        """Greedy tokens of transformers' `generate`, and the logits [steps, V] behind them."""
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad():
            out = self.model.generate(
                **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        logits = torch.cat(out.logits).numpy()
        return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), logits


def make(name: str, folder: Path, *, tied: bool = False, traced: bool = False) -> Runnable:
    """Save a variant's checkpoint into `folder`/checkpoint and export it to `folder`/bundle.

    traced: with both graphs, which takes many times longer than all the rest; otherwise with files that stand for them.
    """
    variant, model = VARIANTS[name], build(name, tied=tied)
    family, preprocessor = variant.family, PREPROCESSOR[variant.family] | variant.preprocessor
    checkpoint, out = folder / "checkpoint", folder / "bundle"
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 2
    model.save_pretrained(checkpoint)
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(preprocessor), "utf-8")
    first = {} if family in WITHOUT_FIRST else {"bos_token": "<s>"}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(family), eos_token="</s>", pad_token="<pad>", **first,
        extra_special_tokens=NAMED.get(family, {}),
    )  # fmt: skip
    fast.save_pretrained(checkpoint)
    with nullcontext() if traced else without_graph():
        export_model(checkpoint, out, ExportOptions(ALL_COMPONENTS if traced else COMPONENTS, threads=1))
    bundle = open_bundle(out) if traced else complete(open_bundle(out), model)
    return Runnable(family, model, processor(family, fast, preprocessor, variant.processor), bundle, traced)


@contextmanager
def without_graph() -> Iterator[None]:
    """Exports write all of a bundle but its vision graph, in place of which a file stands that nothing can run."""

    def write(_traced: Any, folder: Path, **_named: Any) -> Any:
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"the encoder of these tests needs no graph")
        return SimpleNamespace(files=("model.onnx",), parity=SimpleNamespace(results=tuple), scheme="", why="")

    def save(_rows: Any, path: Path) -> None:
        path.write_bytes(b"no rows")

    with (
        patch.object(export_module, "tower_inputs", lambda *_: []),
        patch.object(
            export, "trace", lambda *_, **__: SimpleNamespace(observation=SimpleNamespace(outputs=[]), values={})
        ),
        patch.object(export, "write", write),
        patch.object(references, "keep_rows", lambda *_: None),
        patch.object(references, "save", save),
    ):
        yield


def complete(bundle: Bundle, model: Any) -> Bundle:
    """The bundle with a table of embeddings, and a file where a decoder's graph would be."""
    (bundle.root / "llm/cpu").mkdir(parents=True, exist_ok=True)
    save_file({"embed": model.get_input_embeddings().weight.detach().numpy()}, bundle.root / "llm/embed.safetensors")
    (bundle.root / "llm/cpu/model.onnx").write_bytes(b"the engine of these tests needs no graph")
    added = (
        reference(bundle.root, "llm/embed.safetensors", role="llm.embedding", dtype="fp32"),
        reference(bundle.root, "llm/cpu/model.onnx", role="llm.graph", target="cpu", dtype="fp32"),
    )
    return write_manifest(bundle.root, replace(bundle.manifest, artifacts=(*bundle.manifest.artifacts, *added)))


def processor(family: str, fast: Any, preprocessor: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """transformers' processor of the family, over its Pillow image processor and the checkpoint's tokenizer."""
    template = importlib.import_module(f"vlm_edge.models.{family}.prompt").RULES.template
    name, module, more = PROCESSORS[family]
    more = {**more, **changes}
    made = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    settings = {key: value for key, value in preprocessor.items() if key != "image_processor_type"}
    images = getattr(made, f"{IMAGE_CLASSES[module]}ImageProcessorPil")(**settings)
    images.image_seq_length = preprocessor.get("image_seq_length")
    kind = getattr(transformers, name)
    if "video_processor" not in kind.get_attributes():
        return kind(image_processor=images, tokenizer=fast, chat_template=template, **more)
    # Its constructor asks for a video processor, which needs torchvision; for images it is not read.
    kind = type(kind.__name__, (kind,), {"check_argument_for_proper_class": lambda *_: None})
    return kind(image_processor=images, tokenizer=fast, video_processor=None, chat_template=template, **more)


PROCESSORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llava": ("LlavaProcessor", "clip", {
        "patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
    }),
    "llava_next": ("LlavaNextProcessor", "llava_next", {
        "patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
    }),
    "internvl": ("InternVLProcessor", "got_ocr2", {"image_seq_length": 4}),
    "idefics3": ("Idefics3Processor", "idefics3", {"image_seq_len": 4}),
    "idefics2": ("Idefics2Processor", "idefics2", {"image_seq_len": 5}),
    "paligemma": ("PaliGemmaProcessor", "siglip", {}),
    "qwen2_vl": ("Qwen2VLProcessor", "qwen2_vl", {}),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "qwen2_vl", {}),
}  # fmt: skip
IMAGE_CLASSES = {
    "clip": "CLIP", "llava_next": "LlavaNext", "got_ocr2": "GotOcr2", "idefics3": "Idefics3", "idefics2": "Idefics2",
    "siglip": "Siglip", "qwen2_vl": "Qwen2VL",
}  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """One greedy answer beside transformers': steps that were compared, the first that differed, whether a tie ended it.

    max_error: of the logits of those steps, of which the largest is `largest`.
    """

    steps: int
    mismatch: int | None
    stopped: bool
    max_error: float
    largest: float


def compare(
    runnable: Runnable, question: str, images: Sequence[np.ndarray], steps: int = STEPS, *, graph: bool = False
) -> Compared:
    """Ask both; stop at the first step where transformers' two best tokens are nearer than GAP."""
    pipeline, engine = runnable.pipeline(graph=graph)
    tokens, logits = runnable.generate(runnable.inputs(question, images), steps)
    pipeline.ask(list(images), question, AskOptions(tiling="grid", reduce="none", max_new_tokens=steps))
    best = np.sort(logits, axis=1)
    gaps = best[:, -1] - best[:, -2]
    error, largest = 0.0, float(np.abs(logits).max())
    for step, token in enumerate(tokens):
        if gaps[step] < GAP:
            return Compared(step, None, True, error, largest)
        given = engine.logits[step] if step < len(engine.logits) else None
        if given is None or int(given.argmax()) != token:
            return Compared(step, step, False, error, largest)
        error = max(error, float(np.abs(given - logits[step]).max()))
    return Compared(len(tokens), None, False, error, largest)
