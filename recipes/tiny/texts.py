"""What the voices read aloud: short assistant-like English, made from templates, facts and words.

`sentence(seed, index)` is a pure function, so any shard of the speech data can be made again alone.
Everything is written as the language model would print it (digits stay digits), because the Talker
learns to read exactly that.

The mixture leans on what a spoken assistant says (greetings, one-sentence answers, numbers, dates,
spelled words) and keeps one part in five of plain random words: no language model can guess those,
so they teach, and later measure, pronunciation alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo",
    "China": "Beijing", "India": "New Delhi", "Russia": "Moscow", "Canada": "Ottawa", "Egypt": "Cairo",
    "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Poland": "Warsaw", "Portugal": "Lisbon", "Austria": "Vienna", "Ireland": "Dublin", "Turkey": "Ankara",
    "Hungary": "Budapest", "Belgium": "Brussels", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
    "Kenya": "Nairobi", "Australia": "Canberra", "Brazil": "Brasilia", "Mexico": "Mexico City",
    "Argentina": "Buenos Aires", "South Korea": "Seoul", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Iceland": "Reykjavik", "the United Kingdom": "London", "the United States": "Washington",
    "the Netherlands": "Amsterdam", "the Philippines": "Manila", "Switzerland": "Bern", "Ukraine": "Kyiv",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "light": "dark", "old": "young", "happy": "sad",
    "up": "down", "left": "right", "open": "closed", "early": "late", "rich": "poor", "hard": "soft",
    "wet": "dry", "full": "empty", "high": "low", "strong": "weak", "thick": "thin", "loud": "quiet",
    "clean": "dirty", "near": "far", "first": "last", "day": "night", "true": "false", "heavy": "light",
    "cheap": "expensive", "brave": "afraid", "sweet": "sour", "sharp": "dull", "wide": "narrow",
}  # fmt: skip
COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "a banana": "yellow", "a tomato": "red",
    "coal": "black", "an orange": "orange", "an elephant": "gray", "chocolate": "brown", "a flamingo": "pink",
    "an eggplant": "purple", "the sun": "yellow", "a strawberry": "red", "milk": "white", "a lime": "green",
}  # fmt: skip
DEFINITIONS = {
    "doctor": "a person who treats people who are ill", "kitchen": "a room where food is cooked",
    "library": "a place where you can borrow books", "umbrella": "a thing that keeps the rain off you",
    "island": "land with water all around it", "hammer": "a tool for hitting nails",
    "bakery": "a shop that sells bread and cakes", "desert": "a dry place with very little rain",
    "teacher": "a person who helps others to learn", "bridge": "a way to cross over a river or a road",
    "calendar": "a chart of the days and months of a year", "volcano": "a mountain that can throw out hot rock",
    "museum": "a building where you can see old or beautiful things", "pilot": "a person who flies a plane",
    "farmer": "a person who grows food and keeps animals", "clock": "a device that shows the time",
    "winter": "the coldest season of the year", "planet": "a large round object that travels around a star",
    "dictionary": "a book that explains what words mean", "bicycle": "a vehicle with two wheels and pedals",
}  # fmt: skip
NAMES = """Anna Ben Clara David Emma Frank Grace Henry Iris Jack Kate Leo Maria Noah Olivia Peter Quinn Rosa Sam
Tina Umar Vera Will Xavier Yara Zoe Alice Bob Charlotte Daniel Elena George Hannah Isaac Julia Kevin Laura Michael
Nina Oscar Paula Robert Sarah Thomas Victor Wendy Ethan Chelsie Priya Chen Fatima Carlos Yuki""".split()
OBJECTS = """ball book box bottle cup key phone chair table lamp door window hat shoe coat bag pen pencil clock plate
fork spoon knife bowl apple banana orange lemon cat dog horse bird fish tree flower leaf stone car bus train bike
boat plane house bridge star circle square triangle letter picture mirror camera guitar piano blanket basket""".split()
COLOUR_NAMES = "red blue green yellow white black orange purple brown pink gray".split()
PLACES = """kitchen garden park station office school library airport market hotel beach museum hospital bakery
restaurant bathroom bedroom basement balcony playground cafe theater""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December".split()
)
WEATHER = """sunny cloudy rainy windy foggy snowy warm cold mild hot freezing stormy dry humid clear""".split()
FEELINGS = (
    "happy glad sorry tired proud excited curious calm worried surprised grateful ready".split()
)
HOBBIES = """reading|cooking|swimming|painting|hiking|dancing|singing|gardening|cycling|fishing|drawing|traveling
playing chess|playing the piano|watching movies|learning languages|taking pictures|baking bread"""
VERBS = """open close find bring move check clean fix carry wash paint drop lift hold turn push pull watch count
describe remember forget buy sell send write read cook serve borrow return""".split()
ADJECTIVES = """small large new old bright dark quiet loud soft heavy light round square long short simple strange
lovely useful broken wooden plastic golden ancient modern gentle sharp smooth rough""".split()
UNITS = "miles meters pounds degrees percent people".split()
RELATIONS = ("near", "behind", "far from", "opposite")
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
SMALL_TALK = """Hello! How can I help you today?|Hi there, nice to hear from you.|Good morning! What can I do for you?
Good evening. I hope you had a nice day.|You're welcome!|Sure, no problem.|Of course. One moment, please.
I'm sorry, I didn't catch that. Could you say it again?|I don't know that, but I can try to help.
Thank you, that's very kind of you.|I'm doing well, thanks for asking. How are you?|See you later!|Goodbye, take care.
That sounds great.|That's a good question.|Let me think about that for a second.|Yes, I can hear you.
No, I don't think so.|Okay, I'll stop here.|I'm a small speech model, so I make mistakes.|Yes, I can see you.
Please go on.|What would you like to talk about?|I'm not sure what you mean.|Could you show me that again?
That's right.|Not quite. Try again.|Good night, sleep well.|I'm happy to help.|Would you like to hear more?
I can't do that, but here is an idea.|It depends on what you need.|Let's start from the beginning.
Oh, that is interesting! Tell me more.|Don't worry, it happens to everyone.|Congratulations, well done!
Excuse me, may I ask you something?|Please hold the object a little closer to the camera.
I can see it now.|It's too dark for me to see that.|There is nothing there.|I heard a noise in the background.
My name is Chelsie.|My name is Ethan.|Nice to meet you.|What's your name?|Where are you from?|How old are you?"""
FACTS = """Water boils at 100 degrees Celsius.|The Earth goes around the Sun once a year.|A week has 7 days.
There are 60 seconds in a minute and 60 minutes in an hour.|Bees make honey.|Spiders have 8 legs.|A year has 12 months.
The heart pumps blood through the body.|Plants need light, water and air to grow.
Whales are the largest animals on Earth.
The Moon goes around the Earth.|Ice is frozen water.|Sound travels slower than light.|A triangle has 3 sides.
Sharks live in the sea.|Birds have wings and lay eggs.|Gold is a metal.|The Nile is a very long river.
Mount Everest is the highest mountain in the world.|Penguins are birds, but they can't fly.|Cows give milk.
Shakespeare wrote plays such as Hamlet.|A dozen is 12.|The human body has 206 bones.|Salt dissolves in water.
A spider is not an insect.|Leap years have 366 days.|Diamonds are very hard.|The Pacific is the largest ocean."""
# Nonsense sentences of common words cover the sounds of English evenly enough for a vocoder.
WORDS = """about above across act afraid again agree air alone always angle animal answer any area argue arm army
around arrive art ask autumn away baby back bad bake balance bank bath bear beauty bed before begin behind believe
bell below bend beneath beside best better between beyond bit bite blow board body boil bone born borrow both bottom
branch bread break breathe brick brief bring broad brother brush build burn busy butter button cake call calm candle
captain card care carry case catch cause center chain chance change charge chase cheer cheese chest chew chicken child
choose church city class clay clear clever climb cloth cloud club coast coffee coin collect comb common cook cool
copper copy corn corner cough could count country course cousin cover cow crack cream cross crowd cry cup current
curtain curve cut damp dance danger daughter death deep deer degree design desk detail develop die dinner direct
discover discuss distance divide dream dress drink drive drum dust duty each eager ear earth ease east easy edge
effect egg eight either electric elephant eleven else energy engine enjoy enough enter equal error even evening ever
every exact example except excuse exercise expect eye face fact fail fair faith fall family famous farm father
favorite fear feather feed feel fence fever few field fifty fight figure fill film final finger finish fire firm five
fix flag flame flat flight float floor flour flow flute fly fold follow food foot force forest form forward found
fountain four fox frame free fresh friend frog front fruit fuel fun furniture future game gate gather general gentle
giant gift girl give glass glove goat gold good grain grand grape grass great ground group grow guard guess guest
guide gun habit hair half hall hand handle hang happen harbor harvest hate head heal health hear heart heat heaven
height hello help hen hide hill history hit hole holiday hollow home honest honey hook hope hospital hour hundred
hunger hunt hurry hurt husband ice idea imagine inch increase industry inside instead iron island itch jacket jail jaw
jelly jewel job join joke journey joy judge juice jump jungle just keep kettle kick kid kind king kiss kitten knee
knock knot know ladder lake land language large laugh law lazy lead leaf learn leather leave leg lend length lesson
level liberty lid lie life lift limit line lion lip list listen liver load local lock lonely lose lot love luck lunch
lung machine mail main make man many map march mark marriage mask match matter maybe meal measure meat medicine meet
melt member memory mend metal method middle mile mind minute mirror miss mix money monkey month mood moon morning most
moth mother mountain mouse mouth move much mud muscle music must nail name narrow nation nature neck needle neighbor
neither nephew nerve nest net never news next nice niece nine nobody noise noon north nose note nothing notice now
number nurse nut oak ocean offer often oil once onion only opinion orange order other ought ounce outside oven over
own oxygen page pain paint pair palace pale paper parent part pass past path pay peace peach pear people pepper
perfect perhaps person phrase piece pig pillow pipe pity place plain plan plane plant play please plenty pocket poem
point poison police pool popular possible pot potato pound pour powder power practice praise prepare press pretty
prevent price pride prince print prison prize problem promise proof proud prove public pull punish pure push puzzle
queen question quick quiet quite rabbit race radio rail rain raise rather raw reach ready reason receive record regret
relate remain rent repair repeat reply report rescue rest result reward rhythm rice ride ring rise river road roar rob
rock roll roof room root rope rose rough round row royal rub rubber rude ruin rule run rush sad safe sail salad salt
same sand sauce save say scale scene school science scissors score scratch screen sea search season seat secret see
seed seldom self sell send sense separate serious serve settle seven shade shadow shake shallow shame shape share
sheep sheet shelf shell shine ship shirt shock shoot shop shore shoulder shout show shut sick side sign silk silly
silver similar simple since sing sink sister sit six size skill skin skirt sky sleep slide slip slope slow smell smile
smoke smooth snake snow soap social soft soil soldier solve some son song soon sort soul soup south space spare speak
special speech speed spell spend spider spirit spot spread spring staff stage stair stamp stand start state stay
steady steal steam steel steep stem step stick stiff still sting stomach stone stop store storm story straight strange
stream street stretch strike string strong student study stuff stupid subject success such sudden suffer sugar suggest
suit summer sun supper support sure surface surprise sweat swell swim swing sword system tail take talk tall taste tax
tea teach team tear tell ten tent term test thank theater then theory there thick thief thing think thirty thousand
thread three throat through throw thumb thunder ticket tie tiger tight till time tin tiny tip tired title toast today
toe together tomorrow tongue tonight tool tooth top total touch tour toward towel tower town toy track trade train
travel treasure treat trial tribe trick trip trouble trousers truck trust truth try tube tune twelve twenty twice twin
twist two type ugly uncle under unit until upon upper urge use usual valley value vapor various vase vegetable verse
very view village violet violin visit voice vote voyage wage waist wait wake walk wall want war warn waste water wave
way weak wealth weapon wear weather weave wedding weed week weigh welcome west whale wheat wheel when whether which
while whip whisper whistle white whole why wide wife wild will win wind wing winter wire wise wish witch with woman
wonder wood wool word work world worry worth wound wrap wreck wrist write wrong yard year yellow yes yesterday yet
youth zebra zero zoo""".split()

