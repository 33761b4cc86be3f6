"""The words and sentences of probes in two halves, and a guess at an answer's language; knows nothing of probes.

The evaluation half says things in ways that a model of 135 M parameters follows when it has the full prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Fact = tuple[str, str]
"""A statement about {x}, and the question whose answer {x} is; both may name a {subject}."""

LANGUAGES = ("French", "Spanish", "German", "Italian")

_FUNCTION_WORDS = {
    "English": "the a an and of to in is are was it i you my your that this with for on not have what from be as we",
    "French": "le la les un une des et de du est sont je tu il elle nous vous mon ma que qui dans pour avec sur ne pas "
    "bonjour merci très bien c'est j'ai suis au aux en",
    "Spanish": "el la los las un una y de del es son yo tú él ella nosotros mi que en para con por no se hola gracias "
    "muy bien está estoy como al lo su",
    "German": "der die das den dem ein eine einen und von ist sind ich du er sie wir mein dass in für mit auf nicht "
    "zu guten danke sehr gut habe bin wie es im",
    "Italian": "il lo la gli un una e di del della è sono io tu lui lei noi mio che in per con su non si ciao grazie "
    "molto bene sto come al nel",
}
_VOTES = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}


def language_of(text: str) -> str | None:
    """The language with most function words in a text; None where two have as many, or none has any."""
    words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", text.casefold().replace("’", "'"))
    votes = {language: sum(word in known for word in words) for language, known in _VOTES.items()}
    best, second = sorted(votes.values(), reverse=True)[:2]
    return max(votes, key=lambda language: votes[language]) if best > second else None


@dataclass(frozen=True)
class Vocabulary:
    """What one half of the probes is made from."""

    names: tuple[str, ...]
    people: tuple[str, ...]
    """Who has a name."""
    numbered: tuple[str, ...]
    """What has a number."""
    coded: tuple[str, ...]
    """What has a code."""
    manners: tuple[str, ...]
    words: tuple[str, ...]
    """Nouns, lower case, that a format or pattern changes."""
    groups: tuple[str, ...]
    """To whom a rule applies."""
    name_facts: tuple[Fact, ...]
    number_facts: tuple[Fact, ...]
    code_facts: tuple[Fact, ...]
    language_rules: tuple[str, ...]
    format_rules: tuple[str, ...]
    formats: tuple[Fact, ...]
    """What a rule says of an answer, and the answer's form."""
    rule_leads: tuple[str, ...]
    rules: tuple[Fact, ...]
    """What somebody does with a number, and the question for it."""
    pattern_leads: tuple[str, ...]
    patterns: tuple[str, ...]
    """Forms of a word."""
    small_talk: tuple[tuple[str, ...], ...]
    """Inputs, each with an answer in every one of `LANGUAGES`."""


def _list(text: str) -> tuple[str, ...]:
    return tuple(" ".join(item.split()) for item in text.split(","))


def _pairs(text: str) -> tuple[Fact, ...]:
    """Lines such as "statement | question"."""
    return tuple((first.strip(), second.strip()) for first, second in (line.split("|") for line in text.split("\n")))


def _talk(text: str) -> tuple[tuple[str, ...], ...]:
    """Paragraphs such as "question | answer | answer | answer | answer"."""
    return tuple(tuple(" ".join(part.split()) for part in entry.split("|")) for entry in text.split("\n\n"))


