"""Rows that a program writes: a prompt to compress, an input, and an answer that depends on the prompt.

Run: python recipes/programmatic.py --texts T0.jsonl.gz --tasks SEED_TASKS.jsonl --rows 4000 --out rows.jsonl --seed 0

Five kinds, as many rows of each and no prompt twice: single instructions on a short text, system prompts with a
persona and rules, few-shot prompts, passages to quote from, and ordinary requests. Answers of the first four are
exact; those of the fifth are sketches, fit for distillation, which uses their words and not their truth. In a
template [a|b|] is a choice and {name} a slot. Knows nothing of models or of training.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gistlm.data.rows import Row, read_rows
from gistlm.data.sources import normalise
from gistlm.errors import DataError, GistlmError, InputError
from gistlm.files import write_atomically

MAX_ANSWER_WORDS = 60
ATTEMPTS = 200
"""Draws for one row before the kind counts as used up."""


def listed(text: str) -> tuple[str, ...]:
    """The items of a list with commas."""
    return tuple(" ".join(item.split()) for item in text.split(","))


def paired(text: str) -> dict[str, str]:
    """The pairs of a list such as "big small, hot cold"."""
    return dict(item.split(" ", 1) for item in listed(text))


NAMES = listed("""Ada, Aisha, Alan, Alba, Amara, Amir, Anika, Anton, Aria, Arjun, Astrid, Ayumi, Bao, Beatriz, Bela,
    Bruno, Carmen, Cedric, Chen, Clara, Conor, Dalia, Dario, Deepa, Diego, Dina, Edith, Elif, Elena, Emeka, Enzo,
    Esther, Farah, Felix, Fiona, Freya, Gabor, Gita, Greta, Hana, Hassan, Hugo, Ida, Igor, Imani, Ingrid, Isaac, Ivana,
    Jamal, Jana, Jonas, Joy, Kaito, Karim, Katya, Kofi, Lars, Laila, Leo, Lina, Luca, Magda, Malik, Marta, Mei, Milo,
    Mina, Nadia, Nils, Noor, Nora, Oksana, Olga, Omar, Oscar, Otto, Paula, Pedro, Petra, Priya, Quentin, Rafael, Ravi,
    Rosa, Ruth, Samir, Sana, Selma, Sofia, Stella, Sven, Tara, Tariq, Theo, Tomas, Uma, Vera, Victor, Wanda, Wei,
    Xenia, Yara, Yusuf, Zara, Zoltan""")
TOPICS = listed("""solar panels, bread baking, the water cycle, chess openings, bicycle repair, time management, black
    holes, houseplants, public speaking, the Roman Empire, electric cars, job interviews, coral reefs, jazz music, home
    budgets, vaccines, rainforests, meditation, the stock market, school uniforms, remote work, volcanoes, healthy
    breakfasts, online privacy, dinosaurs, wind power, first aid, team meetings, recycling, football tactics,
    watercolour painting, bees, photosynthesis, city traffic, learning Spanish, camping trips, dog training, computer
    viruses, poetry, the moon, tea, stress at work, machine learning, gravity, museum visits, knitting, customer
    reviews, travel insurance, earthquakes, vegetable gardens, running shoes, social media, the human heart, fairy
    tales, coffee shops, data backups, swimming, world trade, antibiotics, sleep, robots, mountain hiking, free
    software, wedding speeches, ocean currents, pasta, democracy, mobile phones, penguins, science fiction, rent
    prices, kitchen safety, train journeys, 3D printing, friendship, tax forms, weather forecasts, carpentry, the
    immune system, video games, fair trade, essay writing, migraine, whales, street photography, electric guitars,
    family dinners, desert plants, honesty, air travel, small talk, the printing press, new year's resolutions, yoga,
    lighthouses, spreadsheets, glaciers, night shifts, secondhand clothes, basketball, soup, child care, old maps,
    memory tricks, noise in offices, comets, volunteering, podcasts, ancient Egypt, cheese, databases, birdwatching,
    piano lessons, food waste, teamwork, subway systems, horror films, bridges, allergies, plastic bags, fonts, holiday
    gifts, the Silk Road, screen time, mushrooms, neighbours, web design, exam nerves, tidal energy, pottery, salads,
    charity runs, compasses, moving house, bilingual children, the Olympics, skin care, satellites, handwriting,
    wolves, negotiation, the periodic table, apartment searches, detective novels, sourdough, inflation, jokes, rivers,
    clean desks, car sharing, theatre, drones, origami, quantum computers, village life, ballet, lost luggage, sharks,
    thank-you notes, urban farming, opera, passwords, rainy days, leadership, nuclear power, pancakes, stamp
    collecting, climate change""")
CITIES = paired("""Paris France, Rome Italy, Madrid Spain, Oslo Norway, Cairo Egypt, Lima Peru, Tokyo Japan, Berlin
    Germany, Vienna Austria, Lisbon Portugal, Athens Greece, Dublin Ireland, Warsaw Poland, Helsinki Finland, Ottawa
    Canada, Nairobi Kenya, Hanoi Vietnam, Bangkok Thailand, Havana Cuba, Prague Czechia, Budapest Hungary, Stockholm
    Sweden, Quito Ecuador, Ankara Turkey, Delhi India, Beijing China, Bern Switzerland, Amman Jordan, Dakar Senegal,
    Santiago Chile""")
ITEMS = listed("""lamp, tent, kettle, scarf, backpack, notebook, blender, headset, mug, umbrella, carpet, drill,
    candle, jacket, clock, printer, cushion, bottle, wallet, camera, helmet, keyboard, vase, ladder, blanket, mirror,
    teapot, suitcase, torch, chair, basket, monitor, toaster, hammock, razor, telescope, pillow, whistle, stool,
    guitar""")
GROUPS = {
    "animal": listed("horse, tiger, eagle, rabbit, dolphin, goat, frog, owl, bear, camel, otter, spider"),
    "fruit": listed("apple, mango, cherry, lemon, peach, melon, plum, banana, grape, kiwi, fig, papaya"),
    "tool": listed("hammer, saw, chisel, wrench, drill, pliers, file, rake, shovel, axe, level, clamp"),
    "vehicle": listed("truck, bicycle, tram, ferry, scooter, bus, helicopter, canoe, van, tractor, yacht, train"),
    "instrument": listed("violin, flute, drum, harp, trumpet, cello, guitar, piano, oboe, banjo, tuba, lute"),
    "clothing": listed("shirt, glove, sock, coat, skirt, hat, belt, boot, sweater, vest, apron, sandal"),
    "colour": listed("red, blue, green, yellow, purple, orange, grey, pink, brown, black, white, teal"),
}
OPPOSITES = paired("""big small, hot cold, fast slow, early late, open closed, rich poor, hard soft, loud quiet, full
    empty, near far, old new, light dark, wet dry, strong weak, happy sad, high low, long short, clean dirty, thick
    thin, brave afraid""")
PAST = paired("""go went, eat ate, see saw, take took, write wrote, run ran, sing sang, buy bought, think thought, give
    gave, find found, speak spoke, drive drove, know knew, begin began, swim swam, walk walked, jump jumped, play
    played, break broke""")
LANGUAGES = listed("French, Spanish, German, Italian")
WORDS = {  # English: French, Spanish, German, Italian
    entry.split()[0]: entry.split()[1:]
    for entry in listed("""
    water eau agua Wasser acqua, bread pain pan Brot pane, house maison casa Haus casa, dog chien perro Hund cane,
    cat chat gato Katze gatto, book livre libro Buch libro, sun soleil sol Sonne sole, moon lune luna Mond luna, red
    rouge rojo rot rosso, green vert verde grün verde, milk lait leche Milch latte, night nuit noche Nacht notte,
    day jour día Tag giorno, tree arbre árbol Baum albero, fish poisson pez Fisch pesce, friend ami amigo Freund
    amico, hand main mano Hand mano, city ville ciudad Stadt città, school école escuela Schule scuola, door porte
    puerta Tür porta, snow neige nieve Schnee neve, one un uno eins uno, two deux dos zwei due, three trois tres
    drei tre, heart cœur corazón Herz cuore, fire feu fuego Feuer fuoco, apple pomme manzana Apfel mela, horse
    cheval caballo Pferd cavallo, table table mesa Tisch tavolo, sea mer mar Meer mare, winter hiver invierno Winter
    inverno, summer été verano Sommer estate, king roi rey König re, white blanc blanco weiß bianco, black noir
    negro schwarz nero, cheese fromage queso Käse formaggio, egg œuf huevo Ei uovo, bird oiseau pájaro Vogel
    uccello, key clé llave Schlüssel chiave, train train tren Zug treno""")
}
GOOD = listed("wonderful, superb, delightful, charming, excellent, brilliant, lovely, perfect")
BAD = listed("terrible, boring, awful, broken, disappointing, rude, useless, dreadful")
LABELS = listed(
    "positive/negative, good/bad, happy/unhappy, praise/complaint, up/down, P/N, 1/0, satisfied/dissatisfied"
)
MONTHS = listed("January, February, March, April, May, June, July, August, September, October, November, December")
MARKS = listed("**, ##, ==, >>, ~, ++, --, ::, @, %%")
MANNERS = listed(
    "friendly, cheerful, precise, patient, formal, witty, calm, brisk, warm, blunt, careful, upbeat, modest, curious"
)
ROLES = listed("""assistant, receptionist, sales adviser, support agent, guide, booking clerk, librarian, concierge,
    coach, tutor, help desk agent, nutrition adviser, travel agent, shop assistant, museum guide, bank clerk,
    caretaker, event planner""")
FIRST = listed("""Blue, Silver, Old Mill, Harbour, North Star, Green Valley, Copper, Sunrise, Maple, Golden Gate,
    Riverside, Crystal, Willow, Summit, Lantern, Oak Lane, Coral, Red Brick, Paper Moon, Wild Rose, Granite, Velvet,
    Station Road, Little Owl""")
SECOND = listed("""Bakery, Hotel, Cycles, Books, Clinic, Garden Centre, Electronics, Travel, Museum, Bank, Furniture,
    Pharmacy, Language School, Outdoor Store, Library, Insurance, Music Shop, Gym, Cinema, Airlines, Kitchenware, Toys,
    Optics, Museum Café""")
SIGN_OFFS = listed("""Have a sunny day!, Yours as ever, Until next time., Stay curious!, At your service., Keep
    smiling!, Warm regards, Over and out., Happy to help!, Safe travels!, Cheers!, Your team, See you soon., Be
    well., Onwards!, With kind wishes""")
GREETINGS = listed("""Hello there!, Good day., Ahoy!, Dear guest:, Greetings., Well met!, Hi friend!, Welcome!, Thanks
    for asking., Certainly., Of course!, Dear customer:, Right away., Namaste., Hey!, Esteemed visitor:""")
REFUSALS = listed("""I cannot help with that., That is outside my area., Please ask someone else about that., I only
    talk about our work here., Let us stay on the subject., I am not the right one to ask., No comment., I would rather
    not say.""")
HABITS = listed("""Be polite at all times., Never argue with anyone., Keep answers short., Use simple words., Do not
    make anything up., Never mention other companies., Answer only what was asked., Do not use emojis., Avoid technical
    terms., Write full sentences., Do not ask for personal data., Treat everyone the same., Do not promise discounts.,
    Stay calm when people are angry., Say so when you are unsure., Do not give legal advice., Use the metric system.,
    Do not repeat the question., Be concrete.""")
AUDIENCES = listed("""children, beginners, managers, students, teachers, parents, tourists, nurses, engineers, a
    friend, retired people, teenagers, new employees, my neighbour, a general audience, farmers, journalists, shop
    owners, athletes, a busy reader, first-time buyers, volunteers, gardeners, musicians, my boss, city planners,
    lawyers, people in a hurry, sceptics, experts""")
STYLES = listed("""formal, playful, dramatic, plain, poetic, optimistic, sceptical, humorous, scientific, persuasive,
    friendly, serious, old-fashioned, enthusiastic, dry, simple, encouraging, mysterious, honest, modern""")
ASPECTS = listed("""cost, safety, time, practice, patience, good tools, clear goals, health, quality, space, planning,
    teamwork, curiosity, fresh ideas, habits, money, the weather, technology, training, trust, energy, experience,
    simple rules, balance, local laws, regular breaks, a good teacher, care, the right size, light, noise, comfort,
    history, culture, attention to detail, storage""")


@dataclass(frozen=True)
class Material:
    """Texts of other people's that rows are built on."""

    passages: tuple[str, ...]
    sentences: tuple[str, ...]
    tasks: tuple[Row, ...]