Maker = Callable[[random.Random], str]


def sentence(seed: int, index: int) -> str:
    """Return utterance `index` of the endless, reproducible list named by `seed`."""
    rng = random.Random(f"{seed}/{index}")
    makers, weights = zip(*MIXTURE, strict=True)
    text = rng.choices(makers, weights)[0](rng)
    if rng.random() < 0.2 and len(text) < 70:  # two sentences in a row teach the pause between them
        text += " " + rng.choices(makers, weights)[0](rng)
    return tidy(text)


def tidy(text: str) -> str:
    """Capitalise sentence starts and mend "a apple"."""
    text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU](?!ne\b))", r"\1n ", " ".join(text.split()))
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)


def random_words(rng: random.Random) -> str:
    """A row of unrelated words; also the evaluation text that no language model can guess."""
    words = rng.sample(WORDS, rng.randint(5, 11))
    if rng.random() < 0.4:
        words[rng.randrange(len(words) - 1)] += ","
    return " ".join(words) + "."


def _lines(block: str) -> list[str]:
    return [part.strip() for part in re.split(r"[|\n]", block) if part.strip()]


def _number(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.5:
        return str(rng.randint(0, 100))
    if kind < 0.7:
        return str(rng.randint(100, 999))
    if kind < 0.8:
        return f"{rng.randint(1, 99) * 1000:,}"
    if kind < 0.9:
        return f"{rng.randint(0, 99)}.{rng.randint(1, 9)}"
    return f"{rng.randint(1000, 9999)}"


def _date(rng: random.Random) -> str:
    month, day = rng.choice(MONTHS), rng.randint(1, 28)
    form = rng.random()
    if form < 0.4:
        return f"{month} {day}"
    if form < 0.7:
        return f"{month} {day}, {rng.randint(1900, 2030)}"
    return f"{rng.choice(DAYS)}, {month} {day}"


def _time(rng: random.Random) -> str:
    hour = rng.randint(1, 12)
    forms = (
        f"{hour}:{rng.randint(10, 59)}",
        f"{hour} o'clock",
        f"half past {hour}",
        f"{hour} in the {rng.choice(('morning', 'afternoon', 'evening'))}",
        f"{hour}:{rng.choice(('00', '15', '30', '45'))} {rng.choice(('AM', 'PM'))}",
    )
    return rng.choice(forms)


def _small_talk(rng: random.Random) -> str:
    text = rng.choice(_lines(SMALL_TALK))
    if rng.random() < 0.25:
        return (
            f"{rng.choice(('Hello', 'Hi', 'Okay', 'Sorry', 'Thanks'))}, {rng.choice(NAMES)}. {text}"
        )
    return text


def _fact(rng: random.Random) -> str:
    return rng.choice(_lines(FACTS))


def _capital(rng: random.Random) -> str:
    country, city = rng.choice(list(CAPITALS.items()))
    return rng.choice(
        (
            f"The capital of {country} is {city}.",
            f"{city} is the capital of {country}.",
            f"It's {city}.",
            f"What is the capital of {country}?",
            f"I have never been to {city}, but I know that it is in {country}.",
        )
    )


def _opposite(rng: random.Random) -> str:
    a, b = rng.choice(list(OPPOSITES.items()))
    return rng.choice(
        (
            f"The opposite of {a} is {b}.",
            f"{b} is the opposite of {a}.",
            f"What is the opposite of {a}?",
        )
    )


def _colour(rng: random.Random) -> str:
    thing, colour = rng.choice(list(COLOURS.items()))
    colour2, item, place = rng.choice(COLOUR_NAMES), rng.choice(OBJECTS), rng.choice(PLACES)
    return rng.choice(
        (
            f"{thing} is {colour}.",
            f"I can see a {colour2} {item}.",
            f"There is a {rng.choice(ADJECTIVES)} {colour2} {item} in the {place}.",
            f"The {item} was {colour2} when you said now.",
            f"I see {rng.randint(2, 9)} {colour2} {item}s and a {rng.choice(COLOUR_NAMES)} {rng.choice(OBJECTS)}.",
            f"It is moving from {rng.choice(('left to right', 'right to left', 'top to bottom'))}.",
        )
    )


def _definition(rng: random.Random) -> str:
    word, meaning = rng.choice(list(DEFINITIONS.items()))
    return rng.choice(
        (f"A {word} is {meaning}.", f"What is a {word}?", f"{meaning} is called a {word}.")
    )


def _sum(rng: random.Random) -> str:
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    return rng.choice(
        (
            f"{a} plus {b} is {a + b}.",
            f"{a + b} minus {a} is {b}.",
            f"{a} times {b} equals {a * b}.",
            f"The answer is {a + b}.",
            f"What is {a} plus {b}?",
        )
    )


def _digits(rng: random.Random) -> str:
    digits = [str(rng.randint(0, 9)) for _ in range(rng.randint(3, 8))]
    return rng.choice(
        (", ".join(digits) + ".", " ".join(digits) + ".", f"The code is {', '.join(digits)}.")
    )


def _counting(rng: random.Random) -> str:
    start = rng.randint(0, 95)
    return ", ".join(str(start + i) for i in range(rng.randint(3, 8))) + "."


def _numbers(rng: random.Random) -> str:
    item = rng.choice(OBJECTS)
    return rng.choice(
        (
            f"I counted {_number(rng)} {item}s.",
            f"It costs {rng.randint(2, 99)} dollars and {rng.randint(5, 95)} cents.",
            f"That is about {_number(rng)} {rng.choice(UNITS)}.",
            f"The {rng.choice(ORDINALS)} {item} is number {_number(rng)}.",
            f"{_number(rng)}.",
        )
    )


def _dates(rng: random.Random) -> str:
    return rng.choice(
        (
            f"Today is {_date(rng)}.",
            f"The meeting is on {_date(rng)} at {_time(rng)}.",
            f"It's {_time(rng)}.",
            f"{rng.choice(NAMES)} was born on {_date(rng)}.",
            f"After {DAYS[(i := rng.randrange(7))]} comes {DAYS[(i + 1) % 7]}.",
            f"The shop opens at {_time(rng)} and closes at {_time(rng)}.",
            f"{MONTHS[(j := rng.randrange(12))]} comes before {MONTHS[(j + 1) % 12]}.",
        )
    )


def _spelling(rng: random.Random) -> str:
    word = rng.choice((*OBJECTS, *NAMES, *WORDS))
    letters = ", ".join(word.upper())
    alphabet = [chr(65 + (rng.randrange(26) + i) % 26) for i in range(rng.randint(3, 6))]
    return rng.choice((f"{word} is spelled {letters}.", f"{letters}.", ", ".join(alphabet) + "."))


def _story(rng: random.Random) -> str:
    name, other = rng.sample(NAMES, 2)
    verb, item, place = rng.choice(VERBS), rng.choice(OBJECTS), rng.choice(PLACES)
    adjective, hobby = rng.choice(ADJECTIVES), rng.choice(_lines(HOBBIES))
    return rng.choice(
        (
            f"{name} likes {hobby}, but {other} prefers {rng.choice(DAYS)}s at the {place}.",
            f"Can you {verb} the {adjective} {item} for {name}, please?",
            f"You can {verb} the {item} in the {place}, and then {rng.choice(VERBS)} it again.",
            f"{name} put the {adjective} {item} next to the {rng.choice(OBJECTS)}.",
            f"I would {verb} the {item} first, because it is {adjective}.",
            f"It will be {rng.choice(WEATHER)} in the morning and {rng.choice(WEATHER)} at night.",
            f"I am {rng.choice(FEELINGS)} that {name} and {other} met at the {place}.",
            f"Why did {name} {verb} the {item}?",
            f"Where is the {adjective} {item}? Is it in the {place}?",
            f"If you want to {verb} a {item}, go to the {place} and ask {name}.",
            f"There are {rng.randint(2, 12)} {adjective} {item}s on the table in the {place}.",
            f"First, {verb} the {item}. Then, {rng.choice(VERBS)} the {rng.choice(OBJECTS)}. Finally, call {name}.",
            f"{name} said that the {place} is {rng.choice(RELATIONS)} the {rng.choice(PLACES)}.",
        )
    )


MIXTURE: Sequence[tuple[Maker, float]] = (
    (random_words, 0.20),
    (_story, 0.22),
    (_small_talk, 0.12),
    (_fact, 0.04),
    (_capital, 0.06),
    (_opposite, 0.04),
    (_colour, 0.07),
    (_definition, 0.05),
    (_sum, 0.04),
    (_digits, 0.03),
    (_counting, 0.02),
    (_numbers, 0.04),
    (_dates, 0.05),
    (_spelling, 0.04),
)
