"""Questions about a page, their true answers, and which of them the chosen tiles make answerable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .labels import TileBox
from .pages import Line, Page, Shape
from .vocabulary import KEYS, LOCATIONS, NOT_VISIBLE, PLURALS, SHAPES, UNSUPPORTED, location_index

PHRASES: dict[str, tuple[str, ...]] = {
    "value": (
        "what is the {}?", "what is the {}", "{}?", "the {}?", "read the {}", "tell me the {}.", "what does the {} say?",
        "what {} is printed?", "which {} is shown?", "give me the {}", "what's the {}?", "please read the {}.",
    ),
    "color": (
        "what color is the {}?", "what colour is the {}?", "which color does the {} have?", "the {} is what color?",
        "color of the {}?", "what is the color of the {}?", "tell me the colour of the {}",
    ),
    "count": (
        "how many {} are there?", "how many {} do you see?", "count the {}", "number of {}?", "how many {}?",
        "what is the number of {}?",
    ),
    "where": (
        "where is the {}?", "locate the {}", "find the {}.", "box of the {}?", "show me the {}", "where's the {}?",
        "what is the box of the {}?",
    ),
}  # fmt: skip
OTHER = (
    "what is the weather?", "who are you?", "describe the image", "describe this page.", "hello", "is there a dog?",
    "what is in the picture?", "who wrote this?", "summarize the page", "is this a photo?", "why?", "how are you?",
    "what do you see?", "when was this printed?", "translate the text", "is the circle red?", "how big is the square?",
    "what is the meaning of this?", "can you help me?", "what is it?", "write a poem", "thank you", "which one is larger?",
    "are there any people?", "what language is this?", "read all the text", "what is the title?", "what is 2 plus 2?",
)  # fmt: skip
TASKS = (*PHRASES, "absent", "other")


@dataclass(frozen=True)
class Question:
    """`task` is one of TASKS; `target` the key or shape asked for, empty for other questions."""

    task: str
    text: str
    answer: str
    target: str = ""


def phrase(rng: np.random.Generator, task: str, target: str) -> str:
    """One of the wordings of a task, now and then with other capitals."""
    forms = PHRASES[task]
    text = forms[0 if rng.random() < 0.25 else int(rng.integers(len(forms)))].format(target)
    style = rng.random()
    if style < 0.15:
        return text.capitalize()
    return text.upper() if style < 0.2 else text


def box_text(shape: Shape, page: Page) -> str:
    """`<box>x1,y1,x2,y2</box>` in thousandths of the page's sides."""
    extents = (page.width, page.height, page.width, page.height)
    return (
        "<box>"
        + ",".join(str(LOCATIONS[location_index(v, e)]) for v, e in zip(shape.box, extents, strict=True))
        + "</box>"
    )


def visibility(line: Line, tiles: list[TileBox]) -> bool | None:
    """True when the tiles show key and value in full, False when they do not, None when it is a matter of a pixel."""
    x0, y0, x1, y1 = line.box
    rows = [t for t in tiles if t.y0 <= y0 and y1 <= t.y1]
    if any(t.x0 <= x0 and x1 <= t.x1 for t in rows):
        return True
    for left in (t for t in rows if t.x0 <= x0 < t.x1):
        if any(right.x0 == left.x1 and x1 <= right.x1 for right in rows):
            return True
    grown = [t for t in tiles if t.y0 - 3 <= y0 and y1 <= t.y1 + 3]
    near = any(t.x0 - 4 <= x0 and x1 <= t.x1 + 4 for t in grown)
    joined = any(a.x0 - 4 <= x0 < a.x1 and b.x0 - 20 <= a.x1 < b.x1 and a is not b for a in grown for b in grown)
    return None if near or joined else False


def ask_value(rng: np.random.Generator, line: Line, *, visible: bool) -> Question:
    return Question("value", phrase(rng, "value", line.key), line.value if visible else NOT_VISIBLE, line.key)


