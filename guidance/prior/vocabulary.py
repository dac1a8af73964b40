"""The words that the embedded prior knows: kinds, colours, parts, harmless words, and words of similar meaning."""

from dataclasses import dataclass

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.83, 0.10, 0.10),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.96, 0.83, 0.12),
    "green": (0.13, 0.58, 0.19),
    "blue": (0.12, 0.28, 0.82),
    "purple": (0.52, 0.15, 0.66),
    "pink": (0.96, 0.53, 0.70),
    "brown": (0.45, 0.27, 0.13),
    "white": (0.94, 0.94, 0.92),
    "black": (0.10, 0.10, 0.11),
}


@dataclass(frozen=True)
class Wording:
    """How captions describe a kind.

    Attributes:
        default: colour names of the two colour slots where the caption names none.
        single: which slot (0 or 1) takes the colour of "a red <kind>"; the other keeps its default. None: both take it.
        part: words after "with" for "a <first> <kind> with <a second part>", "" if the kind has no such phrase.
        plain: whether the kind has fixed colours.
    """

    default: tuple[str, str]
    single: int | None = 0
    part: str = ""
    plain: bool = False


WORDINGS: dict[str, Wording] = {
    "mushroom": Wording(("white", "red"), 1, "a {} cap"),
    "tree": Wording(("green", "brown"), 0, "a {} trunk"),
    "snowman": Wording(("white", "black"), 0, "a {} hat"),
    "rocket": Wording(("white", "red"), 0, "a {} nose"),
    "lamp": Wording(("brown", "yellow"), 1, "a {} shade"),
    "hamburger": Wording(("brown", "brown"), plain=True),
    "chair": Wording(("brown", "brown"), None),
    "table": Wording(("brown", "brown"), None),
    "mug": Wording(("white", "white"), None),
    "car": Wording(("red", "red"), None, "a {} roof"),
    "house": Wording(("white", "red"), 0, "a {} roof"),
    "airplane": Wording(("white", "white"), None, "{} wings"),
    "dog": Wording(("brown", "brown"), None, "{} ears"),
    "boat": Wording(("red", "white"), 0, "a {} cabin"),
    "cube": Wording(("red", "red"), None),
    "ball": Wording(("red", "red"), None),
    "cone": Wording(("orange", "orange"), None),
    "cylinder": Wording(("blue", "blue"), None),
    "pyramid": Wording(("yellow", "yellow"), None),
    "donut": Wording(("pink", "brown"), 0),
    "bottle": Wording(("green", "white"), 0, "a {} cap"),
    "bed": Wording(("blue", "white"), 0, "a {} pillow"),
    "sofa": Wording(("red", "red"), None),
    "cactus": Wording(("green", "brown"), 0, "a {} pot"),
    "ice cream": Wording(("pink", "brown"), 0),
    "teddy bear": Wording(("brown", "brown"), None),
    "duck": Wording(("yellow", "orange"), 0, "a {} beak"),
    "umbrella": Wording(("red", "brown"), 0, "a {} handle"),
}
TOPS = ("ball", "cone", "cube", "pyramid")
BASES = ("cylinder", "cube")
STACKED = {f"{top} on {base}": (top, base) for top in TOPS for base in BASES}
STACK_COLORS = ("red", "blue")  # of a stack whose colours are not named
KIND_NAMES: tuple[str, ...] = (*WORDINGS, *STACKED)

# Spellings that are replaced.
SPELLINGS = {"aeroplane": "airplane", "doughnut": "donut", "icecream": "ice cream", "teddybear": "teddy bear"}
# Words of similar meaning: only suggested, never replaced, as a jet is not the airplane that the prior would generate.
MEANINGS: dict[str, str] = {
    "airplane": "plane jet aircraft airliner biplane glider helicopter drone zeppelin airship bird",
    "ball": "sphere globe orb football balloon planet moon",
    "bed": "cot bunk mattress crib",
    "boat": "ship yacht sailboat ferry canoe vessel raft submarine steamer",
    "bottle": "flask vase jar jug carafe",
    "cactus": "succulent plant",
    "car": "auto automobile truck van bus taxi jeep vehicle tractor pickup wagon limousine",
    "chair": "seat stool armchair throne bench",
    "cube": "box block dice crate brick",
    "cylinder": "tube can barrel drum pillar column",
    "dog": "puppy hound cat kitten wolf fox horse pony cow sheep pig lion tiger animal",
    "donut": "bagel ring torus",
    "duck": "duckling bird goose swan chicken hen penguin",
    "hamburger": "burger cheeseburger sandwich bun",
    "house": "cottage hut home building barn castle villa shed church",
    "ice cream": "gelato sundae cornet",
    "lamp": "light lantern torch chandelier",
    "mug": "cup teacup tankard beaker goblet",
    "mushroom": "toadstool fungus",
    "pyramid": "tetrahedron",
    "rocket": "spaceship spacecraft missile shuttle",
    "sofa": "couch settee armchair bench",
    "table": "desk counter bench",
    "teddy bear": "bear teddy panda koala plush",
    "tree": "pine fir oak palm spruce birch bush plant",
    "umbrella": "parasol sunshade",
    "red": "crimson scarlet ruby",
    "orange": "amber",
    "yellow": "gold golden",
    "green": "lime olive emerald teal turquoise",
    "blue": "navy azure cyan teal turquoise",
    "purple": "violet lilac magenta",
    "pink": "rose magenta",
    "brown": "beige tan wooden",
    "white": "ivory silver grey gray beige",
    "black": "dark grey gray",
}