_EVAL = Vocabulary(
    names=_list("""Agnes, Albin, Alma, Anselm, Arlo, Basil, Bertha, Bianca, Boris, Brigid, Casper, Celine, Cora, Cyril,
        Daphne, Delia, Dmitri, Dorian, Edgar, Elsa, Emil, Erika, Ezra, Fabian, Flora, Gideon, Gloria, Gunnar, Harriet,
        Helga, Hilda, Horace, Irene, Isidor, Ivo, Jasper, Judith, Julius, Kira, Klaus, Lambert, Leonora, Linus, Lydia,
        Mabel, Marius, Matilda, Maurice, Mirabel, Naomi, Nestor, Odette, Olaf, Ophelia, Orson, Pascal, Phoebe, Ragnar,
        Regina, Rufus, Sabine, Silas, Solveig, Sylvia, Tabitha, Thelma, Tobias, Ursula, Valentin, Viola, Wilma"""),
    people=_list("dog, guest, neighbour, baby, parrot, teacher, pilot, gardener, singer, baker, winner, doctor"),
    numbered=_list("table, room, bus, gate, page, platform, house, flight, track, chapter"),
    coded=_list("door code, access code, voucher code, serial number, safe code, ticket code"),
    manners=_list("polite, helpful, careful, quick, gentle, clever, reliable, quiet, honest, lively, gracious, humble"),
    words=_list("""cloud, spoon, pencil, ticket, window, garden, stone, letter, feather, carrot, island, rocket, pocket,
        planet, button, hill, dinner, lantern, village, flower, farmer, market, tunnel, desert, finger, shadow, barrel,
        curtain, needle, ribbon, castle, engine, corner, fence, mountain, garage, anchor, morning, statue, cabin"""),
    groups=_list("""teacher, farmer, doctor, pilot, student, painter, driver, singer, dancer, writer, baker, sailor,
        waiter, soldier, lawyer, hunter, plumber, builder, gardener, actor, nurse, judge, tailor, miner"""),
    name_facts=_pairs("""The {subject} is called {x}. | What is the {subject} called?
        Today's {subject} is {x}. | Who is today's {subject}?
        The name of the {subject} is {x}. | What is the name of the {subject}?
        The user's name is {x}. | What is the user's name?"""),
    number_facts=_pairs("""The {subject} number is {x}. | What is the {subject} number?
        There are {x} sheep on the farm. | How many sheep are there?
        The old bridge has {x} steps. | How many steps does the old bridge have?
        The number of the {subject} is {x}. | What is the number of the {subject}?"""),
    code_facts=_pairs("""The {subject} of the hotel is {x}. | What is the {subject} of the hotel?
        The {subject} of the museum is {x}. | What is the {subject} of the museum?
        The {subject} of the library is {x}. | What is the {subject} of the library?"""),
    language_rules=_list("""You are a {manner} assistant who speaks {language}. Write every answer in {language}.,
        You are a {manner} writer who speaks {language}. Write all your answers in {language}.,
        You are a {manner} friend who speaks {language}. Write everything in {language}."""),
    format_rules=_list("Write every answer {how}., Put each answer {how}."),
    formats=_pairs("""in square brackets | [{}]
        between two asterisks | *{}*
        in round brackets | ({})
        in double quotes | "{}" """),
    rule_leads=(
        "The rule: everyone {usual}, with one exception.",
        "The rule: everyone {usual}, with a single exception.",
    ),
    rules=_pairs("""pays {} dollars | How much does the {} pay?
        gets {} apples | How many apples does the {} get?
        waits {} minutes | How many minutes does the {} wait?"""),
    pattern_leads=("Answer as in these examples.", "Answer exactly like this."),
    patterns=("{}s", "{}!", "[{}]", "*{}*"),
    small_talk=_talk("""Hello, who are you? | Je suis un assistant. | Yo soy un asistente. | Ich bin ein Assistent. |
        Io sono un assistente.

        Tell me about the sea. | La mer est belle et grande. | El mar es grande y azul. | Das Meer ist groß und blau. |
        Il mare è grande e blu.

        Write a sentence about dogs. | Le chien est un ami. | El perro es un amigo. | Der Hund ist ein Freund. |
        Il cane è un amico.

        What is the sun? | Le soleil est une étoile. | El sol es una estrella. | Die Sonne ist ein Stern. |
        Il sole è una stella.

        Tell me about the sky. | Le ciel est bleu et clair. | El cielo es azul. | Der Himmel ist blau. | Il cielo è blu.

        Describe a small house. | La maison est petite. | La casa es pequeña y está en el campo. | Das Haus ist klein. |
        La casa è piccola.

        Write something about winter. | Il neige et je suis dans la maison. | En el invierno estoy en la casa. |
        Der Winter ist kalt. | Il freddo è nel mio giardino."""),
)