def ask_absent(rng: np.random.Generator, page: Page) -> Question | None:
    """A key that no line of the page has, or (one time in five) the colour or place of a shape that is not there."""
    keys = [key for key in KEYS if all(line.key != key for line in page.lines)]
    shapes = [kind for kind in SHAPES if all(shape.kind != kind for shape in page.shapes)]
    if shapes and (not keys or rng.random() < 0.2):
        kind = shapes[int(rng.integers(len(shapes)))]
        return Question("absent", phrase(rng, str(rng.choice(["color", "where"])), kind), NOT_VISIBLE, kind)
    if not keys:
        return None
    key = keys[int(rng.integers(len(keys)))]
    return Question("absent", phrase(rng, "value", key), NOT_VISIBLE, key)


def ask_shape(rng: np.random.Generator, page: Page, task: str) -> Question | None:
    """A colour, count or place; colour and place only of a shape whose kind occurs once."""
    counts = {kind: sum(s.kind == kind for s in page.shapes) for kind in SHAPES}
    if task == "count":
        kind = SHAPES[int(rng.integers(4))]
        if counts[kind] == 0 and rng.random() < 0.6:
            kind = max(SHAPES, key=lambda k: (counts[k], rng.random()))
        return Question("count", phrase(rng, "count", PLURALS[kind]), str(counts[kind]), kind)
    single = [s for s in page.shapes if counts[s.kind] == 1]
    if not single:
        return None
    shape = single[int(rng.integers(len(single)))]
    answer = shape.color if task == "color" else box_text(shape, page)
    return Question(task, phrase(rng, task, shape.kind), answer, shape.kind)


def ask_other(rng: np.random.Generator) -> Question:
    """Something the model was not made for: small talk, a known word in a wrong frame, or an unknown word in a right one."""
    kind = rng.random()
    if kind < 0.35:
        text = OTHER[int(rng.integers(len(OTHER)))]
    elif kind < 0.6:
        word = "".join("abcdefghijklmnopqrstuvwxyz"[i] for i in rng.integers(0, 26, int(rng.integers(2, 10))))
        task = str(rng.choice(list(PHRASES)))
        text = PHRASES[task][int(rng.integers(len(PHRASES[task])))].format(word)
    elif kind < 0.8:
        task = str(rng.choice(["color", "count", "where"]))
        text = PHRASES[task][int(rng.integers(len(PHRASES[task])))].format(KEYS[int(rng.integers(len(KEYS)))])
    else:
        pool = " ".join(OTHER + tuple(f for forms in PHRASES.values() for f in forms)).replace("{}", "").split()
        text = " ".join(pool[i] for i in rng.integers(0, len(pool), int(rng.integers(1, 7))))
        if any(key in text for key in KEYS):
            text = OTHER[int(rng.integers(len(OTHER)))]
    return Question("other", text, UNSUPPORTED)


def training_questions(rng: np.random.Generator, page: Page, tiles: list[TileBox], count: int) -> list[Question]:
    """`count` questions with the answers that this page shows through these tiles."""
    seen = [(line, visibility(line, tiles) if line.box[2] <= page.width else False) for line in page.lines]
    shown = [line for line, visible in seen if visible]
    hidden = [line for line, visible in seen if visible is False]
    questions: list[Question] = []
    while len(questions) < count:
        draw = rng.random()
        found: Question | None
        if draw < 0.5 and shown:
            found = ask_value(rng, shown[int(rng.integers(len(shown)))], visible=True)
        elif draw < 0.55 and hidden:
            found = ask_value(rng, hidden[int(rng.integers(len(hidden)))], visible=False)
        elif draw < 0.61:
            found = ask_absent(rng, page)
        elif draw < 0.73:
            found = ask_shape(rng, page, "color")
        elif draw < 0.81:
            found = ask_shape(rng, page, "count")
        elif draw < 0.95:
            found = ask_shape(rng, page, "where")
        else:
            found = ask_other(rng)
        if found is not None:
            questions.append(found)
    return questions
