"""The kinds of object, one function each: from proportions p and points x, y, z [M] to parts [(material, distance [M]), ...].

Materials: FIRST and SECOND are the colours a caption names; the others are fixed. Units: the object fills a ball of
radius 0.5. +Y up, front +Z.
"""

import torch

from guidance.prior.primitives import (
    box,
    capsule,
    cylinder,
    ellipsoid,
    frustum,
    gable,
    intersect,
    length,
    pyramid,
    sector,
    sphere,
    torus,
    union,
)
from guidance.prior.vocabulary import BASES, TOPS

# No kind uses METAL; it stays, because the training data stores the others by their numbers.
FIRST, SECOND, DARK, GLASS, LIGHT, WOOD, CARROT, PATTY, CHEESE, LETTUCE, BUN, METAL, CREAM = range(13)
FIXED_COLORS = {
    "dark": (0.09, 0.09, 0.10),
    "glass": (0.45, 0.68, 0.86),
    "light": (0.99, 0.95, 0.70),
    "wood": (0.42, 0.25, 0.12),
    "carrot": (0.95, 0.50, 0.08),
    "patty": (0.33, 0.17, 0.09),
    "cheese": (0.98, 0.76, 0.15),
    "lettuce": (0.36, 0.68, 0.20),
    "bun": (0.85, 0.58, 0.28),
    "metal": (0.62, 0.64, 0.67),
    "cream": (0.93, 0.88, 0.76),
}


def _mushroom(p, x, y, z):
    base = p.stem - 0.44
    cap = intersect(ellipsoid(x, y - base, z, p.radius, p.cap, p.radius), base - y)
    stem = frustum(x, y - (base - 0.44) / 2, z, p.thick * 1.15, p.thick * 0.85, (base + 0.44) / 2)
    return [(FIRST, stem), (SECOND, cap)]


def _tree(p, x, y, z):
    trunk = cylinder(x, y + 0.48 - p.trunk / 2, z, p.thick, p.trunk / 2 + 0.02)
    low = p.trunk - 0.48
    rest = 0.50 - low
    crown = union(
        frustum(x, y - low - 0.22 * rest, z, p.radius, 0.28 * p.radius, 0.22 * rest),
        frustum(x, y - low - 0.47 * rest, z, 0.80 * p.radius, 0.18 * p.radius, 0.20 * rest),
        frustum(x, y - low - 0.78 * rest, z, 0.60 * p.radius, 0.0, 0.22 * rest),
    )
    return [(FIRST, crown), (SECOND, trunk)]


def _snowman(p, x, y, z):
    low, mid, top = p.low, p.low * p.mid, p.low * p.mid * 0.78
    y0 = low - 0.50
    y1 = y0 + 0.82 * (low + mid)
    y2 = y1 + 0.84 * (mid + top)
    body = union(sphere(x, y - y0, z, low), sphere(x, y - y1, z, mid), sphere(x, y - y2, z, top))
    hat_y = y2 + 0.80 * top
    hat = union(cylinder(x, y - hat_y, z, top * 1.05, 0.018), cylinder(x, y - hat_y - 0.06, z, top * 0.68, 0.075))
    nose_z = z - top - 0.05
    nose = frustum(x, -nose_z, y - y2, 0.0, 0.036, 0.085)
    eyes = sphere(x.abs() - 0.38 * top, y - y2 - 0.30 * top, z - 0.86 * top, 0.030)
    buttons = union(
        sphere(x, y - y1 - 0.35 * mid, z - 0.93 * mid, 0.030), sphere(x, y - y1 + 0.20 * mid, z - 0.99 * mid, 0.030)
    )
    return [(FIRST, body), (SECOND, hat), (CARROT, nose), (DARK, union(eyes, buttons))]


def _rocket(p, x, y, z):
    r = p.radius
    body = cylinder(x, y + 0.06, z, r, 0.26)
    nose = intersect(ellipsoid(x, y - 0.20, z, r, p.nose, r), 0.20 - y)
    u, v = sector(x, z, 4)
    slant = ((u - r) + 0.75 * (y + 0.12)) * 0.8
    fins = intersect(slant, v.abs() - 0.026, -0.44 - y, u - r - p.fin, -u)
    nozzle = frustum(x, y + 0.37, z, r * 0.8, r * 0.55, 0.07)
    window = cylinder(x, z - r, y - 0.07, 0.40 * r + 0.03, 0.025)
    return [(FIRST, body), (SECOND, union(nose, fins)), (DARK, nozzle), (GLASS, window)]


