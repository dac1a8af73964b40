"""Parts of a step for tests: a request and settings from one list of names."""

from dataclasses import fields

from nerf.core.streams import Random
from nerf.core.structs import Part, RenderSettings, ViewRequest

ROLES = {"guided": {"guided": True}, "photos": {"has_targets": True}}


def part_of(source: str = "guided", seed: int = 0, **changes) -> Part:
    """A part of ``source`` with any fields of :class:`ViewRequest` and :class:`RenderSettings`."""
    if "num_rays" in changes:
        changes = {"layout": "rays"} | changes
    common = {"source": source, "random": Random(seed)}
    known = [{f.name for f in fields(record)} for record in (ViewRequest, RenderSettings)]
    assert set(changes) <= set.union(*known), changes
    request, settings = ({k: v for k, v in changes.items() if k in names} for names in known)
    return Part(ViewRequest(**common, **request), RenderSettings(**common, **settings), **ROLES.get(source, {}))
