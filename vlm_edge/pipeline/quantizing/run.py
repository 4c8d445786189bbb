"""The heavy half of `quantize`: imports torch, reads the calibration data, streams the layers, assembles the files."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vlm_edge.backends.onnx.int4_decoder import Int4Settings
from vlm_edge.core import host
from vlm_edge.core.bundle_writer import Staged
from vlm_edge.core.calibration import HELD_OUT_EVERY
from vlm_edge.core.checkpoint import Checkpoint
from vlm_edge.core.load import to_plain
from vlm_edge.core.specs import TextSpec
from vlm_edge.memory.quantize_plan import MemoryPlan, Sizes, plan
from vlm_edge.models.decoder_layers import StreamedDecoder
from vlm_edge.models.subjects import subject_from
from vlm_edge.models.text_weights import write_table
from vlm_edge.pipeline.exporting.llm import EMBEDDING
from vlm_edge.pipeline.exporting.source import Source, source_hashes
from vlm_edge.pipeline.quantizing import awq_checkpoint
from vlm_edge.pipeline.quantizing.calibration_set import (
    FamilyPrompt,
    PlainPrompt,
    Prompt,
    TextTokenizer,
    Tower,
    build_sequences,
    split,
)
from vlm_edge.pipeline.quantizing.int4_export import Int4Decoder, Int4Job, check_int4, export_int4
from vlm_edge.pipeline.quantizing.quantize import (
    AWQ,
    WORK,
    Finished,
    OnNote,
    OnProgress,
    Progress,
    QuantizeOptions,
    calibration_path,
    gate,
    memory_refusal,
    seqlen_of,
    skipped_parts,
    versions,
)
from vlm_edge.quant.calibrate import Sample, digest, read_samples
from vlm_edge.quant.mapping import architecture_of, linear_layers, resolve
from vlm_edge.quant.memory_limit import MemoryLimit, release
from vlm_edge.quant.qparams import Scheme
from vlm_edge.quant.sequences import CalibrationSequence, Placement
from vlm_edge.quant.stream import Divergence, Job, check_sizes, divergence, stream
from vlm_edge.quant.workspace import LayerReport, Workspace


class Run:
    """One call of `quantize`; everything that can be refused is refused before anything is written."""

    def __init__(
        self, checkpoint: Checkpoint, described: Source | None, out: Path, options: QuantizeOptions,
        on_progress: OnProgress, on_note: OnNote, sequences: Sequence[CalibrationSequence] | None,
    ) -> None:  # fmt: skip
        self.checkpoint, self.described, self.out, self.options = checkpoint, described, out, options
        self.on_progress, self.on_note, self.given = on_progress, on_note, sequences
        self.scheme = Scheme(options.bits, options.group_size, options.symmetric)
        self.decoder = StreamedDecoder(checkpoint, _device(options.device))
        self.architecture = architecture_of(self.decoder.kind)
        self.context: int = self.decoder.config.max_position_embeddings
        self.layer = self.decoder.meta_layer(0)
        check_sizes(self.layer, self.scheme)
        resolve(self.architecture, self.layer, self.decoder.config)
        self.seqlen = seqlen_of(options, self.context)
        self.text = self._checked_text() if options.target != "none" else None
        self.base_bytes = host.rss_bytes()
        self.limit = MemoryLimit(options.max_memory_bytes)
        self.samples: tuple[Sample, ...] = ()
        self.needs_data = options.method == "awq" or options.kv_cache_dtype != "auto"
        if self.needs_data and sequences is None:
            self.samples = read_samples(calibration_path(options), limit=options.samples)
        self.plan = self._checked_plan(self._estimate())

    def _checked_text(self) -> TextSpec:
        """The decoder's sizes; raises for one that no graph can be made of."""
        model = self.described
        text = model.spec.text if model else subject_from(self.checkpoint.root.name, self.checkpoint.config).text
        check_int4(text)
        return text

    def _checked_plan(self, made: MemoryPlan) -> MemoryPlan:
        limit = self.options.max_memory_bytes
        if limit is not None and made.spilled > limit:
            raise memory_refusal(limit, made.spilled)
        return made

    def _estimate(self, lengths: Sequence[int] | None = None) -> MemoryPlan:
        """Before the sequences are there, each is taken to be as long as allowed."""
        linears = linear_layers(self.layer).values()
        config = self.decoder.config
        lengths = lengths or [self.seqlen] * max(1, len(self.samples))
        held = -(-len(lengths) // HELD_OUT_EVERY)
        eager = getattr(self.decoder.config, "_attn_implementation", "sdpa") == "eager"
        spec = self.described.spec if self.described else None
        with_image = any(sample.image for sample in self.samples)
        tower = spec.vision.parameters + spec.projector.parameters if spec and with_image else 0
        sizes = Sizes(
            layer=sum(parameter.numel() for parameter in self.layer.parameters()),
            largest=max(linear.weight.numel() for linear in linears),
            hidden=config.hidden_size,
            intermediate=max(linear.in_features for linear in linears),
            group_size=self.scheme.group_size,
            longest=max(lengths),
            states=(sum(lengths) + 2 * held * max(lengths)) * config.hidden_size,
            search_tokens=min(sum(lengths), self.options.search_tokens),
            head_scores=3 * config.num_attention_heads if eager else 0,
            tower=tower,
            tower_tokens=spec.geometry.tokens_per_view if spec and with_image else 0,
            graph=self.options.target != "none",
        )
        return plan(sizes, self.base_bytes, method=self.options.method)

    def finish(self, stage: Path) -> Finished:
        """Quantize, check, and write everything into the stage folder."""
        started = time.monotonic()
        with self.limit.enforced():
            work = Workspace(self.out / WORK, self._fingerprint())
            if work.resumed:
                self.on_note(f"{work.resumed} of {self.decoder.count} layers were finished before")
            elif self.needs_data and not work.state.sequences:
                self._calibrate(work, stage)
            elif work.state.sequences:
                self.on_note("the calibration data was prepared before")
            lengths = [place.length for place in work.state.sequences]
            made = self._checked_plan(self._estimate(lengths)) if lengths else self.plan
            limit = self.options.max_memory_bytes
            resident = limit is None or made.resident <= limit
            job = Job(
                self.decoder.count, self.architecture, self.decoder.config, self.scheme, self.options.method, resident,
                self.options.search_tokens, keep_first=self.options.kv_cache_dtype != "auto",
            )  # fmt: skip
            stream(self.decoder, work, job, self.limit, self._progress(work))
            found = divergence(self.decoder, work) if self.options.method == "awq" else None
            if found is not None:
                gate(found.kl, found.plain_kl, self.options.method)
            files = self._assemble(work, stage)
            graph = self._graph(work, stage)
            self.limit.check()
        planned = max(
            made.resident if resident else made.spilled,
            self.base_bytes + graph.report.get("loaded_bytes", 0) if graph is not None else 0,
        )
        report = self._report(work, made, found, resident, planned, time.monotonic() - started)
        if graph is None:
            return Finished(files, report, work.remove)
        report["onnx"] = graph.report
        return Finished([*files, *graph.files], report, work.remove, graph.parity)

    def _calibrate(self, work: Workspace, stage: Path) -> None:
        if self.given is not None:
            sequences, counts = list(self.given), {"given": len(self.given)}
        else:
            self.on_note(f"prepare {len(self.samples)} calibration samples")
            prompt, tower = self._prompt(stage)
            with host.large_blocks_apart():
                sequences, counts = build_sequences(self.samples, prompt, tower, seqlen=self.seqlen, limit=self.limit)
        calibrating, held_out = split(sequences)
        work.start(calibrating, held_out, counts)
        del sequences, calibrating, held_out
        release()

    def _prompt(self, stage: Path) -> tuple[Prompt, Callable[[], Tower] | None]:
        model = self.described
        if model is None:
            return PlainPrompt(TextTokenizer(self.checkpoint), self.decoder), None
        return FamilyPrompt(model, stage), lambda: Tower(model, str(self.decoder.device))

    def _fingerprint(self) -> str:
        """Of everything that the layers depend on, so that a run goes on only with what it began with."""
        weights = sorted({ref.path for ref in self.checkpoint.tensors.values()})
        stamps = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights]
        options = self.options
        asked = [options.method, asdict(self.scheme), options.search_tokens, str(self.decoder.device)]
        data: Any = None
        if self.given is not None:
            data = time.time_ns()
        elif self.needs_data:
            data = [digest(self.samples), self.seqlen, options.kv_cache_dtype != "auto"]
            data.append(awq_checkpoint.companion_hashes(self.checkpoint))
        content = [source_hashes(self.checkpoint), stamps, asked, data, versions()]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _progress(self, work: Workspace) -> Callable[[LayerReport], None]:
        started, before = time.monotonic(), work.resumed

        def on_layer(report: LayerReport) -> None:
            done = report.index + 1 - before
            left = (time.monotonic() - started) / done * (self.decoder.count - report.index - 1)
            ratio = report.error / report.plain_error if report.error is not None and report.plain_error else None
            self.on_progress(
                Progress(report.index + 1, self.decoder.count, ratio, left, host.rss_bytes(), self.limit.peak_bytes)
            )

        return on_layer

    def _assemble(self, work: Workspace, stage: Path) -> list[Staged]:
        layers = [work.layer_path(index) for index in range(self.decoder.count)]
        skipped = awq_checkpoint.skip_list(skipped_parts(self.described))
        paths = awq_checkpoint.write_checkpoint(
            self.checkpoint, self.decoder, layers, stage / AWQ, self.scheme, skipped
        )
        files = [_staged(path, stage) for path in paths]
        dtype = write_table(self.decoder.embedding, stage / EMBEDDING)
        return [*files, Staged(EMBEDDING, "llm.embedding", dtype=dtype)]

    def _graph(self, work: Workspace, stage: Path) -> Int4Decoder | None:
        if self.text is None:
            return None
        release(cycles=True)
        layers = [work.layer_path(index) for index in range(self.decoder.count)]
        settings = Int4Settings(self.scheme, self.options.lm_head)
        job = Int4Job(
            self.checkpoint, self.decoder, self.text, layers, self.options.target, settings, self.limit, host.real_cores(),
            self.options.kv_cache_dtype, self._first_states(work),
        )  # fmt: skip
        return export_int4(job, stage, self.on_note)

    def _first_states(self, work: Workspace) -> Iterator[tuple[torch.Tensor, Placement]]:
        """Calibration sequences as the first layer reads them."""
        if self.options.kv_cache_dtype == "auto":
            return
        states, places = work.hidden_states(resident=False), work.placements()
        states.open(0)
        for index in range(len(places) - 3 * work.state.held_out):
            yield states.get(index), places[index]

    def _report(
        self, work: Workspace, made: MemoryPlan, found: Divergence | None, resident: bool, planned: int, seconds: float
    ) -> dict[str, Any]:
        options = {
            key: value
            for key, value in asdict(self.options).items()
            if key not in ("calib", "max_memory_bytes", "bars")
        }
        gates: dict[str, Any] = {"bit_exact": True}
        if found is not None:
            gates["kl_no_worse_than_rtn"] = found.kl <= found.plain_kl
        counts = work.state.counts or {}
        return {
            "model": self.checkpoint.root.resolve().name,
            "source": source_hashes(self.checkpoint),
            "architecture": self.decoder.kind,
            "options": {
                **options,
                "seqlen": self.seqlen,
                "calib": self.options.calib.name if self.options.calib else "",
            },
            "calibration": {**counts, "sequences": len(work.state.sequences), "held_out": work.state.held_out},
            "layers": to_plain(work.state.layers),
            "held_out": None if found is None else to_plain(found),
            "gates": gates,
            "memory": {
                "limit_bytes": self.options.max_memory_bytes,
                "planned_bytes": planned,
                "least_bytes": made.spilled,
                "peak_bytes": max(self.limit.peak_bytes, host.rss_bytes()),
                "kept_peak_bytes": self.limit.kept_bytes,
                "hidden_states": "memory" if resident else "file",
            },
            "resumed_layers": work.resumed,
            "seconds": math.ceil(seconds * 1000) / 1000,
            "device": str(self.decoder.device),
            "threads": torch.get_num_threads(),
            "versions": versions(self.options.target),
        }


def _staged(path: Path, stage: Path) -> Staged:
    is_weights = path.suffix == ".safetensors"
    return Staged(
        path.relative_to(stage).as_posix(),
        "llm.awq" if is_weights else "llm.awq.files",
        dtype="int4" if is_weights else "",
    )


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