def _lamp(p, x, y, z):
    foot = cylinder(x, y + 0.45, z, p.foot, 0.03, 0.01)
    pole = cylinder(x, y + 0.15, z, p.pole, 0.30)
    shade = frustum(x, y - 0.46 + p.height / 2, z, p.radius, p.radius * p.taper, p.height / 2)
    return [(FIRST, union(foot, pole)), (SECOND, shade)]


def _hamburger(p, x, y, z):
    r = p.radius
    low = cylinder(x, y + 0.22, z, r * 0.97, 0.075, 0.05)
    patty = cylinder(x, y + 0.09, z, r * 1.03, p.patty / 2 + 0.02, 0.03)
    cheese = intersect(box(x, y + 0.015, z, r * 0.86, 0.016, r * 0.86), length(x, z) - r * 1.13)
    angle = torch.atan2(z, x)
    lettuce = cylinder(x, y - 0.025 - 0.014 * torch.sin(9 * angle), z, r * 1.10 + 0.02 * torch.sin(7 * angle), 0.02) * 0.8
    top = intersect(ellipsoid(x, y - 0.05, z, r, p.dome, r), 0.05 - y)
    tilt = length(x, z)
    u, v = sector(x, z, 8)
    ring = 0.55 * r
    seed_y = 0.05 + p.dome * (1 - 0.55**2) ** 0.5
    seeds = union(
        ellipsoid(u - ring, y - seed_y, v, 0.026, 0.02, 0.017),
        ellipsoid(tilt, y - 0.05 - p.dome, z * 0, 0.026, 0.018, 0.026),
    )
    return [(BUN, low), (PATTY, patty), (CHEESE, cheese), (LETTUCE, lettuce), (BUN, top), (CREAM, seeds)]


def _chair(p, x, y, z):
    seat_y = p.seat - 0.46
    seat = box(x, y - seat_y, z, p.width, 0.035, p.depth, 0.01)
    back = box(x, y - (seat_y + 0.47) / 2, z + p.depth - 0.03, p.width, (0.47 - seat_y) / 2 * p.back, 0.032, 0.01)
    back = union(
        back,
        box(x.abs() - p.width + 0.03, y - (seat_y + 0.47) / 2, z + p.depth - 0.03, 0.03, (0.47 - seat_y) / 2, 0.03),
    )
    legs = box(x.abs() - p.width + p.leg, y - (seat_y - 0.46) / 2, z.abs() - p.depth + p.leg, p.leg, (seat_y + 0.46) / 2, p.leg)
    return [(FIRST, union(seat, back, legs))]


def _table(p, x, y, z):
    top_y = p.height / 2
    top = box(x, y - top_y, z, p.width, 0.035, p.depth, 0.01)
    half = p.height / 2
    legs = box(x.abs() - p.width + p.leg + 0.02, y, z.abs() - p.depth + p.leg + 0.02, p.leg, half, p.leg)
    return [(FIRST, union(top, legs))]


def _mug(p, x, y, z):
    x = x + 0.10
    outer = cylinder(x, y, z, p.radius, p.half, 0.015)
    inner = cylinder(x, y - 0.07, z, p.radius - 0.045, p.half)
    cup = torch.maximum(outer, -inner)
    ring = torus(x - p.radius, z, y, p.handle, p.tube)
    handle = torch.maximum(ring, p.radius - 0.03 - length(x, z))
    return [(FIRST, union(cup, handle))]


def _car(p, x, y, z):
    low = -0.17
    body = box(x, y - low - p.body / 2, z, p.width, p.body / 2 + 0.01, 0.46, 0.04)
    roof_y = low + p.body + p.cabin
    front = (z - 0.13 + 0.8 * (y - low - p.body)) / 1.28
    rear = (-z - 0.34 + 0.35 * (y - low - p.body)) / 1.06
    shell = intersect(front, rear, x.abs() - p.width * 0.88 + 0.15 * (y - low - p.body), low + p.body - y)
    cabin = intersect(shell, y - roof_y + 0.035)
    roof = intersect(shell - 0.004, y - roof_y, roof_y - 0.04 - y)
    wheels = cylinder(z.abs() - 0.27, x.abs() - p.width + 0.03, y - low + 0.01, p.wheel, 0.045)
    lights = sphere(x.abs() - p.width * 0.66, y - low - 0.55 * p.body, z - 0.45, 0.048)
    tail = box(x.abs() - p.width * 0.66, y - low - 0.6 * p.body, z + 0.45, 0.05, 0.025, 0.02)
    return [(FIRST, body), (SECOND, roof), (GLASS, cabin), (DARK, wheels), (LIGHT, lights), (PATTY, tail)]


