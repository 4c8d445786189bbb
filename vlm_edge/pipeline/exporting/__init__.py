"""A checkpoint -> proven graphs in a bundle: what `export` does.

source.py describes the checkpoint (hub.py fetches it) and tools.py says what is missing to read it. export.py makes the vision
graph, traced and compared on example_inputs.py, and llm.py the decoder's; engines.py turns a vision graph into TensorRT
engines.
"""
