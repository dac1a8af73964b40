"""Objectives say before the first step what they cannot look at, and make only the terms that have a weight."""

from dataclasses import replace
from types import SimpleNamespace as Space

import pytest
import torch

from guidance.base import GeometryEstimate
from nerf.config.config import Config
from nerf.config.stages import STAGE_KINDS, Stage
from nerf.core.errors import UserError
from nerf.core.structs import StepPlan, SurfaceState
from nerf.training import objectives
from tests.helpers.parts import part_of


def plan(*parts, **weights):
    return StepPlan(0, 0.0, parts, weights)


def stage(name):
    return Stage(STAGE_KINDS[name], Config())


def tetrahedron():
    """A surface of four triangles whose distances change sign on one edge."""
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], requires_grad=True)
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    return SurfaceState(vertices, faces, torch.tensor([-0.5, 0.5], requires_grad=True), torch.tensor([[0, 1]]))


def test_random_rays_are_refused_by_what_needs_whole_images():
    random, whole = part_of("guided", num_rays=8), part_of("guided")
    guided, weights = objectives.Guided([Space(name="SD")]), {"sds/SD": 1.0}
    patches = part_of("guided", layout="patches", num_rays=8, patch_size=2)
    objectives.check([guided], plan(whole, **weights))
    with pytest.raises(UserError, match="in the layout 'patches'"):
        objectives.check([guided], plan(patches, **weights))
    with pytest.raises(UserError, match="Guided needs whole images.*supplies 8 rays in the layout 'rays'"):
        objectives.check([guided], plan(random, **weights))


def test_terms_of_samples_are_told_where_there_are_only_triangles():
    asked = plan(part_of("guided"), orient=0.1, normal_smooth_3d=0.0, normal_smooth_2d=0.1)
    made = [objectives.RayRegularisers(), objectives.Smoothness(None)]
    assert objectives.inapplicable_terms(made, asked, stage("nerf")) == []
    (line,) = objectives.inapplicable_terms(made, asked, stage("dmtet"))
    assert line.startswith("orient has a weight")


class Knows:
    """Guidance that takes every image to show a wall at depth 3 that faces the camera, in its left half."""

    name, knows_geometry = "SD", True

    def geometry(self, image, views, part, control):
        b, _, h, w = image.shape
        normal = torch.zeros(b, 3, h, w)
        normal[:, 2] = 1.0
        coverage = torch.zeros(b, h, w)
        coverage[..., : w // 2] = 1.0
        return GeometryEstimate(torch.full((b, h, w), 3.0), normal, coverage)


def rendered(trace):
    """Two pixels, the left one a surface at depth 3.25 that is turned by 60 degrees; with or without its sample."""
    depth = torch.tensor([3.25, 3.25], requires_grad=True)
    normal = torch.tensor([[0.0, 0.75**0.5, 0.5]] * 2, requires_grad=True)
    samples = Space(t=torch.tensor([3.25, 3.25]), ray_index=torch.tensor([0, 1]))
    weights = torch.ones(2, requires_grad=True)
    return Space(
        image=torch.zeros(2, 3),
        as_images=lambda flat: flat.T.reshape(1, 3, 1, 2),
        depth=depth,
        opacity=torch.ones(2),
        normal=normal,
        trace=Space(weights=weights, samples=samples) if trace else None,
    )


@pytest.mark.parametrize("trace", [True, False])
def test_the_geometry_that_guidance_expects_is_compared_where_it_sees_the_object(trace):
    part = part_of("guided")
    asked = replace(plan(part, prior_depth=1.0, prior_normal=1.0), controls={"SD": None})
    terms = objectives.PriorGeometry(Knows())(rendered(trace), Space(views=object()), part, asked).terms
    assert {name: term.item() for name, term in terms.items()} == pytest.approx({"prior_depth": 0.25, "prior_normal": 0.5})
    terms["prior_depth"].backward()


def test_geometry_is_asked_of_guidance_that_knows_it_and_a_weight_without_one_is_told():
    asked = plan(part_of("guided"), prior_depth=1.0)
    (line,) = objectives.inapplicable_terms([objectives.Guided([Space(name="SD")])], asked, stage("nerf"))
    assert line.startswith("--lambda_prior_depth has a weight, but the guidance knows no geometry")
    assert objectives.inapplicable_terms([objectives.PriorGeometry(Knows())], asked, stage("dmtet")) == []


@pytest.mark.parametrize("name", objectives.MeshRegularisers.terms)
def test_a_term_of_the_surface_is_made_if_it_has_a_weight(name):
    out = Space(surface=tetrahedron())
    terms = objectives.MeshRegularisers("uniform")(out, None, part_of("guided"), plan(part_of("guided"), **{name: 2.0})).terms
    assert list(terms) == [name] and terms[name].ndim == 0 and terms[name].requires_grad


def test_the_laplacian_that_was_asked_for_is_taken():
    out, asked = Space(surface=tetrahedron()), plan(part_of("guided"), mesh_laplacian=1.0)
    found = [objectives.MeshRegularisers(kind)(out, None, part_of("guided"), asked).terms for kind in ("uniform", "cotangent")]
    assert found[0]["mesh_laplacian"].item() != found[1]["mesh_laplacian"].item()


def test_a_path_without_triangles_has_no_surface_terms():
    asked = plan(part_of("guided"), mesh_normal=1.0)
    assert objectives.MeshRegularisers("uniform")(Space(surface=None), None, part_of("guided"), asked).terms == {}


class Twin(objectives.RayRegularisers):
    """Makes the same terms as another objective."""


WEIGHTS = {"opacity": 1.0, "entropy": 1.0, "orient": 1.0}


def test_two_objectives_that_make_the_same_term_are_refused():
    objectives.check([objectives.RayRegularisers()], plan(part_of(), **WEIGHTS))
    with pytest.raises(ValueError, match="two of them make the term 'entropy'"):
        objectives.check([objectives.RayRegularisers(), Twin()], plan(part_of(), **WEIGHTS))


def test_a_term_without_a_weight_of_its_own_is_refused():
    with pytest.raises(ValueError, match="'orient' has no weight; add it to schedule.TERM_WEIGHTS"):
        objectives.check([objectives.RayRegularisers()], plan(part_of(), opacity=1.0, entropy=1.0))