_TRAIN = Vocabulary(
    names=_list("""Ada, Aisha, Alan, Amir, Anton, Astrid, Beatriz, Bruno, Carmen, Cedric, Clara, Conor, Dalia, Dario,
        Diego, Edith, Elena, Enzo, Esther, Felix, Fiona, Freya, Greta, Hana, Hassan, Hugo, Ida, Igor, Ingrid, Isaac,
        Jamal, Jana, Jonas, Karim, Katya, Kofi, Lars, Leo, Lina, Luca, Magda, Malik, Marta, Mei, Milo, Nadia, Nils,
        Noor, Olga, Omar, Oscar, Otto, Paula, Pedro, Petra, Priya, Rafael, Ravi, Rosa, Ruth, Samir, Selma, Sofia,
        Stella, Sven, Tara, Theo, Tomas, Uma, Vera, Victor, Wanda, Xenia, Yara, Yusuf, Zara, Zoltan"""),
    people=_list("cat, horse, boat, cousin, aunt, sheriff, mayor, grocer, chef, coach, porter, postman, uncle, robot"),
    numbered=_list("locker, seat, order, invoice, licence, ward, exit, lane, channel, box, queue, parcel"),
    coded=_list("alarm code, entry key, discount code, gift card number, device ID, tracking code, file name"),
    manners=_list("friendly, cheerful, precise, patient, formal, witty, calm, brisk, warm, blunt, modest, curious"),
    words=_list("""lamp, river, lemon, chair, carpet, bottle, mirror, basket, hammer, candle, kettle, scarf, camera,
        wallet, jacket, tiger, eagle, rabbit, apple, mango, melon, truck, tractor, violin, guitar, shirt, glove,
        street, bridge, forest, valley, hermit, dragon, coin, ladder, clock, train, bird, tree, nail, kitchen"""),
    groups=_list("""child, tourist, parent, member, visitor, manager, player, cyclist, reader, camper, swimmer,
        runner, trainer, skier, climber, volunteer, shopper, patient, tenant, passenger, pensioner, hiker, client"""),
    name_facts=_pairs("""You work for a {subject} named {x}. | Tell me the name of that {subject}.
        Remember that our {subject} goes by {x}. | By what name does our {subject} go?
        {x} is the {subject} of this story. | Which {subject} is in this story?
        I am {x}, and you are my assistant. | Say my name.
        My {subject} answers to {x}. | To what name does my {subject} answer?"""),
    number_facts=_pairs("""Go to {subject} {x}. | To which {subject} do I go?
        My {subject} has the number {x}. | Give me the number of my {subject}.
        We sold {x} loaves of bread. | How much bread did we sell?
        The tower is {x} metres high. | How high is the tower?
        The answer is {x}. | What is the answer?"""),
    code_facts=_pairs("""Use the {subject} {x} from now on. | Which {subject} do we use from now on?
        {subject} = {x} | {subject} =
        Whoever asks for the {subject} is told {x}. | Please tell me the {subject}.
        Note the {subject} {x} and give it to the customer. | Give me the {subject}."""),
    language_rules=_list("""Answer in {language}. Be {manner}.,
        The customer is {manner} and understands nothing but {language}.,
        Stay {manner} and reply to all messages in {language} only.,
        Use the {language} language whatever the user says. Be {manner}.,
        You are a {manner} guide for {language} visitors; talk to them in their own language."""),
    format_rules=_list("""Your replies stand {how}., What you say is always {how}., Every reply of yours is {how}.,
        Always give your reply {how}."""),
    formats=_pairs("""between two slashes | /{}/
        in curly brackets | {{}}
        in single quotes | '{}'
        between two tildes | ~{}~
        behind an arrow | -> {}
        before three dots | {}...
        between two dollar signs | ${}$"""),
    rule_leads=(
        "As a rule each one {usual}; there is one special case.",
        "Usually one {usual}, but not always.",
        "All of them do the same but one: as a rule each {usual}.",
    ),
    rules=_pairs("""owes {} euros | What sum does the {} owe?
        scores {} points | What is the score of the {}?
        carries {} kilos | What weight does the {} carry?
        walks {} miles | What distance does the {} walk?
        reads {} pages | What number of pages does the {} read?"""),
    pattern_leads=(
        "Go on in the same way.",
        "Do the same with the next word.",
        "Follow the examples.",
        "Learn from these:",
    ),
    patterns=("my {}", "{} {}", "{}:", "={}=", "@{}", "{}, please", "no {}", "{}-{}", "+{}+", "{}less", "{};"),
    small_talk=_talk("""Good morning! | Bonjour ! Je suis là pour vous. | ¡Hola! Estoy aquí para usted. |
        Guten Morgen! Ich bin für dich da. | Ciao! Sono qui per lei.

        How are you? | Je vais très bien, merci. | Estoy muy bien, gracias. | Mir geht es sehr gut, danke. |
        Sto molto bene, grazie.

        Thank you for your help. | Merci, c'est très gentil. | Gracias, es muy amable. | Danke, das ist sehr nett. |
        Grazie, è molto gentile.

        What is your work? | Je suis dans une école. | Yo estoy en una escuela. | Ich bin in einer Schule. |
        Io sono in una scuola.

        Where is the station? | La gare est au centre de la ville. | La estación está en el centro de la ciudad. |
        Der Bahnhof ist im Zentrum. | La stazione è nel centro della città.

        Say something about music. | La musique est une langue pour tous. | La música es una lengua para todos. |
        Die Musik ist eine Sprache für alle. | La musica è una lingua per tutti.

        What is in the garden? | Il y a des fleurs dans le jardin. | En el jardín hay una flor. |
        In dem Garten ist eine Blume. | Nel giardino c'è una rosa e un albero.

        Talk about the night. | La nuit est calme et je suis bien. | La noche es larga y no hay luz. |
        Die Nacht ist lang und sehr still. | La notte è lunga e non c'è luce.

        Do you have a book? | Oui, j'ai un livre dans mon sac. | Sí, está en mi casa con los otros. |
        Ja, ich habe ein Buch. | Sì, il libro è nel mio zaino.

        What is a friend? | Un ami est une personne que l'on aime. | Un amigo es una persona muy buena. |
        Ein Freund ist ein guter Mensch, der mit dir lacht. | Un amico è una persona molto buona."""),
)

VOCABULARIES = {"eval": _EVAL, "train": _TRAIN}
