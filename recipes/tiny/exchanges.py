"""Short spoken questions with the reply that is wanted: what hearing and manners are taught on.

`exchange(seed, index)` is a pure function, as `texts.sentence` is. One in three asks for words to be repeated: to
copy a sentence the language model has to know every word of it, so nothing teaches hearing better.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.tiny import texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


# How the server asks for the user's words (server/transcriber.py); recipes do not import it.
DICTATION_PROMPT = "You are a speech recognition model."
DICTATION_REQUEST = "Transcribe the English audio into text without any punctuation marks."
CHAT = [
    line.split(" => ")
    for line in Path(__file__).with_name("chat.txt").read_text().splitlines()
    if not line.startswith("#")
]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a caller says, and a good answer; `key` is the word that an answer must contain to be right."""

    question: str
    reply: str
    key: str = ""


def exchange(seed: int, index: int, *, polite: bool = False) -> Exchange:
    """Return number `index` of the endless, reproducible list named by `seed`.

    `polite` leaves out the answers that say what was said: a test of hearing, and bad manners.
    """
    rng = random.Random(f"exchange/{seed}/{index}")
    mixture = [(maker, weight) for maker, weight in MIXTURE if not (polite and maker is _said)]
    makers, weights = zip(*mixture, strict=True)
    made: Exchange = rng.choices(makers, weights)[0](rng)
    return Exchange(texts.tidy(made.question), texts.tidy(made.reply), made.key)


def _repeat(rng: random.Random) -> Exchange:
    words = (
        texts.random_words(rng) if rng.random() < 0.4 else texts.sentence(rng.randrange(10**9), 0)
    )
    ask = rng.choice(
        ("Repeat after me: {}", "Please say this: {}", "Say: {}", "Can you repeat this? {}")
    )
    return Exchange(ask.format(words), words)


def _said(rng: random.Random) -> Exchange:
    words = texts.sentence(rng.randrange(10**9), 0)
    return Exchange(words, f'You said: "{words}"')


def _capital(rng: random.Random) -> Exchange:
    country, city = rng.choice(list(texts.CAPITALS.items()))
    ask = rng.choice(
        (
            "What is the capital of {}?",
            "Tell me the capital of {}.",
            "Which city is the capital of {}?",
        )
    )
    return Exchange(ask.format(country), f"The capital of {country} is {city}.", city)


def _opposite(rng: random.Random) -> Exchange:
    a, b = rng.choice(list(texts.OPPOSITES.items()))
    if rng.random() < 0.3:
        a, b = b, a
    ask = rng.choice(
        ("What is the opposite of {}?", "What's the opposite of {}?", "Tell me the opposite of {}.")
    )
    return Exchange(ask.format(a), f"The opposite of {a} is {b}.", b)


def _colour(rng: random.Random) -> Exchange:
    thing, colour = rng.choice(list(texts.COLOURS.items()))
    ask = rng.choice(("What color is {}?", "Which color is {}?", "Tell me the color of {}."))
    return Exchange(ask.format(thing), f"{thing} is {colour}.", colour)


def _definition(rng: random.Random) -> Exchange:
    word, meaning = rng.choice(list(texts.DEFINITIONS.items()))
    if rng.random() < 0.5:
        return Exchange(f"What is {meaning} called?", f"It is called a {word}.", word)
    return Exchange(f"What is a {word}?", f"A {word} is {meaning}.", meaning.split()[1])


def _sum(rng: random.Random) -> Exchange:
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    if rng.random() < 0.3:
        return Exchange(f"What is {a + b} minus {a}?", f"{a + b} minus {a} is {b}.", str(b))
    ask = rng.choice(("What is {} plus {}?", "How much is {} plus {}?", "Add {} and {}."))
    return Exchange(ask.format(a, b), f"{a} plus {b} is {a + b}.", str(a + b))


def _sequence(rng: random.Random) -> Exchange:
    listed = rng.choice((texts.DAYS, texts.MONTHS))
    i = rng.randrange(len(listed))
    after = listed[(i + 1) % len(listed)]
    if rng.random() < 0.5:
        return Exchange(
            f"What comes after {listed[i]}?", f"After {listed[i]} comes {after}.", after
        )
    return Exchange(f"What comes before {after}?", f"Before {after} comes {listed[i]}.", listed[i])


def _count(rng: random.Random) -> Exchange:
    first = rng.randint(1, 10)
    last = first + rng.randint(2, 5)
    numbers = ", ".join(str(n) for n in range(first, last + 1))
    return Exchange(f"Count from {first} to {last}.", f"{numbers}.", numbers)


def _spell(rng: random.Random) -> Exchange:
    word = rng.choice((*texts.OBJECTS, *texts.NAMES))
    letters = ", ".join(word.upper())
    ask = rng.choice(("How do you spell {}?", "Spell the word {}.", "Can you spell {}?"))
    return Exchange(ask.format(word), f"{letters}.", letters)


def _yes_no(rng: random.Random) -> Exchange:
    thing, colour = rng.choice(list(texts.COLOURS.items()))
    asked = colour if rng.random() < 0.5 else rng.choice(texts.COLOUR_NAMES)
    if asked == colour:
        return Exchange(f"Is {thing} {asked}?", f"Yes, {thing} is {colour}.", "Yes")
    return Exchange(f"Is {thing} {asked}?", f"No, {thing} is {colour}.", "No")


def _meeting(rng: random.Random) -> Exchange:
    name = rng.choice(texts.NAMES)
    hello = rng.choice(("Hello", "Hi", "Good morning", "Good evening", "Hey there"))
    return rng.choice(
        (
            Exchange(f"{hello}, my name is {name}.", f"{hello}, {name}. Nice to meet you.", name),
            Exchange(f"{hello}, how are you?", "I'm doing well, thank you. How are you?", "well"),
            Exchange(f"{hello}!", f"{hello}! How can I help you?", "help"),
            Exchange("Thank you very much.", "You're welcome!", "welcome"),
            Exchange(
                f"Goodbye, I have to go. {name} is waiting.", "Goodbye, take care!", "Goodbye"
            ),
            Exchange("Can you hear me?", "Yes, I can hear you.", "Yes"),
            Exchange(
                f"What did {name} eat on {rng.choice(texts.DAYS)}?",
                "I'm sorry, I don't know that.",
                "don't know",
            ),
        )
    )


def _chat(rng: random.Random) -> Exchange:
    questions, reply = rng.choice(CHAT)
    return Exchange(rng.choice(questions.split("|")), reply)


MIXTURE: Sequence[tuple[Callable[[random.Random], Exchange], float]] = (
    (_repeat, 0.22),
    (_said, 0.12),
    (_capital, 0.09),
    (_opposite, 0.08),
    (_colour, 0.06),
    (_definition, 0.08),
    (_sum, 0.09),
    (_sequence, 0.05),
    (_count, 0.03),
    (_spell, 0.06),
    (_yes_no, 0.05),
    (_meeting, 0.07),
    (_chat, 0.20),
)
