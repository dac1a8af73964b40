"""What a glTF tree of trimesh lacks: names, notes on the making, tangents under their own name, targets of buffer views."""

from typing import Any

ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963  # targets of a buffer view (section 3.6.2.4): vertex attributes, indices


def complete_tree(tree: dict[str, Any], name: str, extras: dict[str, Any]) -> None:
    """Complete the tree of a GLB with one mesh and one material.

    Args:
        tree: the JSON of the file, changed in place.
        name: of the material and its pictures.
        extras: JSON values for ``asset.extras``: prompt, seed, licence notes; "copyright" is for ``asset.copyright``. The
            prompt is in the extras of the scene too, which modelling programs keep.
    """
    credit = {"copyright": extras["copyright"]} if "copyright" in extras else {}
    noted = {key: value for key, value in extras.items() if key not in credit}
    tree["asset"] = {"version": "2.0", "generator": "Somnia", **credit, "extras": noted}
    if "prompt" in extras:
        tree["scenes"][tree.get("scene", 0)]["extras"] = {"prompt": extras["prompt"]}
    for primitive in (primitive for mesh in tree["meshes"] for primitive in mesh["primitives"]):
        attributes = primitive["attributes"]
        if "_TANGENT" in attributes:  # trimesh writes custom attributes with a leading underscore only
            attributes["TANGENT"] = attributes.pop("_TANGENT")
        for accessor in attributes.values():
            _view(tree, accessor)["target"] = ARRAY_BUFFER
        if "indices" in primitive:
            _view(tree, primitive["indices"])["target"] = ELEMENT_ARRAY_BUFFER
    for material in tree.get("materials", []):
        _name_image(tree, material.get("pbrMetallicRoughness", {}).get("baseColorTexture"), name)
        _name_image(tree, material.get("normalTexture"), f"{name} normal")


def _view(tree: dict[str, Any], accessor: int) -> dict[str, Any]:
    """The buffer view of an accessor."""
    view: dict[str, Any] = tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]
    return view


def _name_image(tree: dict[str, Any], info: dict[str, Any] | None, name: str) -> None:
    """Name the picture of a texture."""
    if info is not None:
        tree["images"][tree["textures"][info["index"]]["source"]]["name"] = name
