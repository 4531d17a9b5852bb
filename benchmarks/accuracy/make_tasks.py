"""Writes the documents of the offline tasks, `pytest_llamaperf/accuracy/offline/*.jsonl`.

    python benchmarks/accuracy/make_tasks.py [--folder FOLDER]

All sentences are this project's own, so there is nothing to download and no license to keep. The files come out byte
for byte, whatever the machine: the standard library is enough, and each cluster is drawn from a seed of its own, so
that a new cluster leaves the others as they are.

A cluster holds documents made of one template, or about one verb. They succeed and fail together, so statistics that
resample must resample clusters. `facts` and `short_answers` ask about the same things and share names of clusters.

Whatever changes a document also makes accuracy measured before that of another task: raise `metadata.version` in its
YAML.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[2] / "pytest_llamaperf" / "accuracy" / "offline"
SEED = 135

Document = dict[str, Any]


def seeded(cluster: str) -> Random:
    return Random(f"{SEED} {cluster}")


def words(text: str) -> list[str]:
    return text.split()


def choice_document(cluster: str, name: str, context: str, right: str, wrong: Sequence[str], label: int) -> Document:
    choices = [*wrong]
    choices.insert(label, right)
    return {"id": f"{cluster}/{name}", "cluster": cluster, "context": context, "choices": choices, "label": label}


# --- agreement: which verb fits the subject, with other nouns in between

PEOPLE = words(
    "teacher doctor farmer student painter author actor singer nurse lawyer pilot driver soldier girl boy king "
    "neighbor guest manager writer dancer friend sister brother child man woman"
)
ANIMALS = words("dog cat horse bird cow rabbit monkey lion tiger bear duck pig frog goat")
THINGS = words(
    "car book key letter house ship picture table window bridge chair bottle machine garden tree flower lamp clock "
    "shirt door"
)
SURROUNDINGS = words("car house tree wall table window bridge door garden chair")
PREPOSITIONS = ("near", "behind", "beside", "next to", "in front of")
IRREGULAR = {"child": "children", "man": "men", "woman": "women"}
# What a subject of a kind does to people in a relative clause.
DEEDS = {
    "people": ("who", ("helped", "met", "saw")),
    "animals": ("that", ("followed", "saw", "liked")),
    "things": ("that", ("surprised", "pleased", "belonged to")),
}
NOUNS = {"people": PEOPLE, "animals": ANIMALS, "things": THINGS}

# Singular and plural, by the kinds of subject that they go with, and how often each construction is asked.
VERBS = (
    (("people", "animals", "things"), 2, "is/are was/were has/have does/do"),
    (
        ("people",),
        1,
        (
            "works/work lives/live knows/know wants/want thinks/think says/say plays/play sings/sing writes/write "
            "listens/listen speaks/speak learns/learn buys/buy believes/believe agrees/agree smiles/smile "
            "travels/travel waits/wait feels/feel tells/tell gives/give loves/love"
        ),
    ),
    (("animals",), 1, "runs/run eats/eat grows/grow jumps/jump hides/hide drinks/drink"),
    (
        ("things",),
        1,
        (
            "stands/stand looks/look becomes/become seems/seem belongs/belong falls/fall breaks/break moves/move "
            "lies/lie remains/remain comes/come needs/need appears/appear goes/go"
        ),
    ),
)


def plural(noun: str) -> str:
    return IRREGULAR.get(noun, f"{noun}s")


def number(noun: str, many: bool) -> str:
    return plural(noun) if many else noun


def subjects(noun: str, kind: str, many: bool, random: Random) -> Iterator[tuple[str, str]]:
    """A subject in each construction, with the construction's name; nouns in between mostly have the other number."""
    subject = number(noun, many)
    neighbor = random.choice([other for other in SURROUNDINGS if other != noun])
    people = random.choice([other for other in PEOPLE if other != noun])
    place = f"The {subject} {random.choice(PREPOSITIONS)} the"
    pronoun, deeds = DEEDS[kind]
    yield "demonstrative", f"{'These' if many else 'This'} {subject}"
    yield "adjective", f"The {random.choice(('old', 'young', 'big', 'small'))} {subject}"
    yield "place", f"{place} {number(neighbor, many)}"
    yield "other-place", f"{place} {number(neighbor, not many)}"
    yield "object-clause", f"The {subject} that the {number(people, not many)} saw"
    yield "subject-clause", f"The {subject} {pronoun} {random.choice(deeds)} the {number(people, not many)}"


