"""Passages written for this set: how people write to a language model, in several registers."""

from __future__ import annotations

PASSAGES: tuple[tuple[str, str], ...] = (
    (
        "Why does bread rise?",
        "Yeast feeds on the sugar in the dough and gives off carbon dioxide. The gas cannot escape, "
        "because kneading has turned the flour's protein into a net that stretches, so it collects in "
        "bubbles and the dough swells. In the oven the bubbles grow once more, the water turns to steam, "
        "and at about 60 degrees the yeast dies. What remains is the net, which the heat sets: that is the "
        "crumb.",
    ),
    (
        "Write a function that returns the median of a list of numbers.",
        "def median(values):\n    if not values:\n        raise ValueError('no values')\n    ordered = "
        "sorted(values)\n    middle = len(ordered) // 2\n    if len(ordered) % 2:\n        return "
        "ordered[middle]\n    return (ordered[middle - 1] + ordered[middle]) / 2\n\n"
        "For an even count it averages the two values in the middle. Sorting takes n log n steps; a "
        "selection algorithm would take n on average.",
    ),
    (
        "A train leaves at 14:35 and arrives at 17:10. How long is the journey?",
        "From 14:35 to 17:35 are three hours. The train arrives 25 minutes earlier than that, so the "
        "journey takes 2 hours and 35 minutes, or 155 minutes.",
    ),
    (
        "Summarise the minutes: the harbour board met on Tuesday, agreed to dredge the north basin before "
        "winter, put off the new crane until tenders are in, and asked the master to report on night noise.",
        "The board will dredge the north basin before winter. The crane waits for tenders. A report on "
        "noise at night was asked of the harbour master.",
    ),
    (
        "Translate into German and French: The key is under the third stone on the left.",
        "German: Der Schlüssel liegt unter dem dritten Stein links. French: La clé est sous la troisième "
        "pierre à gauche.",
    ),
    (
        "My plant's leaves turn yellow from the bottom up. What should I check?",
        "1. Water: push a finger two joints deep into the soil. If it is wet there, wait; roots that stand "
        "in water rot.\n2. Light: lower leaves are dropped first when the plant stands too dark.\n"
        "3. Food: if it has been in the same pot for over a year, nitrogen may be short, and the plant "
        "moves it from old leaves to new ones.\nChange one thing at a time, and wait two weeks.",
    ),
    (
        "Explain what a checksum is to somebody who has never programmed.",
        "Imagine that you send a friend a long number on a postcard and add, in the corner, the sum of its "
        "digits. Your friend adds them up again. If the sums differ, something was smudged on the way. A "
        "checksum does that for files: a short number that is worked out from all of the content, so that "
        "almost any change shows.",
    ),
    (
        "Give me the data as JSON: three sensors, A at 21.5 degrees, B at 19.0, C out of order.",
        '{"sensors": [{"id": "A", "celsius": 21.5, "ok": true}, {"id": "B", "celsius": 19.0, "ok": true}, '
        '{"id": "C", "celsius": null, "ok": false}]}',
    ),
    (
        "Continue the story: The lighthouse had been dark for eleven years when the lamp came on by itself.",
        "Marta saw it from the ferry. Nobody else looked up; the others were busy with their bags. She "
        "counted: two short, one long, a pause. It was not the signal on the chart. By the time the ferry "
        "touched the pier she had it written on the back of her ticket, and under it, in smaller letters, "
        "the only word that it could spell.",
    ),
    (
        "What is the area of a circle with a radius of 7 cm, and how far is it around?",
        "Area: pi r^2 = 3.1416 * 49 = 153.9 square centimetres. Circumference: 2 pi r = 2 * 3.1416 * 7 = 44.0 cm.",
    ),
    (
        "Compare a heat pump and a gas boiler in a table.",
        "| | heat pump | gas boiler |\n| --- | --- | --- |\n| energy | electricity, three to four units of "
        "heat for each | gas, nearly one unit of heat for each |\n| first cost | high | low |\n"
        "| works best with | large radiators, mild water | small radiators, hot water |\n"
        "| noise | a fan outside | hardly any |",
    ),
    (
        "Write a polite note to a neighbour whose music is loud after eleven.",
        "Dear Tom, I hope that you are settling in well. The walls here are thinner than they look: after "
        "eleven we hear your music word for word, and our little one wakes up. Could you turn it down "
        "then, or move the speakers off the shared wall? Come round for coffee any time. Best wishes, Ana "
        "(number 12)",
    ),
    (
        "Which is larger, 0.7 or 5/8? Show the steps.",
        "5/8 = 0.625, because 8 * 0.6 = 4.8 and the remaining 0.2 / 8 = 0.025. Since 0.7 > 0.625, 0.7 is "
        "larger, by 0.075.",
    ),
    (
        "How do I find large files on Linux?",
        "du -ah /path | sort -rh | head -n 20 lists the twenty largest files and folders. To see files "
        "over a gigabyte only: find /path -type f -size +1G -exec ls -lh {} +. Neither follows links, and "
        "both skip folders that you may not read.",
    ),
    (
        "What should a good bug report contain?",
        "What you did, step by step; what you expected; what happened instead, with the exact message; and "
        "the versions of everything that took part. If it happens only sometimes, say how often. A report "
        "that lets another person see the fault within five minutes is worth ten that describe it well.",
    ),
    (
        "Name the planets by size, largest first, with their diameters in thousands of kilometres.",
        "Jupiter 143, Saturn 120, Uranus 51, Neptune 49, Earth 12.8, Venus 12.1, Mars 6.8, Mercury 4.9.",
    ),
)
"""(question, answer)"""

WORDS = (
    "order", "delivery", "station", "garden", "meeting", "budget", "engine", "window", "library", "sample", "river", "ticket",
    "kitchen", "signal", "paper", "market", "bridge", "winter", "doctor", "island", "report", "battery", "harbour", "school",
)  # fmt: skip
NAMES = (
    "Adler",
    "Bianchi",
    "Costa",
    "Dupont",
    "Eriksen",
    "Fischer",
    "Garcia",
    "Hansen",
    "Ivanova",
    "Jansen",
    "Kowalski",
    "Lima",
)
CITIES = ("Bergen", "Lisbon", "Graz", "Turin", "Ghent", "Porto", "Aarhus", "Leeds", "Basel", "Cork", "Lyon", "Split")
GOODS = ("paper", "cable", "lamps", "paint", "screws", "filters", "gloves", "boxes", "seals", "hoses")