def say(draw: Random, template: str, **values: str) -> str:
    """The template with every [a|b] decided and every {name} filled; what fills a slot is left as it is."""
    while (decided := re.sub(r"\[([^\[\]]*)\]", lambda match: draw.choice(match[1].split("|")), template)) != template:
        template = decided

    def fill(match: re.Match[str]) -> str:
        article, value = match[1] or "", values.get(match[2], f"{{{match[2]}}}")
        return article + ("n " if article and value[:1] in "aeiou" else " " if article else "") + value

    return re.sub(r"(?:\b([Aa]) )?\{(\w+)\}", fill, template)


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def code(draw: Random) -> str:
    """A product code of 4 to 9 characters."""
    letters = "".join(draw.choices("ABCDEFGHKLMNPRSTUVWXZ", k=draw.randint(1, 4)))
    return f"{letters}{draw.choice(['-', '', '/'])}{draw.randint(100, 9999)}"


def values(draw: Random) -> dict[str, str]:
    """Something for every slot that the templates share."""
    item, other = draw.sample(ITEMS, 2)
    number, price = draw.randint(2, 96), f"{draw.randint(2, 240)}{draw.choice(['.50', '.99', '.00', ''])}"
    return {
        "name": draw.choice(NAMES), "city": draw.choice(list(CITIES)), "item": item, "other": other,
        "number": str(number),
        "price": f"{price} {draw.choice(['euros', 'dollars', 'pounds', 'francs'])}", "code": code(draw),
        "date": f"{draw.randint(1, 28)} {draw.choice(MONTHS)}", "year": str(draw.randint(1880, 2020)),
        "opens": f"{draw.randint(6, 11)}:{draw.choice(['00', '15', '30'])}", "topic": draw.choice(TOPICS),
        "closes": f"{draw.randint(15, 22)}:{draw.choice(['00', '30', '45'])}", "room": str(draw.randint(2, 480)),
        "phone": f"{draw.randint(200, 999)} {draw.randint(1000, 9999)}",
        "percent": f"{draw.randrange(5, 55, 5)} percent",
    }  # fmt: skip