def _house(p, x, y, z):
    eave = -0.36 + p.walls
    walls = box(x, y - (eave - 0.36) / 2, z, p.width, p.walls / 2, p.depth)
    gable_wall = gable(x, y - eave, z, p.width, p.depth, p.roof - 0.015)
    attic = gable(x, y - eave + 0.075, z, p.width + 0.06, 1.0, p.roof + 0.035)
    roof_solid = torch.maximum(gable(x, y - eave + 0.035, z, p.width + 0.06, p.depth + 0.05, p.roof + 0.035), -attic)
    door = box(x, y + 0.36 - 0.115, z - p.depth, 0.070, 0.115, 0.016)
    windows = box(x.abs() - p.width * 0.62, y - (eave - 0.36) / 2 - 0.03, z - p.depth, 0.05, 0.05, 0.014)
    side = box(x.abs() - p.width, y - (eave - 0.36) / 2 - 0.02, z.abs() - p.depth * 0.5, 0.014, 0.055, 0.055)
    return [(FIRST, union(walls, gable_wall)), (SECOND, roof_solid), (WOOD, door), (GLASS, union(windows, side))]


def _airplane(p, x, y, z):
    body = ellipsoid(x, y, z, p.radius, p.radius, 0.48)
    sweep = z - 0.08 + p.sweep * x.abs()
    wings = intersect(box(x, y + 0.02, sweep, p.span, 0.030, p.chord), x.abs() - p.span) * 0.9
    tail = box(x, y - 0.03, z + 0.38 + 0.4 * x.abs(), p.span * 0.42, 0.025, 0.065) * 0.9
    fin_z = z + 0.37 + 0.5 * (y - 0.12)
    fin = intersect(box(x, y - 0.12, fin_z, 0.026, 0.13, 0.075), -y) * 0.88
    cockpit = ellipsoid(x, y - 0.62 * p.radius, z - 0.26, 0.62 * p.radius, 0.5 * p.radius, 0.10)
    return [(FIRST, body), (SECOND, union(wings, tail, fin)), (GLASS, cockpit)]


def _dog(p, x, y, z):
    body = ellipsoid(x, y + 0.06, z + 0.06, p.girth, p.girth, 0.30)
    head_y, head_z = p.neck, 0.27
    head = sphere(x, y - head_y, z - head_z, p.head)
    neck = capsule(x, y, z, (0.0, -0.02, 0.12), (0.0, head_y, head_z), 0.085)
    snout = ellipsoid(x, y - head_y + 0.04, z - head_z - p.head - 0.02, 0.062, 0.055, 0.085)
    legs = capsule(x.abs() - p.girth * 0.62, y, (z + 0.06).abs() - 0.19, (0.0, -0.40, 0.0), (0.0, -0.10, 0.0), 0.055)
    tail = capsule(x, y, z, (0.0, 0.02, -0.33), (0.0, 0.20, -0.43), 0.035)
    ears = ellipsoid(x.abs() - p.head * 0.95, y - head_y - 0.01, z - head_z + 0.02, 0.04, 0.11, 0.065)
    nose = sphere(x, y - head_y + 0.02, z - head_z - p.head - 0.10, 0.030)
    eyes = sphere(x.abs() - 0.060, y - head_y - 0.045, z - head_z - p.head * 0.86, 0.026)
    return [(FIRST, union(body, head, neck, snout, legs, tail)), (SECOND, ears), (DARK, union(nose, eyes))]


