"""Joins families and backends: one module named after each command, and beside it those that it is made of.

An image and a question -> an answer: preflight.py finds the bundle and lowers the tiles until question_plan.py's plan fits; run.py
holds what is loaded (encoders.py opens the vision part) and asks; views.py turns an image into visual tokens, with the tiles of
tile_choice.py; sampling.py and stream.py turn logits into text; answer.py is what comes out. options.py is what may be chosen.

A configuration -> a plan: inputs.py finds what MODEL names; plan.py asks vlm_edge.memory and gathers the report; plan_page.py and
plan_chart.py draw it; measure.py holds it against a run in a process of its own.

A checkpoint -> a bundle: source.py describes the checkpoint (hub.py fetches it); export.py makes the vision graph, export_llm.py
the decoder's; quantize.py checks what is asked and quantize_run.py does it, and int4_export.py makes that a decoder; build.py does
all of them in the order of build_steps.py.  verify.py asks vision_checks.py, decoder_checks.py and awq_checks.py.

A data file -> scores: rows.py reads it, evaluate.py asks and metrics.py scores; sweep_run.py does so in many ways, paired.py
compares two.  batch.py only answers, and bench.py times.

`run --explain` is explain.py with picture.py, view_panels.py and density.py; `doctor` asks machine.py.
"""