def agreement() -> Iterator[Document]:
    for kinds, rounds, verbs in VERBS:
        for verb in verbs.split():
            singular_verb, plural_verb = verb.split("/")
            cluster = f"{singular_verb}-{plural_verb}"
            random = seeded(cluster)
            nouns = [(noun, kind) for kind in kinds for noun in NOUNS[kind]]
            drawn = iter(random.sample(nouns, 12 * rounds))
            for place, many, again in itertools.product(range(6), (False, True), range(rounds)):
                noun, kind = next(drawn)
                construction, context = list(subjects(noun, kind, many, random))[place]
                name = f"{construction}-{'plural' if many else 'singular'}-{again + 1}"
                right, wrong = (plural_verb, singular_verb) if many else (singular_verb, plural_verb)
                label = (place + many + again) % 2  # either place equally often for each number
                yield choice_document(cluster, name, context, right, [wrong], label)


# --- facts, and short answers about the same


class Family(NamedTuple):
    """What is asked in one way: as a sentence to be ended, and as a table to be continued."""

    cluster: str
    sentence: str
    heading: str | None  # None where the embedded model knows the answer when it sees it, but does not say it
    pairs: str  # asked=answer, ...

    def answers(self) -> dict[str, str]:
        return dict(pair.split("=") for pair in self.pairs.split(", "))


