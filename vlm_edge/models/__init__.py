"""One folder per model family (see core.contracts.VlmFamily), and beside the folders what several families share.

What decoders share is here as well: their configurations and layers, their weights, and transformers' answer as a reference.
"""
