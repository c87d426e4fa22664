"""The words of the lab in English and Esperanto.

Each entry is `english/past-or-plural = stem`, irregular forms behind a slash, and the Esperanto stem cut into its roots
by `+`: affixes (mal-, -in-, -ist-, -il-, -ej-, -ar-) are no roots of their own. Roots and derivations follow the
*Universala Vortaro* and *Plena Ilustrita Vortaro*.
"""

import re
from dataclasses import dataclass
from functools import cache

AFFIXES = frozenset({"mal", "in", "ist", "il", "ej", "ar", "ig", "um", "it"})


@dataclass(frozen=True, slots=True)
class Word:
    """One concept: `english` in its base form, `irregular` its past or plural, `stem` the Esperanto one."""

    english: str
    kind: str
    """`person`, `animal`, `food`, `thing`, `place`, `adjective`, `verb`, `motion` (a verb without object), `adverb`,
    `where` (before a place), `company` (before a person), `number`, `pronoun`."""
    irregular: str
    roots: tuple[str, ...]
    objects: tuple[str, ...] = ()
    """Kinds of nouns a verb takes as its object."""

    @property
    def stem(self) -> str:
        """The Esperanto word without its ending."""
        return "".join(self.roots)


_NOUNS = {
    "person": """
man/men = vir | woman/women = vir+in | boy = knab | girl = knab+in | child/children = infan | father = patr
mother = patr+in | brother = frat | sister = frat+in | friend = amik | king = reĝ | queen = reĝ+in
doctor = kurac+ist | teacher = instru+ist | soldier = soldat | guest = gast | neighbour = najbar
thief/thieves = ŝtel+ist
judge = juĝ+ist | student = student | uncle = onkl | aunt = onkl+in | prince = princ | servant = serv+ist
hunter = ĉas+ist
farmer = ter+kultur+ist | singer = kant+ist | writer = verk+ist | sailor = mar+ist | baker = bak+ist | grandfather = av
cousin = kuz | pilot = pilot | poet = poet
""",
    "animal": """
dog = hund | cat = kat | horse = ĉeval | cow = bov | pig = pork | goat = kapr | bird = bird | mouse/mice = mus
rat = rat
wolf/wolves = lup | fox = vulp | bear = urs | lion = leon | tiger = tigr | elephant = elefant | monkey = simi
rabbit = kunikl | duck = anas | snake = serpent | frog = ran | bee = abel | spider = arane | butterfly = papili
eagle = agl | donkey = azen | camel = kamel | turtle = testud
""",
    "food": """
apple = pom | pear = pir | cherry = ĉeriz | orange = oranĝ | egg = ov | cake = kuk | potato/potatoes = ter+pom
carrot = karot | onion = cep | nut = nuks | soup = sup | lemon = citron | bean = fab | tomato/tomatoes = tomat
banana = banan | cheese = fromaĝ | sausage = kolbas | melon = melon
""",
    "thing": """
book = libr | letter = leter | table = tabl | chair = seĝ | lamp = lamp | knife/knives = tranĉ+il | spoon = kuler
fork = fork | bottle = botel | cup = tas | plate = teler | key = ŝlos+il | door = pord | window = fenestr | bed = lit
clock = horloĝ | ring = ring | coin = moner | hat = ĉapel | shoe = ŝu | coat = mantel | shirt = ĉemiz | box = skatol
bag = sak | basket = korb | rope = ŝnur | hammer = martel | needle = kudr+il | picture = bild | flag = flag | ship = ŝip
boat = boat | wagon = ĉar | wheel = rad | bell = sonor+il | drum = tambur | violin = violon | candle = kandel
mirror = spegul | pen = plum | newspaper = ĵurnal | map = map | sword = glav | crown = kron | stone = ŝton
flower = flor | tree = arb | leaf/leaves = foli | branch = branĉ | rose = roz | star = stel | cloud = nub
""",
    "place": """
house = dom | city = urb | village = vilaĝ | street = strat | garden = ĝarden | forest = arb+ar | field = kamp
river = river | lake = lag | sea = mar | mountain = mont | island = insul | bridge = pont | church = preĝ+ej
school = lern+ej | kitchen = kuir+ej | room = ĉambr | tower = tur | castle = kastel | market = bazar | shop = butik
station = staci | port = haven | road = voj | square = plac | park = park | farm = bien | hotel = hotel
hospital = hospital | museum = muze | library = bibliotek | theatre = teatr | cave = kavern | desert = dezert
valley = val | well = put | wall = mur | roof = tegment | cellar = kel | yard = kort
""",
}
_ADJECTIVES = """
big = grand | small = mal+grand | good = bon | bad = mal+bon | new = nov | ancient = antikv | young = jun
strong = fort
weak = mal+fort | beautiful = bel | ugly = mal+bel | long = long | short = mal+long | warm = varm | cold = mal+varm
clean = pur | dirty = mal+pur | rich = riĉ | poor = mal+riĉ | happy = feliĉ | unhappy = mal+feliĉ | quick = rapid
slow = mal+rapid | heavy = pez | light = mal+pez | red = ruĝ | blue = blu | green = verd | yellow = flav | white = blank
black = nigr | brown = brun | grey = griz | round = rond | wise = saĝ | brave = kuraĝ | quiet = kviet | tired = lac
free = liber | important = grav | strange = strang | sweet = dolĉ | deep = profund | shallow = mal+profund | high = alt
low = mal+alt | wide = larĝ | narrow = mal+larĝ | soft = mol | hard = mal+mol | sharp = akr | dry = sek | wet = mal+sek
famous = fam | healthy = san | sick = mal+san | kind = afabl | proud = fier | simple = simpl | full = plen
empty = mal+plen | open = mal+ferm+it
"""
_VERBS = {
    ("person", "animal", "food", "thing", "place"): """
see/saw = vid | find/found = trov | love = am | know/knew = kon | remember = memor | admire = admir
show/showed = montr
forget/forgot = forges | describe = pri+skrib | mention = menci | praise = laŭd | hate = mal+am
look for/looked for = serĉ
""",
    ("thing", "food"): """
buy/bought = aĉet | sell/sold = vend | carry = port | take/took = pren | hide/hid = kaŝ | steal/stole = ŝtel
count = nombr | hold/held = ten | lose/lost = perd | need = bezon | choose/chose = elekt | throw/threw = ĵet
lift = lev | order = mend | bring/brought = al+port | receive = ricev | send/sent = send
""",
    ("thing",): """
repair = ripar | break/broke = romp | draw/drew = desegn | use = uz | touch = tuŝ | pull = tir | push = puŝ
clean = pur+ig | sharpen = akr+ig
""",
    ("place",): """
visit = vizit | build/built = konstru | leave/left = for+las | guard = gard | paint = farb | measure = mezur
""",
    ("food",): "eat/ate = manĝ | cook = kuir | smell = flar | wash = lav | taste = gust+um",
    ("person",): """
help = help | thank = dank | greet = salut | invite = invit | meet/met = renkont | teach/taught = instru | kiss = kis
call = vok | respect = respekt | punish = pun | comfort = konsol | trust = fid
""",
    ("person", "animal"): """
hear/heard = aŭd | follow = sekv | protect = protekt | save = sav | feed/fed = nutr | fear = tim | catch/caught = kapt
wake/woke = vek | lead/led = gvid | watch = rigard | attack = atak
""",
    ("animal",): "hunt = ĉas | ride/rode = rajd",
    (): """
sleep/slept = dorm | run/ran = kur | walk = promen | swim/swam = naĝ | sing/sang = kant | dance = danc | laugh = rid
cry = plor | work = labor | play = lud | sit/sat = sid | stand/stood = star | wait = atend | fall/fell = fal
jump = salt
speak/spoke = parol | dream = sonĝ | rest = ripoz | die = mort | travel/travelled = vojaĝ | think/thought = pens
shout = kri
whisper = flustr | tremble = trem | cough = tus | breathe = spir
""",
}
_ADVERBS = """
quickly = rapid | slowly = mal+rapid | quietly = kviet | often = oft | gladly = volont | suddenly = subit
carefully = zorg
early = fru | late = mal+fru | secretly = sekret | easily = facil | bravely = kuraĝ | well = bon | badly = mal+bon
loudly = laŭt | proudly = fier | sadly = trist | again = de+nov | alone = sol | rarely = mal+oft
"""
_PREPOSITIONS = {
    "where": """
in = en | on = sur | under = sub | near = apud | behind = mal+antaŭ | in front of = antaŭ | around = ĉirkaŭ
above = super | at = ĉe | beyond = trans | through = tra
""",
    "company": "with = kun | without = sen | for = por | after = post | against = kontraŭ | instead of = anstataŭ",
}
_NUMBERS = """
two = du | three = tri | four = kvar | five = kvin | six = ses | seven = sep | eight = ok | nine = naŭ | ten = dek
twelve = dek du | twenty = dudek | a hundred = cent | a thousand = mil
"""
_PRONOUNS = "I/me = mi | he/him = li | she/her = ŝi | we/us = ni | they/them = ili | you/you = vi"


