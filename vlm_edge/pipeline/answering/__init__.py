"""An image and a question -> an answer: what `run` does, and everything else that asks.

options.py is what may be chosen for a question, recipe_options.py what a recipe says of it. preflight.py finds the bundle and
lowers the tiles (fit.py) until question_plan.py's plan fits. run.py holds what is loaded (encoders.py opens the vision part)
and asks: views.py turns an image into visual tokens, with the tiles of tile_choice.py, and view_memory.py keeps them for the
next question; sampling.py and stream.py turn logits into text; answer.py is what comes out. long_text.py is `--context`: a text
beside the images.
"""