# (a) Single instructions

VOWELS = str.maketrans("", "", "aeiouAEIOU")
TRANSFORMS: dict[str, Callable[[str], str]] = {
    "[write|put|print|return] {it} in [capital letters|upper case|all caps]": str.upper,
    "[write|put|convert] {it} [in|to] [lower case|small letters only]": str.lower,
    "[capitalise|start with a capital letter] every word of {it}": lambda text: " ".join(map(capital, text.split())),
    "[reverse|turn around|invert] the order of the words in {it}": lambda text: " ".join(text.split()[::-1]),
    "[write|spell] {it} backwards, letter by letter": lambda text: text[::-1],
    "[sort|order|arrange] the words of {it} [alphabetically|from A to Z]": lambda text: " ".join(
        sorted(text.split(), key=str.casefold)
    ),
    "[remove|delete|drop|leave out] [all|the] vowels [from|in] {it}": lambda text: text.translate(VOWELS),
    "[join|connect] the words of {it} with hyphens": lambda text: "-".join(text.split()),
    "[put|write] a comma [after each word but the last|between the words] of {it}": lambda text: ", ".join(
        text.split()
    ),
    "[rewrite|format|show] {it} as a [bulleted|bullet] list, one word [per|on each] line": lambda text: "\n".join(
        f"- {word}" for word in text.split()
    ),
    "[number|enumerate] the words of {it}": lambda text: " ".join(
        f"{place}. {word}" for place, word in enumerate(text.split(), 1)
    ),
    "[put|set|enclose] {it} in [double quotes|quotation marks]": lambda text: f'"{text}"',
    "[say|repeat|write|output] {it} twice": lambda text: f"{text} {text}",
    "[copy|repeat|echo|give back] {it} [unchanged|word for word|exactly]": lambda text: text,
    "[remove|cut|drop] the first word of {it}": lambda text: " ".join(text.split()[1:]),
    "[remove|cut|drop] the last word of {it}": lambda text: " ".join(text.split()[:-1]),
    "[keep|give|write] only the first letter of each word of {it}": lambda text: " ".join(
        word[0] for word in text.split()
    ),
    "[keep|take] every second word of {it}": lambda text: " ".join(text.split()[1::2]),
    "[repeat|write again|give] the last word of {it}": lambda text: text.split()[-1],
    "[repeat|write|give|name] the first word of {it}": lambda text: text.split()[0],
    "[name|give|find] the longest word [in|of] {it}": lambda text: max(text.split(), key=len),
    "[name|give|find] the shortest word [in|of] {it}": lambda text: min(text.split(), key=len),
}
MEASURES: dict[str, Callable[[str], str]] = {
    "[count the words|tell me the number of words|say how many words there are] in {it}": lambda text: str(
        len(text.split())
    ),
    "[count the letters|tell me the number of letters] in {it}[|, capitals included]": lambda text: str(
        sum(map(str.isalpha, text))
    ),
    "[say whether|tell me if] {it} [has|contains] a digit (yes or no)": lambda text: (
        "yes" if re.search(r"\d", text) else "no"
    ),
    "[say whether|tell me if] {it} is [long|a long one]: [yes|say yes] from nine words on, else no": lambda text: (
        "yes" if len(text.split()) > 8 else "no"
    ),
}
WRAPPERS = (
    "{Task}.", "{Task}.", "Please {task}.", "Your task is to {task}.", "Can you {task}?", "I want you to {task}.",
    "You [get|are given|receive] a text. {Task}.", "{Task} and [write|say|add] nothing else.", "Job: {task}.",
    "{Task}. [Answer with the result only.|Do not explain.|No comments, please.]", "Whatever I send, {task}.",
    "[For every message|With each input], {task}.", "Kindly {task}.", "In this exercise you {task}.",
    "You are a text tool. {Task}.", "Help me with a text: {task}.", "Read the input, then {task}.", "{task}",
)  # fmt: skip
RECORDS = (
    "{name} [ordered|bought|sold|returned] {number} [pieces of the {item}|of the model {code}] in {city} on {date}.",
    "[On {date},|It was on {date} that] {name} [paid|spent] {price} [for|on] a {item} (code {code}) in {city}, "
    "number {number}.",
    "Delivery {code}: {number} boxes for {name} in {city}, {price}, due on {date}, with a {item} on top.",
    "[Dear team|Hello], {name} from {city} called on {date} about {number} {item}s under {code}, worth {price}.",
    "{city}, {date}. {name} left a {item} in the hall; the ticket is {code}, the fee {price}, seat {number}.",
)
FIELDS = {
    "name": "[the name of the person|who it is about|the person's name]",
    "city": "[the city|the town|where it happened]",
    "date": "[the date|the day|when it happened]", "item": "[the object|the thing|the item]",
    "code": "[the code|the reference]",
    "price": "[the price|the amount of money]", "number": "[the number|the count|the quantity]",
}  # fmt: skip


def single_instruction(draw: Random, material: Material) -> Row:
    """(a) One instruction, or two in a row, on a short text."""
    makers = (transform, transform, transform, extract, pick_out, translate, classify, frame)
    task, given, answer = draw.choice(makers)(draw, material)
    return Row(say(draw, draw.choice(WRAPPERS), task=task, Task=capital(task)), given, answer)


def short_text(draw: Random, material: Material) -> str:
    """A sentence of someone's, a made-up record, or a few words."""
    text = draw.choice(
        (
            draw.choice(material.sentences),
            say(draw, draw.choice(RECORDS), **values(draw)),
            " ".join(
                draw.sample([word for group in GROUPS.values() for word in group] + list(WORDS), draw.randint(3, 8))
            ),
        )
    )
    return " ".join(text.split()[:20])


def transform(draw: Random, material: Material) -> tuple[str, str, str]:
    """One or two changes to a text, the last perhaps a count."""
    text = answer = short_text(draw, material)
    noun = draw.choice(("the text", "the sentence", "the input", "the line", "what I write", "the message", "it"))
    parts: list[str] = []
    for share_of_measures in draw.choice(((0.2,), (0.0, 0.3))):
        measures = draw.random() < share_of_measures
        phrase, change = draw.choice(list((MEASURES if measures else TRANSFORMS).items()))
        parts.append(say(draw, phrase, it="the result" if parts else noun))
        answer = change(answer)
        if len(answer.split()) < 2:
            break
    return draw.choice((", then ", " and then ", "; after that, ")).join(parts), text, answer