@cache
def words() -> tuple[Word, ...]:
    """All words, in a fixed order; of equal English words of two kinds, such as `clean`, both."""
    found = [word for kind, text in _NOUNS.items() for word in _read(text, kind)]
    found += _read(_ADJECTIVES, "adjective")
    found += [w for objects, text in _VERBS.items() for w in _read(text, "verb" if objects else "motion", objects)]
    found += _read(_ADVERBS, "adverb")
    found += [word for kind, text in _PREPOSITIONS.items() for word in _read(text, kind)]
    return (*found, *_read(_NUMBERS, "number"), *_read(_PRONOUNS, "pronoun"))


@cache
def of_kind(*kinds: str) -> tuple[Word, ...]:
    """The words of these kinds."""
    return tuple(word for word in words() if word.kind in kinds)


@cache
def named(english: str, *kinds: str) -> Word:
    """The word with this English base form, of one of the kinds."""
    return next(word for word in words() if word.english == english and (not kinds or word.kind in kinds))


def roots() -> set[str]:
    """All Esperanto roots, without affixes."""
    return {part for word in words() for root in word.roots for part in root.split() if part not in AFFIXES}


@cache
def opposites() -> dict[str, str]:
    """Adjectives whose opposite differs by mal- alone, both ways."""
    stems = {word.stem: word.english for word in of_kind("adjective")}
    pairs = {stems[stem]: stems["mal" + stem] for stem in stems if "mal" + stem in stems}
    return {**pairs, **{there: here for here, there in pairs.items()}}


def _read(text: str, kind: str, objects: tuple[str, ...] = ()) -> list[Word]:
    found = []
    for entry in re.split(r"[|\n]", text):
        if not entry.strip():
            continue
        english, _, stem = (part.strip() for part in entry.partition("="))
        base, _, irregular = english.partition("/")
        found.append(Word(base, kind, irregular, tuple(stem.split("+")), objects))
    return found