@dataclass(frozen=True)
class Parts:
    """The parts of a kind beside the whole, and what decides their colours. Commas part the parts, spaces their names.

    Attributes:
        first, second: the part whose colour is slot 0 or 1.
        with_first, with_second: parts that have the colour of that slot too, and cannot have another.
        fixed: colour -> parts that always have it.
    """

    first: str = ""
    second: str = ""
    with_first: str = ""
    with_second: str = ""
    fixed: dict[str, str] | None = None


# Each entry says what the materials of guidance/prior/kinds.py are; a test compares them. The first name is the usual one.
PARTS: dict[str, Parts] = {
    "mushroom": Parts("stem stalk foot", "cap"),
    "tree": Parts("leaves foliage needles crown branches", "trunk stem"),
    "snowman": Parts("body", "hat", "head snow", fixed={"orange": "nose carrot", "black": "eyes, buttons"}),
    "rocket": Parts("body hull", "nose tip", "", "fins", {"black": "nozzle", "light blue": "window porthole"}),
    "lamp": Parts("stand foot base pole stem", "shade lampshade"),
    "hamburger": Parts(fixed={"brown": "bun, patty meat", "yellow": "cheese", "green": "lettuce salad", "cream": "seeds"}),
    "chair": Parts(with_first="seat, back backrest, legs feet"),
    "table": Parts(with_first="top tabletop, legs feet"),
    "mug": Parts(with_first="handle, rim"),
    "car": Parts(
        "body",
        "roof",
        fixed={
            "black": "wheels tyres tires",
            "light blue": "windows cabin windscreen windshield",
            "yellow": "lights headlights",
            "dark red": "taillights",
        },
    ),
    "house": Parts("walls", "roof", fixed={"brown": "door", "light blue": "windows"}),
    "airplane": Parts("body fuselage", "wings", "", "tail, fin", {"light blue": "cockpit windows"}),
    "dog": Parts("body fur", "ears", "head, neck, snout muzzle, legs paws feet, tail", fixed={"black": "nose, eyes"}),
    "boat": Parts("hull", "cabin", "deck", fixed={"light blue": "windows", "black": "funnel chimney"}),
    "donut": Parts("icing glaze frosting topping", fixed={"brown": "dough"}),
    "bottle": Parts("body", "cap lid", "neck, shoulder"),
    "bed": Parts(
        "blanket cover duvet quilt bedspread",
        "pillow cushion",
        fixed={"brown": "frame, headboard, legs feet", "cream": "sheet mattress"},
    ),
    "sofa": Parts(with_first="seat cushions, back backrest, arms armrests", fixed={"brown": "feet legs"}),
    "cactus": Parts("stem body", "pot", "arms branches"),
    "ice cream": Parts("scoop", fixed={"brown": "cone wafer"}),
    "teddy bear": Parts(
        with_first="body fur, head, ears, arms, legs feet paws", fixed={"cream": "snout muzzle", "black": "nose, eyes"}
    ),
    "duck": Parts("body", "beak bill", "head, neck, wings, tail", fixed={"black": "eyes"}),
    "umbrella": Parts("canopy", "handle", "", "stick pole shaft, hook"),
}
PARTS |= {kind: Parts() for kind in WORDINGS if kind not in PARTS}

# Words that change nothing which the prior could show: size, age, material, quality, medium, style.
HARMLESS = frozenset(
    """cute small big little tiny large huge mini miniature giant great tall short old new young ancient antique vintage
    retro modern classic wooden wood stone metal metallic plastic ceramic clay glass rubber leather marble steel iron
    paper porcelain shiny glossy matte smooth soft clean simple plain basic nice pretty beautiful lovely adorable funny
    fun amazing awesome cool elegant fancy perfect best good masterpiece high low quality resolution res hd uhd 4k 8k 2k
    16k hq detailed highly very really super ultra extremely detail details intricate sharp focus photo photos photograph
    photography picture image drawing painting illustration sketch sculpture figurine figure render rendering rendered cgi
    3d model toy asset game object mesh realistic photorealistic realism cartoon cartoonish cartoony animated
    anime stylized stylised style lowpoly poly polygon art artistic artwork dslr wide angle zoomed shot closeup close
    front side full centered centred isolated studio lighting lit octane blender unreal engine pixar disney single one
    solo lone only just my your our some kind sort type typical ordinary normal regular common standard real friendly
    happy sitting standing lying placed parked please generate make create show want color colour colors colours""".split()
)
# Nouns of what is around an object: the prior has no surroundings, so they are ignored with their colours.
SURROUNDINGS = frozenset("background backdrop scene".split())
SHADES = frozenset("light dark bright pale deep vivid pastel".split())  # ignored before a colour
GLUE = frozenset(
    """a an the of is are was its it his her their that this which who there by from as to for at against made & i you me we
    us would like painted colored coloured""".split()
)
WITH = frozenset("with having has have whose wearing featuring plus".split())
ON = frozenset("on atop upon onto".split())
BESIDE = frozenset("in inside under below beneath behind beside near above over between next through into".split())
NEGATIONS = frozenset("without no not minus except never non none lacking nothing neither nor".split())
COUNTS = frozenset(
    """two three four five six seven eight nine ten eleven twelve dozen dozens couple pair pairs several many few multiple
    various lots bunch group crowd collection row both double triple""".split()
)
PLURALS = {"snowmen": "snowman", "cacti": "cactus", "buses": "car"}
# English words that look like a mistyped known word and are none.
REAL_WORDS = frozenset(
    """bat bot boa boy lap lam cub cue con tee pin set sea sees yes opt had era char dont handler share shady should quit brawn
    racket choir battle cram wells wills walks shout loaves nuzzle party petty putty stack stock stuck thee hose tale brow shad
    wins bar handled matters""".split()
)