def extract(draw: Random, material: Material) -> tuple[str, str, str]:
    """One to three fields of a record, as text, as JSON or as a list."""
    found = values(draw)
    template = say(draw, draw.choice(RECORDS))
    record, present = say(draw, template, **found), [field for field in FIELDS if f"{{{field}}}" in template]
    fields = draw.sample(present, min(draw.choice((1, 1, 2, 3)), len(present)))
    asked = " and ".join(say(draw, FIELDS[field]) for field in fields)
    verb = say(draw, "[extract|give|find|pull out|write down|return]")
    shape = draw.choice(("text", "text", "json", "list"))
    if shape == "json":
        keys = draw.choice((fields, [field.upper() for field in fields], [field[0] for field in fields]))
        pairs = dict(zip(keys, (found[field] for field in fields), strict=True))
        return f"{verb} {asked} as JSON with the keys {', '.join(pairs)}", record, json.dumps(pairs)
    if shape == "list" and len(fields) > 1:
        return f"{verb} {asked} as a list with dashes", record, "\n".join(f"- {found[field]}" for field in fields)
    return f"{verb} {asked}", record, ", ".join(found[field] for field in fields)


def pick_out(draw: Random, material: Material) -> tuple[str, str, str]:
    """The words of a closed vocabulary that a text holds."""
    (wanted, members), (_, others) = draw.sample(list(GROUPS.items()), 2)
    chosen = draw.sample(members, draw.randint(1, 3))
    words = chosen + draw.sample(sorted(set(others) - set(members)), draw.randint(2, 4))
    draw.shuffle(words)
    joint = draw.choice((", ", " / ", "; "))
    task = say(
        draw, "[list|name|pick out|find|write down] [every|each] {wanted} [in the list|among the words]", wanted=wanted
    )
    task += say(draw, "[|, in the same order|], [with|using] '{joint}' between [them|two words]", joint=joint)
    return task, ", ".join(words), joint.join(word for word in words if word in chosen)


def translate(draw: Random, material: Material) -> tuple[str, str, str]:
    """One to three words from a small dictionary."""
    language = draw.randrange(len(LANGUAGES))
    words = draw.sample(list(WORDS), draw.choice((1, 1, 2, 3)))
    found = [WORDS[word][language] for word in words]
    task = say(
        draw, "[translate|turn|put] [the word|each word|the input|this] into {language}", language=LANGUAGES[language]
    )
    ending = draw.choice(("", "", " and end with {mark}", " and begin with {mark}", ", in capital letters"))
    mark, answer = draw.choice(MARKS), ", ".join(found)
    if "mark" in ending:
        answer = f"{answer} {mark}" if "end" in ending else f"{mark} {answer}"
    return task + ending.replace("{mark}", mark), ", ".join(words), answer.upper() if "capital" in ending else answer


def opinion(draw: Random) -> tuple[str, bool]:
    """A sentence about a thing, and whether it praises it."""
    praises = draw.random() < 0.5
    template = (
        "[The|This|My new|Their] {item} [is|was|turned out] {word}[.|!|, and I told {name}.|; I got it in {city}.]"
    )
    return say(draw, template, **values(draw), word=draw.choice(GOOD if praises else BAD)), praises


def classify(draw: Random, material: Material) -> tuple[str, str, str]:
    """A sentence or a word into labels that the prompt names."""
    if draw.random() < 0.5:
        text, praises = opinion(draw)
        good, bad = draw.choice(LABELS).split("/")
        asked = say(draw, "[if it praises something and|for praise,] {bad} [if not|otherwise]", bad=bad)
        return say(draw, "[answer|write|reply with] {good} ", good=good) + asked, text, good if praises else bad
    groups = draw.sample([group for group in GROUPS if group != "colour"], draw.randint(2, 4))
    answer = draw.choice(groups)
    task = say(
        draw,
        "[classify|sort|label] [the word|the input|it] [as|as one of|with one of these:] {groups}",
        groups=" or ".join(groups),
    )
    return task, draw.choice([word for word in GROUPS[answer] if word != "drill"]), answer


def frame(draw: Random, material: Material) -> tuple[str, str, str]:
    """A text between given words, or with one word changed for another."""
    text, words = short_text(draw, material), values(draw)
    head, tail = (
        draw.choice((words["name"], words["code"], draw.choice(MARKS))),
        draw.choice((words["city"], draw.choice(SIGN_OFFS))),
    )
    changed, new = draw.choice(text.split()), draw.choice((words["item"], words["name"], words["code"]))
    forms = (
        ("[put|write|add] '{head}' [before|in front of] the text", f"{head} {text}"),
        ("[add|append|put] '{tail}' [at the end of|after] the text", f"{text} {tail}"),
        ("[put|write] '{head}' before the text and '{tail}' after it", f"{head} {text} {tail}"),
        ("[repeat|copy] the text and sign it '{tail}'", f"{text}\n{tail}"),
        (
            "[replace|swap] the word '{changed}' [by|with] '{new}'",
            re.sub(rf"(?<!\S){re.escape(changed)}(?!\S)", lambda _: new, text),
        ),
        ("[wrap|enclose] the text in the tag <{item}>", f"<{words['item']}>{text}</{words['item']}>"),
        ("[answer|reply] only with '{head} {tail}', whatever the text", f"{head} {tail}"),
    )
    phrase, answer = draw.choice(forms)
    return say(draw, phrase, **words, head=head, tail=tail, changed=changed, new=new), text, answer


# (b) System prompts with rules