def _boat(p, x, y, z):
    deck = -0.06
    depth = deck - y
    taper = 1 - ((z + 0.10).clamp(min=0) / 0.57).square()
    width = p.beam * taper.clamp(min=0) * (1 - 0.45 * (depth / p.hull).clamp(0, 1).square())
    hull = intersect((x.abs() - width) * 0.55, -depth, (depth - p.hull) * 0.8, -z - 0.42 + 0.25 * depth)
    cabin = box(x, y - deck - p.cabin / 2, z + 0.12, p.beam * 0.62, p.cabin / 2, 0.17, 0.01)
    windows = union(
        box(x, y - deck - 0.60 * p.cabin, z + 0.12, p.beam * 0.62 + 0.006, 0.032, 0.12),
        box(x, y - deck - 0.60 * p.cabin, z + 0.10, p.beam * 0.45, 0.035, 0.158),
    )
    funnel = cylinder(x, y - deck - p.cabin - 0.07, z + 0.16, 0.062, 0.10)
    return [(FIRST, hull), (SECOND, cabin), (GLASS, windows), (DARK, funnel)]


def _cube(p, x, y, z):
    return [(FIRST, box(x, y, z, p.half, p.half, p.half, 0.015))]


def _ball(p, x, y, z):
    return [(FIRST, sphere(x, y, z, p.radius))]


def _cone(p, x, y, z):
    return [(FIRST, frustum(x, y, z, p.radius, 0.0, p.half))]


def _cylinder(p, x, y, z):
    return [(FIRST, cylinder(x, y, z, p.radius, p.half, 0.01))]


def _pyramid(p, x, y, z):
    return [(FIRST, pyramid(x, y, z, p.side, p.half))]


def _donut(p, x, y, z):
    dough = torus(x, y, z, p.ring, p.tube)
    wave = 0.012 * torch.cos(8 * torch.atan2(z, x))
    icing = intersect(dough - 0.014, (0.035 + wave - y) * 0.9)
    return [(FIRST, icing), (BUN, dough)]


def _bottle(p, x, y, z):
    body = cylinder(x, y + 0.14, z, p.radius, 0.32, 0.02)
    shoulder = frustum(x, y - 0.18 - p.shoulder / 2, z, p.radius * 0.95, 0.07, p.shoulder / 2)
    neck = cylinder(x, y - 0.32, z, 0.062, 0.12)
    cap = cylinder(x, y - 0.44, z, 0.072, 0.045)
    return [(FIRST, union(body, shoulder, neck)), (SECOND, cap)]


def _bed(p, x, y, z):
    frame = union(
        box(x, y + 0.20, z, p.width, 0.05, 0.45),
        box(x, y + 0.20 - p.head / 2, z + 0.43, p.width, p.head / 2 + 0.06, 0.03),
        box(x.abs() - p.width + 0.04, y + 0.27, z.abs() - 0.41, 0.035, 0.07, 0.035),
    )
    blanket = box(x, y + 0.10, z - 0.10, p.width - 0.005, 0.085, 0.345, 0.03)
    sheet = box(x, y + 0.11, z, p.width - 0.02, 0.075, 0.42, 0.03)
    pillow = ellipsoid(x, y + 0.02, z + 0.31, p.width * 0.72, 0.055, 0.09)
    return [(WOOD, frame), (FIRST, blanket), (CREAM, sheet), (SECOND, pillow)]


def _sofa(p, x, y, z):
    seat = box(x, y + 0.12, z, p.width, 0.10, 0.22, 0.03)
    back = box(x, y - p.back / 2 + 0.10, z + 0.18, p.width, p.back / 2 + 0.12, 0.07, 0.03)
    arms = box(x.abs() - p.width + 0.02, y + 0.05, z - 0.01, 0.06, 0.17, 0.24, 0.03)
    feet = box(x.abs() - p.width + 0.06, y + 0.25, z.abs() - 0.17, 0.03, 0.05, 0.03)
    return [(FIRST, union(seat, back, arms)), (WOOD, feet)]


def _cactus(p, x, y, z):
    pot = frustum(x, y + 0.37, z, 0.15, 0.21, 0.11)
    stem = capsule(x, y, z, (0.0, -0.28, 0.0), (0.0, 0.36, 0.0), p.stem)
    arms = union(
        capsule(x.abs(), y, z, (0.0, p.arm, 0.0), (p.reach, p.arm, 0.0), 0.058),
        capsule(x.abs(), y, z, (p.reach, p.arm, 0.0), (p.reach, p.arm + 0.18, 0.0), 0.058),
    )
    return [(SECOND, pot), (FIRST, union(stem, arms))]


