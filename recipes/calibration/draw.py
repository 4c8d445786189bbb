"""Pages, charts and photo-like textures, each with a question that the picture answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .texts import CITIES, GOODS, NAMES, WORDS

INK = (28, 30, 38)
COLORS = {
    "red": (196, 52, 48), "blue": (48, 92, 180), "green": (58, 140, 76), "orange": (226, 134, 40), "purple": (122, 76, 160),
    "teal": (40, 138, 140),
}  # fmt: skip
MATERIALS = {
    "wood": ((124, 84, 50), 3, 26), "stone": ((128, 126, 122), 9, 9), "grass": ((84, 122, 58), 14, 5),
    "sand": ((202, 178, 132), 5, 5), "water": ((66, 112, 140), 4, 18), "rust": ((138, 76, 44), 7, 7),
}  # fmt: skip
"""Colour, and the scale of its pattern along and across."""


@dataclass(frozen=True)
class Drawn:
    image: Image.Image
    question: str
    answer: str
    photo: bool = False


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow's own typeface is in every installation and free to use.
    return ImageFont.load_default(size)


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]


def invoice(rng: np.random.Generator) -> Drawn:
    image = Image.new("RGB", (448, 576), (252, 251, 247))
    draw = ImageDraw.Draw(image)
    number, name, city = f"{rng.integers(1000, 9999)}-{rng.integers(10, 99)}", _pick(rng, NAMES), _pick(rng, CITIES)
    draw.text((28, 24), f"{name} & Sons", fill=INK, font=_font(26))
    draw.text((28, 60), f"Invoice {number}", fill=INK, font=_font(18))
    draw.text((28, 84), f"{city}, {rng.integers(1, 29)} March 2024", fill=INK, font=_font(15))
    total, top = 0, 140
    for goods in rng.permutation(GOODS)[: int(rng.integers(3, 7))]:
        count, cents = int(rng.integers(1, 30)), int(rng.integers(50, 5000))
        total += count * cents
        draw.text((28, top), f"{count} x {goods}", fill=INK, font=_font(16))
        draw.text((330, top), f"{count * cents / 100:.2f}", fill=INK, font=_font(16))
        top += 34
    draw.line((28, top + 4, 420, top + 4), fill=INK, width=2)
    draw.text((28, top + 14), "Total", fill=INK, font=_font(18))
    draw.text((330, top + 14), f"{total / 100:.2f}", fill=INK, font=_font(18))
    asked = [
        ("What is the total of this invoice?", f"The total is {total / 100:.2f}."),
        ("Which number does the invoice have?", f"The invoice has the number {number}."),
        ("Who sent the invoice, and from where?", f"It was sent by {name} & Sons from {city}."),
    ]
    return Drawn(image, *asked[int(rng.integers(3))])


def letter(rng: np.random.Generator) -> Drawn:
    image = Image.new("RGB", (448, 576), tuple(int(v) for v in rng.integers(236, 256, 3)))
    draw = ImageDraw.Draw(image)
    name, word, hour = _pick(rng, NAMES), _pick(rng, WORDS), int(rng.integers(8, 18))
    sentences = [
        f"Dear {name},", "", f"thank you for your letter about the {word}.",
        f"We have passed it on to our office in {_pick(rng, CITIES)},",
        f"which looks after every {_pick(rng, WORDS)} of this kind.", "", f"Please call us on Friday at {hour}:30,",
        f"and bring the {_pick(rng, WORDS)} and the {_pick(rng, WORDS)} with you.", "", "Yours sincerely,", _pick(rng, NAMES),
    ]  # fmt: skip
    for i, line in enumerate(sentences):
        draw.text((36, 60 + 34 * i), line, fill=INK, font=_font(17))
    asked = [
        ("When should the reader call?", f"On Friday at {hour}:30."),
        ("What is the letter about?", f"It is about the {word}."),
        ("Read the text in the image.", " ".join(line for line in sentences if line)),
    ]
    return Drawn(image, *asked[int(rng.integers(3))])


def bars(rng: np.random.Generator) -> Drawn:
    image = Image.new("RGB", (560, 420), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    count = int(rng.integers(3, 7))
    labels, values = rng.permutation(CITIES)[:count], rng.permutation(np.arange(10, 100, 3))[:count]
    title = f"Sales of {_pick(rng, GOODS)}"
    color = _pick(rng, tuple(COLORS))
    draw.text((40, 14), title, fill=INK, font=_font(22))
    width = 480 // count
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        left, top = 50 + i * width, 370 - int(value) * 3
        draw.rectangle((left, top, left + width - 18, 370), fill=COLORS[color])
        draw.text((left, 378), label, fill=INK, font=_font(15))
        draw.text((left + 4, top - 20), str(value), fill=INK, font=_font(15))
    draw.line((44, 370, 540, 370), fill=INK, width=2)
    most, least = int(values.argmax()), int(values.argmin())
    asked = [
        ("Which city has the highest bar?", f"{labels[most]} has the highest bar, with {values[most]}."),
        ("What is the difference between the highest and the lowest bar?", f"It is {values[most] - values[least]}."),
        ("What does this chart show?", f"It is a bar chart in {color}, called {title}, with {count} cities."),
    ]
    return Drawn(image, *asked[int(rng.integers(3))])


def pie(rng: np.random.Generator) -> Drawn:
    image = Image.new("RGB", (448, 448), (250, 250, 252))
    draw = ImageDraw.Draw(image)
    count = int(rng.integers(3, 6))
    cuts = np.sort(rng.permutation(np.arange(5, 96, 5))[: count - 1])
    shares = np.diff(np.array([0, *cuts, 100]))
    labels = rng.permutation(GOODS)[:count]
    names = rng.permutation(tuple(COLORS))[:count]
    start = 0.0
    for i, (share, label, name) in enumerate(zip(shares, labels, names, strict=True)):
        end = start + 3.6 * share
        draw.pieslice((40, 40, 310, 310), start, end, fill=COLORS[name], outline=(255, 255, 255), width=3)
        draw.rectangle((40, 330 + 22 * i, 56, 344 + 22 * i), fill=COLORS[name])
        draw.text((64, 327 + 22 * i), f"{label}: {share} %", fill=INK, font=_font(16))
        start = end
    largest = int(shares.argmax())
    asked = [
        (
            "Which part is the largest?",
            f"The {names[largest]} part, {labels[largest]}, with {shares[largest]} percent.",
        ),
        ("How many parts does the chart have?", f"It has {count} parts."),
    ]
    return Drawn(image, *asked[int(rng.integers(2))])


def lines(rng: np.random.Generator) -> Drawn:
    image = Image.new("RGB", (560, 420), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    years = np.arange(2012, 2024)
    values = np.cumsum(rng.normal(rng.choice([-3, 3]), 6, len(years))) + 60
    values = np.clip(values, 5, 115)
    points = [(50 + 42 * i, 360 - 2.6 * float(value)) for i, value in enumerate(values)]
    color = _pick(rng, tuple(COLORS))
    for level in range(0, 121, 20):
        draw.line((50, 360 - 2.6 * level, 530, 360 - 2.6 * level), fill=(220, 222, 228))
        draw.text((14, 351 - 2.6 * level), str(level), fill=INK, font=_font(14))
    draw.line(points, fill=COLORS[color], width=4, joint="curve")
    for i, year in enumerate(years[::2]):
        draw.text((36 + 84 * i, 370), str(year), fill=INK, font=_font(14))
    draw.text((50, 12), f"{_pick(rng, WORDS).capitalize()} visits by year", fill=INK, font=_font(20))
    rises = values[-1] > values[0]
    peak = int(values.argmax())
    asked = [
        ("Does the line rise or fall over all?", f"Over all it {'rises' if rises else 'falls'}."),
        ("In which year is the value highest?", f"In {years[peak]}, at about {values[peak]:.0f}."),
    ]
    return Drawn(image, *asked[int(rng.integers(2))])


def texture(rng: np.random.Generator) -> Drawn:
    """A lit surface of one material with stains on it, and grain as of a camera."""
    width, height = 448, int(rng.choice([336, 448]))
    material = _pick(rng, tuple(MATERIALS))
    base, along, across = MATERIALS[material]
    field = np.zeros((height, width))
    for octave in range(4):
        coarse = rng.normal(
            size=(max(2, height // (across << 1) << octave >> 1), max(2, width // (along << 1) << octave >> 1))
        )
        smooth = Image.fromarray(coarse.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
        field += np.asarray(smooth) / 2**octave
    y, x = np.mgrid[0:height, 0:width]
    side = rng.choice(["left", "right"])
    light = 0.75 + 0.45 * (x / width if side == "right" else 1 - x / width)
    pixels = (np.array(base) + 14 * field[..., None]) * light[..., None]
    count = int(rng.integers(0, 4))
    color = _pick(rng, tuple(COLORS))
    for _ in range(count):
        cx, cy, radius = rng.uniform(60, width - 60), rng.uniform(60, height - 60), rng.uniform(22, 48)
        inside = 1 / (1 + np.exp((np.hypot(x - cx, (y - cy) * 1.1) - radius) / 3))
        pixels = (
            pixels * (1 - 0.8 * inside[..., None])
            + 0.8 * inside[..., None] * np.array(COLORS[color]) * light[..., None]
        )
    pixels += rng.normal(0, 4, pixels.shape)
    spots = f"{('no', 'one', 'two', 'three')[count]} {color if count else ''} spot{'' if count == 1 else 's'}".replace(
        "  ", " "
    )
    asked = [
        ("Describe this image.", f"A close view of {material}, lit from the {side}, with {spots} on it."),
        ("How many spots are on the surface?", f"There {'is' if count == 1 else 'are'} {spots}."),
        ("Where does the light come from?", f"It comes from the {side}."),
    ]
    return Drawn(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), *asked[int(rng.integers(3))], photo=True)


def dial(rng: np.random.Generator) -> Drawn:
    """An instrument with a needle."""
    image = Image.new("RGB", (400, 400), tuple(int(v) for v in rng.integers(60, 120, 3)))
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 40, 360, 360), fill=(244, 244, 240), outline=INK, width=6)
    value = int(rng.integers(0, 11)) * 10
    for mark in range(0, 101, 10):
        angle = math.radians(225 - 2.7 * mark)
        cos, sin = math.cos(angle), -math.sin(angle)
        draw.line((200 + 130 * cos, 200 + 130 * sin, 200 + 150 * cos, 200 + 150 * sin), fill=INK, width=3)
        draw.text((200 + 108 * cos, 200 + 108 * sin), str(mark), fill=INK, font=_font(16), anchor="mm")
    angle = math.radians(225 - 2.7 * value)
    draw.line((200, 200, 200 + 90 * math.cos(angle), 200 - 90 * math.sin(angle)), fill=COLORS["red"], width=6)
    unit = _pick(rng, ("bar", "kPa", "percent", "litres"))
    draw.text((200, 290), unit, fill=INK, font=_font(18), anchor="mm")
    return Drawn(image, "What does the instrument show?", f"It shows {value} {unit}.")


KINDS = (invoice, bars, texture, letter, pie, texture, lines, dial)
