"""Prompts written for the tests."""

from __future__ import annotations

from itertools import islice, product

NAMES = ("Mia", "Ben", "a little fox", "an old owl", "the brave mouse", "Tim and Sue", "Grandma Rose", "a shy robot")
PLACES = ("in the garden", "by the river", "at school", "on a tall hill", "under the bed")
DEEDS = ("found a red box.", "wanted to bake", 'said, "Can we', "was very sad because", "saw something shiny")


def story_prompts(count: int) -> list[str]:
    """The first `count` of 200 beginnings, neighbours differing in what is done."""
    combinations = product(NAMES, PLACES, DEEDS)
    return [f"One day, {name} {place} {deed}" for name, place, deed in islice(combinations, count)]


LONG_STORY = " ".join(
    [
        "Once upon a time, there was a girl who had a blue kite and a brother who had a green one.",
        "Every morning they ran up the hill behind the mill, and every evening they ran down again.",
        "The wind on the hill was strong, and it liked to play with them more than with the trees.",
        "One morning the wind took the blue kite and carried it over the river and into the wood.",
        "The girl did not cry. She asked the boatman to row her over, and the boatman said yes.",
        "In the wood she met a hare, and the hare had seen something blue in the tallest oak.",
        "She climbed and climbed until the leaves were thin, and there was the kite, safe and dry.",
        "On the way home she gave the boatman a plum, and he gave her a song about the sea.",
        "Her brother was waiting at the gate with both their coats, for the evening was cold.",
        "They hung the kite over the fire to warm it, and the cat watched its long tail swing.",
        "That night the wind knocked at the window and asked if they would come out and play again.",
        "The girl gave it a yellow ribbon to play with, and it promised to bring the ribbon back.",
        "I have nobody else, it whistled, and the chimney is such a narrow place to sleep in.",
        "Tomorrow, said the girl, and the wind went off to tell the trees that it had been forgiven.",
    ]
)
"""A beginning of more than 256 tokens, so that its prefill takes several chunks."""