Facts = tuple[str, tuple[tuple[str, str], ...]]
FACTS: tuple[Facts, ...] = (  # what the prompt says, and questions with their answers; the first four also in LANGUAGES
    ("[The {item} costs|We sell the {item} for|Price of the {item}:] {price}.",
     (("[How much is|What is the price of|What does it cost to buy] the {item}?", "The {item} costs {price}."),)),
    ("[We are open from|Opening hours:] {opens} to {closes}[ every day|].",
     (("[When do you open|What are your opening hours|Are you open today]?",
       "We are open from {opens} to {closes}."),)),
    ("[Our phone number is|The phone number is|Phone:] {phone}.",
     (("[How can I call you|What is your phone number|Can I phone you]?", "Our phone number is {phone}."),)),
    ("[The manager is called|The manager's name is|Manager:] {name}.",
     (("[Who is in charge|What is the manager's name|Who runs this place]?", "The manager is {name}."),)),
    ("[The code of the {item} is|The {item} has the product code] {code}.",
     (("[What is the code of the {item}|Which code do I enter for the {item}]?",
       "The code of the {item} is {code}."),)),
    ("[Anything|Every item] can be returned within {number} days, [except|but not] the {item}, "
     "which [stays sold|is final sale].",
     (("Can I [return|bring back] the {item}?", "No, the {item} cannot be returned."),
      ("Can I [return|bring back] the {other} I bought?", "Yes, you can return it within {number} days."))),
    ("Delivery [takes|needs] {number} days and costs {price}; in {city} it is free.",
     (("[How long does delivery take|When will my parcel come]?", "Delivery takes {number} days."),
      ("What does delivery to {city} cost?", "Delivery in {city} is free."),
      ("[What does delivery cost|How much is shipping]?", "Delivery costs {price}, but it is free in {city}."))),
    ("[Members|Students|Pensioners] pay {percent} less; the discount does not apply to the {item}.",
     (("[Is there a discount|Do you have reduced prices]?", "There is a discount of {percent}, but not on the {item}."),
      ("Do I get the discount on the {item}?", "No, the discount does not apply to the {item}."))),
    ("[Complaints go to|Send complaints to] {name} in room {room}.",
     (("I [want to complain|am not happy with the service].", "Please see {name} in room {room}."),)),
    ("[The next workshop|The next course|Our next open day] is on {date} and is led by {name}.",
     (("When is the next [workshop|course|event]?", "It is on {date}, led by {name}."),
      ("Who leads the next [workshop|course|event]?", "{name} leads it."))),
    ("The {item} [is out of stock until|will be back on] {date}; offer the {other} instead.",
     (("[Do you have|Can I buy] the {item}[ now|]?",
       "The {item} is out of stock until {date}. May I offer you the {other}?"),)),
    ("[The guest network's password is|Wifi password:] {code}.",
     (("[What is the wifi password|How do I get online]?", "The wifi password is {code}."),)),
    ("If [someone asks|a customer asks|you are asked] about {topic}, [say|answer only|reply]: '{refusal}'",
     (("[What do you think of|Do you know anything about|Can you explain something about] {topic}?", "{refusal}"),)),
    ("[If you do not know an answer|When the answer is not here], [say|write] '{refusal}'",
     (("[What is the weather like in {city}|How old is {name}|Who won the match on {date}]?", "{refusal}"),)),
    ("[Bookings|Orders] of more than {number} [people|pieces] need the approval of {name}.",
     (("I would like to [book|order] for 3{number}.", "That needs the approval of {name}."),)),
    ("[The meeting point is|Meet visitors at] gate {room}, [beside|next to] the {item}.",
     (("Where do we meet?", "We meet at gate {room}, next to the {item}."),)),
)  # fmt: skip
FOREIGN = {
    "French": (
        "Cela coûte {price}.",
        "Nous sommes ouverts de {opens} à {closes}.",
        "Notre numéro est le {phone}.",
        "C'est {name}.",
    ),
    "Spanish": ("Cuesta {price}.", "Abrimos de {opens} a {closes}.", "Nuestro número es el {phone}.", "Es {name}."),
    "German": (
        "Das kostet {price}.",
        "Wir haben von {opens} bis {closes} geöffnet.",
        "Unsere Nummer ist {phone}.",
        "Das ist {name}.",
    ),
    "Italian": (
        "Costa {price}.",
        "Siamo aperti dalle {opens} alle {closes}.",
        "Il nostro numero è {phone}.",
        "È {name}.",
    ),
}
MANNER_RULES: dict[str, Callable[[str, str], str]] = {  # what the prompt says, and what it does to (answer, word)
    "[End|Close|Finish] every [answer|reply|message] with '{sign_off}'": lambda answer, words: f"{answer} {words}",
    "[Begin|Start|Open] every [answer|reply|message] with '{greeting}'": lambda answer, words: f"{words} {answer}",
    "[Call the user|Address the user as] '{name}'.": lambda answer, words: f"{words}, {answer[:1].lower()}{answer[1:]}",
    "[Write|Answer|Reply] in capital letters only.": lambda answer, words: answer.upper(),
    "[Write|Answer|Reply] in lower case only.": lambda answer, words: answer.lower(),
    "[Answer|Reply] in JSON with the one key '{key}'.": lambda answer, words: json.dumps(
        {words: answer}, ensure_ascii=False
    ),
    "[Put|Write] every answer between {mark} and {mark}.": lambda answer, words: f"{words}{answer}{words}",
    "[Write|Format] every answer as a list with dashes.": lambda answer, words: f"- {answer}",
    "[Put|Write] the reference {code} [after|below] every answer.": lambda answer, words: f"{answer} [{words}]",
}
LAYOUTS = (
    "{persona} {about}\n\nRules:\n{dashes}", "{persona}\n{about}\n{numbers}", "{persona} {about} {line}",
    "# Role\n{persona}\n\n# Background\n{about}\n\n# Instructions\n{dashes}",
    "{about}\n{persona}\nFollow these rules:\n{numbers}",
    "{persona} {line}\n{about}", "SYSTEM NOTES\n{numbers}\n\n{persona}\n{about}", "{persona} {line}",
    "{persona}\n\n{dashes}",
)  # fmt: skip


def system_prompt(draw: Random, material: Material) -> Row:
    """(b) A persona with two to eight rules, and a question whose answer follows from them."""
    business = f"{draw.choice(FIRST)} {draw.choice(SECOND)}"
    chosen = draw.sample(range(len(FACTS)), draw.randint(1, 5))
    known = [{**values(draw), "refusal": draw.choice(REFUSALS)} for _ in chosen]
    rules = [say(draw, FACTS[fact][0], **words) for fact, words in zip(chosen, known, strict=True)]
    asked = draw.randrange(len(chosen))
    question, answer = (say(draw, text, **known[asked]) for text in draw.choice(FACTS[chosen[asked]][1]))
    foreign = chosen[asked] < 4 and draw.random() < 0.4
    if foreign:
        language = draw.choice(LANGUAGES)
        answer = say(draw, FOREIGN[language][chosen[asked]], **known[asked])
        rules.append(
            say(
                draw,
                "[Always|You must] [answer|write|reply] in {language}[, whatever language the user writes|].",
                language=language,
            )
        )
    if draw.random() < 0.7:
        phrase, change = draw.choice(list(MANNER_RULES.items()))
        words = {
            **values(draw),
            "sign_off": draw.choice(SIGN_OFFS),
            "greeting": draw.choice(GREETINGS),
            "mark": draw.choice(MARKS),
            "key": draw.choice(("answer", "reply", "text", "result", values(draw)["item"])),
        }
        slot = re.search(r"\{(\w+)\}", phrase)
        rules.append(say(draw, phrase, **words))
        answer = change(answer, words[slot[1]] if slot else "")
    rules += draw.sample(HABITS, max(2 - len(rules), draw.randint(0, 8 - len(rules))))
    draw.shuffle(rules)
    return Row(lay_out(draw, business, rules), question, answer)


