"""Which fault begins when: by the seed alone, so that a run that failed can be had again."""

import random
from collections import namedtuple

Event = namedtuple("Event", "at lane fault seed")


def schedule(seed, seconds, lanes):
    """Events in order; `lanes`: by name the faults, and the least and the most seconds from the beginning of one to the next.

    A lane deals its faults like a deck of cards: all of them before one comes again."""
    events = []
    for lane, (faults, least, most) in lanes.items():
        rng = random.Random(f"{seed} {lane}")
        at, deck = rng.uniform(0.5, 2.0), []
        while at < seconds:
            if not deck:
                deck = rng.sample(sorted(faults), len(faults))
            events.append(Event(at, lane, deck.pop(), rng.randrange(2 ** 32)))
            at += rng.uniform(least, most)
    return sorted(events)