FAMILIES = (
    Family(
        "capitals-west",
        "The capital of {} is",
        "Capitals",
        "France=Paris, Germany=Berlin, Italy=Rome, Spain=Madrid, Portugal=Lisbon, Austria=Vienna, Belgium=Brussels, "
        "Ireland=Dublin, England=London, Greece=Athens",
    ),
    Family(
        "capitals-north-east",
        "The capital city of {} is",
        "Capital cities",
        "Sweden=Stockholm, Norway=Oslo, Finland=Helsinki, Denmark=Copenhagen, Poland=Warsaw, Hungary=Budapest, "
        "Russia=Moscow, Ukraine=Kiev, Romania=Bucharest, Bulgaria=Sofia",
    ),
    Family(
        "capitals-asia",
        "The Asian country of {} has its capital in",
        "Asian countries and their capitals",
        "Japan=Tokyo, China=Beijing, Thailand=Bangkok, Vietnam=Hanoi, Iran=Tehran, Iraq=Baghdad, Indonesia=Jakarta, "
        "Nepal=Kathmandu, Pakistan=Islamabad, South Korea=Seoul",
    ),
    Family(
        "capitals-america-africa",
        "The government of {} sits in the capital,",
        "Countries and capitals",
        "Cuba=Havana, Peru=Lima, Chile=Santiago, Argentina=Buenos Aires, Canada=Ottawa, Mexico=Mexico City, "
        "Egypt=Cairo, Kenya=Nairobi, Colombia=Bogota, Venezuela=Caracas",
    ),
    Family(
        "languages",
        "Most people in {} speak",
        "Languages",
        "France=French, Germany=German, Italy=Italian, Spain=Spanish, Portugal=Portuguese, China=Chinese, "
        "Japan=Japanese, Russia=Russian, Greece=Greek, Turkey=Turkish, Poland=Polish, England=English",
    ),
    Family(
        "nationalities",
        "A person who was born in {} is",
        "Nationalities",
        "Canada=Canadian, Mexico=Mexican, India=Indian, Egypt=Egyptian, Norway=Norwegian, Brazil=Brazilian, "
        "Cuba=Cuban, Australia=Australian, Sweden=Swedish, Ireland=Irish, Scotland=Scottish, Iran=Iranian",
    ),
    Family(
        "continents",
        "On a map of the world, {} is in",
        "Continents",
        "France=Europe, Germany=Europe, China=Asia, India=Asia, Kenya=Africa, Nigeria=Africa, Brazil=South America, "
        "Peru=South America, Canada=North America, Japan=Asia",
    ),
    Family(
        "landmarks",
        "If you want to see {}, travel to",
        "Landmarks",
        "the Eiffel Tower=Paris, the Colosseum=Rome, Big Ben=London, the Statue of Liberty=New York, the "
        "Kremlin=Moscow, the Brandenburg Gate=Berlin, the Acropolis=Athens, the Opera House by the harbor=Sydney, the "
        "Golden Gate Bridge=San Francisco",
    ),
    Family(
        "currencies",
        "In {} you pay with the",
        "Currencies",
        "Japan=yen, India=rupee, China=yuan, Russia=ruble, Mexico=peso, England=pound, Germany=euro, "
        "the United States=dollar, Switzerland=franc, Brazil=real",
    ),
    Family(
        "states",
        "The American state of {} has its capital in",
        "American states and their capitals",
        "Texas=Austin, Georgia=Atlanta, Massachusetts=Boston, Colorado=Denver, Arizona=Phoenix, "
        "California=Sacramento, Hawaii=Honolulu, Ohio=Columbus, Tennessee=Nashville",
    ),
    Family(
        "days-after",
        "If today is {}, tomorrow is",
        None,
        "Monday=Tuesday, Tuesday=Wednesday, Wednesday=Thursday, Thursday=Friday, Friday=Saturday, Saturday=Sunday, "
        "Sunday=Monday",
    ),
    Family(
        "months-after",
        "The month after {} is",
        "The month after",
        "January=February, February=March, March=April, April=May, May=June, June=July, July=August, "
        "August=September, September=October, October=November, November=December",
    ),
    Family(
        "months-before",
        "The month before {} is",
        None,
        "February=January, March=February, April=March, June=May, July=June, August=July, October=September, "
        "November=October, December=November",
    ),
    Family(
        "opposite-qualities",
        "The opposite of {} is",
        "Opposites",
        "hot=cold, big=small, happy=sad, fast=slow, rich=poor, hard=soft, wet=dry, early=late, strong=weak, "
        "thick=thin, clean=dirty, good=bad",
    ),
    Family(
        "opposite-places",
        "If it is not {}, it is",
        "Opposite places",
        "up=down, left=right, inside=outside, north=south, east=west, above=below, near=far, top=bottom, high=low",
    ),
    Family(
        "opposite-deeds",
        "Some people {} and others",
        "Opposite verbs",
        "win=lose, buy=sell, love=hate, push=pull, laugh=cry, give=take, live=die, come=go, sit=stand, ask=answer",
    ),
    Family(
        "synonyms",
        "Another word for {} is",
        None,
        "big=large, small=little, quick=fast, begin=start, shut=close, glad=happy, wealthy=rich, ill=sick, "
        "hard=difficult, talk=speak",
    ),
    Family(
        "colors",
        "The color of {} is",
        "Colors",
        "grass=green, the sky=blue, snow=white, blood=red, coal=black, a banana=yellow, a carrot=orange, "
        "chocolate=brown, a flamingo=pink, an elephant=gray",
    ),
    Family(
        "counting-words",
        "She counted slowly: {}",
        None,
        "one two three=four, two three four=five, three four five=six, four five six=seven, five six seven=eight, "
        "six seven eight=nine, seven eight nine=ten, nine ten eleven=twelve",
    ),
    Family(
        "counting-steps",
        "The numbers are {}",
        "The next number",
        "2 4 6=8, 5 10 15=20, 10 20 30=40, 1 3 5=7, 100 200 300=400, 7 8 9=10, 20 40 60=80, 11 12 13=14, 20 30 40=50",
    ),
    Family(
        "spelling-order",
        "In order, the letters are {}",
        "Letters in order",
        "A B C=D, B C D=E, C D E=F, F G H=I, H I J=K, K L M=N, O P Q=R, R S T=U, W X Y=Z",
    ),
    Family(
        "sums",
        "In words, {} is",
        "Sums",
        "one plus one=two, two plus one=three, two plus two=four, three plus two=five, three plus three=six, "
        "four plus three=seven, four plus four=eight, five plus four=nine, five plus five=ten",
    ),
    Family(
        "letters-after",
        "In the alphabet, the letter after {} is",
        "The next letter",
        "A=B, B=C, C=D, D=E, E=F, G=H, J=K, L=M, N=O, P=Q, S=T, X=Y",
    ),
    Family(
        "ordinals",
        "To say which place {} has in a row, we say",
        "Ordinal numbers",
        "one=first, two=second, three=third, four=fourth, five=fifth, six=sixth, seven=seventh, eight=eighth, "
        "nine=ninth, ten=tenth",
    ),
    Family(
        "digits",
        "The number {} is written as",
        "Numbers in digits",
        "two=2, three=3, four=4, five=5, six=6, seven=7, eight=8, nine=9, twelve=12, twenty=20",
    ),
    Family(
        "roman-numerals",
        "The Roman numeral {} stands for",
        "Roman numerals",
        "II=two, III=three, IV=four, V=five, VI=six, VII=seven, VIII=eight, IX=nine, X=ten",
    ),
    Family(
        "kinds-living",
        "A {} is a kind of",
        "Kinds of living things",
        "robin=bird, salmon=fish, poodle=dog, rose=flower, spruce=tree, cobra=snake, beetle=insect, banana=fruit, "
        "carrot=vegetable, sparrow=bird, trout=fish, pine=tree",
    ),
    Family(
        "kinds-made",
        "People use a {} as a kind of",
        "Kinds of things",
        "hammer=tool, piano=musical instrument, truck=vehicle, sword=weapon, sofa=furniture, guitar=musical "
        "instrument, bus=vehicle, rifle=weapon, saw=tool, dollar=money",
    ),
    Family(
        "materials",
        "{} made of",
        "Materials",
        "Windows are=glass, Tires are=rubber, Books are=paper, Candles are=wax, Sweaters are=wool, Shoes are "
        "often=leather, Bricks are=clay, Coins are=metal, Statues are often=stone, Logs are=wood",
    ),
    Family(
        "sources",
        "{} from",
        "Where food comes from",
        "Cheese is made=milk, Wine is made=grapes, Bread is made=flour, Raisins come=grapes, Honey comes=bees, "
        "Wool comes=sheep, Eggs come=chickens, Chocolate is made=cocoa beans, Ham comes=pigs",
    ),
    Family(
        "young",
        "A young {} is called a",
        None,
        "dog=puppy, cat=kitten, cow=calf, sheep=lamb, lion=cub, chicken=chick, duck=duckling, horse=foal, "
        "frog=tadpole, goose=gosling",
    ),
    Family(
        "sounds",
        "On the farm, the {}",
        None,
        "dog=barks, cat=meows, cow=moos, duck=quacks, sheep=bleats, rooster=crows, pig=grunts, bee=buzzes, "
        "snake=hisses",
    ),
    Family(
        "homes",
        "A {} lives in a",
        None,
        "bird=nest, bee=hive, bear=cave, spider=web, dog=kennel, horse=stable, fish=pond, rabbit=burrow, king=palace",
    ),
    Family(
        "females",
        "A man is called {}, and a woman is called",
        "Men and women",
        "king=queen, prince=princess, actor=actress, waiter=waitress, husband=wife, father=mother, brother=sister, "
        "uncle=aunt, son=daughter, grandfather=grandmother",
    ),
    Family(
        "jobs",
        "A person who {} is called a",
        "Jobs",
        "teaches students=teacher, flies airplanes=pilot, grows crops=farmer, paints pictures=painter, writes "
        "books=writer, bakes bread=baker, cuts hair=barber, puts out fires=firefighter, catches fish=fisherman, "
        "repairs teeth=dentist, takes photographs=photographer, drives a bus=driver",
    ),
    Family(
        "workplaces",
        "A {} works in a",
        "Where people work",
        "teacher=school, nurse=hospital, judge=court, cook=kitchen, scientist=laboratory, banker=bank, "
        "librarian=library, actor=theater, priest=church, cashier=store",
    ),
    Family(
        "players",
        "Somebody who plays the {} is called a",
        "Musicians",
        "piano=pianist, violin=violinist, guitar=guitarist, drums=drummer, flute=flutist, trumpet=trumpeter, "
        "cello=cellist",
    ),
    Family(
        "sciences",
        "The study of {} is called",
        "Sciences",
        "living things=biology, the stars=astronomy, the mind=psychology, numbers=mathematics, rocks=geology, "
        "the past=history, plants=botany, animals=zoology, matter and energy=physics",
    ),
    Family(
        "body",
        "We {} with our",
        "Parts of the body",
        "see=eyes, hear=ears, smell=nose, taste=tongue, chew=teeth, walk=legs, think=brain, breathe=lungs, write=hands",
    ),
    Family(
        "clothes",
        "You wear {} on your",
        "Where clothes are worn",
        "shoes=feet, a hat=head, gloves=hands, a ring=finger, a watch=wrist, a scarf=neck, glasses=nose, a belt=waist",
    ),
    Family(
        "tools",
        "To {}, you use a",
        "Tools",
        "hit a nail=hammer, cut bread=knife, dig a hole=shovel, sweep the floor=broom, open a lock=key, "
        "eat soup=spoon, see the stars=telescope, take a picture=camera, row a boat=paddle, sew a shirt=needle, "
        "measure temperature=thermometer, tell the time=clock",
    ),
    Family(
        "rooms",
        "You {} in the",
        "Rooms and places",
        "cook=kitchen, sleep=bedroom, take a bath=bathroom, park the car=garage, plant flowers=garden, "
        "borrow books=library, watch a play=theater, pray=church, swim=pool",
    ),
    Family(
        "shapes",
        "A shape with {} is called a",
        "Shapes",
        "three sides=triangle, four equal sides=square, five sides=pentagon, six sides=hexagon, eight sides=octagon, "
        "no corners=circle",
    ),
    Family(
        "past-tense",
        "Today they {}. Yesterday they",
        "Past tense",
        "go=went, eat=ate, run=ran, see=saw, write=wrote, sing=sang, take=took, give=gave, come=came, buy=bought, "
        "think=thought, speak=spoke",
    ),
    Family(
        "plurals",
        "There was one {}, and now there are many",
        "Plurals",
        "mouse=mice, child=children, man=men, woman=women, foot=feet, tooth=teeth, leaf=leaves, knife=knives, "
        "wolf=wolves, city=cities, baby=babies, goose=geese",
    ),
    Family(
        "superlatives",
        "This one is {}, but that one is the",
        "Superlatives",
        "big=biggest, small=smallest, fast=fastest, good=best, bad=worst, tall=tallest, old=oldest, young=youngest, "
        "long=longest, happy=happiest",
    ),
    Family(
        "comparatives",
        "He is {}, but she is even",
        None,
        "strong=stronger, rich=richer, good=better, bad=worse, young=younger, happy=happier, smart=smarter, "
        "kind=kinder, brave=braver, wise=wiser",
    ),
    Family(
        "who-does",
        "Somebody who likes to {} is a good",
        "Who does it",
        "sing=singer, dance=dancer, run=runner, swim=swimmer, write=writer, teach=teacher, lead=leader, read=reader, "
        "paint=painter, speak=speaker",
    ),
    Family(
        "qualities",
        "Everybody knows that {}",
        "What things are like",
        "ice is=cold, fire is=hot, sugar is=sweet, lemons are=sour, stones are=hard, feathers are=light, the night "
        "is=dark, water is=wet, giants are=tall, turtles are=slow",
    ),
    Family(
        "comparisons",
        "As {} as",
        None,
        "white=snow, cold=ice, black=night, sweet=honey, busy=a bee, sly=a fox, hard=a rock, light=a feather, "
        "blind=a bat, strong=an ox",
    ),
    Family(
        "companions",
        "They always go together: {} and",
        "Things that go together",
        "salt=pepper, bread=butter, bride=groom, knife=fork, thunder=lightning, king=queen, lock=key, needle=thread, "
        "cup=saucer, pen=paper",
    ),
    Family(
        "durations",
        "Remember that {}",
        "Times",
        "sixty minutes are one=hour, sixty seconds are one=minute, seven days are one=week, twelve months are "
        "one=year, ten years are one=decade, a hundred years are one=century, twenty-four hours are one=day",
    ),
    Family(
        "symbols",
        "The chemical symbol for {} is",
        "Chemical symbols",
        "oxygen=O, hydrogen=H, carbon=C, nitrogen=N, gold=Au, silver=Ag, iron=Fe, sodium=Na, helium=He",
    ),
    Family(
        "writers",
        "One of the works of {} is",
        "Writers",
        "William Shakespeare=Hamlet, Homer=the Odyssey, Jane Austen=Pride and Prejudice, "
        "Charles Dickens=Oliver Twist, Mark Twain=Huckleberry Finn, Herman Melville=Moby Dick, "
        "George Orwell=Animal Farm, Mary Shelley=Frankenstein",
    ),
    Family(
        "discoveries",
        "{} was the work of",
        "Discoverers",
        "The theory of relativity=Albert Einstein, The theory of evolution=Charles Darwin, "
        "The law of gravity=Isaac Newton, The discovery of radium=Marie Curie, The Mona Lisa=Leonardo da Vinci, "
        "The invention of the telephone=Alexander Graham Bell, The printing press=Johannes Gutenberg, "
        "The first voyage to America in 1492=Christopher Columbus",
    ),
    Family(
        "rivers",
        "A great river of {} is the",
        "Rivers",
        "Egypt=Nile, Brazil=Amazon, London=Thames, Paris=Seine, India=Ganges, Germany=Rhine, Vienna=Danube, "
        "the United States=Mississippi",
    ),
    Family(
        "seasons",
        "{} is the season of",
        "Seasons",
        "snow and ice=winter, falling leaves=autumn, the first flowers=spring, the hottest days=summer",
    ),
)