def lay_out(draw: Random, business: str, rules: list[str]) -> str:
    """The text of a system prompt."""
    words = {**values(draw), "manner": draw.choice(MANNERS), "role": draw.choice(ROLES), "business": business}
    persona = "[You are|Your name is|You play] {name}, [a|the] {manner} {role} [at|of|for] {business} in {city}."
    background = [
        "{business} was founded in {year}[ by two friends| by a family from {city}|].",
        "[It is known for|People come for|We also make] [the {item}|its {item}] and the {other}.",
        "[Most|Many] of the users are {audience}, and they often ask about {topic}.",
        "[Your colleague|The owner] {name} [likes|prefers] [a {style} tone|{style} answers].",
        "[On a usual day|Every week] about {number} people [write|come|call].",
        "[In|Back in] {year} [it|the place] moved from {city} to [a bigger house|a house beside a {other} factory].",
        "[The most common questions are|People mostly ask] about {topic}[, then about the {item}|] "
        "and about opening times.",
        "[Before you|Earlier], {name} [did this work|had this job][, and people still ask for {name}|].",
        "[Think about|Read] each message [carefully|twice], [find|look up] the rule that [fits|applies] "
        "and answer in a {style} tone.",
        "The {item} for {audience} [has been|is] the [best seller|pride of the house] since {year}.",
        "[There are|We have] {room} [seats|shelves|visitors a day] and a {other} [by the door|on the first floor].",
        "{name} [looks after|is responsible for] the {item}, {name2} does the same for the {other}.",
        "[Some|A few] people come [only|just] to talk about {topic}; [be kind to them|that is welcome].",
    ]
    about = [
        say(
            draw,
            text,
            **{**values(draw), "business": business},
            audience=draw.choice(AUDIENCES),
            style=draw.choice(STYLES),
            name2=draw.choice(NAMES),
        )
        for text in draw.sample(background, draw.choice((0, 1, 2, 3, 5, 8, 11, 13)))
    ]
    text = say(
        draw, draw.choice(LAYOUTS), persona=say(draw, persona, **words), about=" ".join(about), line=" ".join(rules),
        dashes="\n".join(f"- {rule}" for rule in rules),
        numbers="\n".join(f"{place}. {rule}" for place, rule in enumerate(rules, 1)),
    )  # fmt: skip
    return re.sub(r" +", " ", re.sub(r"\n{3,}", "\n\n", text)).strip()


# (c) Few-shot prompts


def from_table(table: dict[str, str]) -> Callable[[Random, int], list[tuple[str, str]]]:
    """Pairs of a table."""
    return lambda draw, count: draw.sample(list(table.items()), count)


def by_rule(
    rule: Callable[[Random], Callable[[dict[str, str]], tuple[str, str]]],
) -> Callable[[Random, int], list[tuple[str, str]]]:
    """Pairs that one drawn rule makes of different words."""

    def pairs(draw: Random, count: int) -> list[tuple[str, str]]:
        pair = rule(draw)
        found: dict[str, str] = {}
        while len(found) < count:
            found.update([pair(values(draw))])
        return list(found.items())

    return pairs