def _ice_cream(p, x, y, z):
    cone = frustum(x, y + 0.17, z, 0.0, p.radius * 0.92, 0.30)
    scoop = union(sphere(x, y - 0.20, z, p.radius), cylinder(x, y - 0.13, z, p.radius * 1.06, 0.03, 0.02))
    return [(BUN, cone), (FIRST, scoop)]


def _teddy_bear(p, x, y, z):
    body = ellipsoid(x, y + 0.17, z, p.girth, 0.24, p.girth * 0.9)
    head = sphere(x, y - 0.19, z - 0.02, p.head)
    ears = sphere(x.abs() - p.head * 0.78, y - 0.19 - p.head * 0.78, z, 0.075)
    arms = capsule(x.abs(), y, z, (p.girth * 0.8, -0.08, 0.02), (p.girth + 0.12, -0.20, 0.08), 0.068)
    legs = capsule(x.abs(), y, z, (0.11, -0.36, 0.05), (0.16, -0.40, 0.20), 0.082)
    snout = ellipsoid(x, y - 0.14, z - 0.02 - p.head * 0.9, 0.085, 0.065, 0.065)
    face = union(
        sphere(x, y - 0.165, z - 0.07 - p.head * 0.95, 0.028),
        sphere(x.abs() - 0.075, y - 0.25, z - 0.02 - p.head * 0.88, 0.027),
    )
    return [(FIRST, union(body, head, ears, arms, legs)), (CREAM, snout), (DARK, face)]


def _duck(p, x, y, z):
    body = ellipsoid(x, y + 0.16, z + 0.06, p.girth, 0.20, 0.34)
    tail = frustum(x, -(z + 0.36) * 0.8 + (y + 0.02) * 0.6, (y + 0.02) * 0.8 + (z + 0.36) * 0.6, 0.10, 0.0, 0.10)
    head = sphere(x, y - 0.18, z - 0.20, p.head)
    neck = capsule(x, y, z, (0.0, -0.08, 0.14), (0.0, 0.16, 0.20), 0.10)
    wings = ellipsoid(x.abs() - p.girth * 0.92, y + 0.12, z + 0.08, 0.045, 0.11, 0.19)
    beak = ellipsoid(x, y - 0.15, z - 0.20 - p.head - 0.04, 0.085, 0.032, 0.10)
    eyes = sphere(x.abs() - p.head * 0.55, y - 0.24, z - 0.20 - p.head * 0.70, 0.028)
    return [(FIRST, union(body, tail, head, neck, wings)), (SECOND, beak), (DARK, eyes)]


def _umbrella(p, x, y, z):
    dome = intersect(ellipsoid(x, y - 0.10, z, p.radius, p.dome, p.radius), 0.10 - y)
    hollow = ellipsoid(x, y - 0.06, z, p.radius - 0.03, p.dome - 0.01, p.radius - 0.03)
    canopy = torch.maximum(dome, -hollow)
    stick = cylinder(x, y - 0.02, z, 0.022, 0.40)
    hook = torch.maximum(torus(x - 0.07, z, y + 0.37, 0.07, 0.024), y + 0.37)
    return [(FIRST, canopy), (SECOND, union(stick, hook))]


def _stacked(top: str, base: str):
    def parts(p, x, y, z):
        floor = -0.46
        level = floor + 2 * p.base
        low = (
            cylinder(x, y - floor - p.base, z, p.width, p.base, 0.01)
            if base == "cylinder"
            else box(x, y - floor - p.base, z, p.width, p.base, p.width, 0.01)
        )
        high = {
            "ball": lambda: sphere(x, y - level - p.top * 0.96, z, p.top),
            "cone": lambda: frustum(x, y - level - p.top, z, p.top * 0.95, 0.0, p.top),
            "cube": lambda: box(x, y - level - p.top * 0.85, z, p.top * 0.85, p.top * 0.85, p.top * 0.85, 0.01),
            "pyramid": lambda: pyramid(x, y - level - p.top, z, p.top * 0.9, p.top),
        }[top]()
        return [(FIRST, high), (SECOND, low)]

    symmetry = "round" if top in ("ball", "cone") and base == "cylinder" else "mirror"
    return ({"base": (0.16, 0.20), "width": (0.21, 0.28), "top": (0.20, 0.26)}, parts, symmetry)