FACTS = 8  # at most in a family; those left over are wrong choices and examples
SHORT_ANSWERS = 5
EXAMPLES = 3


def facts() -> Iterator[Document]:
    count = itertools.count()
    for family in FAMILIES:
        random = seeded(family.cluster)
        answers = family.answers()
        for place, (asked, right) in list(enumerate(answers.items(), 1))[:FACTS]:
            wrong = random.sample(sorted({*answers.values()} - {right}), 3)
            context = family.sentence.format(asked)
            yield choice_document(family.cluster, str(place), context, right, wrong, next(count) % 4)


def short_answers() -> Iterator[Document]:
    for family in FAMILIES:
        if family.heading is None:
            continue
        random = seeded(family.cluster)
        pairs = list(family.answers().items())
        for place, (asked, answer) in list(enumerate(pairs, 1))[:SHORT_ANSWERS]:
            examples = random.sample([pair for pair in pairs if pair[1] != answer], EXAMPLES)
            lines = [family.heading, *(f"{question}: {reply}" for question, reply in examples), f"{asked}:"]
            yield {
                "id": f"{family.cluster}/{place}",
                "cluster": family.cluster,
                "prompt": "\n".join(lines),
                "answer": answer,
            }


# --- copying: what comes next can only be known from the text before

WORDS = {
    "animals": words("dog cat horse bird cow rabbit monkey lion tiger bear duck pig frog goat"),
    "cities": words("Paris London Rome Berlin Madrid Tokyo Vienna Moscow Dublin Cairo Boston Chicago"),
    "colors": words("red blue green white black yellow brown pink gray purple"),
    "foods": words("bread cheese soup rice cake fish meat milk honey salt butter sugar"),
    "jobs": words("teacher doctor farmer baker singer painter lawyer nurse pilot writer soldier judge"),
    "names": words("Anna Ben Clara David Emma Frank Grace Henry Julia Kate Leo Maria Peter Sarah Tom"),
    "numbers": words("two three four five six seven eight nine ten twelve twenty"),
    "things": words("lamp cup ring coin ball book key knife hat rope box pen"),
}
# What stands before a list, between its words, and between it and its repetition.
LISTS = {
    "order": ("They ordered ", ", ", ". So we brought "),
    "said": ("She said: ", " ", ". He said: "),
    "wrote": ('Anna wrote "', " ", '" and Ben wrote "'),
    "copy": ("Copy this line: ", " ", "\nCopy of the line: "),
    "repeat": ("Repeat after me: ", " ", ". You repeat: "),
    "input": ("Input: ", " ", "\nOutput: "),
    "sign": ("The sign reads ", " ", ". I read it again: "),
    "song": ("The song goes: ", ", ", ". All sing: "),
    "password": ("The password is ", " ", ". Enter the password: "),
    "way": ("The way goes ", " > ", ". The way again: "),
    "twice": ("I say it twice: ", ", ", "; "),
    "then": ("First ", ", then ", ". Again: first "),
    "heard": ("I heard: ", ", ", ". You heard: "),
    "page": ("The first page says ", " ", ". The second page also says "),
    "echo": ("He shouted ", " ", " and the echo was "),
    "parrot": ("The child said ", " ", ". The parrot said "),
    "same": ("My list: ", ", ", ". Your list is the same: "),
    "print": ("print: ", " ", "\nprinted: "),
    "question": ("Question: ", " ", "\nThe question was: "),
    "remember": ("Remember these words: ", ", ", ". I remember: "),
    "spoken": ("Say ", " ", ". I will say "),
    "drew": ("She drew ", ", ", ". Then he drew "),
    "row": ("In the first row: ", ", ", ". In the second row: "),
    "message": ("Message sent: ", " ", "\nMessage received: "),
    "chorus": ("One voice: ", " ", ". All voices: "),
    "cards": ("The cards on the table are ", ", ", ". He turned up "),
    "dictation": ("The teacher read ", " ", ". The class wrote "),
    "original": ("Original: ", ", ", "\nCopy: "),
    "plan": ("The plan was ", ", ", ". We did as planned: "),
    "stops": ("The bus stops at ", ", ", ". The next bus stops at "),
    "quoted": ('"', " ", '", she said. "'),
    "typed": ("I typed ", " ", ". The screen shows "),
}
LISTED = ("animals", "cities", "foods", "names", "things", "jobs")
STATEMENTS = (
    ("{} has a {}.", "names", "animals"),
    ("{} has a {}.", "names", "things"),
    ("{} is a {}.", "names", "jobs"),
    ("{} lives in {}.", "names", "cities"),
    ("{} likes {}.", "names", "foods"),
    ("{} wears {}.", "names", "colors"),
    ("The {} is {}.", "things", "colors"),
    ("The {} is {}.", "animals", "colors"),
    ("The {} eats {}.", "animals", "foods"),
    ("The price of the {} is {}.", "things", "numbers"),
    ("The name of the {} is {}.", "animals", "names"),
    ("The {} is called {}.", "jobs", "names"),
    ("The {} belongs to {}.", "things", "names"),
    ("The road to {} is {}.", "cities", "colors"),
    ("The {} comes from {}.", "foods", "cities"),
    ("In {} we ate {}.", "cities", "foods"),
    ("Room {} is {}.", "numbers", "colors"),
    ("Take the {} to {}.", "things", "cities"),
)
COPIES = 6  # in each cluster


