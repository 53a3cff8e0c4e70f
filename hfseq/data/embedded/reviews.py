"""The embedded reviews: a grammar of short English reviews in which word order decides. They are synthetic.

Nobody wrote these texts, and a score on them says nothing about real reviews. They are for what real reviews cannot
show in a few minutes without a network: whether a model reads order and scope ("not dull but gripping" against "not
gripping but dull") or counts words. Each kind of sentence but one comes in twins, one positive and one negative, of
the very same words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import datasets

from hfseq.data.splits import SPLITS, split_of
from hfseq.errors import InputError

LABELS = ("negative", "positive")
# Words and punctuation marks of a text, at most.
_LONGEST = 40


class _Noun(NamedTuple):
    """What a review speaks of, and what is said of it."""

    name: str
    # What stands for it: it, he, she or they; and for a person "who", not "which".
    pronoun: str
    person: bool
    good: tuple[str, ...]
    bad: tuple[str, ...]


class _Domain(NamedTuple):
    items: tuple[str, ...]
    # "The plot of this film", "the soup at this restaurant".
    preposition: str
    nouns: tuple[_Noun, ...]
    # Neither good nor bad; "|" is where "not" would stand.
    facts: tuple[str, ...]
    # Sentences that judge nothing; the first two never stand together, nor do the last two.
    notes: tuple[str, str, str, str]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


def _nouns(names: str, good: str, bad: str) -> tuple[_Noun, ...]:
    """Nouns that share their adjectives, with their pronoun after a colon unless it is "it"; "they!" are persons."""
    nouns = []
    for name, _, pronoun in (name.partition(":") for name in _words(names)):
        person = pronoun in ("he", "she", "they!")
        nouns.append(_Noun(name, pronoun.removesuffix("!") or "it", person, _words(good), _words(bad)))
    return tuple(nouns)


_STAFF = (
    "friendly, attentive, polite, quick, helpful, cheerful, welcoming, patient, courteous, thoughtful, obliging",
    "rude, slow, careless, surly, unhelpful, grumpy, sloppy, impatient, arrogant, inattentive, clumsy",
)
_STORY = (
    "gripping, clever, original, witty, touching, believable, inventive, subtle, coherent, thoughtful, surprising, "
    "engrossing, moving, absorbing",
    "dull, predictable, tedious, clumsy, contrived, muddled, silly, shallow, boring, confusing, implausible, stale, "
    "pretentious, formulaic",
)
_DOMAINS = (
    _Domain(
        _words("film, movie, thriller, comedy, drama, western, musical, adventure, remake, sequel"),
        "of",
        _nouns(
            "plot, story, script, screenplay, premise, finale, opening, ending, dialogue, love scenes:they", *_STORY
        )
        + _nouns(
            "acting, cast, leading man:he, villain:he, heroine:she, actors:they!, performances:they, child "
            "stars:they!",
            "convincing, charming, likeable, nuanced, passionate, magnetic, versatile, sincere, lively, graceful",
            "wooden, stiff, lifeless, bland, unconvincing, forgettable, irritating, listless, hammy, awkward",
        )
        + _nouns(
            "photography, music, soundtrack, editing, lighting, costumes:they, sets:they, special effects:they, "
            "battle scenes:they",
            "beautiful, elegant, striking, imaginative, lavish, stylish, atmospheric, haunting, tasteful, dazzling",
            "ugly, garish, murky, amateurish, jarring, drab, gaudy, cluttered, tasteless, crude",
        ),
        _words(
            "the cinema was | full, I was | alone in the cinema, it was | a matinee, it was | my first visit to the "
            "new cinema, the film was | in colour, our seats were | near the front, it was | the director's first"
        ),
        (
            "I saw this {item} {who} {when}",
            "this {item} was shot in {city} over {number} months",
            "my cousin from {city} bought the tickets {when}",
            "the director, who lives in {city}, made this {item} {number} years ago",
        ),
    ),
    _Domain(
        _words("book, novel, thriller, mystery, romance, trilogy, paperback, bestseller, saga, debut"),
        "of",
        _nouns(
            "plot, story, narrative, argument, premise, final chapter, ending, subplot, early chapters:they", *_STORY
        )
        + _nouns(
            "narrator:she, hero:he, heroine:she, detective:he, characters:they!, villains:they!, minor figures:they!",
            "vivid, likeable, memorable, lifelike, sympathetic, fascinating, credible, endearing, complex",
            "flat, lifeless, irritating, unlikeable, forgettable, cardboard-like, unbelievable, tiresome, whiny",
        )
        + _nouns(
            "prose, language, translation, style, tone, author's voice, descriptions:they, metaphors:they, final "
            "sentences:they",
            "elegant, lyrical, vivid, precise, fluent, poetic, polished, warm, graceful, crisp",
            "clumsy, wordy, stilted, pompous, lazy, repetitive, dry, overwrought, sloppy, cold",
        ),
        _words(
            "it was | a long read, I was | new to the author, it was | a birthday present, the copy was | new, "
            "it was | a library copy, I was | on holiday, the print was | large, it was | the first in a series"
        ),
        (
            "I read this {item} on the train to {city} {when}",
            "this {item} is set in {city} and has {number} hundred pages",
            "my aunt from {city} gave me this {item} {when}",
            "the author, who lives in {city}, wrote this {item} {number} years ago",
        ),
    ),
    _Domain(
        _words("restaurant, bistro, cafe, pizzeria, steakhouse, diner, tavern, canteen, brasserie, pub"),
        "at",
        _nouns(
            "soup, pasta, bread, steak, salmon, curry, risotto, salad, pizza, lamb, rice, dumplings:they, "
            "noodles:they, "
            "vegetables:they, desserts:they, starters:they",
            "fresh, tasty, delicious, flavourful, appetising, wholesome, fragrant, mouth-watering, delicate",
            "bland, greasy, insipid, salty, bitter, tasteless, watery, rancid, unappetising, sour",
        )
        + _nouns(
            "waiter:he, waitress:she, chef:she, service, landlord:he, bar staff:they!, waiters:they!, kitchen "
            "staff:they!",
            *_STAFF,
        )
        + _nouns(
            "dining room, terrace, courtyard, lounge, bar, back room, conservatory, tables outside:they",
            "cosy, elegant, inviting, bright, pleasant, charming, neat, attractive, tidy",
            "shabby, dingy, cramped, noisy, grubby, gloomy, dirty, uncomfortable, draughty",
        ),
        _words(
            "it was | our first visit, the place was | full, we were | in a hurry, our table was | by the window, it "
            "was | a weekday, we were | a large party, it was | a public holiday, I was | alone"
        ),
        (
            "I ate at this {item} {who} {when}",
            "this {item} is {number} minutes from the station in {city}",
            "a friend from {city} told us about this {item} {when}",
            "the owner left {city} to open this {item} {number} years ago",
        ),
    ),
    _Domain(
        _words("phone, smartphone, handset, model, mobile, device"),
        "of",
        _nouns(
            "screen, display, front camera, rear camera, photos:they, videos:they, pictures:they",
            "sharp, crisp, vivid, bright, clear, detailed, radiant, lifelike",
            "blurry, dim, grainy, pale, murky, fuzzy, hazy, distorted",
        )
        + _nouns(
            "case, frame, charger, power button, fingerprint sensor, battery cover, side buttons:they, earphones:they",
            "sturdy, solid, sleek, robust, handy, durable, reliable, stylish, practical",
            "flimsy, clunky, fragile, unreliable, bulky, wobbly, awkward, shoddy, impractical",
        )
        + _nouns(
            "software, interface, menu, voice assistant, browser, keyboard, navigation, apps:they, gestures:they, "
            "settings:they",
            "smooth, quick, intuitive, responsive, stable, snappy, neat, dependable, convenient",
            "slow, buggy, confusing, sluggish, unstable, cluttered, erratic, laggy, cumbersome",
        ),
        _words(
            "it was | my first smartphone, the phone was | new, it was | a gift, it was | the smallest model, the "
            "box was | sealed, the shop was | near my office, it was | the black one, I was | with another brand "
            "before"
        ),
        (
            "I bought this {item} {who} {when}",
            "I compared {number} phones in {city} before I chose this {item}",
            "a friend from {city} showed me this {item} {when}",
            "this {item} was made near {city} {number} months ago",
        ),
    ),
    _Domain(
        _words("hotel, hostel, inn, guesthouse, resort, motel, lodge"),
        "at",
        _nouns(
            "room, bathroom, bedroom, suite, lobby, lift, balcony, corridors:they, family rooms:they",
            "clean, bright, quiet, tidy, comfortable, airy, spacious, modern, roomy",
            "dirty, noisy, cramped, dark, damp, smelly, shabby, stuffy, untidy",
        )
        + _nouns(
            "receptionist:she, porter:he, manager:she, concierge:he, night clerk:he, cleaners:they!, front desk "
            "staff:they!",
            *_STAFF,
        )
        + _nouns(
            "breakfast, buffet, dinner, lunch, evening meals:they, packed lunches:they",
            "tasty, generous, varied, fresh, wholesome, delicious, plentiful",
            "stale, meagre, bland, stingy, monotonous, tasteless, greasy",
        )
        + _nouns(
            "pool, sauna, gym, garden, beach, spa, playground, tennis courts:they",
            "inviting, peaceful, clean, pleasant, attractive, relaxing, modern, well-equipped",
            "crowded, neglected, dirty, shabby, outdated, unsafe, grimy, depressing",
        ),
        _words(
            "it was | high season, our room was | on the ground floor, we were | on a business trip, I was | alone, "
            "it was | our first stay, the car park was | full, we were | by the sea, it was | a weekend"
        ),
        (
            "I stayed at this {item} {who} {when}",
            "this {item} is {number} minutes from the centre of {city}",
            "a friend from {city} told us about this {item} {when}",
            "the owner left {city} to open this {item} {number} years ago",
        ),
    ),
)

# Of anything.
_GOOD = _words(
    "wonderful, superb, excellent, fantastic, brilliant, marvellous, splendid, outstanding, terrific, delightful, "
    "great, impressive, remarkable, magnificent, lovely, fabulous, admirable"
)
_BAD = _words(
    "awful, dreadful, terrible, horrible, disappointing, lousy, mediocre, dismal, appalling, atrocious, abysmal, "
    "poor, unpleasant, miserable, horrendous, pitiful, deplorable"
)
# Those that go with "more" and "less".
_GRADED_GOOD = _words("enjoyable, impressive, satisfying, delightful, appealing, rewarding, convincing, remarkable")
_GRADED_BAD = _words("disappointing, frustrating, annoying, unpleasant, tiresome, depressing, forgettable, irritating")
_LIKED = _words("loved, enjoyed, admired, adored, liked, appreciated, valued, praised, applauded")
_LOATHED = _words("hated, disliked, loathed, detested, resented, deplored, despised, abhorred")
# With their plural where it is another.
_PLEASED = _words(
    "won me over, delighted me, impressed us all, exceeded my expectations, surpassed all my hopes, pleased everyone, "
    "deserved the highest praise, gave us great pleasure, was a joy|were a joy, was a success|were a success, was "
    "beyond praise|were beyond praise"
)
_ANNOYED = _words(
    "let me down, annoyed me, disappointed us all, got on my nerves, tried my patience, put everyone off, drove me "
    "mad, fell short of every promise, was a nuisance|were a nuisance, was a disaster|were a disaster, was beyond "
    "hope|were beyond hope"
)
_ADVERBS = _words("really, truly, simply, genuinely, so, consistently, undeniably")
_NOT = _words(
    "not, not, never, hardly, far from, anything but, by no means, in no way, not at all, not remotely, scarcely"
)
_OPENERS = _words(
    "to be honest, in short, all in all, for the record, on the whole, to cut a long story short, frankly, in a word, "
    "after some thought, to sum up, to put it bluntly, honestly"
)
_WHO = _words(
    "with my sister, with my brother, with two colleagues, on my own, with the whole family, with my neighbour, with "
    "an old friend, with my parents, with my cousin, with my wife, with my husband, with a group of students"
)
_WHEN = _words(
    "last week, on a rainy Sunday, in early March, during the holidays, over Easter, on my birthday, two weeks ago, "
    "in late autumn, on Friday evening, last summer, the day before yesterday, one morning in June, last winter, "
    "after work on Tuesday, at the end of August"
)
_CITIES = _words(
    "Lisbon, Oslo, Prague, Dublin, Vienna, Athens, Boston, Toronto, Kyoto, Cairo, Lima, Nairobi, Seoul, Hamburg, Turin"
)
_NUMBERS = _words("two, three, four, five, six, seven, eight, nine")
_OTHERS = _words(
    "the last one, the one I described last week, the one my brother prefers, the one my sister recommended, the one "
    "my colleagues chose, the "
    "one everybody knows"
)
_SOURCES = _words(
    "the critics, my brother, my sister, the reviews, my colleagues, the local paper, my neighbours, my old teacher, "
    "the people next to us, everyone I know, a well-known magazine, my best friend, half of the internet"
)

# What the text says of its subject is what stands in {win}: with {win} and {lose} exchanged it says the contrary. Here
# both are clauses.
_OF_CLAUSES = {
    "contrast": (
        "{lose}, but {win}",
        "{lose}, yet {win}",
        "{lose}; however, {win}",
        "{lose}; still, {win}",
        "{lose}, but in the end {win}",
        "I grant that {lose}, but {win}",
        "{lose}, but that hardly matters, because {win}",
        "{win}, and that matters more than the fact that {lose}",
        "{win}, and that outweighs the fact that {lose}",
        "it is true that {lose}, but what counts is that {win}",
        "what counts is that {win}, not that {lose}",
    ),
    "concession": (
        "although {lose}, {win}",
        "{win}, although {lose}",
        "even though {lose}, {win}",
        "{win}, even though {lose}",
        "while {lose}, {win}",
        "despite the fact that {lose}, {win}",
        "{win}, despite the fact that {lose}",
        "I admit that {lose}; nevertheless, {win}",
        "{win}, even if I have to admit that {lose}",
    ),
}
# Adjectives of the noun {the}, "it" further on.
_OF_PARTS = {
    "correction": (
        "{the} {was} not {lose} but {win}",
        "{the} {was} {win}, not {lose}",
        "{the} {was} {win} rather than {lose}",
        "{the} {was} far more {win} than {lose}",
        "instead of being {lose}, {the} {was} {win}",
        "{the} {was} {win} instead of {lose}",
        "I would not call {the} {lose}; I would call {them} {win}",
        "I would call {the} {win}, not {lose}",
        "the right word for {the} is not {lose} but {win}",
        "{the} {was} {win}, which is the opposite of {lose}",
    ),
    "not_only_but": (
        "{the} {was} not only not {lose} but downright {win}",
        "not only {was} {the} not {lose}, but {they} {was} downright {win}",
        "{the} {was} not only {win} but the very opposite of {lose}",
        "{the} {was} not only far from {lose} but also {win}",
    ),
    "conditional": (
        "{the} would have been {lose} if {they} had not been so {win}",
        "had {they} not been so {win}, {the} would have been {lose}",
        "if {the} had been {lose} and not {win}, my verdict would be a different one",
        "if {the} had been {lose} instead of {win}, I would have written another review",
        "I would be writing another review if {the} had not been {win} but {lose}",
    ),
    "change": (
        "at first {the} seemed {lose}, but in the end {they} {was} {win}",
        "{the} started out {lose} and ended up {win}",
        "{the} went from {lose} to {win}",
        "in the end {the} {was} {win}, though at first {they} had seemed {lose}",
        "{the} proved {win} in the end, after seeming {lose} for a while",
        "{the} seemed {lose} to begin with and then became {win}",
        "{the} became {win} in the long run, however {lose} {they} had been at the start",
        "before long {the} turned out {win}, where {they} had once been {lose}",
    ),
    "expectation": (
        "I had expected {the} to be {lose}, but {they} {was} {win}",
        "{the} turned out to be {win}, when I had expected {them} to be {lose}",
        "I thought that {the} would be {lose}, but {they} proved to be {win}",
        "{the} {was} supposed to be {lose}, but what we got was {win}",
        "nobody would have guessed that {the} would be {win}, when all the signs said {lose}",
        "{the} proved {win}; I had been prepared for something {lose}",
        "I had imagined {the} as {lose}, but {they} turned out {win}",
    ),
    "report": (
        "{source} called {the} {lose}, but I found {them} {win}",
        "I found {the} {win}, although {source} called {them} {lose}",
        "according to {source}, {the} {was} {lose}; to me {they} {was} {win}",
        "to me {the} {was} {win}, whatever {source} said about how {lose} {they} {was}",
        "{source} had told me that {the} {was} {lose}, but in fact {they} {was} {win}",
        "{source} called {the} {lose}; I cannot agree with that and would call {them} {win}",
        "contrary to what {source} claimed, {the} {was} {win}, not {lose}",
    ),
}
# Adjectives of the whole {item} and of the noun.
_OF_WHOLES = {
    "exception": (
        "apart from {the}, {which} {was} {lose}, everything about this {item} was {win}",
        "only {the} {was} {lose}; everything else was {win}",
        "everything about this {item} was {win} except {the}, {which} {was} {lose}",
        "with the exception of {the}, {which} {was} {lose}, this {item} was {win}",
        "this {item} was {win} in all respects but one: {the} {was} {lose}",
        "leaving aside {the}, {which} {was} {lose}, I found this {item} {win}",
    ),
    "conditional": (
        "this {item} would have been {lose} if {the} had not been {win}",
        "had {the} been less {win}, this {item} would have been {lose}",
        "this {item} could have been {lose}, had {the} not been so {win}",
        "I would have called this {item} {lose} if {the} had not been so {win}",
        "it is easy to imagine how {lose} this {item} would have been if {the} had been less {win}",
        "if {the} had been less {win}, I would now be calling this {item} {lose}",
    ),
}
# With the adjectives of two subjects exchanged, two each.
_NOT_ONLY_OF_TWO = (
    "{the} {at} this {item} {was} not only {win[0]} but also {win[1]}, whereas {that} {at} {other} {was} "
    "{lose[0]} and {lose[1]}",
    "{the} {at} {other} {was} not only {lose[0]} but also {lose[1]}, whereas {that} {at} this {item} {was} "
    "{win[0]} and {win[1]}",
    "unlike {that} {at} {other}, {which} {was} not only {lose[0]} but {lose[1]}, {the} {at} this {item} {was} "
    "{win[0]} and {win[1]}",
)
# Two subjects, of which {x} comes off better: when {x} and {y} change places, the other one does.
_BETTER = (
    "I prefer {x} to {y}",
    "I would choose {x} over {y} any day",
    "I think that {x} beats {y}",
    "I think that {y} cannot compete with {x}",
    "I am afraid that {y} is no match for {x}",
    "for my money, {x} leaves {y} far behind",
    "give me {x} rather than {y}",
    "I find that {x} has the edge over {y}",
    "I would recommend {x} before {y}",
)
# Of which {x} is {more} something.
_MORE = (
    "I found {x} {more} than {y}",
    "I think that {x} is {more} than {y}",
    "to my mind, {x} is {more} than {y}",
    "next to {y}, I found {x} {more}",
    "compared side by side, {x} is {more} than {y}",
)
_MORE_OF_PARTS = (
    "{the} {at} {x} {was} {more} than {that} {at} {y}",
    "I found {the} {at} {x} {more} than {that} {at} {y}",
    "compared with {that} {at} {y}, {the} {at} {x} {was} {more}",
)
_HOW_MUCH = _words("far, much, a lot, a good deal, somewhat, considerably")
_AND = (
    "{0} and {1}",
    "{0}, and {1}",
    "{0}; {1}",
    "I think that {0} and that {1}",
    "my impression is that {0} and that {1}",
    "{0}, and what is more, {1}",
)
_OUTER_NOT = _words(
    "nobody could say that, I would never claim that, it would be wrong to say that, I cannot agree that, it is "
    "simply not true that, nobody can tell me that, I do not believe that, only a liar would say that"
)


class _Scene(NamedTuple):
    """What all sentences of a review have in common, and the drawing of their words."""

    rng: random.Random
    domain: _Domain
    item: str
    nouns: list[_Noun]
    facts: list[str]

    def adjectives(self, noun: _Noun) -> tuple[str, str]:
        """A good and a bad one."""
        own = self.rng.random() < 0.7
        return self.rng.choice(noun.good if own else _GOOD), self.rng.choice(noun.bad if own else _BAD)

    def slots(self, noun: _Noun) -> dict[str, str]:
        """What a template may say besides {win} and {lose}."""
        plural = noun.pronoun == "they"
        return {
            "the": f"the {noun.name}",
            "was": "were" if plural else "was",
            "they": noun.pronoun,
            "them": {"they": "them", "he": "him", "she": "her", "it": "it"}[noun.pronoun],
            "that": f"the {noun.name}" if noun.person else "those" if plural else "that",
            "which": "who" if noun.person else "which",
            "at": self.domain.preposition,
            "item": self.item,
            "other": self.rng.choice(_OTHERS),
            "source": self.rng.choice(_SOURCES),
        }


# A positive sentence and its negative twin, without capital and full stop.
_Twins = tuple[str, str]


def _exchange(template: str, good: Any, bad: Any, slots: dict[str, str]) -> _Twins:
    return template.format(win=good, lose=bad, **slots), template.format(win=bad, lose=good, **slots)


def _clause(noun: _Noun, verbs: tuple[str, str], *rest: str) -> str:
    """Joins "the plot", the verb of its number, and what there is of the rest."""
    return " ".join(part for part in (f"the {noun.name}", verbs[noun.pronoun == "they"], *rest) if part)


def _predicate(noun: _Noun, phrases: Sequence[str], rng: random.Random) -> str:
    singular, _, plural = rng.choice(phrases).partition("|")
    return _clause(noun, (singular, plural or singular))


def _sometimes(words: Sequence[str], rng: random.Random) -> str:
    return rng.choice(words) if rng.random() < 0.4 else ""


def _verbs(rng: random.Random) -> tuple[str, str]:
    return rng.choice([("was", "were"), ("was", "were"), ("is", "are")])


def _two_clauses(scene: _Scene, qualities: tuple[int, int]) -> list[str]:
    """Two clauses of one form, good (0) or bad (1), so that their sentences begin with the same word."""
    rng = scene.rng
    pairs = list(zip(rng.sample(scene.nouns, 2), qualities, strict=True))
    match rng.choices(["be", "verb", "phrase"], [3, 1, 1])[0]:
        case "be":
            verbs = _verbs(rng)
            return [
                _clause(noun, verbs, _sometimes(_ADVERBS, rng), scene.adjectives(noun)[quality])
                for noun, quality in pairs
            ]
        case "verb":
            return [f"I {rng.choice((_LIKED, _LOATHED)[quality])} the {noun.name}" for noun, quality in pairs]
        case _:
            return [_predicate(noun, (_PLEASED, _ANNOYED)[quality], rng) for noun, quality in pairs]


def _plain(scene: _Scene) -> _Twins:
    return _plain_one(scene, 0), _plain_one(scene, 1)


def _plain_one(scene: _Scene, quality: int) -> str:
    rng = scene.rng
    noun = rng.choice(scene.nouns)
    adjective, general = scene.adjectives(noun)[quality], rng.choice((_GOOD, _BAD)[quality])
    first, second = _two_clauses(scene, (quality, quality))
    described = f"{rng.choice(_ADVERBS[:4])} {general}" if rng.random() < 0.5 else general
    return rng.choice(
        (
            f"{'an' if described[0] in 'aeiou' else 'a'} {described} {scene.item}",
            _clause(noun, _verbs(rng), _sometimes(_ADVERBS, rng), adjective),
            _predicate(noun, (_PLEASED, _ANNOYED)[quality], rng),
            f"this {scene.item} was {general}, and {first}",
            f"I {rng.choice((_LIKED, _LOATHED)[quality])} this {scene.item}",
            f"{first} and {second}",
            f"{first}, and {second}",
            f"{first}, {second}, and {general} is the word for this {scene.item}",
        )
    )


def _of_clauses(kind: str, scene: _Scene) -> _Twins:
    good, bad = _two_clauses(scene, (0, 1))
    return _exchange(scene.rng.choice(_OF_CLAUSES[kind]), good, bad, {})


def _of_parts(kind: str, scene: _Scene) -> _Twins:
    noun = scene.rng.choice(scene.nouns)
    return _exchange(scene.rng.choice(_OF_PARTS[kind]), *scene.adjectives(noun), scene.slots(noun))


def _of_wholes(kind: str, scene: _Scene) -> _Twins:
    rng = scene.rng
    slots = scene.slots(rng.choice(scene.nouns))
    return _exchange(rng.choice(_OF_WHOLES[kind]), rng.choice(_GOOD), rng.choice(_BAD), slots)


def _conditional(scene: _Scene) -> _Twins:
    return (_of_parts if scene.rng.random() < 0.5 else _of_wholes)("conditional", scene)


def _moved_not(scene: _Scene, template: str, negations: Sequence[str]) -> _Twins:
    """A good and a bad clause, in either order: "not" stands in the bad one, and in the negative twin in the good one.

    The template has places for the clauses {0} and {1}, and {inverted} for the first as a question has it.
    """
    rng = scene.rng
    order = rng.choice([(0, 1), (1, 0)])
    nouns = rng.sample(scene.nouns, 2)
    words = [scene.adjectives(noun)[quality] for noun, quality in zip(nouns, order, strict=True)]
    verbs, negation, adverb = _verbs(rng), rng.choice(negations), _sometimes(_ADVERBS, rng)

    def write(negated: int) -> str:
        rests = [
            (negation if quality == negated else adverb, word) for quality, word in zip(order, words, strict=True)
        ]
        clauses = [_clause(noun, verbs, *rest) for noun, rest in zip(nouns, rests, strict=True)]
        verb = verbs[nouns[0].pronoun == "they"]
        return template.format(*clauses, inverted=f"{verb} {clauses[0].replace(f' {verb} ', ' ', 1)}")

    return write(1), write(0)


def _negation(scene: _Scene) -> _Twins:
    return _moved_not(scene, scene.rng.choice(_AND), _NOT)


def _scope(scene: _Scene) -> _Twins:
    """The one "not" stands beside what is judged, or in a clause that judges nothing."""
    rng = scene.rng
    fact = rng.choice(scene.facts)
    noun = rng.choice(scene.nouns)
    quality = rng.randrange(2)
    word, adverb = scene.adjectives(noun)[quality], _sometimes(("so", "really", "truly"), rng)
    template = rng.choice(("{0}, and {1}", "{1}, and {0}", "{0}; {1}", "{1}; {0}", "I remember that {0} and that {1}"))
    kept = template.format(fact.replace("|", "not"), _clause(noun, ("was", "were"), adverb, word))
    turned = template.format(fact.replace(" |", ""), _clause(noun, ("was", "were"), "not", adverb, word))
    return (turned, kept) if quality else (kept, turned)


def _double_negation(scene: _Scene) -> _Twins:
    """Two clauses with "not": around the good one, and in the negative twin around the bad one, stands a second."""
    rng = scene.rng
    order = rng.choice([(0, 1), (1, 0)])
    verbs, inner, outer = _verbs(rng), rng.choice(("not", "far from", "anything but")), rng.choice(_OUTER_NOT)
    clauses = [
        _clause(noun, verbs, inner, scene.adjectives(noun)[quality])
        for noun, quality in zip(rng.sample(scene.nouns, 2), order, strict=True)
    ]
    # Without the first words one twin would begin with "Nobody" and the other with "The".
    template = rng.choice(
        ("I have to say that {}; besides, {}", "two things are clear: {}; and {}", "I say this: {}; {}")
    )

    def write(around: int) -> str:
        pairs = zip(order, clauses, strict=True)
        return template.format(*(f"{outer} {clause}" if quality == around else clause for quality, clause in pairs))

    return write(0), write(1)


def _not_only_but(scene: _Scene) -> _Twins:
    rng = scene.rng
    form = rng.random()
    if form < 0.35:
        return _of_parts("not_only_but", scene)
    if form < 0.7:
        return _moved_not(scene, "not only {inverted}, but {1}", _NOT)
    noun = rng.choice(scene.nouns)
    good, bad = rng.sample(noun.good, 2), rng.sample(noun.bad, 2)
    return _exchange(rng.choice(_NOT_ONLY_OF_TWO), good, bad, scene.slots(noun))


def _comparison(scene: _Scene) -> _Twins:
    rng = scene.rng
    noun = rng.choice(scene.nouns)
    slots = scene.slots(noun)
    quality, less = rng.randrange(2), rng.random() < 0.3
    match rng.choice(("better", "more", "part")):
        case "better":
            template, more, quality, less = rng.choice(_BETTER), "", 0, False
        case "more":
            word = rng.choice((_GRADED_GOOD, _GRADED_BAD)[quality])
            template, more = rng.choice(_MORE), f"less {word}" if less else f"more {word}"
        case _:
            word = rng.choice((noun.good, noun.bad)[quality])
            template, more = rng.choice(_MORE_OF_PARTS), f"less {word}" if less else _comparative(word)
    slots["more"] = f"{rng.choice(_HOW_MUCH)} {more}"
    this, other = f"this {scene.item}", slots["other"]
    one, two = template.format(x=this, y=other, **slots), template.format(x=other, y=this, **slots)
    return (two, one) if (quality == 1) != less else (one, two)


def _comparative(adjective: str) -> str:
    syllables = len(re.findall("[aeiouy]+", adjective.removesuffix("e")))
    if adjective.endswith("y") and syllables <= 2:
        return f"{adjective[:-1]}ier"
    if syllables > 1:
        return f"more {adjective}"
    if re.search("[^aeiou][aeiou][bdgmnpt]$", adjective):
        return f"{adjective}{adjective[-1]}er"
    return f"{adjective.removesuffix('e')}er"


# Kind to the drawing of its twins and to its share of the texts.
_KINDS: dict[str, tuple[Callable[[_Scene], _Twins], int]] = {
    "plain": (_plain, 16),
    "negation": (_negation, 8),
    "scope": (_scope, 6),
    "double_negation": (_double_negation, 5),
    "contrast": (partial(_of_clauses, "contrast"), 8),
    "concession": (partial(_of_clauses, "concession"), 8),
    "correction": (partial(_of_parts, "correction"), 8),
    "not_only_but": (_not_only_but, 8),
    "exception": (partial(_of_wholes, "exception"), 6),
    "comparison": (_comparison, 7),
    "conditional": (_conditional, 6),
    "change": (partial(_of_parts, "change"), 5),
    "expectation": (partial(_of_parts, "expectation"), 4),
    "report": (partial(_of_parts, "report"), 5),
}


def review_rows(
    *,
    train_size: int = 20_000,
    validation_size: int = 1_000,
    test_size: int = 2_000,
    seed: int = 0,
) -> datasets.DatasetDict:
    """Makes synthetic English reviews, positive and negative, from a grammar.

    The columns are `text`, `label` ("negative" or "positive") and `kind`, the construction of the sentences that
    decide:

    - plain: "The pasta was tasty.": here, and only here, the words suffice;
    - negation: "The cast was charming and the plot was never dull.";
    - scope: "It was not our first visit, and the soup was salty.": the "not" may belong to what judges nothing;
    - double_negation: "Two things are clear: nobody could say that the pool was not clean; and the lift was not
      noisy.";
    - contrast (what follows "but" decides) and concession (what does not follow "although" decides);
    - correction: "The story was gripping rather than dull.";
    - not_only_but: "Not only was the waiter not rude, but the steak was superb.";
    - exception: "Only the menu was poor; everything else was excellent.";
    - comparison: "I found the display of this phone much sharper than that of the last one.";
    - conditional: "The plot would have been witty if it had not been so silly.";
    - change: "At first the room seemed dark, but in the end it was cosy.";
    - expectation: "I had expected the prose to be dry, but it was lyrical.";
    - report: "My sister called the soundtrack haunting, but I found it jarring."

    In the last three the end, the fact and the writer's own view decide. A text is about a film, a book, a restaurant,
    a phone or a hotel. It has one or two sentences of its kind, of the same sentiment, and up to two that judge
    nothing: 4 to 40 words and punctuation marks.

    Except for plain ones, which come in pairs of both labels, every text has a twin in its split: the same words, with
    the same capitals, in another order and with the other label. So a classifier that sees words but not their order
    is right on exactly half of them. (A split of odd size lacks one twin.)

    Each sentence belongs to one split, with all reorderings of its words, whatever stands around it; the words of the
    test, but for a few comparatives, occur in training. The split does not depend on `seed`, so a model never meets
    the test sentences of another seed.

    Args:
        train_size: Number of texts in `train`.
        validation_size: Number of texts in `validation`.
        test_size: Number of texts in `test`.
        seed: Chooses the texts; the same seed gives the same texts in every process.

    Raises:
        InputError: A size that cannot be had.
    """
    splits = {}
    for split, size in zip(SPLITS, (train_size, validation_size, test_size), strict=True):
        if size < 2:
            raise InputError(f"{split} size: {size} is too few for texts that come in twins; give 2 or more")
        texts, labels, kinds = zip(*_rows(split, size, random.Random(f"{seed} {split}")), strict=True)
        splits[split] = datasets.Dataset.from_dict({"text": texts, "label": labels, "kind": kinds})
    return datasets.DatasetDict(splits)


def _rows(split: str, size: int, rng: random.Random) -> list[tuple[str, str, str]]:
    """Draws `size` rows (text, label, kind) of `split`, no text twice."""
    rows: dict[str, tuple[str, str, str]] = {}
    kinds, weights = list(_KINDS), [weight for _, weight in _KINDS.values()]
    misses = 0
    while len(rows) < size:
        kind = rng.choices(kinds, weights)[0]
        twins = _review(_KINDS[kind][0], split, rng)
        if all(text not in rows and len(_tokens(text)) <= _LONGEST for text in twins):
            rows |= {text: (text, label, kind) for text, label in zip(twins, reversed(LABELS), strict=True)}
            misses = 0
        elif (misses := misses + 1) > 1_000:
            raise InputError(f"{split} size: {size} is more than the {len(rows)} texts there are; give fewer")
    drawn = list(rows.values())[:size]
    rng.shuffle(drawn)
    return drawn


def _review(draw: Callable[[_Scene], _Twins], split: str, rng: random.Random) -> _Twins:
    """Composes a text and its twin: the sentences that decide, twins of each other, among the same notes."""
    domain = rng.choice(_DOMAINS)
    item = rng.choice(domain.items)
    nouns = rng.sample(domain.nouns, len(domain.nouns))
    facts = rng.sample(domain.facts, len(domain.facts))
    count = 1 if rng.random() < 0.7 else 2
    # No noun is judged twice, no fact told twice.
    scenes = [_Scene(rng, domain, item, nouns[start::count], facts[start::count]) for start in range(count)]
    sentences = [_draw_sentence(partial(_open, draw), scene, split) for scene in scenes]
    for half in rng.sample((domain.notes[:2], domain.notes[2:]), rng.choices(range(3), [5, 4, 2])[0]):
        note = _draw_sentence(partial(_note, half), scenes[0], split)
        sentences.insert(rng.randint(0, len(sentences)), note)
    good, bad = zip(*sentences, strict=True)
    return " ".join(good), " ".join(bad)


def _open(draw: Callable[[_Scene], _Twins], scene: _Scene) -> _Twins:
    """Draws twins and puts the same opener, or none, before both."""
    good, bad = draw(scene)
    opener = f"{scene.rng.choice(_OPENERS)}, " if scene.rng.random() < 0.2 else ""
    return f"{opener}{good}", f"{opener}{bad}"


def _note(templates: Sequence[str], scene: _Scene) -> _Twins:
    """Writes a sentence that judges nothing, for both twins."""
    rng = scene.rng
    note = rng.choice(templates).format(
        item=scene.item,
        who=rng.choice(_WHO),
        when=rng.choice(_WHEN),
        city=rng.choice(_CITIES),
        number=rng.choice(_NUMBERS),
    )
    return note, note


def _draw_sentence(draw: Callable[[_Scene], _Twins], scene: _Scene, split: str) -> _Twins:
    """Draws twins until they are of `split`; a sentence is of that of its words, whatever their order."""
    while True:
        good, bad = draw(scene)
        if all(split_of(" ".join(sorted(_tokens(sentence.lower())))) == split for sentence in (good, bad)):
            return f"{good[0].upper()}{good[1:]}.", f"{bad[0].upper()}{bad[1:]}."


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+(?:['-]\w+)*|[^\w\s]", text)