def translations(draw: Random, count: int) -> list[tuple[str, str]]:
    """Words in one language, or from one into another."""
    table = [[english, *others] for english, others in WORDS.items()]
    source, target = draw.choice(((0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (2, 0), (3, 0), (1, 2), (2, 1)))
    return [(row[source], row[target]) for row in draw.sample(table, count)]


def labelled_words(draw: Random, count: int) -> list[tuple[str, str]]:
    """Words of two or three groups, each under its own label, which may be any word."""
    groups = draw.sample([group for group in GROUPS if group != "colour"], draw.randint(2, 3))
    names = (
        groups if draw.random() < 0.5 else draw.sample((*NAMES, *GROUPS["colour"], *"ABCDEFG123456789"), len(groups))
    )
    label = dict(zip(groups, names, strict=True))
    found = [
        (word, label[group])
        for group in groups
        for word in draw.sample(GROUPS[group], 5)
        if word not in ("drill", "guitar")
    ]
    while True:
        *shown, asked = draw.sample(found, count)
        if asked[1] in (name for _, name in shown):
            return [*shown, asked]


def labelled_opinions(draw: Random, count: int) -> list[tuple[str, str]]:
    """Sentences under a pair of labels."""
    good, bad = draw.choice(LABELS).split("/")
    return [(text, good if praises else bad) for text, praises in (opinion(draw) for _ in range(count))]


def arithmetic(draw: Random) -> Callable[[dict[str, str]], tuple[str, str]]:
    """A number and the same with something added, taken away or multiplied."""
    by, kind = draw.randint(2, 12), draw.choice("+-*")
    return lambda words: (
        words["room"],
        str({"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[kind](int(words["room"]), by)),
    )


def rewriting(draw: Random) -> Callable[[dict[str, str]], tuple[str, str]]:
    """Fields of a record written in one form, and in another."""
    fields = draw.sample(list(FIELDS), draw.choice((1, 2, 2, 3)))
    shown, joint, mark = (
        draw.choice((", ", " ", " | ", "; ")),
        draw.choice((": ", " - ", " / ", "=", " by ")),
        draw.choice(MARKS),
    )
    forms: tuple[Callable[[list[str]], str], ...] = (
        lambda words: joint.join(words[::-1]),
        lambda words: json.dumps(dict(zip(fields, words, strict=True))),
        lambda words: f"{mark} {joint.join(words).upper()}",
        lambda words: f"({words[0]}) {mark}",
        lambda words: " ".join(word[0] for word in words) + mark,
        lambda words: f"{words[-1][::-1]}",
        lambda words: f"{fields[0]}{joint}{words[0]}",
    )
    form = draw.choice(forms)
    return lambda words: (shown.join(words[field] for field in fields), form([words[field] for field in fields]))


RETOLD = (
    "{name}: {code}", "{date}, {city}", "{code} ({name}, {city})", "{name} in {city}",
    "On {date}, {name} was in {city}.",
    "Dear {name}, thank you for your visit to {city} on {date}.", "Reference {code}, {date}: {item}, {price}.",
    "{name} of {city} has {number}.", "Who? {name}. Where? {city}. When? {date}.",
    "Note to {name}: the {item} is at {city}.",
)  # fmt: skip


def sentences(draw: Random) -> Callable[[dict[str, str]], tuple[str, str]]:
    """A record in a sentence, and a field or a retelling of it."""
    record, field = draw.choice(RECORDS), draw.choice(("name", "city", "date", "code"))
    record = say(draw, record)
    known = [
        form
        for form in (f"{{{field}}}", *RETOLD)
        if set(re.findall(r"\{\w+\}", form)) <= set(re.findall(r"\{\w+\}", record))
    ]
    retold = draw.choice(known or ["{name}"])
    return lambda words: (say(draw, record, **words), say(draw, retold, **words))


PATTERNS = (
    from_table(OPPOSITES), from_table(PAST), from_table(CITIES),
    from_table({value: key for key, value in CITIES.items()}),
    translations, translations, labelled_words, labelled_words, labelled_opinions, by_rule(arithmetic),
    by_rule(rewriting),
    by_rule(rewriting), by_rule(rewriting), by_rule(sentences), by_rule(sentences),
)  # fmt: skip
SHOTS = (  # an example, what stands between two, and how the input is asked
    ("Input: {x}\nOutput: {y}", "\n\n", "Input: {x}\nOutput:"),
    ("{x} -> {y}", "\n", "{x} ->"),
    ("{x} => {y}", "\n", "{x} =>"),
    ("Q: {x}\nA: {y}", "\n", "Q: {x}\nA:"),
    ("{x} = {y}", "\n", "{x} ="),
    ('"{x}" becomes "{y}"', "\n", "{x}"),
    ("User: {x}\nAssistant: {y}", "\n", "{x}"),
    ("- {x}: {y}", "\n", "{x}"),
    ("<in>{x}</in><out>{y}</out>", "\n", "{x}"),
    ("{x}\n{y}", "\n\n", "{x}"),
    ("Example {n}. {x} / {y}", "\n", "{x}"),
    ("If I write {x}, you write {y}", ". ", "{x}"),
)
HEADERS = (
    "", "", "Follow the pattern.", "Here are some examples:", "Continue in the same way.",
    "Answer like in the examples.",
    "Work out the rule from the examples and apply it.", "Examples:", "You are a converter. This is how you work:",
    "Do the same with what I send next.", "[Learn|Study] these [pairs|cases] and [answer the next one|go on].",
)  # fmt: skip


def few_shot(draw: Random, material: Material) -> Row:
    """(c) Two to five examples of a pattern, and an input that it fits."""
    *examples, (asked, answer) = draw.choice(PATTERNS)(draw, draw.randint(3, 6))
    shot, joint, request = draw.choice(SHOTS)
    shown = [say(draw, shot, x=x, y=y, n=str(place)) for place, (x, y) in enumerate(examples, 1)]
    header = say(draw, draw.choice(HEADERS))
    return Row(f"{header}\n{joint.join(shown)}".strip(), say(draw, request, x=asked), answer)


# (d) Passages

QUOTES = (
    "[Complete|Continue|Finish] the sentence [from the text|of the passage|as it stands there]: {start}", "{start} ...",
    "[How does|In the text, how does] the sentence that [begins|starts] with '{start}' go on?",
    "Go on from here: {start}",
    "[Repeat|Quote|Copy] the sentence [that begins with|beginning] '{start}'.",
    "What does the text say after '{start}'?",
)  # fmt: skip
READING = (
    "{text}", "{text}", "{text}", "Text: {text}", "[Read|Study] this [text|passage]:\n\n{text}",
    "{text}\n\nAnswer from the text.",
    "You [know|have read] the [following|text below] by heart[|, word for word].\n{text}",
)  # fmt: skip


def passage(draw: Random, material: Material) -> Row:
    """(d) A passage as the prompt; the answer is a sentence of it, its end, or a word."""
    text = draw.choice(material.passages)
    prompt = say(draw, draw.choice(READING), text=text)
    fitting = [sentence for sentence in sentences_of(text) if 7 <= len(sentence.split()) <= 45]
    sentence = draw.choice(fitting).split()
    cut = draw.randint(3, min(8, len(sentence) - 3))
    while text.count(" ".join(sentence[:cut])) > 1 and cut < len(sentence) - 1:
        cut += 1
    start, end = " ".join(sentence[:cut]), " ".join(sentence[cut:])
    if draw.random() < 0.15:
        return Row(
            prompt,
            say(draw, "[Which|What] word comes [next|right] after '{start}'[ in the text|]?", start=start),
            sentence[cut],
        )
    template = draw.choice(QUOTES)
    whole = "Repeat" in template
    return Row(prompt, say(draw, template, start=start), f"{start} {end}" if whole else end)


# (e) Ordinary requests

LISTS = "{one}, {two} and {three}"
REQUESTS = (
    ("[Write|Compose|Draft] a {style} [sentence|line|remark] about {x} for {y}.",
     "For {y}, {x} [is|means] above all {one}, and also {two}."),
    ("Explain {x} to {y} in a {style} way.", "{X} is about {one}. It helps to think of {two} first, then of {three}."),
    ("[List|Name|Give me] {n} [things|points] [that matter for|to know about] {x}[ if you are one of {y}|].",
     "{items}"),
    ("Compare {x} [and|with] {z} for {y}.", "{X} needs more {one}, while {z} depends on {two}. Both need {three}."),
    ("[Suggest|Come up with] a [title|headline] for a {style} article on {x} for {y}.", "{X}: {One} and {two} for {y}"),
    ("[Give|Offer] {y} {n} [tips|pieces of advice] on {x}.", "{tips}"),
    ("[Write|Make up] a {style} slogan for {x}[, aimed at {y}|].", "{X}: more {one}, less worry!"),
    ("[Ask me|Write|Prepare] {n} [quiz|interview] questions about {x} for {y}.", "{questions}"),
    ("[Summarise|Sum up] what {y} should know about {x}[, in a {style} tone|].",
     "{Y} should know that {x} depends on " + LISTS + "."),
    ("[What are|Describe] the [advantages|benefits] of {x} for {y}[?|, please.]",
     "The main benefits are " + LISTS + "."),
    ("[What are|Name] the [drawbacks|risks] of {x} for {y}[?|, briefly.]", "The main risks concern " + LISTS + "."),
    ("[Write|Draft] a short {style} [email|message] to {y} about {x}.",
     "Dear {name}, I am writing about {x}. Please think of {one} and {two}. Best wishes"),
    ("[Tell|Write] a {style} story of two sentences about {x} and a {item}.",
     "{name} found a {item} and thought of {x}. Then {one} changed everything."),
    ("[Write|Create] a {style} poem of two lines on {x}.",
     "Oh {x}, you bring us {one},\nand {two} when the day is done."),
    ("[Why|For what reason] do {y} [care about|like|need] {x}?",
     "Because of {one} and {two}, which {x} can bring to {y}."),
    ("[How do I|How can {y}|What is the best way to] [get started with|learn about] {x}?",
     "Start with {one}, then look after {two}, and keep {three} in mind."),
    ("[Make|Draw up] a plan of {n} steps for [a project|a talk] on {x} for {y}.", "{steps}"),
    ("[Define|Give a definition of] {x} in one {style} sentence.", "{X} is a matter of {one} and {two}."),
    ("[Argue|Make the case] [for|against] {x} in front of {y}, [in a {style} tone|in {n} sentences].",
     "Think of {one}: {x} changes it for {y}. Then there is {two}."),
    ("[Invent|Suggest] a name for a [shop|club|blog|company] about {x}.", "{First} {X}"),
    ("[Write|Record] a {style} [voice message|post|tweet] by {name} about {x}.",
     "It's {name}! Today it is all about {x} and {one}. #{tag}"),
    ("Rate {x} for {y} on a scale from 1 to {n}0 and [say why|give a reason].", "{n} out of {n}0, because of {one}."),
    ("[Write|Give] a {style} definition of {x}, then {n} keywords[ for {y}|].", "{X} is about {one}. Keywords: {keys}"),
    ("[Answer|Reply] as {name}, a {style} [expert on|fan of|critic of] {x}.",
     "I am {name}, and for me {x} is {one} and {two}."),
)  # fmt: skip
ENDINGS = listed(""", , , , Keep it short., At most 30 words., Use simple language., Mention {item}., Do not use the
    word {two}., Be {style}., Write for {y2}., Start with the word {One}., End with a question., No introduction., Use
    British spelling., Add an example., Address the reader directly., Stay factual., Make it memorable., Think of
    readers in {city}.""")
POLITE = ("{text}", "{text}", "Please help: {text}", "{text} Thanks!")


def request(draw: Random, material: Material) -> Row:
    """(e) What people ask of an assistant, or a person's task with a wish added; the answer is only a sketch."""
    if material.tasks and draw.random() < 0.15:
        task = draw.choice(material.tasks)
        wish = say(draw, draw.choice(ENDINGS), **request_words(draw))
        return Row(f"{task.prompt.strip()} {wish}".strip(), task.input, task.output.strip())
    template, answer = draw.choice(REQUESTS)
    words, given = request_words(draw), ""
    if draw.random() < 0.4 and "{x}" in template:  # the topic comes with the input
        given = say(draw, "[Topic: |Subject: |]{x}", **words)
        template = template.replace(
            "{x}", draw.choice(("the topic", "the given topic", "the subject below", "it", "what I name"))
        )
    wish = say(draw, draw.choice(ENDINGS), **words)
    answer = say(draw, answer, **words)
    if wish.startswith("Start with the word"):
        answer = f"{words['One']}: {answer}"
    return Row(
        f"{say(draw, draw.choice(POLITE), text=say(draw, template, **words))} {wish}".strip(),
        given,
        answer,
    )


def request_words(draw: Random) -> dict[str, str]:
    """Something for every slot of a request and its answer."""
    words, count = values(draw), draw.randint(2, 5)
    x, z = draw.sample(TOPICS, 2)
    y, y2 = draw.sample(AUDIENCES, 2)
    aspects = draw.sample(ASPECTS, 5)
    one, two, three = aspects[:3]
    asks = ("What does {x} have to do with", "How does {x} change", "Why does {x} need")
    return words | {
        "x": x, "X": capital(x), "y": y, "Y": capital(y), "y2": y2, "z": z, "n": str(count), "one": one,
        "One": capital(one),
        "two": two, "three": three, "style": draw.choice(STYLES), "First": draw.choice(FIRST),
        "keys": ", ".join(aspects[:count]),
        "tag": "".join(map(capital, re.findall(r"\w+", x))),
        "items": "\n".join(f"{place}. {capital(aspect)}" for place, aspect in enumerate(aspects[:count], 1)),
        "steps": "\n".join(f"Step {place}: work on {aspect}" for place, aspect in enumerate(aspects[:count], 1)),
        "tips": "\n".join(f"- Think of {aspect} in {x}." for aspect in aspects[:count]),
        "questions": "\n".join(
            f"{place}. {asks[place % 3].replace('{x}', x)} {aspect}?" for place, aspect in enumerate(aspects[:count], 1)
        ),
    }  # fmt: skip


# The recipe

KINDS: dict[str, Callable[[Random, Material], Row]] = {
    "single": single_instruction, "system": system_prompt, "few-shot": few_shot, "passage": passage, "request": request,
}  # fmt: skip
FROM_NOTHING = ("system", "few-shot")
"""Kinds that need no texts and no tasks."""


def main() -> None:
    """Write as many rows as asked for."""
    options = parse()
    try:
        run(options)
    except GistlmError as error:
        sys.exit(f"programmatic.py: {error}")


def run(options: argparse.Namespace) -> None:
    """The whole recipe for one command line."""
    if options.rows < 1:
        raise InputError(f"--rows is {options.rows}; give a whole number of at least 1")
    material = Material((), (), ())
    if needy := [kind for kind in options.kinds if kind not in FROM_NOTHING]:
        if not options.texts or not options.tasks:
            raise InputError(f"rows of the kind {needy[0]} are built on --texts and --tasks; give both")
        material = read_material(options.texts, options.tasks)
    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    lines = []
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for kind, row in bar.track(write_rows(material, options.rows, options.seed, options.kinds), options.rows):
            record = {"instruction": row.prompt, "input": row.input, "output": row.output, "kind": kind}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_atomically(options.out, "".join(lines).encode())


def write_rows(
    material: Material, count: int, seed: int, kinds: Sequence[str] = tuple(KINDS)
) -> Iterator[tuple[str, Row]]:
    """(kind, row) of each row, the kinds in turn; no prompt, normalised, comes twice."""
    seen: set[str] = set()
    draws = {kind: Random(f"{seed} {kind}") for kind in kinds}
    for place in range(count):
        kind = kinds[place % len(kinds)]
        for _ in range(ATTEMPTS):
            row = KINDS[kind](draws[kind], material)
            prompt = normalise(row.prompt)
            if prompt not in seen and 1 <= len(row.output.split()) <= MAX_ANSWER_WORDS:
                break
        else:
            raise DataError(
                f"no new {kind} prompt in {ATTEMPTS} draws after {place:,} rows; ask for fewer, or give more texts"
            )
        seen.add(prompt)
        yield kind, row


def read_material(texts: str, tasks: str) -> Material:
    """Passages and short sentences of the texts, and the tasks that are short enough to ask for."""
    paragraphs = {
        " ".join(part.split()): None for row in read_rows(texts, split_long_inputs=True) for part in paragraphs_of(row)
    }
    passages = [text for text in paragraphs if 60 <= len(text.split()) <= 250 and is_prose(text)]
    short = {sentence: None for text in passages for sentence in sentences_of(text) if 4 <= len(sentence.split()) <= 18}
    if not short:
        raise DataError(f"{texts} has no passage of 60 to 250 words of prose; give a file with longer inputs")
    known = [row for row in read_rows(tasks) if len((row.prompt + row.input).split()) <= 80]
    return Material(tuple(passages), tuple(short), tuple(known))


def paragraphs_of(row: Row) -> list[str]:
    """The paragraphs of a row's prompt and input."""
    return [part for text in (row.prompt, row.input) for part in text.split("\n")]


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, cut after a full stop, a question mark or an exclamation mark before a capital."""
    return re.split(r"(?<=[a-z0-9]{2}[a-z0-9)\"][.!?])\s+(?=[A-Z\"])", text)


NOT_PROSE = re.compile(
    r"\?[,.]| [.,]|[.!?] (?-i:[a-z])|[`_<>|]|\b(?:question|answer|article|hint|background|situation|summary)\b", re.I
)
"""Marks of lists, markup, tokenised text, and of the tasks that T0 wraps texts in."""


def is_prose(text: str) -> bool:
    """Whether a text is whole sentences without lists, markup or tokenised punctuation."""
    letters = sum(char.isalpha() or char.isspace() for char in text)
    has_sentence = any(7 <= len(sentence.split()) <= 45 for sentence in sentences_of(text))
    whole = text[0].isupper() and text[-1] in '.!?"'
    return whole and has_sentence and letters > 0.9 * len(text) and not NOT_PROSE.search(text)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", help="rows whose inputs hold passages, such as T0's; not for system and few-shot")
    parser.add_argument("--tasks", help="rows of instruction, input, output that people wrote; as --texts")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="of rows; all by default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