def copying() -> Iterator[Document]:
    count = itertools.count()
    for form, (beginning, link, again) in LISTS.items():
        random = seeded(form)
        for place in range(COPIES):
            drawn = random.sample(WORDS[LISTED[place % len(LISTED)]], 4)
            known = 1 + place % 3  # words of the repetition
            context = f"{beginning}{link.join(drawn)}{again}{link.join(drawn[:known])}{link}".rstrip()
            wrong = [word for word in drawn if word != drawn[known]]
            yield choice_document(form, str(place + 1), context, drawn[known], wrong, next(count) % 4)
    for statement, keys, values in STATEMENTS:
        cluster = statement.format(keys, values).rstrip(".").lower().replace(" ", "-")
        random = seeded(cluster)
        for place in range(COPIES):
            first, second = random.sample(WORDS[keys], 2)
            drawn = random.sample(WORDS[values], 4)  # two told, and two that would do as well
            told = [statement.format(first, drawn[0]), statement.format(second, drawn[1])]
            known = place % 2  # statements of the repetition
            question = statement.format((first, second)[known], "").removesuffix(" .")
            context = " ".join([*told, "I repeat:", *told[:known], question])
            wrong = [word for word in drawn if word != drawn[known]]
            yield choice_document(cluster, str(place + 1), context, drawn[known], wrong, next(count) % 4)


TASKS = {"agreement": agreement, "facts": facts, "copying": copying, "short_answers": short_answers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    for task, documents in TASKS.items():
        lines = [json.dumps(document) + "\n" for document in documents()]
        (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