BUILDERS = {
    "mushroom": (
        {"stem": (0.40, 0.50), "radius": (0.34, 0.42), "cap": (0.28, 0.38), "thick": (0.09, 0.13)},
        _mushroom,
        "round",
    ),
    "tree": ({"trunk": (0.16, 0.24), "radius": (0.30, 0.38), "thick": (0.055, 0.085)}, _tree, "round"),
    "snowman": ({"low": (0.20, 0.23), "mid": (0.70, 0.78)}, _snowman, "mirror"),
    "rocket": ({"radius": (0.13, 0.17), "nose": (0.24, 0.31), "fin": (0.12, 0.18)}, _rocket, "mirror"),
    "lamp": (
        {
            "foot": (0.16, 0.22),
            "pole": (0.035, 0.05),
            "radius": (0.28, 0.35),
            "taper": (0.50, 0.70),
            "height": (0.32, 0.42),
        },
        _lamp,
        "round",
    ),
    "hamburger": ({"radius": (0.37, 0.42), "dome": (0.20, 0.26), "patty": (0.10, 0.14)}, _hamburger, "mirror"),
    "chair": (
        {"seat": (0.38, 0.46), "width": (0.20, 0.25), "depth": (0.20, 0.25), "back": (0.80, 1.0), "leg": (0.03, 0.045)},
        _chair,
        "mirror",
    ),
    "table": (
        {"height": (0.46, 0.58), "width": (0.38, 0.44), "depth": (0.24, 0.32), "leg": (0.035, 0.05)},
        _table,
        "mirror",
    ),
    "mug": (
        {"radius": (0.25, 0.30), "half": (0.27, 0.34), "handle": (0.16, 0.20), "tube": (0.042, 0.055)},
        _mug,
        "none",
    ),
    "car": (
        {"body": (0.15, 0.19), "cabin": (0.14, 0.18), "width": (0.20, 0.24), "wheel": (0.095, 0.115)},
        _car,
        "mirror",
    ),
    "house": (
        {"walls": (0.34, 0.42), "width": (0.28, 0.34), "depth": (0.26, 0.32), "roof": (0.26, 0.34)},
        _house,
        "mirror",
    ),
    "airplane": (
        {"radius": (0.10, 0.13), "span": (0.42, 0.48), "chord": (0.085, 0.11), "sweep": (0.15, 0.35)},
        _airplane,
        "mirror",
    ),
    "dog": ({"girth": (0.13, 0.16), "head": (0.125, 0.145), "neck": (0.20, 0.25)}, _dog, "mirror"),
    "boat": ({"beam": (0.20, 0.25), "hull": (0.19, 0.25), "cabin": (0.15, 0.20)}, _boat, "mirror"),
    "cube": ({"half": (0.27, 0.33)}, _cube, "mirror"),
    "ball": ({"radius": (0.36, 0.45)}, _ball, "round"),
    "cone": ({"radius": (0.28, 0.36), "half": (0.36, 0.44)}, _cone, "round"),
    "cylinder": ({"radius": (0.22, 0.30), "half": (0.32, 0.40)}, _cylinder, "round"),
    "pyramid": ({"side": (0.32, 0.38), "half": (0.26, 0.34)}, _pyramid, "mirror"),
    "donut": ({"ring": (0.28, 0.32), "tube": (0.11, 0.15)}, _donut, "round"),
    "bottle": ({"radius": (0.14, 0.19), "shoulder": (0.10, 0.16)}, _bottle, "round"),
    "bed": ({"width": (0.26, 0.32), "head": (0.22, 0.32)}, _bed, "mirror"),
    "sofa": ({"width": (0.38, 0.44), "back": (0.26, 0.34)}, _sofa, "mirror"),
    "cactus": ({"stem": (0.085, 0.11), "arm": (-0.04, 0.08), "reach": (0.18, 0.24)}, _cactus, "mirror"),
    "ice cream": ({"radius": (0.21, 0.26)}, _ice_cream, "round"),
    "teddy bear": ({"girth": (0.17, 0.21), "head": (0.18, 0.21)}, _teddy_bear, "mirror"),
    "duck": ({"girth": (0.19, 0.23), "head": (0.14, 0.17)}, _duck, "mirror"),
    "umbrella": ({"radius": (0.40, 0.46), "dome": (0.26, 0.32)}, _umbrella, "none"),
    **{f"{top} on {base}": _stacked(top, base) for top in TOPS for base in BASES},
}
